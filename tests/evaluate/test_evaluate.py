"""The verb from end to end with a model that is a formula: figures, files, texts, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stack.base.errors import ConfigError, DataError
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.evaluate import report as report_module
from stack.evaluate.config import EvaluateConfig
from stack.evaluate.evaluate import Trained, evaluate, held_out_days
from stack.evaluate.rows import read_days
from stack.evaluate.sets import evaluation_sets
from stack.tasks.metrics import auc, gauc

SETTINGS = EvaluateConfig(num_replicates=20, timelines_per_batch=9, baseline_rows=10**6)


def formula(batch: Batch) -> dict[str, Tensor]:
    """Own purchase count, as log-odds; the tier is always 3."""
    impressions, prices = batch.groups["impression"], batch.groups["price"]
    tier = torch.zeros(prices.num_examples, 7)
    tier[:, 3] = 1.0
    responses = batch.groups["follow"]
    shops = batch.groups["shop"]
    f = impressions.dense_EF[:, 1] - 4
    return {
        "ctr": f, "rank": 2 * f, "power": tier, "follow": torch.zeros(responses.num_examples),
        "shop": shops.labels["visited"],
    }  # fmt: skip


TASKS = {"ctr": True, "rank": False, "power": True, "follow": True, "shop": True}


def trained(dataset: Dataset) -> Trained:
    return Trained(name="test", step=12, dataset=dataset, training_days=dataset.days()[:4], tasks=TASKS, scorer=formula)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def report(dataset: Dataset, folder: Path) -> report_module.Report:
    return evaluate(trained(dataset), folder=folder, settings=SETTINGS)


def test_the_report_has_every_task_with_its_sets_and_baselines(report: report_module.Report) -> None:
    found = {
        (task.task, part.set): [score.name for score in part.scores] for task in report.tasks for part in task.sets
    }
    impression = ["model", "popularity", "own frequency", "logistic regression", "boosted trees"]
    assert found == {
        ("ctr", "uniform"): impression,
        ("ctr", "popularity"): impression,
        ("rank", "uniform"): impression,
        ("rank", "popularity"): impression,
        ("power", "all"): ["model", "majority class", "user's most frequent"],
        ("follow", "all"): ["model", "user's past rate", "icon's past rate", "logistic regression", "boosted trees"],
        ("shop", "all"): ["model", "shop popularity", "user's own shop count"],
    }


def test_model_figures_equal_those_computed_from_the_files(dataset: Dataset, report: report_module.Report) -> None:
    rows = read_days(dataset, dataset.days()[4:], dataset.schema.group("impression"), max_rows=10**9)
    for part in report.tasks[0].sets:
        selection = evaluation_sets(rows)[part.set]
        held = rows.take(selection.index_S)
        score = selection.logits(rows.dense("user_item_count").astype(float) - 4)
        model, own = part.scores[0].metrics, part.scores[2].metrics
        assert part.num_examples == len(held)
        assert model["gauc"].value == pytest.approx(gauc(held.user_E, score, held.labels["clicked"]).value)
        assert model["auc"].value == pytest.approx(auc(score, held.labels["clicked"]))
        # the rates of this dataset are constant, so correcting for them changes no order
        assert own["gauc"].value == pytest.approx(model["gauc"].value)
        assert part.num_users_with_both_labels == gauc(held.user_E, score, held.labels["clicked"]).num_users


def test_rank_baselines_are_compared_by_order_alone(report: report_module.Report) -> None:
    part = report.tasks[1].sets[0]
    assert "log_loss" in part.scores[0].metrics
    assert all(set(score.metrics) == {"gauc", "auc"} for score in part.scores[1:])


def test_report_json_reads_back_equal_and_pictures_are_drawn(report: report_module.Report, folder: Path) -> None:
    assert report_module.read(folder / "report.json") == report
    assert report.held_out_days == ("2016-07-22", "2016-07-23")
    for name in ("reliability.png", "gauc.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_people_get_tables_with_counts_and_a_line_for_each_verdict(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained(dataset), folder=tmp_path, settings=SETTINGS)
    said = capsys.readouterr().out
    assert "Two-class tasks" in said
    assert "boosted trees" in said
    assert "users in GAUC" in said
    assert "power on all: " in said
    tie = "no difference shown between the model and user's own shop count, the best baseline: GAUC 1.0000"
    assert f"shop on all: {tie}" in said
    assert "follow on all: THE MODEL LOSES to user's past rate: AUC 0.5000 against 1.0000" in said
    assert f"wrote {tmp_path / 'report.json'}" in said


def test_a_baseline_that_wins_is_named(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def backwards(batch: Batch) -> dict[str, Tensor]:
        return {"ctr": -batch.groups["impression"].dense_EF[:, 1]}

    worse = Trained(
        name="test", step=1, dataset=dataset, training_days=dataset.days()[:4], tasks={"ctr": True}, scorer=backwards
    )
    evaluate(worse, folder=tmp_path, settings=EvaluateConfig(num_replicates=20, baselines=False, plots=False))
    said = capsys.readouterr().out
    assert "ctr on uniform: THE MODEL LOSES to own frequency: GAUC" in said
    assert not (tmp_path / "gauc.png").exists()


def test_held_out_days_are_those_after_training(dataset: Dataset) -> None:
    days = dataset.days()
    assert held_out_days(dataset, days[:3]) == days[3:]
    assert held_out_days(dataset, days[:3], first=days[4]) == days[4:]
    assert held_out_days(dataset, days[:3], last=days[3]) == days[3:4]
    with pytest.raises(DataError, match=rf"first_day={days[2]} is not after the last trained day {days[2]}"):
        held_out_days(dataset, days[:3], first=days[2])
    with pytest.raises(DataError, match=rf"no day to evaluate: the last trained day is {days[-1]}"):
        held_out_days(dataset, days)


def test_scores_stay_beside_their_examples_whatever_the_batch_size(dataset: Dataset) -> None:
    from stack.evaluate.predict import predict

    def peek(batch: Batch) -> dict[str, Tensor]:
        examples = batch.groups["impression"]
        return {"ctr": examples.ids["item"].double() + 1000 * batch.user_B[batch.moment_row_M[examples.moment_E]]}  # type: ignore[union-attr]

    found = predict(peek, dataset, days=dataset.days()[4:], tasks={"ctr": True}, timelines_per_batch=5)["ctr"]
    assert (found.score == found.rows.ids["item"] + 1000 * found.rows.user_E).all()
    total = sum(dataset.day(day).num_examples["impression"] for day in dataset.days()[4:])
    assert len(found.rows) == total
    assert Loader(dataset, days=dataset.days()[4:], global_batch_size=5).num_steps > 5


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.num_replicates=3 must be at least 20"):
        EvaluateConfig(num_replicates=3)
