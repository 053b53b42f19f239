"""The next-item task: its loss against one positive at a time, its gradients, and that a score is an inner product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.base.errors import ConfigError
from stack.data.batch import Examples
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.tasks import NextItemTask, Scorer, TasksConfig
from stack.tasks.ctr import CtrConfig
from stack.tasks.follow import FollowConfig
from stack.tasks.next_item import NextItemConfig, sampled_softmax
from stack.tasks.power import PowerConfig
from stack.tasks.rank import RankConfig
from stack.tasks.sampling import Sampling
from stack.tasks.task import Enabled
from stack.towers.config import ModelConfig
from stack.towers.user import UserState
from tests.batches import random_batch, small_model
from tests.prepared import write_prepared
from tests.reference import softmax as reference


def _user(num_moments: int) -> UserState:
    mask_ML = torch.zeros(num_moments, 1).bool()
    return UserState(rep_MR=torch.randn(num_moments, 256), keys_MLK=None, values_MLV=None, mask_ML=mask_ML)


def _examples(moment: list[int], clicked: list[float], generator: torch.Generator | None = None) -> Examples:
    """As ingest makes them: the uniform rate is the same for all candidates of a moment, none is below 0.001."""
    moment_E = torch.tensor(moment, dtype=torch.int64)
    uniform_M = torch.rand(10, generator=generator) * 0.1 + 0.001
    popularity_E = torch.rand(len(moment), generator=generator) ** 3 + 0.001
    labels = {
        "clicked": torch.tensor(clicked), "rate_uniform": uniform_M[moment_E], "rate_popularity": popularity_E,
    }  # fmt: skip
    return Examples(moment_E=moment_E, ids={}, dense_EF=torch.zeros(len(moment), 0), labels=labels)


def _rates(examples: Examples, sampling: Sampling) -> np.ndarray:
    both_E = examples.labels["rate_uniform"] + examples.labels["rate_popularity"]
    return (torch.ones_like(both_E) if sampling is Sampling.none else both_E).double().numpy()


@pytest.mark.parametrize("sampling", list(Sampling))
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(0, 2**31))
def test_the_loss_is_that_of_each_positive_among_the_negatives_of_its_moment(
    sampling: Sampling, rows: list[tuple[int, bool]], seed: int
) -> None:
    """Moments of any size and order, also without positives or without negatives. The rate that the oracle divides by
    is that of both draws, whichever of `uniform` and `logq` evaluation is told."""
    torch.manual_seed(seed)
    task = NextItemTask(num_rep=256, num_candidate=11, sampling=sampling)
    examples = _examples([moment for moment, _ in rows], [float(clicked) for _, clicked in rows])
    output = task(_user(6), torch.randn(len(rows), 11), examples)
    score_E, clicked_E = output.score_E.detach().double().numpy(), examples.labels["clicked"].numpy()
    loss_E, weight_E = reference.sampled_softmax(
        score_E, clicked_E, _rates(examples, sampling), examples.moment_E.numpy()
    )
    np.testing.assert_allclose(output.loss_E.detach().numpy(), loss_E, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(output.weight_E.numpy(), weight_E)
    np.testing.assert_array_equal(output.label_E.numpy(), clicked_E)


def test_two_positives_do_not_compete_and_three_equal_rivals_cost_log_four() -> None:
    logit_E = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 1.0, 1.0])
    positive_E = torch.tensor([True, False, True, False, False, True, False])
    moment_E = torch.tensor([3, 3, 3, 3, 3, 1, 0])
    loss_E, weight_E = sampled_softmax(logit_E, positive_E, moment_E)
    expected = [np.log(4), 0, np.log(1 + 3 * np.exp(-5)), 0, 0, 0, 0]
    np.testing.assert_allclose(loss_E.numpy(), expected, atol=1e-6)
    assert weight_E.tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_gradients_are_those_of_finite_differences_and_of_a_moment_add_up_to_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    positive_E = torch.tensor([True, False, True, False, False, True, False, True])
    moment_E = torch.tensor([0, 0, 1, 1, 1, 1, 2, 3])
    logit_E = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(x_E: Tensor) -> Tensor:
        return sampled_softmax(x_E, positive_E, moment_E)[0]

    assert torch.autograd.gradcheck(loss, (logit_E,))
    loss(logit_E).sum().backward()
    assert logit_E.grad is not None
    moments = [float(logit_E.grad[moment_E == moment].sum()) for moment in range(4)]
    np.testing.assert_allclose(moments, 0, atol=1e-12)
    assert (logit_E.grad[:6][positive_E[:6]] < 0).all()
    assert (logit_E.grad[:6][~positive_E[:6]] > 0).all()
    assert logit_E.grad[6:].tolist() == [0, 0]


@pytest.mark.parametrize("clicked", [[], [0.0, 0.0, 0.0], [1.0, 1.0]], ids=["none", "negatives", "positives"])
def test_without_a_positive_and_a_negative_loss_weight_and_gradients_are_zero(clicked: list[float]) -> None:
    task = NextItemTask(num_rep=256, num_candidate=11)
    user = _user(2)
    user.rep_MR.requires_grad_(True)
    features_EI = torch.randn(len(clicked), 11, requires_grad=True)
    output = task(user, features_EI, _examples([1] * len(clicked), clicked))
    assert output.loss_E.tolist() == output.weight_E.tolist() == [0] * len(clicked)
    output.loss_E.sum().backward()
    for tensor in (user.rep_MR, features_EI, *task.parameters()):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_scores_of_any_size_give_finite_losses_and_what_is_not_finite_is_not_hidden() -> None:
    logit_E = torch.tensor([3e4, -3e4, 3e4, -3e4, 3e4, 0.0], requires_grad=True)
    positive_E = torch.tensor([True, False, False, True, False, False])
    loss_E, _ = sampled_softmax(logit_E, positive_E, torch.tensor([0, 0, 1, 1, 1, 1]))
    assert loss_E.tolist() == [0, 0, 0, pytest.approx(6e4 + np.log(2)), 0, 0]
    loss_E.sum().backward()
    assert logit_E.grad is not None
    assert torch.isfinite(logit_E.grad).all()
    for place in (0, 1):
        for bad in (torch.nan, torch.inf, -torch.inf):
            broken_E = torch.zeros(2).index_fill(0, torch.tensor([place]), bad)
            loss_E, weight_E = sampled_softmax(broken_E, torch.tensor([True, False]), torch.tensor([0, 0]))
            expected_zero = place == 0 and bad == torch.inf
            assert float(loss_E.sum()) == 0 if expected_zero else not torch.isfinite(loss_E.sum())
            assert weight_E.tolist() == [1, 0]


def test_uniform_and_logq_are_one_loss_as_they_differ_by_a_number_for_each_moment() -> None:
    tasks = [NextItemTask(num_rep=256, num_candidate=11, sampling=one) for one in (Sampling.uniform, Sampling.logq)]
    tasks[1].load_state_dict(tasks[0].state_dict())
    user, features_EI = _user(3), torch.randn(9, 11)
    examples = _examples([0, 0, 0, 1, 1, 1, 2, 2, 2], [1.0, 0.0, 0.0] * 3)
    first, second = (task(user, features_EI, examples) for task in tasks)
    torch.testing.assert_close(first.loss_E, second.loss_E, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_correction_makes_the_softmax_of_scores_the_chance_of_being_taken(corrected: bool) -> None:
    """40,000 moments of one purchase, drawn with known chances; negatives are drawn by popularity, so that without the
    correction popular items are held for less likely than they are: the optimum is chance / rate."""
    generator = torch.Generator().manual_seed(0)
    chance_J = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    rate_J = torch.tensor([0.8, 0.5, 0.3, 0.2, 0.1])
    taken_M = torch.multinomial(chance_J, 40_000, replacement=True, generator=generator)
    drawn_MJ = torch.rand(40_000, 5, generator=generator) < rate_J
    drawn_MJ[torch.arange(40_000), taken_M] = False
    moment_N, item_N = drawn_MJ.nonzero(as_tuple=True)
    moment_E, item_E = torch.cat([torch.arange(40_000), moment_N]), torch.cat([taken_M, item_N])
    positive_E = torch.arange(len(item_E)) < 40_000
    score_J = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([score_J], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        shift_E = rate_J.log()[item_E] if corrected else 0.0
        loss_E, weight_E = sampled_softmax(score_J[item_E] - shift_E, positive_E, moment_E)
        mean = loss_E.sum() / weight_E.sum()
        mean.backward()  # type: ignore[no-untyped-call]
        return mean

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    expected_J = chance_J if corrected else (chance_J / rate_J) / (chance_J / rate_J).sum()
    np.testing.assert_allclose(torch.softmax(score_J.detach(), 0), expected_J, atol=0.012)


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_scores_are_the_inner_products_of_user_vectors_and_items_so_a_search_finds_the_best(
    temperature: float | None,
) -> None:
    torch.manual_seed(1)
    task = NextItemTask(num_rep=256, num_candidate=11, temperature=temperature)
    user, features_EI = _user(4), torch.randn(500, 11)
    vector_MV, item_EV = task.user_vector(user.rep_MR), task.item_half(features_EI)
    assert (vector_MV.shape, item_EV.shape) == ((4, 64), (500, 64))
    product_ME = vector_MV @ item_EV.T
    every_E, moment_E = item_EV.repeat(4, 1), torch.arange(4).repeat_interleave(500)
    in_batch_E = task.score(user, every_E, torch.zeros(2000, 0), moment_E)
    torch.testing.assert_close(in_batch_E.view(4, 500), product_ME, atol=1e-5, rtol=1e-4)
    asked_E = Scorer(task)(user.rep_MR[2:3], item_EV, torch.zeros(500, 0))
    torch.testing.assert_close(asked_E, product_ME[2], atol=1e-5, rtol=1e-4)
    assert int(asked_E.argmax()) == int(product_ME[2].argmax())


def test_with_a_temperature_a_score_is_the_cosine_over_it() -> None:
    torch.manual_seed(1)
    plain, cosine = (NextItemTask(num_rep=256, num_candidate=11, temperature=one) for one in (None, 0.05))
    cosine.load_state_dict(plain.state_dict())
    user, features_EI = _user(1), torch.randn(9, 11)
    user_V, item_EV = plain.user_vector(user.rep_MR)[0].detach(), plain.item_half(features_EI).detach()
    expected_E = [float(user_V @ item_V / (user_V.norm() * item_V.norm())) / 0.05 for item_V in item_EV]
    score_E = cosine.score(user, cosine.item_half(features_EI), torch.zeros(9, 0), None)
    np.testing.assert_allclose(score_E.detach(), expected_E, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cosine.item_half(features_EI).norm(dim=1).detach(), np.ones(9), rtol=1e-5)


def test_each_item_has_a_score_of_its_own_without_a_coordinate_for_it() -> None:
    """The mean over users of a score is the constant of the user's map times the item: what a bias would be."""
    task = NextItemTask(num_rep=256, num_candidate=11, temperature=None)
    rep_MR, item_EV = torch.randn(50, 256), task.item_half(torch.randn(7, 11))
    rep_MR = rep_MR - rep_MR.mean(0)
    mean_E = (task.user_vector(rep_MR) @ item_EV.T).mean(0)
    torch.testing.assert_close(mean_E, item_EV @ task.user.bias, atol=1e-5, rtol=1e-4)


