"""The whole model: one pass for all examples equals one for each; nothing leaks; no parameter is without gradient."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.base.errors import ConfigError
from stack.data.batch import Batch, Examples, Ids, Jagged
from stack.data.schema import Feature, Group, Schema
from stack.layers.attention import TargetWeights
from stack.layers.norm import Norm
from stack.model import UserModel, enabled_tasks
from stack.tasks import Enabled, TasksConfig
from stack.tasks.ctr import CtrConfig
from stack.tasks.follow import FollowConfig
from stack.tasks.next_item import NextItemConfig
from stack.tasks.shop import ShopConfig
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.config import Attention, ModelConfig
from stack.towers.user import Pooling
from tests.batches import random_batch, small_model
from tests.prepared import SCHEMA

DENSE = TasksConfig(
    ctr=CtrConfig(dense_features=True), follow=FollowConfig(dense_features=True), next_item=NextItemConfig()
)
WITH_SHOP = TasksConfig(shop=ShopConfig())
CONFIGS = [
    ModelConfig(),
    ModelConfig(behavior=Behavior.transformer, num_states=32),
    ModelConfig(behavior=Behavior.mean),
    ModelConfig(behavior=Behavior.cnn_max),
    ModelConfig(property=PropertyUse.none, user_id=True),
    ModelConfig(property=PropertyUse.lstm, norm=Norm.layer),
    ModelConfig(property=PropertyUse.attention, norm=Norm.batch),
    ModelConfig(attention=Attention.both, target_weights=TargetWeights.sum, norm=Norm.batch),
    ModelConfig(attention=Attention.target, query=False, property=PropertyUse.lstm),
    ModelConfig(attention=Attention.none, query=False, property=PropertyUse.none, behavior=Behavior.mean),
    ModelConfig(
        attention=Attention.none, query=False, property=PropertyUse.lstm, behavior=Behavior.cnn_max, pooling=Pooling.max
    ),
    ModelConfig(query=False, dropout=0.5),
]


def _name(config: ModelConfig) -> str:
    default = ModelConfig()
    changed = {k: getattr(v, "name", v) for k, v in vars(config).items() if v != getattr(default, k)}
    return ",".join(f"{k}={v}" for k, v in changed.items()) or "dupn"


each_config = pytest.mark.parametrize("config", CONFIGS, ids=_name)


def _take(ids: Ids, index: Sequence[int]) -> Ids:
    if isinstance(ids, Tensor):
        return ids[list(index)]
    starts = [0, *accumulate(ids.lengths.tolist())]
    values = [value for i in index for value in ids.values_N[starts[i] : starts[i + 1]].tolist()]
    return Jagged(values_N=torch.tensor(values, dtype=torch.int64), lengths=ids.lengths[list(index)])


def _alone(batch: Batch, moment: int) -> Batch:
    """The batch of one moment: its row cut at its position, and its examples."""
    row, position = int(batch.moment_row_M[moment]), int(batch.moment_position_M[moment])
    start = int(batch.num_events_B[:row].sum())
    events = range(start, start + position)
    groups = {}
    for name, examples in batch.groups.items():
        mine = [e for e, m in enumerate(examples.moment_E.tolist()) if m == moment]
        groups[name] = Examples(
            moment_E=torch.zeros(len(mine), dtype=torch.int64),
            ids={key: _take(ids, mine) for key, ids in examples.ids.items()},
            dense_EF=examples.dense_EF[mine],
            labels={key: label[mine] for key, label in examples.labels.items()},
        )
    return Batch(
        user_B=batch.user_B[[row]], num_events_B=torch.tensor([position]), num_carried_B=torch.tensor([0]),
        event_time_T=batch.event_time_T[list(events)],
        event={key: _take(ids, events) for key, ids in batch.event.items()},
        property={key: _take(ids, events) for key, ids in batch.property.items()},
        profile={key: _take(ids, [row]) for key, ids in batch.profile.items()},
        moment_row_M=torch.tensor([0]), moment_position_M=torch.tensor([position]),
        moment_time_M=batch.moment_time_M[[moment]],
        query={key: _take(ids, [moment]) for key, ids in batch.query.items()},
        groups=groups,
    )  # fmt: skip


def _trained_statistics(model: UserModel, batch: Batch) -> UserModel:
    """The model in evaluation after its running statistics have seen a batch."""
    model.train()(batch)
    return model.eval()


@each_config
def test_one_pass_for_all_examples_equals_one_pass_for_each(config: ModelConfig) -> None:
    batch = random_batch(
        torch.Generator().manual_seed(1),
        num_events=(4, 0, 7, 5),
        moments=((0, 2), (0, 4), (1, 0), (2, 5), (2, 5), (3, 0)),
        num_examples={"impression": 40, "price": 6, "follow": 6, "shop": 6},
    )
    tasks = WITH_SHOP if not config.query else DENSE
    model = _trained_statistics(small_model(config, tasks=tasks), batch)
    with torch.no_grad():
        shared = model(batch)
        for moment in range(batch.num_moments):
            alone = _alone(batch, moment)
            state = model.representation(alone)
            torch.testing.assert_close(
                state.rep_MR[0], model.representation(batch).rep_MR[moment], atol=2e-6, rtol=1e-5
            )
            for name, output in model(alone).items():
                mine = batch.groups[output.group].moment_E == moment
                torch.testing.assert_close(output.score_E, shared[name].score_E[mine], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(output.loss_E, shared[name].loss_E[mine], atol=1e-5, rtol=1e-4)


@each_config
def test_gradients_of_the_shared_pass_are_the_sum_of_those_of_each_example(config: ModelConfig) -> None:
    batch = random_batch(torch.Generator().manual_seed(2), num_examples={"impression": 9, "price": 3, "follow": 3})
    model = _trained_statistics(small_model(config), batch)
    torch.cat([output.loss_E for output in model(batch).values()]).sum().backward()
    shared = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    for moment in range(batch.num_moments):
        torch.cat([output.loss_E for output in model(_alone(batch, moment)).values()]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            shared[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(CONFIGS), st.integers(0, 2**31), st.integers(0, 6), st.integers(0, 6))
def test_nothing_at_or_after_a_moment_reaches_it(config: ModelConfig, seed: int, position: int, other: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(generator, num_events=(6, 6), moments=((0, position), (1, 6)))
    model = small_model(config).eval()
    # Another future: other ids, times and a later moment of the same row, which also changes what is padded.
    unlike = random_batch(generator, num_events=(6, 6), moments=((0, position), (0, other), (1, 6)))
    index = [*range(position), *range(12 + position, 24)]

    def splice(mine: Ids, theirs: Ids) -> Ids:
        return _take(_joined(mine, theirs), index)

    changed = replace(
        unlike, user_B=batch.user_B, profile=batch.profile,
        event_time_T=torch.cat([batch.event_time_T, unlike.event_time_T + 10**9])[index],
        event={key: splice(ids, unlike.event[key]) for key, ids in batch.event.items()},
        property={key: splice(ids, unlike.property[key]) for key, ids in batch.property.items()},
        query={key: _joined(_take(ids, [0]), _take(unlike.query[key], [1, 2])) for key, ids in batch.query.items()},
        moment_time_M=torch.cat([batch.moment_time_M[:1], unlike.moment_time_M[1:]]),
    )  # fmt: skip
    with torch.no_grad():
        before, after = model.representation(batch), model.representation(changed)
    torch.testing.assert_close(before.rep_MR[0], after.rep_MR[0], atol=2e-6, rtol=1e-5)
    if before.keys_MLK is not None and after.keys_MLK is not None:
        seen = slice(max(0, position - 4), position)
        torch.testing.assert_close(before.keys_MLK[0, seen], after.keys_MLK[0, seen], atol=2e-6, rtol=1e-5)
        assert int(after.mask_ML[0].sum()) == min(position, 4)


def _joined(mine: Ids, theirs: Ids) -> Ids:
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
        return torch.cat([mine, theirs])
    assert isinstance(mine, Jagged)
    assert isinstance(theirs, Jagged)
    return Jagged(
        values_N=torch.cat([mine.values_N, theirs.values_N]), lengths=torch.cat([mine.lengths, theirs.lengths])
    )


def test_events_older_than_the_window_do_not_reach_an_encoder_without_memory() -> None:
    model = small_model(ModelConfig(behavior=Behavior.mean, attention=Attention.both), max_history=3).eval()
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(generator, num_events=(6,), moments=((0, 5),))
    old = random_batch(generator, num_events=(6,), moments=((0, 5),))
    # The third event of the window has its predecessor outside: only its gap, which does not change here, looks there.
    changed = replace(
        batch,
        event={key: _take(_joined(old.event[key], ids), [0, 1, 8, 9, 10, 11]) for key, ids in batch.event.items()},
    )
    with torch.no_grad():
        assert torch.equal(model.representation(batch).rep_MR, model.representation(changed).rep_MR)
        torch.testing.assert_close(model(batch)["ctr"].score_E, model(changed)["ctr"].score_E)


NOTHING: dict[str, int] = {}
EMPTY = [
    ("no examples", {"num_examples": NOTHING}),
    ("no moments", {"num_events": (3, 4), "moments": (), "num_examples": NOTHING}),
    ("no events", {"num_events": (0, 0), "moments": ((0, 0), (1, 0))}),
    ("no timelines", {"num_events": (), "moments": (), "num_examples": NOTHING}),
    ("ctr alone", {"num_examples": {"impression": 1}}),
]


@each_config
@pytest.mark.parametrize("case", EMPTY, ids=lambda case: case[0])
def test_every_parameter_gets_a_finite_gradient_also_from_nothing(config: ModelConfig, case: tuple[str, dict]) -> None:  # type: ignore[type-arg]
    batch = random_batch(torch.Generator().manual_seed(0), **case[1])
    model = small_model(config, tasks=DENSE).train()
    outputs = model(batch)
    sum(output.loss_E.sum() for output in outputs.values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for output in model.eval()(batch).values():
        assert torch.isfinite(output.loss_E).all()
        assert output.score_E.shape[0] == output.weight_E.shape[0] == batch.groups[output.group].num_examples


def test_dupn_has_the_papers_number_of_parameters() -> None:
    model = small_model()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.user.named_children()}
    assert count["encoder"] == 147_968
    # [h 128 ; p 48 ; q 32 ; u 128] -> 128 -> 64 -> scalar without bias
    assert count["attention"] == (336 + 1) * 128 + (128 + 1) * 64 + 64 == 51_456
    assert model.user.num_outputs == 256


def test_parameters_depend_on_the_seed_alone() -> None:
    first, second, other = (small_model(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["dense.user.encoder.weight_item"], other["dense.user.encoder.weight_item"])


def test_a_candidate_of_the_history_has_the_key_of_its_event() -> None:
    model = small_model(ModelConfig(attention=Attention.target, query=False, property=PropertyUse.none))
    target = model.target
    assert target is not None
    with torch.no_grad():
        target.state.weight.zero_()
        target.gap.weight.zero_()
    batch = random_batch(torch.Generator().manual_seed(0), num_events=(2,), moments=((0, 2),))
    keys = model.representation(batch).keys_MLK
    assert keys is not None
    event = model.tables({f.table: [_take(batch.event[f.name], [1])] for f in SCHEMA.event})
    features = torch.cat([event[f.table][0] for f in SCHEMA.event], dim=1)
    torch.testing.assert_close(model.task("ctr").item_half(features)[0, 128:], keys[0, 1])


def test_property_ids_beyond_the_embedding_are_unknown() -> None:
    model = small_model(max_history=10).eval()
    batch = random_batch(torch.Generator().manual_seed(0), num_events=(3,), moments=((0, 3),))
    for strange in (-5, 10_000):
        reps = [
            model.representation(replace(batch, property=batch.property | {"type": torch.full((3,), ids)})).rep_MR
            for ids in (0, strange)
        ]
        assert torch.equal(reps[0], reps[1])


def test_tasks_without_examples_in_the_dataset_are_left_out_or_refused() -> None:
    schema = Schema(event=SCHEMA.event, groups=SCHEMA.groups[:1])
    assert enabled_tasks(TasksConfig(), schema) == (["ctr", "rank"], ["follow", "power"])
    with pytest.raises(
        ConfigError, match=r"task 'follow' needs the example group 'follow'; the dataset has: impression: set"
    ):
        enabled_tasks(TasksConfig(follow=FollowConfig(enabled=Enabled.always)), schema)
    with pytest.raises(ConfigError, match="no task is left to train"):
        enabled_tasks(TasksConfig(), Schema(event=SCHEMA.event))


def test_a_dataset_without_profiles_queries_and_properties_makes_a_model() -> None:
    schema = Schema(
        event=SCHEMA.event[:1],
        groups=(Group(name="impression", candidate=SCHEMA.event[:1], dense=("x",), labels=SCHEMA.groups[0].labels),),
    )
    batch = random_batch(torch.Generator().manual_seed(0), schema=schema)
    outputs = small_model(ModelConfig(attention=Attention.both), schema=schema)(batch)
    assert outputs.keys() == {"ctr", "rank"}


def test_the_shop_task_may_not_read_the_shop_off_the_query() -> None:
    with pytest.raises(ConfigError, match=r"task 'shop' would read its answer off the query: set model\.query=false"):
        small_model(tasks=WITH_SHOP)


def test_attention_by_candidate_refuses_candidates_unlike_events() -> None:
    impression = Group(name="impression", candidate=SCHEMA.event[:2], dense=("x",), labels=SCHEMA.groups[0].labels)
    schema = Schema(event=SCHEMA.event, groups=(impression,))
    with pytest.raises(ConfigError, match=r"needs candidates with the features of events.*set model\.attention=query"):
        small_model(ModelConfig(attention=Attention.both), schema=schema)


def test_properties_must_have_one_id_each() -> None:
    schema = replace_property(SCHEMA, Feature(name="tags", table="tags", multi=True))
    with pytest.raises(ConfigError, match="properties must have one id each, but tags has several"):
        small_model(schema=schema)


def replace_property(schema: Schema, feature: Feature) -> Schema:
    return Schema(event=schema.event, property=(feature,), groups=schema.groups)


def test_attention_by_candidate_needs_the_task_that_scores_candidates() -> None:
    tasks = TasksConfig(ctr=CtrConfig(enabled=Enabled.never))
    with pytest.raises(ConfigError, match=r"model\.attention=both attends by candidate, .*needs tasks\.ctr"):
        small_model(ModelConfig(attention=Attention.both), tasks=tasks)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 1.0}, r"model\.dropout is 1\.0: it is the share dropped"),
        ({"num_states": 0}, r"model\.num_states is 0: at least 1"),
        ({"property_headroom": -1}, r"model\.property_headroom is -1"),
        ({"attention": Attention.target}, r"model\.attention=target leaves out the attention by query"),
    ],
)
def test_model_options_that_make_no_sense_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ModelConfig(**options)  # type: ignore[arg-type]
