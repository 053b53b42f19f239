"""Days as versions: each on top of the one before, once, judged before it is learnt; what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace as dataclass_replace
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from stack.base.dist import process_group
from stack.base.errors import CheckpointError, ConfigError, DataError
from stack.checkpoint.chain import Chain
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.restore import restore
from stack.daily import day as day_module
from stack.daily.config import DailyConfig
from stack.daily.day import flat
from stack.daily.prepare import days_asked
from stack.daily.verb import QUARANTINED_STATUS
from stack.data.dataset import Dataset
from stack.evaluate.figures import figures_of
from stack.evaluate.predict import predict
from stack.evaluate.scorer import scorer_of
from stack.tables.shard import table_shards
from stack.train.trained import open_run
from stack.train.verb import STOPPED_STATUS, train
from tests.daily.conftest import copy_of
from tests.daily.days import change_day, empty, tiny, with_flipped_labels, with_nan_labels, without_the_last_timeline
from tests.daily.worker import DAYS, Nights, chain, finished, first_training, learn, learn_days, log_of
from tests.train.worker import Run, Stop, setup_of

CPU = torch.device("cpu")


def versions(run: Run) -> list[int]:
    return list(chain(run).numbers())


def test_each_day_is_a_version_on_top_of_the_one_before(learnt: Run) -> None:
    base, *days = finished(learnt)
    assert base.lineage.verb == "train"
    assert [version.lineage.day for version in days] == list(DAYS[2:5])
    assert [version.context.data_days for version in days] == [DAYS[:3], DAYS[:4], DAYS[:5]]
    assert all(before.step < version.step for before, version in zip([base, *days], days, strict=False))
    log = log_of(learnt)
    assert [(line["day"], line["version"], line["outcome"]) for line in log] == [
        (version.lineage.day, version.version, "trained") for version in days
    ]
    assert all(line["steps"] == 4 and line["rows"] > 0 for line in log)


def test_figures_of_the_version_before_are_those_of_evaluating_it(learnt: Run) -> None:
    before, version = finished(learnt)[1:3]
    setup = setup_of(learnt)
    with process_group(device=CPU):
        run = open_run(setup, version=str(before.version), device=CPU)
        tasks = {name: run.user_model.task(name).sampling for name in run.user_model.tasks}
        found = predict(
            scorer_of(run.model, device=CPU), Dataset(setup.dataset), days=[DAYS[3]], tasks=tasks,
            timelines_per_batch=16,
        )  # fmt: skip
    expected = flat(figures_of(found))
    assert expected["before/ctr/uniform/auc"] is not None
    assert {name: value for name, value in version.metrics.items() if name.startswith("before/")} == expected


def test_the_same_words_again_do_nothing(learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(learnt, tmp_path)
    before, log = versions(run), log_of(run)
    learn_days(run, DAYS[2], DAYS[4])
    assert (versions(run), log_of(run)) == (before, log)
    assert f"{DAYS[4]} is version {before[-1]} already, made from the same inputs" in capsys.readouterr().out


def test_a_line_that_a_kill_lost_is_told_again_and_half_a_line_is_cut(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path)
    log, path = log_of(run), run.folder / "daily.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    learn_days(run, DAYS[4])
    assert [line | {"seconds": {}} for line in log_of(run)] == [line | {"seconds": {}} for line in log]


def test_changed_inputs_of_the_last_day_take_its_place(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    old = finished(run)
    change_day(Path(run.dataset), DAYS[4], without_the_last_timeline)
    learn_days(run, DAYS[4])
    new = finished(run)
    assert [version.version for version in new[:-1]] == [version.version for version in old[:-1]]
    assert new[-1].lineage.supersedes == old[-1].link
    assert new[-1].version > old[-1].version
    assert f"{DAYS[4]} has other inputs than version {old[-1].version}: a new version" in capsys.readouterr().out
    learn_days(run, DAYS[5])
    assert [version.lineage.day for version in finished(run)[1:]] == list(DAYS[2:6])


@pytest.mark.parametrize("option", ["rate_share", "num_epochs", "replay_days"])
def test_options_that_shape_a_day_are_among_its_inputs(learnt: Run, tmp_path: Path, option: str) -> None:
    run = copy_of(learnt, tmp_path)
    learn_days(run, DAYS[4], **{option: 0.5 if option == "rate_share" else 2})
    log = log_of(run)
    assert log[-1]["version"] == versions(run)[-1]
    assert log[-1]["steps"] == {"rate_share": 4, "num_epochs": 8, "replay_days": 5}[option]


def test_a_changed_day_before_the_last_is_refused_and_learnt_on_top_where_allowed(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    change_day(Path(run.dataset), DAYS[3], without_the_last_timeline)
    with pytest.raises(CheckpointError, match=rf"{DAYS[3]} was learnt as version \d+ from other inputs, and {DAYS[4]}"):
        learn_days(run, DAYS[3])
    head = versions(run)[-1]
    again = Nights(run=run, first=DAYS[3], last=DAYS[3], allow=("out_of_order",))
    learn(again)
    new = finished(run)[-1]
    assert (new.lineage.day, new.context.data_days) == (DAYS[3], DAYS[:5])
    assert new.version > head
    learn(again)
    assert finished(run)[-1].version == new.version


def test_gaps_other_orders_and_future_days_are_refused_in_one_line(trained: Run) -> None:
    gap = rf"{DAYS[4]} does not follow {DAYS[1]}, .* --from {DAYS[2]} --to {DAYS[4]}"
    with pytest.raises(CheckpointError, match=gap):
        learn_days(trained, DAYS[4])
    with pytest.raises(CheckpointError, match=rf"{DAYS[0]} was learnt by `stack train`, and the last day learnt is"):
        learn_days(trained, DAYS[0])
    with pytest.raises(DataError, match=rf"{DAYS[2]} is in the future, today is {DAYS[1]}: choose an earlier day"):
        learn(Nights(run=trained, first=DAYS[2], last=DAYS[2], today=DAYS[1]))
    with pytest.raises(DataError, match=rf"2016-07-26 is not prepared, .* ends with {DAYS[7]}: run `stack ingest`"):
        learn_days(trained, DAYS[2], "2016-07-26")
    assert len(finished(trained)) == 1


def test_a_gap_and_a_future_day_are_learnt_where_they_are_allowed(trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path)
    learn(Nights(run=run, first=DAYS[4], last=DAYS[4], today=DAYS[1], allow=("gap", "future")))
    assert finished(run)[-1].context.data_days == (DAYS[0], DAYS[1], DAYS[4])


def test_without_a_full_training_there_is_nothing_to_go_on_from(prepared: Path, tmp_path: Path) -> None:
    run = Run(dataset=str(prepared), runs=str(tmp_path), name="none")
    with pytest.raises(CheckpointError, match=r"has no version yet: run `stack train` up to the day before first"):
        learn_days(run, DAYS[2])
    setup = setup_of(replace(run, train={"save_every_steps": 2}))
    halted = dataclass_replace(setup, train=dataclass_replace(setup.train, to_day=DAYS[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stack.train.build.RefusalLimit", lambda limit: Stop(after_step=3))
        with pytest.raises(SystemExit):
            train(halted)
    with pytest.raises(CheckpointError, match=r"training of version 2 in .* has not ended: run `stack train` to its"):
        learn_days(run, DAYS[2])


def test_days_after_one_that_was_restored_are_those_of_before(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path)
    _, first, second, third = finished(run)
    restore(chain(run), first)
    learn_days(run, DAYS[2], DAYS[4])
    again = [
        version for version in finished(run) if version.version > third.version and version.lineage.restores is None
    ]
    assert [version.lineage for version in again] == [second.lineage, third.lineage]
    states = [open_version(chain(run), version) for version in (third, again[-1])]
    for name in third.tables:
        rows = [next(iter(state.table_parts(name))) for state in states]
        assert torch.equal(rows[0].weight_ND, rows[1].weight_ND)
        assert all(torch.equal(rows[0].state[key], rows[1].state[key]) for key in rows[0].state)


def test_full_training_does_not_go_on_after_days(learnt: Run) -> None:
    with pytest.raises(CheckpointError, match=rf"goes on by days, {DAYS[4]} is its last: go on with `stack daily`"):
        first_training(learnt, to_day=DAYS[5])


def test_a_version_that_another_job_commits_while_a_day_is_restored_is_noticed_before_the_day_is_learnt(
    learnt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(learnt, tmp_path)
    before, opened = versions(run), day_module.opened

    def meanwhile(own: Chain, number: int, *, verify: bool) -> Checkpoint:
        restore(own, own.manifest(number))
        return opened(own, number, verify=verify)

    monkeypatch.setattr(day_module, "opened", meanwhile)
    with pytest.raises(CheckpointError, match="while this one read what it builds on"):
        learn_days(run, DAYS[5])
    assert versions(run) == [*before, before[-1] + 1]
    monkeypatch.undo()
    learn_days(run, DAYS[5])
    assert finished(run)[-1].lineage.day == DAYS[5]


def test_options_must_be_those_of_the_run(learnt: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"was started with model\.dropout=0\.2, now it is 0\.3"):
        learn_days(replace(copy_of(learnt, tmp_path), dropout=0.3), DAYS[5])


def test_a_stop_in_a_day_saves_and_the_same_words_go_on(
    learnt: Run, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(trained, tmp_path)
    after = finished(run)[-1].step + 2
    with monkeypatch.context() as patch:
        patch.setattr("stack.train.build.RefusalLimit", lambda limit: Stop(after_step=after))
        with pytest.raises(SystemExit) as stopped:
            learn_days(run, DAYS[2])
    assert stopped.value.code == STOPPED_STATUS
    assert not chain(run).manifest(versions(run)[-1]).complete
    with process_group(device=CPU):
        assert open_run(setup_of(run), version=None, device=CPU).days == DAYS[:2]
    learn_days(run, DAYS[2])
    states = [open_version(chain(one), finished(one)[1]) for one in (run, learnt)]
    assert states[0].loop() == states[1].loop()
    for name in states[0].manifest.tables:
        rows = [next(iter(state.table_parts(name))) for state in states]
        assert torch.equal(rows[0].weight_ND, rows[1].weight_ND)
    assert finished(run)[1].metrics == finished(learnt)[1].metrics


UNJUDGED: dict[str, int | float] = {"min_reference_days": 14}
"""With so many days wanted, nothing is said of a day's data but what is wrong by itself."""


