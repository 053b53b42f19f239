"""`stack audit` on a trained run: a report, a table, lines, and an exit status."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.__main__ import main
from stack.audits.audit import Timelines
from stack.audits.findings import Level
from stack.audits.report import REPORT, AuditReport
from stack.checkpoint.chain import chain_of
from stack.data.dataset import Dataset
from tests.prepared import write_prepared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with batch norm of the first of three days, and the words that name it."""
    folder = tmp_path_factory.mktemp("audit")
    dataset = Dataset(write_prepared(folder / "prepared", num_days=3, num_users=24))
    words = [f"run.dir={folder}", "run.name=small"]
    data = ["data=events", f"data.out={dataset.path}", "data.path=none", f"train.to_day={dataset.days()[0]}"]
    assert main(["train", *data, *words, "train.num_threads=1", "model.norm=batch", "model.num_states=16"]) == 0
    return folder / "small", words


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


LENIENT = ["audit.critical_calibration=1e6", "audit.max_auc_cost=1", "audit.max_log_loss_cost=1e6"]


def report_of(folder: Path) -> AuditReport:
    return msgspec.json.decode((folder / REPORT).read_bytes(), type=AuditReport)


def test_an_audit_says_what_it_found_and_writes_it(
    run: tuple[Path, list[str]], told: pytest.CaptureFixture[str]
) -> None:
    folder, words = run
    assert main(["audit", *words, *LENIENT]) == 0
    report = report_of(folder / "audit")
    out = told.readouterr().out
    dataset = Dataset(Path(report.dataset))
    assert f"auditing version {report.version} of small on live traffic of {dataset.days()[1]}" in out
    assert "Normalisation against live traffic" in out
    assert "Live rows scored with the statistics learnt" in out
    assert f"wrote {folder}/audit/audit.json" in out
    assert report.days == dataset.days()[1:2]
    assert report.reference_days == dataset.days()[:1]
    assert {layer.task for layer in report.layers} == {"ctr", "rank", "power", "follow"}
    moved = [layer.logit_rmse or 0.0 for layer in report.layers]
    assert moved == sorted(moved, reverse=True), "those that move predictions most come first"
    assert {one.task for one in report.effects} == {"ctr", "rank", "follow"}
    assert report.level in (Level.ok, Level.warning)
    for finding in report.findings:
        assert finding.line in out


