"""The whole model: tables, one pass of the user tower over each timeline, and the tasks on its representation.

Legend: B rows (timelines), L positions, T events, M moments, E examples, N property columns,
R representation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stack.base.errors import ConfigError
from stack.data.batch import Batch
from stack.data.schema import Feature, Schema
from stack.layers.attention import TargetAttention
from stack.layers.padding import Layout, events_before_moments
from stack.tasks import TASKS, Enabled, Task, TaskConfig, TaskInputs, TaskOutput, TasksConfig
from stack.towers.behavior import PropertyEncoder, build_encoder
from stack.towers.config import ModelConfig
from stack.towers.lookup import AnyTables, Lookup, select_owners
from stack.towers.time import NUM_GAPS
from stack.towers.user import UserInputs, UserState, UserTower

USER_FEATURE = Feature(name="user", table="user")
"""The user's own id, a profile feature where `model.user_id` asks for it."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which features the model reads where; the order is the order of concatenation."""

    event: tuple[Feature, ...]
    property: tuple[Feature, ...]
    profile: tuple[Feature, ...]
    query: tuple[Feature, ...]
    candidate: dict[str, tuple[Feature, ...]]

    def tables(self) -> tuple[str, ...]:
        """Tables to look up in, sorted. Properties are not among them: the user tower embeds them itself."""
        features = [*self.event, *self.profile, *self.query]
        for candidate in self.candidate.values():
            features += candidate
        return tuple(sorted({feature.table for feature in features}))


@dataclass(frozen=True, kw_only=True)
class AskedBatch:
    """A batch whose ids the tables were asked for: `ids` is what they made of that. `layout` and `lookup` say where the
    vectors belong."""

    batch: Batch
    layout: Layout
    lookup: Lookup
    ids: object


class Dense(nn.Module):
    """All of the model but its tables: the user tower and the tasks on its representation.

    A module of its own, and `UserModel.forward` little more than tables before it, because TorchRec's pipeline has to
    find by tracing which of a batch's tensors the tables are asked for.
    """

    def __init__(self, *, user: UserTower, tasks: dict[str, Task], places: Places) -> None:
        super().__init__()
        self.user = user
        self.tasks = nn.ModuleDict(tasks)
        self.places = places

    @property
    def target(self) -> TargetAttention | None:
        """The attention by candidate, which lives in the task that scores candidates."""
        target = getattr(self.tasks["ctr"], "target", None) if "ctr" in self.tasks else None
        assert target is None or isinstance(target, TargetAttention)
        return target

    def task(self, name: str) -> Task:
        """The task called `name`."""
        task = self.tasks[name]
        assert isinstance(task, Task)
        return task

    def forward(self, asked: AskedBatch, found: dict[str, list[Tensor]]) -> dict[str, TaskOutput]:
        """Outputs of all tasks by name, from the tables' answer; every task runs, also on no examples."""
        return self.heads(asked, found)()

    def heads(self, asked: AskedBatch, found: dict[str, list[Tensor]]) -> Callable[[], dict[str, TaskOutput]]:
        """The tasks on a batch, to be run as often as wanted: what comes before them is computed once, here."""
        vectors = asked.lookup.join(found, like=asked.batch.moment_time_M)
        state = self._represent(asked, vectors)
        return lambda: self._outputs(asked, vectors, state)

    def _outputs(self, asked: AskedBatch, vectors: dict[str, Tensor], state: UserState) -> dict[str, TaskOutput]:
        outputs: dict[str, TaskOutput] = {}
        for name in self.tasks:
            task = self.task(name)
            examples = asked.batch.groups[task.group]
            nothing_E0 = state.rep_MR.new_zeros(examples.num_examples, 0)
            outputs[name] = task(state, vectors.get(f"candidate.{task.group}", nothing_E0), examples)
        return outputs

    def represent(self, asked: AskedBatch, found: dict[str, list[Tensor]]) -> UserState:
        """The user half alone, from the tables' answer."""
        return self._represent(asked, asked.lookup.join(found, like=asked.batch.moment_time_M))

    def _represent(self, asked: AskedBatch, vectors: dict[str, Tensor]) -> UserState:
        state: UserState = self.user(self._inputs(asked.batch, asked.layout, vectors), self.target)
        return state

    def _inputs(self, batch: Batch, layout: Layout, vectors: dict[str, Tensor]) -> UserInputs:
        num_kept = layout.slot_N.shape[0]
        columns = [select_owners(batch.property[feature.name], layout.keep_T) for feature in self.places.property]
        columns_N = [column for column in columns if isinstance(column, Tensor)]
        property_NN = torch.stack(columns_N, dim=1) if columns_N else layout.slot_N.new_zeros(num_kept, 0)
        rows_B = torch.arange(batch.num_timelines, device=layout.slot_N.device)
        one_each = batch.num_moments == batch.num_timelines and torch.equal(batch.moment_row_M, rows_B)
        return UserInputs(
            item_BLI=layout.pad(vectors["event"]),
            property_BLN=layout.pad(property_NN),
            seconds_BL=layout.pad(batch.event_time_T[layout.keep_T]),
            profile_BU=vectors["profile"],
            query_MQ=vectors["query"],
            moment_seconds_M=batch.moment_time_M,
            position_M=batch.moment_position_M,
            row_M=None if one_each else batch.moment_row_M,
        )


