"""What a package is held against before it may exist, and the files that tell of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stack.base.errors import PackageError
from stack.export.export import Trained
from stack.export.graphs import build_graphs
from stack.export.judge import OK, WARNING, Trial, judge
from stack.export.package import AUDITS, PARITY, QUALITY, USER_VECTOR, Finding, Parity, read_manifest
from stack.export.quality import Quality, RowQuality, TaskQuality
from stack.export.quantize import RowType, row_dtype
from stack.export.requests import is_servable
from stack.export.tables import exported_tables
from tests.export.conftest import SMALL
from tests.export.recorded import Asked

BRIEF = replace(SMALL, parity_timelines=1, quality_timelines=1, num_requests=1)
VARIANTS = {"fp32", "fp16", "int8", "int4", "served"}


@pytest.fixture(scope="module")
def trial(small: Trained, small_package: Path) -> Trial:
    """The small package, once more on its way."""
    manifest = read_manifest(small_package)
    dims = {name: table.dim for name, table in manifest.tables.items()}
    graphs = build_graphs(small.model, small.dataset.schema, dims)
    tables = exported_tables(
        small.model.places.tables(), schema=graphs.schema, dataset=small.dataset, checkpoint=small.checkpoint,
        ids=small.ids,
    )  # fmt: skip
    return Trial(
        folder=small_package, manifest=manifest, modules=graphs.modules, model=small.model,
        checkpoint=small.checkpoint, dataset=small.dataset, tables=tables, config=SMALL,
    )  # fmt: skip


@pytest.mark.parametrize("which", ["package", "small_package"])
def test_parity_is_told_for_every_format_and_type_of_row(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    manifest = read_manifest(folder)
    parities = msgspec.json.decode((folder / PARITY).read_bytes(), type=dict[str, dict[str, Parity]])
    assert set(parities) == {one.value for one in manifest.formats} == {"onnx"}
    assert set(parities["onnx"]) == VARIANTS
    assert parities["onnx"]["served"] == manifest.parity
    tasks = {task.output for task in manifest.tasks}
    for name, parity in parities["onnx"].items():
        assert set(parity.max_abs_difference) == {USER_VECTOR, "next_item_vector", *tasks}, name
        assert set(parity.num_examples) >= {task for task in tasks if not task.endswith("_weights")}
        assert 0.0 <= parity.worst < parity.tolerance == 1e-5
        assert parity.num_moments == manifest.parity.num_moments > 10


def test_quality_tells_what_every_type_of_row_costs_of_bytes_and_auc(small_package: Path) -> None:
    manifest = read_manifest(small_package)
    quality = msgspec.json.decode((small_package / QUALITY).read_bytes(), type=Quality)
    assert quality.day == "2016-07-19"
    assert set(quality.rows) == VARIANTS - {"served"}
    for row_type in RowType:
        expected = 0
        for table in manifest.tables.values():
            dtype, num_elements = row_dtype(row_type, table.dim)
            expected += table.num_rows * num_elements * dtype.itemsize
        assert quality.rows[row_type.value].row_bytes == expected
    errors = [quality.rows[name].vector_error_mean for name in ("fp32", "fp16", "int8", "int4")]
    assert errors[0] == 0.0
    assert errors == sorted(errors)
    assert 1e-4 < errors[2] < 2e-2 < errors[3] < 0.3
    for name, rows in quality.rows.items():
        assert set(rows.tasks) == {"ctr", "next_item"}, name
        for task in rows.tasks.values():
            assert task.num_examples == 5 * quality.num_moments
            assert task.auc is not None
            assert 0.3 < task.auc < 0.8
    exact = quality.rows["fp32"].tasks["ctr"].auc
    lost = quality.rows["int4"].tasks["ctr"]
    assert exact is not None
    assert lost.auc is not None
    assert lost.auc_loss == pytest.approx(exact - lost.auc, abs=1e-12)


def test_the_findings_are_in_the_manifest_and_in_a_file_of_their_own(small_package: Path) -> None:
    manifest = read_manifest(small_package)
    assert msgspec.json.decode((small_package / AUDITS).read_bytes(), type=tuple[Finding, ...]) == manifest.audits
    names = [finding.name for finding in manifest.audits]
    assert names[:2] == ["parity of all formats and types of rows", "normalisation computes as in evaluation"]
    served = {table.row_type.value for table in manifest.tables.values()}
    assert {name.rpartition(" ")[2] for name in names[2:]} == served == {"fp16", "int4", "int8"}
    assert {finding.level for finding in manifest.audits} <= {OK, WARNING}
    parities = msgspec.json.decode((small_package / PARITY).read_bytes(), type=dict[str, dict[str, Parity]])
    assert manifest.audits[0].measured == f"{max(one.worst for one in parities['onnx'].values()):.3g}"


def with_losses(monkeypatch: pytest.MonkeyPatch, **auc_loss: float | None) -> None:
    """Rows in int8 lose so much AUC of each task, other types nothing."""

    def quality(_: Trial) -> Quality:
        def rows(losses: dict[str, float | None]) -> RowQuality:
            tasks = {
                name: TaskQuality(num_examples=9, auc=0.6, gauc=0.6, auc_loss=loss, gauc_loss=loss)
                for name, loss in losses.items()
            }
            return RowQuality(row_bytes=1, vector_error_max=0.1, vector_error_mean=0.1, tasks=tasks)

        nothing = dict.fromkeys(auc_loss, 0.0)
        return Quality(
            day="2016-07-19", num_moments=3,
            rows={one.value: rows(auc_loss if one is RowType.int8 else nothing) for one in RowType},  # type: ignore[arg-type]
        )  # fmt: skip

    monkeypatch.setattr("stack.export.judge._quality", quality)


LEVELS: dict[str, tuple[dict[str, float | None], str]] = {
    "nothing": ({"ctr": 0.0, "next_item": -0.2}, OK),
    "hardly": ({"ctr": 0.00099, "next_item": 0.0}, OK),
    "noted": ({"ctr": 0.0, "next_item": 0.0011}, WARNING),
    "allowed": ({"ctr": 0.0099, "next_item": 0.02}, WARNING),
}


@pytest.mark.parametrize("name", LEVELS)
def test_a_loss_is_noted_above_a_thousandth(name: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, level = LEVELS[name]
    with_losses(monkeypatch, **losses)
    findings = judge(replace(trial, config=replace(BRIEF, max_auc_loss=0.02))).findings
    (of_int8,) = (finding for finding in findings if finding.name.endswith(" in int8"))
    worst = max(losses, key=lambda task: losses[task] or 0.0)
    assert of_int8.name == f"AUC of {worst!r} lost by rows in int8"
    assert of_int8.level == level
    assert of_int8.measured == f"{losses[worst]:.5f}"
    assert of_int8.allowed == "export.max_auc_loss=0.02"
    assert {finding.level for finding in findings if finding is not of_int8} == {OK}


def test_a_type_of_row_that_loses_too_much_is_refused(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, ctr=0.004, next_item=0.0061)
    text = (
        r"export refused: AUC of 'next_item' lost by rows in int8: 0.00610, allowed export.max_auc_loss=0.006; "
        "nothing was written"
    )
    with pytest.raises(PackageError, match=text):
        judge(replace(trial, config=replace(BRIEF, max_auc_loss=0.006)))
    exact = {name: msgspec.structs.replace(one, row_type=RowType.fp16) for name, one in trial.manifest.tables.items()}
    with pytest.raises(PackageError, match="rows.npy holds uint8 of shape"):
        judge(replace(trial, manifest=msgspec.structs.replace(trial.manifest, tables=exact)))


def test_a_task_without_both_labels_is_not_judged(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, ctr=None, next_item=0.003)
    brief = replace(trial, config=BRIEF)
    findings = judge(brief).findings
    assert [finding.name for finding in findings if "int8" in finding.name] == [
        "AUC of 'next_item' lost by rows in int8"
    ]
    with_losses(monkeypatch, ctr=None, next_item=None)
    assert not [finding for finding in judge(brief).findings if "int8" in finding.name]


def test_judged_again_a_package_gets_the_same_figures(trial: Trial) -> None:
    again = judge(trial)
    assert again.parity == trial.manifest.parity
    assert again.findings == trial.manifest.audits
    assert "rows as they could be kept" in again.quality_line()
    assert again.queries.shape == (again.quality.num_moments, 8)


def test_recorded_requests_in_raw_ids_get_the_answers_that_were_recorded(package: Path, small_package: Path) -> None:
    recorded = Asked(package).assert_answers_as_recorded()
    assert len(recorded) == 24
    assert {one.body["group"] for one in recorded} == {"impression", "follow", "shop"}
    assert {task for one in recorded for task in one.scores} == {"ctr", "rank", "follow", "shop", "next_item"}
    assert len({one.body["group"] for one in recorded[:3]}) == 3, "of all groups in turn"
    assert any(not one.body["events"]["time"] for one in recorded), "also of a user without a history"  # type: ignore[index]
    vectors = np.array([one.vector for one in recorded])
    assert len(np.unique(vectors.round(4), axis=0)) > 5
    assert len(Asked(small_package).assert_answers_as_recorded()) == SMALL.num_requests


def test_requests_that_would_be_cut_are_not_recorded(trial: Trial) -> None:
    short = replace(trial, manifest=msgspec.structs.replace(trial.manifest, max_events=4))
    lengths = [len(one.body["events"]["time"]) for one in judge(short).requests]  # type: ignore[index]
    assert lengths
    assert max(lengths) == 4


def test_a_package_that_could_never_be_tried_is_refused(trial: Trial) -> None:
    never = replace(trial, manifest=msgspec.structs.replace(trial.manifest, max_events=-1))
    with pytest.raises(
        PackageError, match="could be tried with: raise export.max_events=512 or export.parity_timeline"
    ):
        judge(never)


def body_with(**changed: object) -> dict[str, object]:
    """A small request of `items:score`, with some parts changed."""
    body: dict[str, object] = {
        "now": 9, "events": {"time": [8], "item": ["a"], "tags": [["x", "y"]]}, "profile": {"tags": ["x"]},
        "query": {}, "group": "impression", "candidates": {"item": ["b"], "dense": {"price": [1.0]}},
    }  # fmt: skip
    return body | changed


@pytest.mark.parametrize(
    ("changed", "servable"),
    [
        ({}, True),
        ({"candidates": {}}, False),
        ({"candidates": {"dense": {"price": [1.0]}}}, True),
        ({"candidates": {"item": ["b"] * 10_000}}, True),
        ({"candidates": {"item": ["b"] * 10_001}}, False),
        ({"candidates": {"tags": [["x"] * 64]}}, True),
        ({"candidates": {"tags": [["x"] * 65]}}, False),
        ({"events": {"time": [8], "tags": [["x"] * 65]}}, False),
        ({"events": {"time": [8], "item": ["x" * 257]}}, False),
        ({"events": {"time": [8] * 100, "item": ["x" * 256, None] * 50}}, True),
        ({"profile": {"tags": ["x"] * 65}}, False),
        ({"profile": {"tags": [7] * 64, "age": "x" * 257}}, False),
        ({"query": {"text": "x" * 257}}, False),
    ],
)
def test_what_a_server_would_refuse_is_not_recorded(changed: dict[str, object], servable: bool) -> None:
    assert is_servable(body_with(**changed)) == servable
    user = {name: value for name, value in body_with(**changed).items() if name not in ("group", "candidates")}
    assert is_servable(user) == (servable or "candidates" in changed)