def _refused(run: Run, day: str, *, audit_data: dict[str, int | float] | None = None, **options: float) -> str:
    """Learns a day that is to be quarantined; the reasons as the store has them."""
    before = finished(run)
    with pytest.raises(SystemExit) as ended:
        learn(Nights(run=run, first=day, last=day, options=dict(options), audit_data=audit_data or {}))
    assert ended.value.code == QUARANTINED_STATUS
    assert finished(run) == before
    (file,) = (run.folder / "checkpoints" / "quarantine").glob(f"{day}-*.json")
    return file.read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (empty, f"{DAYS[5]} has no example of follow, impression, price"),
        (tiny, "times the 364 of the median of 5 days before"),
        (with_nan_labels, "not finite values in impression.clicked"),
    ],
)
def test_a_bad_day_is_quarantined_and_goes_on_when_it_is_mended(
    learnt: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, reason: str
) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    day = Path(run.dataset) / "days" / DAYS[5]
    shutil.copytree(day, tmp_path / "good")
    change_day(Path(run.dataset), DAYS[5], change)  # type: ignore[arg-type]
    assert reason in _refused(run, DAYS[5])
    assert f"stack: {DAYS[5]} is quarantined: " in capsys.readouterr().err
    assert log_of(run)[-1]["outcome"] == "quarantined"
    with pytest.raises(CheckpointError, match=rf"{DAYS[5]} is quarantined with these inputs, .*quarantine/{DAYS[5]}-"):
        learn_days(run, DAYS[5])
    shutil.rmtree(day)
    shutil.copytree(tmp_path / "good", day)
    learn_days(run, DAYS[5])
    assert finished(run)[-1].lineage.day == DAYS[5]


