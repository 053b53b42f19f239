"""User half, item half and scorers go through torch.export with dynamic sizes and give the model's own numbers."""

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from stack.data.schema import Feature
from stack.export.lstm import ForGraphs
from stack.layers.attention import TargetWeights
from stack.layers.norm import Norm
from stack.model import UserModel
from stack.tasks import Scorer, TasksConfig
from stack.tasks.ctr import CtrConfig
from stack.tasks.follow import FollowConfig
from stack.tasks.task import ItemHalf
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from stack.towers.lookup import select_owners
from stack.towers.user import UserHalf
from tests.batches import random_batch, small_model

BOTH = ModelConfig(attention=Attention.both, target_weights=TargetWeights.sum, norm=Norm.batch)
CONFIGS = {
    "both": BOTH,
    "transformer": ModelConfig(behavior=Behavior.transformer, num_states=32, num_layers=1),
    "mean": ModelConfig(behavior=Behavior.mean, attention=Attention.none, query=False, property=PropertyUse.none),
}
ROW, LENGTH = Dim("row", min=1, max=4096), Dim("length", min=1, max=4096)
CANDIDATE = Dim("candidate", min=1, max=100_000)


def _user_inputs(config: ModelConfig, num_rows: int, length: int) -> tuple[Tensor, ...]:
    return (
        torch.randn(num_rows, length, 124),
        torch.randint(0, 4, (num_rows, length, 2 if config.property is not PropertyUse.none else 0)),
        torch.randint(10**9, 10**9 + 10**7, (num_rows, length)).sort(dim=1).values,
        torch.randint(0, length + 1, (num_rows,)),
        torch.randn(num_rows, 32),
        torch.randn(num_rows, 24 if config.query else 0),
        torch.randint(10**9 + 10**7, 10**9 + 2 * 10**7, (num_rows,)),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_user_half_exports_for_any_number_of_rows_and_events(name: str) -> None:
    config = CONFIGS[name]
    model = small_model(config).eval().requires_grad_(False)
    half = UserHalf(model.user, model.target).eval()
    dims = ({0: ROW, 1: LENGTH},) * 3 + ({0: ROW},) * 4
    with ForGraphs():
        exported = export(half, _user_inputs(config, 3, 9), dynamic_shapes=dims).module()
    for sizes in ((1, 1), (1, 2), (5, 17)):
        inputs = _user_inputs(config, *sizes)
        for ours, theirs in zip(half(*inputs), exported(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_item_half_and_scorers_export_for_any_number_of_candidates() -> None:
    model = small_model(BOTH, tasks=TasksConfig(ctr=CtrConfig(dense_features=True))).eval().requires_grad_(False)
    rep, *states = UserHalf(model.user, model.target)(*_user_inputs(BOTH, 1, 9))
    items = ItemHalf(model.task("ctr"))
    features, dense = torch.randn(7, 124), torch.randn(7, 3)
    exported_items = export(items, (features,), dynamic_shapes=({0: CANDIDATE},)).module()
    torch.testing.assert_close(exported_items(features[:2]), items(features)[:2])
    for task, item, extra in (("ctr", items(features), states), ("rank", features[:, :0], [])):
        scorer = Scorer(model.task(task))
        dims = (None, {0: CANDIDATE}, {0: CANDIDATE}, *({1: LENGTH},) * len(extra))
        scored = export(scorer, (rep, item, dense, *extra), dynamic_shapes=dims).module()
        torch.testing.assert_close(scored(rep, item[:2], dense[:2], *extra), scorer(rep, item, dense, *extra)[:2])


def test_a_scored_request_is_the_score_in_a_batch() -> None:
    batch = random_batch(torch.Generator().manual_seed(0), num_examples={"impression": 30, "follow": 9, "price": 9})
    tasks = TasksConfig(ctr=CtrConfig(dense_features=True), follow=FollowConfig(dense_features=True))
    model = small_model(BOTH, tasks=tasks)
    model(batch)
    model.eval().requires_grad_(False)
    state, outputs = model.representation(batch), model(batch)
    for name, output in outputs.items():
        task, examples = model.task(name), batch.groups[output.group]
        for moment in range(batch.num_moments):
            mine = examples.moment_E == moment
            vectors = model.tables(
                {f.table: [select_owners(examples.ids[f.name], mine)] for f in _features(model, output.group)}
            )
            features = [vectors[f.table][0] for f in _features(model, output.group)] or [
                torch.zeros(int(mine.sum()), 0)
            ]
            assert state.keys_MLK is not None
            assert state.values_MLV is not None
            score = Scorer(task)(
                state.rep_MR[[moment]], task.item_half(torch.cat(features, dim=1)), examples.dense_EF[mine],
                state.keys_MLK[[moment]], state.values_MLV[[moment]], state.mask_ML[[moment]],
            )  # fmt: skip
            expected = output.score_E[mine]
            torch.testing.assert_close(score.expand_as(expected), expected, atol=1e-5, rtol=1e-4)


def _features(model: UserModel, group: str) -> tuple[Feature, ...]:
    return model.places.candidate.get(group, ())
