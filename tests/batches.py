"""Random batches in memory, and a model for them, with the schema of `tests.prepared`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stack.data.batch import Batch, Examples, Ids, Jagged
from stack.data.schema import Feature, Schema
from stack.model import UserModel, build_model, places_of
from stack.tasks import TasksConfig
from stack.towers.config import ModelConfig
from tests.plain_tables import DIMS, PlainTables
from tests.prepared import NUM_ROWS, SCHEMA

NOON = 17_003 * 86_400 + 43_200


def random_batch(
    generator: torch.Generator,
    *,
    num_events: Sequence[int] = (4, 0, 7),
    moments: Sequence[tuple[int, int]] = ((0, 2), (0, 4), (1, 0), (2, 5)),
    num_examples: Mapping[str, int] | None = None,
    schema: Schema = SCHEMA,
) -> Batch:
    """`moments`: (row, position) of each. Examples are spread over the moments at random."""
    total = sum(num_events)

    def ids(features: Sequence[Feature], count: int) -> dict[str, Ids]:
        return {feature.name: _ids(generator, feature, count) for feature in features}

    seconds = [torch.sort(NOON - 2 ** torch.randint(0, 24, (n,), generator=generator)).values for n in num_events]
    rows = torch.tensor([row for row, _ in moments], dtype=torch.int64)
    groups = {}
    for group in schema.groups:
        count = 6 if num_examples is None else num_examples.get(group.name, 0)
        groups[group.name] = Examples(
            moment_E=torch.sort(torch.randint(0, max(len(moments), 1), (count,), generator=generator)).values,
            ids=ids(group.candidate, count),
            dense_EF=torch.randn(count, len(group.dense), generator=generator) * 3 + 2,
            labels={label: _label(generator, label, count) for label in group.labels},
        )
    return Batch(
        user_B=torch.randint(1, NUM_ROWS["user"], (len(num_events),), generator=generator),
        num_events_B=torch.tensor(num_events, dtype=torch.int64),
        num_carried_B=torch.zeros(len(num_events), dtype=torch.int64),
        event_time_T=torch.cat([*seconds, torch.zeros(0, dtype=torch.int64)]),
        event=ids(schema.event, total),
        property=ids(schema.property, total),
        profile=ids(schema.profile, len(num_events)),
        moment_row_M=rows,
        moment_position_M=torch.tensor([position for _, position in moments], dtype=torch.int64),
        moment_time_M=NOON + 2 ** torch.randint(0, 26, (len(moments),), generator=generator),
        query=ids(schema.query, len(moments)),
        groups=groups,
    )


def small_model(
    config: ModelConfig | None = None,
    *,
    tasks: TasksConfig | None = None,
    schema: Schema = SCHEMA,
    max_history: int = 4,
    seed: int = 0,
) -> UserModel:
    """A model with plain tables."""
    torch.manual_seed(seed)
    config, tasks = config or ModelConfig(), tasks or TasksConfig()
    dims = {name: DIMS[name] for name in places_of(config, tasks, schema).tables()}
    return build_model(
        config, tasks=tasks, schema=schema, num_rows=NUM_ROWS, max_history=max_history,
        tables=PlainTables(NUM_ROWS, dims), table_dims=dims,
    )  # fmt: skip


def _ids(generator: torch.Generator, feature: Feature, count: int) -> Ids:
    if not feature.multi:
        return torch.randint(0, NUM_ROWS[feature.table], (count,), generator=generator)
    lengths = torch.randint(0, 4, (count,), generator=generator)
    values_N = torch.randint(0, NUM_ROWS[feature.table], (int(lengths.sum()),), generator=generator)
    return Jagged(values_N=values_N, lengths=lengths)


def _label(generator: torch.Generator, label: str, count: int) -> Tensor:
    if label in ("clicked", "responded", "visited"):
        return torch.randint(0, 2, (count,), generator=generator).float()
    if label == "tier":
        return torch.randint(0, 7, (count,), generator=generator).float()
    return torch.rand(count, generator=generator) + 0.01