def test_a_quarantined_day_is_learnt_where_the_limit_is_raised_and_it_is_allowed(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    change_day(Path(run.dataset), DAYS[5], tiny)
    _refused(run, DAYS[5])
    learn(Nights(run=run, first=DAYS[5], last=DAYS[5], options={"max_volume_ratio": 1e3}, allow=("quarantined",)))
    lineage = finished(run)[-1].lineage
    assert (lineage.day, [line.partition(":")[0] for line in lineage.overridden or ()]) == (
        DAYS[5], ["volume", "volume of events", "volume of moments"],
    )  # fmt: skip


def test_a_day_of_flipped_labels_is_quarantined_before_it_is_learnt(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    change_day(Path(run.dataset), DAYS[5], with_flipped_labels)
    found = _refused(run, DAYS[5], audit_data=UNJUDGED, max_loss_ratio=1.2)
    assert "before/ctr/uniform/log_loss" in found
    assert "loss/ctr" not in found.replace("before/ctr/uniform/log_loss", "")


def test_weights_that_are_not_finite_are_not_committed(
    learnt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(learnt, tmp_path)
    score = day_module.score_day

    def score_and_spoil(model: torch.nn.Module, *arguments: object, **named: object) -> object:
        found = score(model, *arguments, **named)  # type: ignore[arg-type]
        table_shards(model)[0].state["momentum1"][1] = torch.inf
        return found

    monkeypatch.setattr(day_module, "score_day", score_and_spoil)
    assert "1 numbers are NaN or infinite, the first in momentum1 of table 'age'" in _refused(run, DAYS[5])


def test_a_day_that_the_log_does_not_have_is_left_out_where_gaps_are_allowed(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    shutil.rmtree(Path(run.dataset) / "days" / DAYS[5])
    assert "empty day" in _refused(run, DAYS[5])
    learn(Nights(run=run, first=DAYS[5], last=DAYS[6], allow=("gap",)))
    assert finished(run)[-1].context.data_days == (*DAYS[:5], DAYS[6])


def test_the_days_of_a_call_follow_from_what_is_given() -> None:
    assert days_asked(DailyConfig(day="2024-02-29"), last_learnt="2024-01-01") == ("2024-02-29",)
    month = days_asked(DailyConfig(from_day="2024-02-28", to_day="2024-03-01"), last_learnt="2024-01-01")
    assert month == ("2024-02-28", "2024-02-29", "2024-03-01")
    assert days_asked(DailyConfig(to_day="2024-03-01"), last_learnt="2024-02-28") == month[1:]
    assert days_asked(DailyConfig(to_day="2024-03-01"), last_learnt="2024-03-01") == month[2:]
    with pytest.raises(ConfigError, match=r"stack daily needs a day: day=YYYY-MM-DD, or --from"):
        days_asked(DailyConfig(), last_learnt="2024-03-01")