def test_an_audit_is_the_same_again_and_of_the_days_asked_for(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = run
    days = Dataset(Path(report_of(folder / "audit").dataset)).days()
    for name in ("first", "second"):
        asked = [f"audit.first_day={days[0]}", f"audit.last_day={days[2]}", f"audit.out={tmp_path / name}"]
        assert main(["audit", *words, *LENIENT, *asked, "audit.timelines=20", "audit.timelines_per_batch=7"]) == 0
    first, second = report_of(tmp_path / "first"), report_of(tmp_path / "second")
    assert msgspec.structs.replace(first, created="") == msgspec.structs.replace(second, created="")
    assert first.days == days
    assert 20 <= first.num_timelines <= 20 + 7


def test_a_critical_finding_is_an_exit_status_and_the_report_is_there_all_the_same(
    run: tuple[Path, list[str]], tmp_path: Path, told: pytest.CaptureFixture[str]
) -> None:
    _, words = run
    strict = ["audit=strict", "audit.warn_shift=1e-9", "audit.critical_shift=1e-9", "audit.reference_days=0"]
    assert main(["audit", *words, *LENIENT, *strict, f"audit.out={tmp_path}"]) == 2
    error = told.readouterr().err
    assert "stack: version " in error
    assert "of small must not be released: " in error
    assert "is not given what its layers have learnt" in error
    report = report_of(tmp_path)
    assert report.level is report.findings[0].level is Level.critical


def test_an_audit_of_some_parts_leaves_the_whole_one_where_export_looks(run: tuple[Path, list[str]]) -> None:
    folder, words = run
    assert main(["audit", *words, *LENIENT]) == 0
    before = (folder / "audit" / REPORT).read_bytes()
    assert main(["audit", *words, *LENIENT, "audit.parts=[tables]"]) == 0
    assert (folder / "audit" / REPORT).read_bytes() == before
    assert report_of(folder / "audit" / "parts").parts.keys() == {"tables"}


def test_traffic_of_other_data_is_read_with_the_rows_that_ids_have_there(
    run: tuple[Path, list[str]], tmp_path: Path, told: pytest.CaptureFixture[str]
) -> None:
    """The same days under a vocabulary in which two items have each other's rows."""
    folder, words = run
    data = tmp_path / "apart"
    shutil.copytree(folder.parent / "prepared", data)
    (file,) = (data / "vocab" / "item").glob("*.parquet")
    ids = pq.read_table(file)
    row_N = ids["row"].to_numpy().copy()
    row_N[[0, 1]] = row_N[[1, 0]]
    pq.write_table(ids.set_column(ids.schema.get_field_index("row"), "row", pa.array(row_N)), file)
    asked = [*words, *LENIENT, "audit.parts=[normalisation]", f"audit.out={tmp_path / 'out'}"]
    assert main(["audit", *asked, f"audit.dataset={data}"]) == 0
    assert "vocabulary 'item' is not the one that version " in told.readouterr().out
    moved = report_of(tmp_path / "out")
    assert main(["audit", *asked, f"audit.dataset={folder.parent / 'prepared'}"]) == 0
    same = report_of(tmp_path / "out")
    assert main(["audit", *asked]) == 0
    own = report_of(tmp_path / "out")
    assert same.effects == own.effects
    assert moved.effects != own.effects, "rows 1 and 2 stand for each other's ids: the data still have the old rows"
    assert main(["audit", *asked, f"audit.dataset={data}", "--fix", "rebuild"]) == 2
    assert "is for looking: a repair (audit.fix) needs the run's own data" in told.readouterr().err


def test_a_repair_is_a_new_version_that_says_what_it_is_and_is_audited_as_it_was_promised(
    run: tuple[Path, list[str]], tmp_path: Path, told: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    copied = tmp_path / "small"
    shutil.copytree(folder, copied)
    own = [f"run.dir={tmp_path}", "run.name=small"]
    days = Dataset(folder.parent / "prepared").days()
    asked = [*LENIENT, f"audit.first_day={days[1]}", f"audit.last_day={days[2]}"]
    before = chain_of(copied / "checkpoints").newest_number()
    assert main(["audit", *own, *asked, "--fix", "rebuild"]) == 0
    out = told.readouterr().out
    report = report_of(copied / "audit")
    assert report.repaired is not None
    assert (report.repaired.of, report.version) == (before, before + 1)
    assert f"wrote version {before + 1}: version {before} with statistics of live traffic of {days[0]}, cal" in out
    assert f"Version {before} before and after the repair" in out
    repairs = {one.task: one for one in report.repaired.tasks}
    assert repairs["ctr"].scale is not None
    assert repairs["ctr"].after.predicted_over_observed == pytest.approx(1, abs=0.3)
    again = [*own, *asked, f"audit.out={tmp_path / 'again'}"]
    assert main(["audit", *again]) == 0
    second = report_of(tmp_path / "again")
    assert second.version == before + 1
    assert second.effects == report.effects, "what was written is what was measured"
    assert second.level is not Level.critical
    chain = chain_of(copied / "checkpoints")
    lineage = chain.manifest(before + 1).lineage
    assert (lineage.verb, lineage.repairs) == ("audit", chain.manifest(before).link)
    assert lineage.how == f"statistics of live traffic of {days[0]}, calibrated on {days[1]} to {days[2]}"
    told.readouterr()
    assert main(["checkpoint", "list", *own]) == 0
    assert f"mends {before}" in told.readouterr().out
    for options, text in (
        ([f"audit.version={before}"], f"version {before} is not the newest of"),
        (["audit.parts=[tables]"], "audit.fix=rebuild mends the normalisation: have it in audit.parts"),
    ):
        assert main(["audit", *again, "--fix=rebuild", *options]) == 2
        assert text in told.readouterr().err
    assert chain.newest_number() == before + 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["audit.parts=[]"], "audit.parts is empty: choose of normalisation, calibration, data, tables, skew, parity"),
        (["audit.parts=[skew]"], "audit.parts has skew, which needs audit.skew_log=FILE and audit.package=FOLDER"),
        (["audit.parts=[parity]"], "audit.parts has parity, which needs audit.package=FOLDER"),
        (["audit.parts=[looks]"], "audit.parts"),
        (["--fix"], "audit.fix"),
        (["--fix", "all"], "audit.fix"),
        (["audit.dataset=/nowhere"], "/nowhere"),
        (["audit.out=/dev/null"], "audit.out=/dev/null cannot be written (File exists): choose another folder"),
        (["audit.first_day=2031-01-01"], "has no day from audit.first_day=2031-01-01 to audit.last_day=2031-01-01: it"),
        (["audit.first_day=soon"], "audit.first_day=soon is no day: write it as 2017-11-20"),
        (["audit.timelines=0"], "audit.timelines=0 must be at least 1"),
        (
            ["audit.critical_shift=0.01"],
            "audit.warn_shift=0.1 and audit.critical_shift=0.01 must be above 0, the second",
        ),
        (["audit.warn_ratio=0.5"], "audit.warn_ratio=0.5 and audit.critical_ratio=2 must be above 1, the second not"),
        (["audit.traffic=none"], "audit.traffic"),
        (["audit.version=99"], "99"),
        (["model.norm=batch"], "stack audit takes 'model' from the run's own config.yaml, as it was trained"),
    ],
)
def test_what_cannot_be_audited_is_one_line(
    options: list[str], text: str, run: tuple[Path, list[str]], told: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *run[1], *options]) == 2
    error = told.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_model_without_such_layers_has_nothing_to_audit(
    run: tuple[Path, list[str]], tmp_path: Path, told: pytest.CaptureFixture[str]
) -> None:
    dataset = report_of(run[0] / "audit").dataset
    words = [f"run.dir={tmp_path}", "run.name=plain"]
    data = ["data=events", f"data.out={dataset}", "data.path=none", f"train.to_day={Dataset(Path(dataset)).days()[0]}"]
    none = ["model.norm=none", "tasks.rank.enabled=never", "tasks.follow.enabled=never", "model.num_states=16"]
    assert main(["train", *data, *words, *none, "train.num_threads=1"]) == 0
    for alone in ("audit.parts=[normalisation]", "audit.fix=rebuild"):
        assert main(["audit", *words, alone]) == 2
        assert "the model of plain has no normalisation with running statistics" in told.readouterr().err
        assert not (tmp_path / "plain" / "audit").exists()
    assert main(["audit", *words, *LENIENT]) == 0
    assert report_of(tmp_path / "plain" / "audit").parts.keys() == {"normalisation", "calibration", "data", "tables"}


