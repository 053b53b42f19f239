"""What other statistics do to predictions, against figures worked out line by line."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from stack.audits.config import AuditConfig, Traffic
from stack.audits.effect import EVERYTHING, Effect, Rows, effects, quantile, scored, stability_index
from stack.audits.findings import Level
from stack.audits.judge import findings_of
from stack.audits.norm_stats import live_statistics, norm_layers, replaced
from stack.audits.traffic import weight_of
from stack.layers.norm import Norm
from stack.model import UserModel
from stack.tasks import TasksConfig
from stack.tasks.metrics import auc, log_loss
from stack.tasks.sampling import Sampling, score_rate
from stack.towers.config import ModelConfig
from tests.audits.test_norm_stats import batches

LIVE = weight_of(Traffic.live)


@pytest.fixture(scope="module")
def model() -> UserModel:
    tasks = TasksConfig()
    tasks.ctr.dense_features = True
    model = small_model_of(tasks).train()
    with torch.no_grad():
        for batch in batches(range(200, 230)):
            model(batch)
    return model.eval()


def small_model_of(tasks: TasksConfig) -> UserModel:
    from tests.batches import small_model

    return small_model(ModelConfig(norm=Norm.batch), tasks=tasks)


def of(found: list[Effect], task: str, name: str = EVERYTHING) -> Effect:
    (one,) = (one for one in found if (one.task, one.slice) == (task, name))
    return one


def test_figures_are_those_of_the_model_scored_twice(model: UserModel) -> None:
    shown = batches(range(10))
    statistics = live_statistics(model, shown, LIVE)
    found = effects(model, scored(model, shown, LIVE, {"live": statistics}))["live"]
    assert {one.task for one in found} == {"ctr", "rank", "follow"}, "a score each: not the tiers of `power`"
    scores: list[np.ndarray] = []
    for several in ({}, statistics):
        with replaced(norm_layers(model), several), torch.no_grad():
            scores.append(np.concatenate([model(batch)["ctr"].score_E.double().numpy() for batch in shown]))
    impressions = [batch.groups["impression"] for batch in shown]
    label_E = np.concatenate([one.labels["clicked"].numpy() for one in impressions])
    weight_E = np.concatenate([LIVE(one).numpy() for one in impressions])
    rates = [one.labels["rate_uniform"] + one.labels["rate_popularity"] for one in impressions]
    offset_E = np.log(np.concatenate([np.where(rate.numpy() > 0, rate.numpy(), 1.0) for rate in rates]))
    one = of(found, "ctr")
    change_E = scores[1] - scores[0]
    assert one.num_examples == len(label_E)
    assert one.logit_mean == pytest.approx(np.average(change_E, weights=weight_E), rel=1e-6)
    assert one.logit_rmse == pytest.approx(np.average(change_E**2, weights=weight_E) ** 0.5, rel=1e-6)
    assert one.learnt.auc == pytest.approx(auc(scores[0] + offset_E, label_E, weight_E))
    assert one.live.auc == pytest.approx(auc(scores[1] + offset_E, label_E, weight_E))
    assert one.live.log_loss == pytest.approx(log_loss(scores[1] + offset_E, label_E, weight_E), rel=1e-6)


def test_nothing_changes_where_the_statistics_are_those_learnt(model: UserModel) -> None:
    same = {
        name: (layer.statistics.running_mean_D.double().numpy().copy(),
               layer.statistics.running_var_D.double().numpy().copy())
        for name, layer in norm_layers(model).items()
    }  # fmt: skip
    for one in effects(model, scored(model, batches(range(4)), LIVE, {"same": same}))["same"]:
        assert (one.logit_mean, one.logit_rmse, one.logit_p99, one.psi) == (0.0, 0.0, 0.0, 0.0)
        assert one.learnt == one.live


def test_slices_of_history_and_of_the_day_each_make_up_the_whole(model: UserModel) -> None:
    found = effects(model, scored(model, batches(range(6)), LIVE, {"none": {}}))["none"]
    by_slice = {one.slice: one.num_examples for one in found if one.task == "ctr"}
    whole = by_slice.pop(EVERYTHING)
    assert sum(number for name, number in by_slice.items() if "UTC" in name) == whole
    assert sum(number for name, number in by_slice.items() if "UTC" not in name) == whole
    assert {"no history", "1 to 9 events"} <= set(by_slice)
    assert "100 events or more" not in by_slice, "a slice without examples is left out"


def of_rows(learnt_E: list[float], live_E: list[float], label_E: list[float]) -> Rows:
    return Rows(
        learnt_E=np.array(learnt_E), live_E=np.array(live_E), offset_E=np.zeros(len(label_E)),
        label_E=np.array(label_E), weight_E=np.ones(len(label_E)), user_E=np.arange(len(label_E)),
        slices={EVERYTHING: np.ones(len(label_E), dtype=bool)},
    )  # fmt: skip


def test_a_cost_without_an_error_is_none(model: UserModel) -> None:
    """One positive says nothing of how users differ; and of a loss of nothing there is no share."""
    scores = {("live", "ctr"): of_rows([3, 1, 2], [1, 3, 2], [1, 0, 0])}
    one = of(effects(model, scores)["live"], "ctr")
    assert (one.learnt.auc, one.live.auc, one.auc_cost) == (1.0, 0.0, None)
    assert one.log_loss_cost is not None
    certain = {("live", "ctr"): of_rows([900, -900, 0], [900, -900, -900], [1, 0, 0])}
    one = of(effects(model, certain)["live"], "ctr")
    assert (one.live.log_loss, one.log_loss_cost) == (0.0, None)
    assert effects(model, {})["live"] == [], "tasks may have no score of one example"


def test_quantiles_count_weight() -> None:
    value_E, weight_E = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert [quantile(value_E, weight_E, share) for share in (0.0, 0.5, 0.51, 0.75, 0.76, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_the_stability_index_is_the_sum_over_tenths() -> None:
    """All of the lowest tenth moves to the top: that bin is as good as empty, the top one has twice its share."""
    before_E = np.arange(1000) / 1000
    after_E = np.where(before_E < 0.1, 2.0, before_E)
    low, high = (1e-6 - 0.1) * math.log(1e-6 / 0.1), (0.2 - 0.1) * math.log(2)
    assert stability_index(before_E, after_E, np.ones(1000)) == pytest.approx(low + high, rel=1e-2)
    assert stability_index(before_E, before_E, np.ones(1000)) == 0.0


def test_scores_that_are_not_finite_are_counted_found_and_can_be_read_back(model: UserModel) -> None:
    layers = norm_layers(model)
    layer = layers["ctr.head.activate.0"].statistics
    nan_D, one_D = np.full(len(layer.running_mean_D), np.nan), np.ones(len(layer.running_mean_D))
    with replaced(layers, {"ctr.head.activate.0": (nan_D, one_D)}):
        found = effects(model, scored(model, batches(range(3)), LIVE, {"same": {}}))["same"]
    one = of(found, "ctr")
    assert one.num_not_finite == one.num_examples > 0
    assert (one.logit_rmse, one.psi, one.learnt.auc, one.live.log_loss) == (None, None, None, None)
    assert of(found, "follow").num_not_finite == 0
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Effect]) == found
    said = findings_of([], found, AuditConfig(critical_calibration=1e9))
    (critical,) = (finding for finding in said if "ctr" in finding.name)
    assert critical.level is Level.critical
    assert critical.line.startswith(
        f"scores of ctr are not finite: {one.num_examples} of {one.num_examples}, allowed is"
    )


@pytest.mark.parametrize("sampling", list(Sampling))
def test_a_score_is_brought_to_the_log_odds_of_the_traffic_that_it_is_judged_on(sampling: Sampling) -> None:
    """Of a model that is right: f is the log-odds on the shelf, its score f - log of the rate that it counts at."""
    uniform_E, popular_E, f_E = (
        torch.tensor([0.2, 0.5, 0.0]),
        torch.tensor([0.1, 0.0, 0.0]),
        torch.tensor([-3.0, -2, 1]),
    )
    labels = {"rate_uniform": uniform_E, "rate_popularity": popular_E}
    both_E = torch.tensor([0.3, 0.5, 1.0])
    score_E = f_E - torch.log(score_rate(labels, sampling))
    live_E = score_E + weight_of(Traffic.live).offset(labels, sampling)
    torch.testing.assert_close(live_E, f_E.double())
    for traffic in (Traffic.sampled, Traffic.weighted):
        torch.testing.assert_close(
            score_E + weight_of(traffic).offset(labels, sampling), (f_E - torch.log(both_E)).double()
        )
