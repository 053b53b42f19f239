"""Losses against the paper's equations, head shapes and counts, and the registry."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from stack.base.errors import ConfigError
from stack.data.batch import Examples
from stack.data.schema import Group
from stack.layers.norm import Norm
from stack.tasks import TASKS, CtrTask, FollowTask, PowerTask, RankTask, ShopTask, TaskInputs, TasksConfig
from stack.tasks.follow import FollowConfig
from stack.tasks.power import PowerConfig
from stack.tasks.rank import RankConfig, WeightSign
from stack.tasks.sampling import Sampling
from stack.tasks.task import TaskConfig
from stack.towers.user import UserState

RATES = {"rate_uniform": [0.0, 1.0, 1.0, 2.0], "rate_popularity": [0.0, 1.0, 3.0, 0.0]}


def _user(num_moments: int = 3, num_rep: int = 256) -> UserState:
    mask_ML = torch.zeros(num_moments, 1).bool()
    return UserState(rep_MR=torch.randn(num_moments, num_rep), keys_MLK=None, values_MLV=None, mask_ML=mask_ML)


def _examples(num_dense: int = 0, **labels: list[float]) -> Examples:
    count = len(next(iter(labels.values())))
    return Examples(
        moment_E=torch.arange(count) % 3, ids={}, dense_EF=torch.randn(count, num_dense),
        labels={name: torch.tensor(values) for name, values in labels.items()},
    )  # fmt: skip


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_registry_and_config_name_the_same_tasks() -> None:
    assert (
        sorted(TASKS)
        == sorted(field.name for field in fields(TasksConfig))
        == ["ctr", "follow", "next_item", "power", "rank", "shop"]
    )


@pytest.mark.parametrize("sampling", list(Sampling))
def test_ctr_loss_is_equation_8_on_the_corrected_logit(sampling: Sampling) -> None:
    torch.manual_seed(0)
    task = CtrTask(num_rep=256, num_candidate=124, num_dense=0, sampling=sampling)
    examples = _examples(
        clicked=[1.0, 0.0, 0.0, 1.0], rate_uniform=[0.02, 0.5, 0.0, 0.0], rate_popularity=[0.03, 0.0, 0.0, 0.01]
    )
    output = task(_user(), torch.randn(4, 124), examples)
    above = {Sampling.logq: [0.05, 0.5, 1.0, 0.01], Sampling.uniform: [2.5, 1.0, 1.0, 1.0], Sampling.none: [1.0] * 4}
    for e, (clicked, rate) in enumerate(zip([1, 0, 0, 1], above[sampling], strict=True)):
        score = output.score_E[e].item()
        odds = np.exp(score) / rate
        probability = odds / (1 + odds)
        expected = -np.log(probability if clicked else 1 - probability)
        assert output.loss_E[e].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(output.weight_E, torch.ones(4))
    assert torch.equal(output.label_E, examples.labels["clicked"])


@pytest.mark.parametrize("intercept", [None, -0.7])
@pytest.mark.parametrize("sign", list(WeightSign))
def test_rank_loss_is_equation_9_on_standardised_features(sign: WeightSign, intercept: float | None) -> None:
    torch.manual_seed(0)
    task = RankTask(num_rep=256, num_dense=5, weight_sign=sign, intercept=intercept is not None)
    if task.intercept is not None:
        torch.nn.init.constant_(task.intercept, intercept)
    examples = _examples(num_dense=5, clicked=[1.0, 0.0, 0.0, 1.0], weight=[2.0, 1.0, 0.5, 3.0], **RATES)
    user = _user()
    output = task(user, torch.zeros(4, 0), examples)
    dense = examples.dense_EF
    r = (dense - dense.mean(0)) / torch.sqrt(dense.var(0) + 1e-5)
    raw = task.head(user.rep_MR)
    weights = {"relu": raw.clamp(min=0), "softplus": torch.log(1 + torch.exp(raw)), "signed": raw}[sign.name]
    for e, (y, n) in enumerate([(1, 2.0), (-1, 1.0), (-1, 0.5), (1, 3.0)]):
        s = float((weights[e % 3] @ r[e]).detach()) + (intercept or 0.0)
        assert output.score_E[e].item() == pytest.approx(s, abs=1e-5)
        assert output.loss_E[e].item() == pytest.approx(n * np.log(1 + np.exp(-y * s)), rel=1e-4)
    assert output.weight_E.tolist() == [2.0, 1.0, 0.5, 3.0]


def test_power_loss_is_equation_10() -> None:
    torch.manual_seed(0)
    task = PowerTask(num_rep=256)
    output = task(_user(), torch.zeros(4, 0), _examples(tier=[0.0, 6.0, 3.0, 3.0]))
    assert output.score_E.shape == (4, 7)
    for e, tier in enumerate([0, 6, 3, 3]):
        logits = output.score_E[e].detach().double().numpy()
        assert output.loss_E[e].item() == pytest.approx(-np.log(np.exp(logits[tier]) / np.exp(logits).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "label", "width"),
    [
        (FollowTask(num_rep=256, num_candidate=16), "responded", 16),
        (ShopTask(num_rep=256, num_candidate=24), "visited", 24),
    ],
)
def test_preference_losses_are_cross_entropy(task: FollowTask | ShopTask, label: str, width: int) -> None:
    output = task(_user(), torch.randn(2, width), _examples(**{label: [1.0, 0.0]}))
    p, q = (_sigmoid(output.score_E[e].item()) for e in range(2))
    np.testing.assert_allclose(output.loss_E.detach().numpy(), [-np.log(p), -np.log(1 - q)], rtol=1e-5)


def test_follow_scores_are_the_head_on_representation_icon_and_standardised_features_plus_a_linear_path() -> None:
    torch.manual_seed(0)
    task = FollowTask(num_rep=256, num_candidate=16, num_dense=3)
    assert task.wide is not None
    for part in (task.wide, task.head.join.rest[-1]):
        assert isinstance(part, nn.Linear)
        assert not part.weight.any()
        nn.init.normal_(part.weight)
    examples, user, icon_EI = _examples(num_dense=3, responded=[1.0, 0.0, 0.0, 1.0]), _user(), torch.randn(4, 16)
    output = task(user, icon_EI, examples)
    dense_EF = examples.dense_EF
    standard_EF = (dense_EF - dense_EF.mean(0)) / torch.sqrt(dense_EF.var(0) + 1e-5)
    hidden = torch.cat([user.rep_MR[[0, 1, 2, 0]], task.item_half(icon_EI), standard_EF], dim=1)
    for layer in (task.head.join.first, *(m for m in task.head.join.rest if isinstance(m, nn.Linear))):
        assert isinstance(layer, nn.Linear)
        hidden = hidden @ layer.weight.T + layer.bias
        hidden = hidden.clamp(min=0) if layer.out_features > 1 else hidden
    linear = standard_EF @ task.wide.weight[0]
    torch.testing.assert_close(output.score_E, hidden[:, 0] + linear, atol=1e-4, rtol=1e-5)


def test_follow_starts_from_its_prior() -> None:
    task = FollowTask(num_rep=256, num_candidate=16, num_dense=3, prior=0.02)
    output = task(_user(), torch.randn(4, 16), _examples(num_dense=3, responded=[1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(torch.sigmoid(output.score_E), torch.full((4,), 0.02))
    with pytest.raises(ConfigError, match=r"^tasks\.follow\.prior is 1\.0: it must be above 0 and below 1$"):
        FollowConfig(prior=1.0)


def test_follow_refuses_features_that_the_dataset_does_not_have_and_takes_them_on_request_only() -> None:
    bare = TaskInputs(
        group=Group(name="follow"), num_rep=256, num_candidate=16, norm=Norm.none, dropout=0.0, target=None
    )
    with pytest.raises(
        ConfigError, match=r"tasks\.follow\.dense_features=true, and the group 'follow' of this dataset"
    ):
        FollowTask.build(FollowConfig(dense_features=True), bare)
    given = replace(bare, group=Group(name="follow", dense=("a", "b")))
    asked, default = (FollowTask.build(FollowConfig(dense_features=on), given) for on in (True, False))
    assert _count(asked) == _count(default) + 2 * 128 + 2


def test_heads_have_the_papers_sizes() -> None:
    dense = 128 + 1
    ctr = (124 + 1) * 128 + (256 + 128 + 1) * 128 + dense * 128 + dense
    assert _count(CtrTask(num_rep=256, num_candidate=124, num_dense=0)) == ctr == 81_921
    assert _count(RankTask(num_rep=256, num_dense=26)) == 257 * 128 + dense * 26 == 36_250
    assert _count(PowerTask(num_rep=256)) == 257 * 128 + dense * 7 == 33_799
    assert _count(FollowTask(num_rep=256, num_candidate=16)) == 17 * 128 + 385 * 128 + dense * 128 + dense == 68_097
    assert _count(ShopTask(num_rep=256, num_candidate=24)) == 25 * 64 + 321 * 128 + dense * 64 + 65 == 51_009


def test_rank_refuses_a_group_without_ranking_features() -> None:
    inputs = TaskInputs(
        group=Group(name="impression"), num_rep=256, num_candidate=0, norm=Norm.none, dropout=0.0, target=None
    )
    with pytest.raises(ConfigError, match=r"task 'rank' needs ranking features.*set tasks\.rank\.enabled=never"):
        RankTask.build(RankConfig(), inputs)


def test_configs_refuse_values_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"task weight is -1: it must be 0 or more"):
        TaskConfig(weight=-1)
    with pytest.raises(ConfigError, match=r"tasks\.power\.num_tiers is 1: at least 2"):
        PowerConfig(num_tiers=1)