class UserModel(nn.Module):
    """`forward(batch)` gives each task's output; the halves that serving needs are `user` (with `target`, as
    `stack.towers.user.UserHalf`), `Task.item_half` and `Task.score`, none of which knows of tables."""

    def __init__(self, *, tables: nn.Module, dense: Dense) -> None:
        """`tables` are `stack.towers.lookup.AnyTables`."""
        super().__init__()
        self.tables = tables
        self.dense = dense

    @property
    def user(self) -> UserTower:
        return self.dense.user

    @property
    def tasks(self) -> nn.ModuleDict:
        return self.dense.tasks

    @property
    def places(self) -> Places:
        return self.dense.places

    @property
    def target(self) -> TargetAttention | None:
        """The attention by candidate, which lives in the task that scores candidates."""
        return self.dense.target

    def task(self, name: str) -> Task:
        """The task called `name`."""
        return self.dense.task(name)

    def ask(self, batch: Batch, *, candidates: bool = True) -> AskedBatch:
        """Asks the tables for a batch that will be computed later, whatever is computed until then: of the model it
        reads nothing that learns. With several processes the tables expect every one to ask equally often, in the
        order of the batches."""
        layout = events_before_moments(batch.num_events_B, batch.moment_row_M, batch.moment_position_M)
        lookup = self._lookup(batch, layout, candidates=candidates)
        ids = cast(AnyTables, self.tables).ask(lookup.requests)
        return AskedBatch(batch=batch, layout=layout, lookup=lookup, ids=ids)

    def forward(self, batch: Batch | AskedBatch) -> dict[str, TaskOutput]:
        """Outputs of all tasks by name; a batch that was not asked for before is now."""
        if isinstance(batch, Batch):
            batch = self.ask(batch)
        outputs: dict[str, TaskOutput] = self.dense(batch, self.tables(batch.ids))
        return outputs

    def heads(self, batch: Batch) -> Callable[[], dict[str, TaskOutput]]:
        """`forward` in two steps: each call runs the tasks alone, on what tables and user tower gave once."""
        asked = self.ask(batch)
        return self.dense.heads(asked, self.tables(asked.ids))

    def representation(self, batch: Batch) -> UserState:
        """The user half of a batch alone: no candidates are looked up."""
        asked = self.ask(batch, candidates=False)
        return self.dense.represent(asked, self.tables(asked.ids))

    def _lookup(self, batch: Batch, layout: Layout, *, candidates: bool) -> Lookup:
        """Requests for kept events, profiles, queries and candidates, by place."""
        lookup = Lookup()
        events = {
            feature.name: select_owners(batch.event[feature.name], layout.keep_T) for feature in self.places.event
        }
        profile = batch.profile | {USER_FEATURE.name: batch.user_B}
        lookup.add("event", self.places.event, events, int(layout.slot_N.shape[0]))
        lookup.add("profile", self.places.profile, profile, batch.num_timelines)
        lookup.add("query", self.places.query, batch.query, batch.num_moments)
        if candidates:
            for name, features in self.places.candidate.items():
                examples = batch.groups[name]
                lookup.add(f"candidate.{name}", features, examples.ids, examples.num_examples)
        return lookup


def enabled_tasks(config: TasksConfig, schema: Schema) -> tuple[list[str], list[str]]:
    """Names of the tasks to train and of those left out because the dataset has no examples for them.

    Raises `ConfigError` where a task is asked for always and its group is not in the dataset, or none is left.
    """
    groups = {group.name for group in schema.groups}
    trained, left_out = [], []
    for name, task in TASKS.items():
        enabled = getattr(config, name).enabled
        if enabled is Enabled.never:
            continue
        if task.group in groups:
            trained.append(name)
        elif enabled is Enabled.always:
            raise ConfigError(
                f"task {name!r} needs the example group {task.group!r}; the dataset has: "
                f"{', '.join(sorted(groups)) or 'none'}: set tasks.{name}.enabled=never"
            )
        else:
            left_out.append(name)
    if not trained:
        raise ConfigError("no task is left to train: enable one whose examples the dataset has (tasks.<name>.enabled)")
    return trained, left_out


