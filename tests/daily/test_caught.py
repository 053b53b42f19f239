"""What went wrong with a day, or with a model, is caught by name before anything is released."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from stack.audits.data_report import DataReport
from stack.base.dist import process_group
from stack.base.errors import AuditError
from stack.checkpoint.listing import facts
from stack.checkpoint.told import of_facts
from stack.daily.verb import QUARANTINED_STATUS
from stack.export.config import ExportConfig
from stack.export.export import Trained, export
from stack.layers.norm import BatchNorm
from stack.train.trained import open_run
from tests.daily.conftest import copy_of
from tests.daily.days import change_day, tenfold, with_a_constant_price, with_flipped_labels, with_one_nan
from tests.daily.worker import DAYS, Nights, chain, finished, learn, learn_days, log_of
from tests.train.worker import Run, setup_of

CPU = torch.device("cpu")
Change = Callable[[pa.Table], pa.Table]


def _spoilt(learnt: Run, folder: Path, change: Change) -> Run:
    """The run on a copy of its data whose next day is as `change` makes it."""
    run = copy_of(learnt, folder, dataset=folder / "data")
    change_day(Path(run.dataset), DAYS[5], change)
    return run


def _stopped(run: Run, capsys: pytest.CaptureFixture[str], *, allow: tuple[str, ...] = ()) -> str:
    """What is said of the next day, which is not learnt."""
    before = finished(run)
    with pytest.raises(SystemExit) as ended:
        learn(Nights(run=run, first=DAYS[5], last=DAYS[5], allow=allow))
    assert (ended.value.code, finished(run)) == (QUARANTINED_STATUS, before)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_one_nan, "not finite values in impression.item_count: 1 of 270 values are NaN or infinite"),
        (with_flipped_labels, "label flip of impression.clicked: "),
        (with_a_constant_price, "constant feature impression.price: all 270 values are the same (2.5); the commonest"),
        (tenfold, "volume: 2016-07-23 has 3,510 examples, 9.64 times the"),
    ],
)
def test_a_day_that_is_not_what_days_were_is_stopped_by_name(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str
) -> None:
    run = _spoilt(learnt, tmp_path, change)
    assert f"stack: {DAYS[5]} is quarantined: {said}" in _stopped(run, capsys)
    assert "label rate" not in str(log_of(run)[-1]["findings"])
    report = msgspec.json.decode((run.folder / f"audit/days/{DAYS[5]}.json").read_bytes(), type=DataReport)
    assert report.reference_days == DAYS[:5]


def test_an_ordinary_day_is_not_stopped_and_what_is_odd_about_it_is_said(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(learnt, tmp_path)
    narrow: dict[str, int | float] = {"warn_distance": 1e-6, "warn_divergence": 1e-6, "sigmas": 0.1}
    learn(Nights(run=run, first=DAYS[5], last=DAYS[5], audit_data=narrow))
    told = log_of(run)[-1]
    assert {one["level"] for one in told["findings"]} == {"warning"}  # type: ignore[attr-defined]
    assert f"warning: {DAYS[5]}: distribution of " in capsys.readouterr().out
    assert finished(run)[-1].lineage.overridden is msgspec.UNSET


def test_what_is_overridden_is_on_record_and_no_more_than_what_was_told(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _spoilt(learnt, tmp_path, with_a_constant_price)
    assert "constant feature" in _stopped(run, capsys, allow=("quarantined",)), "nobody was told of it before"
    learn(Nights(run=run, first=DAYS[5], last=DAYS[5], allow=("quarantined",)))
    assert f"overridden: {DAYS[5]}: constant feature impression.price: " in capsys.readouterr().out
    version = finished(run)[-1]
    shown = facts(chain(run), version, None)
    assert [line.partition(":")[0] for line in shown.overridden] == ["constant feature impression.price"]
    assert "findings overridden" in shown.row.marks
    console = Console(width=300)
    with console.capture() as told:
        console.print(of_facts(shown)[0])
    assert "learnt although" in told.get()


def test_numbers_that_are_not_finite_are_not_learnt_whatever_is_allowed(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _spoilt(learnt, tmp_path, with_one_nan)
    assert "not finite values in impression.item_count" in _stopped(run, capsys)
    assert "not finite values in impression.item_count" in _stopped(run, capsys, allow=("quarantined",))
    assert len(list((run.folder / "checkpoints" / "quarantine").glob(f"{DAYS[5]}-*.json"))) == 2


@pytest.fixture
def stuck_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms that `eval()` does not reach."""

    def train(self: BatchNorm, mode: bool = True) -> BatchNorm:
        return torch.nn.Module.train(self, True)  # type: ignore[return-value]

    monkeypatch.setattr(BatchNorm, "train", train)


@pytest.mark.usefixtures("stuck_in_training")
def test_a_batch_norm_left_in_training_mode_is_named_before_a_day_is_learnt_or_a_package_made(
    learnt: Run, tmp_path: Path
) -> None:
    run = copy_of(learnt, tmp_path)
    before = finished(run)
    with pytest.raises(AuditError, match=r"scoring stops: training mode: .*head\.\S+: BatchNorm computes as in train"):
        learn_days(run, DAYS[5])
    assert finished(run) == before
    with process_group(device=CPU):
        opened = open_run(setup_of(run), version=None, device=CPU)
        trained = Trained(
            name=run.name, model=opened.user_model, checkpoint=opened.checkpoint, dataset=opened.dataset
        )  # fmt: skip
        with pytest.raises(AuditError, match=r"export stops: training mode: .*head\.\S+: BatchNorm computes as in"):
            export(trained, folder=tmp_path / "package", config=ExportConfig())
    assert not (tmp_path / "package").exists()


def test_a_profile_that_was_kept_is_not_read_again_but_where_the_day_is_another(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    learn_days(run, DAYS[5])
    folder = run.folder / "audit" / "profiles"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(kept) == [f"{day}.json" for day in DAYS[:6]]
    shutil.rmtree(run.folder / "audit" / "days")
    (folder / f"{DAYS[3]}.json").write_bytes(b'{"half')
    change_day(Path(run.dataset), DAYS[4], lambda rows: rows.slice(0, rows.num_rows - 1))
    learn_days(run, DAYS[6])
    new = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in new if kept.get(name) != new[name]} == {f"{DAYS[day]}.json" for day in (3, 4, 6)}