def test_the_heads_size() -> None:
    task = NextItemTask(num_rep=256, num_candidate=124, num_outputs=64)
    assert sum(p.numel() for p in task.parameters()) == 257 * 64 + 125 * 128 + 129 * 64 == 40_704


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tasks\.next_item\.temperature is 0\.0: it must be above 0, or null$"):
        NextItemConfig(temperature=0.0)
    with pytest.raises(ConfigError, match=r"^tasks\.next_item\.num_outputs is 0: at least 1 is needed$"):
        NextItemConfig(num_outputs=0)


def test_it_is_not_trained_unless_asked_for_and_then_changes_no_other_tasks_outputs() -> None:
    batch = random_batch(torch.Generator().manual_seed(0))
    alone, both = small_model(), small_model(tasks=TasksConfig(next_item=NextItemConfig()))
    assert "next_item" not in alone.tasks
    both.load_state_dict(alone.state_dict(), strict=False)
    with torch.no_grad():
        outputs, outputs_of_both = alone.eval()(batch), both.eval()(batch)
    assert set(outputs_of_both) == set(outputs) | {"next_item"}
    for name, output in outputs.items():
        assert torch.equal(output.score_E, outputs_of_both[name].score_E)


def test_training_puts_the_items_of_a_users_history_first(tmp_path: Path) -> None:
    """Users of the small dataset buy two of their own five favourites each time; negatives are uniform over 200."""
    dataset = Dataset(write_prepared(tmp_path / "prepared", num_days=6))
    never = Enabled.never
    tasks = TasksConfig(
        ctr=CtrConfig(enabled=never), rank=RankConfig(enabled=never), power=PowerConfig(enabled=never),
        follow=FollowConfig(enabled=never), next_item=NextItemConfig(),
    )  # fmt: skip
    model = small_model(ModelConfig(user_id=True), tasks=tasks, max_history=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        for batch in Loader(dataset, days=dataset.days()[:5], global_batch_size=64, num_prefetch=0):
            output = model(batch)["next_item"]
            optimizer.zero_grad()
            (output.loss_E.sum() / output.weight_E.sum()).backward()
            optimizer.step()
    held_out = next(iter(Loader(dataset, days=dataset.days()[5:], global_batch_size=64, num_prefetch=0)))
    with torch.no_grad():
        output = model.eval()(held_out)["next_item"]
    moment_E = held_out.groups["impression"].moment_E
    first = [
        bool(output.label_E[moment_E == moment][output.score_E[moment_E == moment].argmax()])
        for moment in moment_E.unique().tolist()
    ]
    assert np.mean(first) > 0.4  # chance is 0.2, with a deviation of 0.05 over 54 moments


def test_the_moments_of_the_batch_are_not_changed() -> None:
    examples = _examples([0, 0], [1.0, 0.0])
    before = dict(examples.labels)
    NextItemTask(num_rep=256, num_candidate=11)(_user(1), torch.randn(2, 11), replace(examples))
    assert examples.labels.keys() == before.keys()