def places_of(config: ModelConfig, tasks: TasksConfig, schema: Schema) -> Places:
    """Which features the model will read; with it the tables that must exist (`Places.tables`)."""
    names, _ = enabled_tasks(tasks, schema)
    candidate = {
        TASKS[name].group: schema.group(TASKS[name].group).candidate
        for name in names
        if TASKS[name].looks_up_candidates
    }
    places = Places(
        event=schema.event,
        property=schema.property if config.property.in_encoder or config.property.in_attention else (),
        profile=(*schema.profile, USER_FEATURE) if config.user_id else schema.profile,
        query=schema.query if config.query else (),
        candidate=candidate,
    )
    if config.attention.by_target and "ctr" not in names:
        raise ConfigError(
            f"model.attention={config.attention.name} attends by candidate, which needs tasks.ctr: "
            "set model.attention=query"
        )
    if multi := [feature.name for feature in places.property if feature.multi]:
        raise ConfigError(
            f"properties must have one id each, but {', '.join(multi)} has several: make it an event feature"
        )
    if "shop" in names and config.query and {f.table for f in schema.query} & {f.table for f in candidate["shop"]}:
        raise ConfigError(
            "task 'shop' would read its answer off the query: set model.query=false or tasks.shop.enabled=never"
        )
    return places


def build_model(
    config: ModelConfig,
    *,
    tasks: TasksConfig,
    schema: Schema,
    num_rows: Mapping[str, int],
    max_history: int,
    tables: nn.Module,
    table_dims: Mapping[str, int],
) -> UserModel:
    """The model for a dataset. `num_rows`: vocabulary sizes by table. `table_dims`: width of each table that
    `places_of(...).tables()` names. Parameters are drawn from torch's global generator."""
    places = places_of(config, tasks, schema)

    def width(features: tuple[Feature, ...]) -> int:
        return sum(table_dims[feature.table] for feature in features)

    properties = None
    if config.property.in_encoder or config.property.in_attention:
        sizes = [num_rows[feature.table] + config.property_headroom for feature in places.property]
        properties = PropertyEncoder(sizes=sizes, use=config.property)
    encoder = build_encoder(
        config.behavior,
        num_item=width(places.event),
        num_property=properties.num_outputs if properties is not None and config.property.in_encoder else 0,
        num_states=config.num_states,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        dropout=config.dropout,
    )
    user = UserTower(
        num_profile=width(places.profile), num_query=width(places.query) if config.query else None, encoder=encoder,
        properties=properties, property_use=config.property, attend_by_query=config.attention.by_query,
        pooling=config.pooling, max_history=max_history,
    )  # fmt: skip
    built: dict[str, Task] = {}
    names, _ = enabled_tasks(tasks, schema)
    for name in names:
        group = schema.group(TASKS[name].group)
        target = _build_target(config, places, width(places.event), encoder.num_states) if name == "ctr" else None
        options: TaskConfig = getattr(tasks, name)
        inputs = TaskInputs(
            group=group, num_rep=user.num_outputs, num_candidate=width(group.candidate),
            norm=config.norm if options.norm is None else options.norm,
            dropout=config.dropout if options.dropout is None else options.dropout, target=target,
        )  # fmt: skip
        built[name] = TASKS[name].build(options, inputs)
    return UserModel(tables=tables, dense=Dense(user=user, tasks=built, places=places))


def _build_target(config: ModelConfig, places: Places, num_item: int, num_states: int) -> TargetAttention | None:
    if not config.attention.by_target:
        return None
    event, candidate = ([f.table for f in features] for features in (places.event, places.candidate["impression"]))
    if event != candidate:
        raise ConfigError(
            f"attention by candidate needs candidates with the features of events: events have {', '.join(event)}, "
            f"candidates {', '.join(candidate)}: set model.attention=query"
        )
    return TargetAttention(
        num_item=num_item, num_states=num_states, num_gaps=NUM_GAPS, num_keys=config.target_keys,
        num_hidden=config.target_hidden, weights=config.target_weights,
    )  # fmt: skip