def test_timelines_are_the_same_each_time_and_no_more_than_asked_for(run: tuple[Path, list[str]]) -> None:
    dataset = Dataset(Path(report_of(run[0] / "audit").dataset))
    some = Timelines(dataset=dataset, days=dataset.days(), most=10, per_batch=4, seed=3)
    first, second = list(some), list(some)
    assert [batch.num_timelines for batch in first] == [batch.num_timelines for batch in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.user_B, other.user_B)
    assert 10 <= sum(batch.num_timelines for batch in first) < 10 + 4 + dataset.num_buckets


def test_a_model_without_a_score_of_one_example_is_audited_for_its_layers(
    run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    dataset = Dataset(run[0].parent / "prepared")
    words = [f"run.dir={tmp_path}", "run.name=tiers"]
    data = ["data=events", f"data.out={dataset.path}", "data.path=none", f"train.to_day={dataset.days()[0]}"]
    alone = [f"tasks.{task}.enabled=never" for task in ("ctr", "rank", "follow")]
    model = ["model.norm=batch", "model.num_states=16", "train.num_threads=1"]
    assert main(["train", *data, *words, *alone, *model]) == 0
    assert main(["audit", *words, *LENIENT, "audit.parts=[normalisation,calibration]"]) == 0
    report = report_of(tmp_path / "tiers" / "audit" / "parts")
    assert [(layer.name, layer.logit_rmse) for layer in report.layers] == [("power.head.1", None)]
    assert report.effects == ()


def test_days_on_which_nobody_was_there_are_not_found_in_order(
    run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, told: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Dataset, "num_timelines", lambda self, day: (0, 0))
    assert main(["audit", *run[1]]) == 2
    assert "has no timeline on " in told.readouterr().err
