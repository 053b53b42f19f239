"""The tensors of one training step: timelines as jagged events, their moments, and examples at the moments.

Shape legend: B timelines, T events of all timelines together, M moments, E examples of one group,
F dense features, N ids of a multi-valued feature.

Three timelines with 2, 0 and 3 events and three moments::

    num_events_B       [2, 0, 3]
    event_time_T       [t00 t01 | | t20 t21 t22]
    moment_row_M       [0, 0, 2]        which timeline
    moment_position_M  [1, 2, 2]        events of that timeline strictly before the moment:
                                        the first sees t00, the second t00 t01, the third t20 t21
    groups["impression"].moment_E  [0, 0, 0, 1, 2, 2]

The history of an example is the last `max_history` events before its moment's position: two indices, no copy.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Jagged:
    """Ids of a multi-valued feature: `values_N` in one piece, `lengths` ids for each owner."""

    values_N: Tensor
    lengths: Tensor


Ids = Tensor | Jagged
"""int64 vocabulary rows, or keys where there is no vocabulary: one for each owner (Tensor), or any number (Jagged)."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of one group: `ids` the candidate's features, `dense_EF` ranking features (float32, raw values),
    `labels` float32 (E,) by name."""

    moment_E: Tensor
    ids: dict[str, Ids]
    dense_EF: Tensor
    labels: dict[str, Tensor]

    @property
    def num_examples(self) -> int:
        return int(self.moment_E.shape[0])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data on one rank. All indices are local to the batch; ids are rows or keys as `Ids`.

    `event`, `property`: by feature name, per event. `profile`: per timeline. `query`: per moment.
    `user_B` identifies the timeline's user for grouped metrics; models read it only where configured to.
    `num_carried_B` counts the leading events of each timeline that come from earlier days.
    """

    user_B: Tensor
    num_events_B: Tensor
    num_carried_B: Tensor
    event_time_T: Tensor
    event: dict[str, Ids]
    property: dict[str, Ids]
    profile: dict[str, Ids]
    moment_row_M: Tensor
    moment_position_M: Tensor
    moment_time_M: Tensor
    query: dict[str, Ids]
    groups: dict[str, Examples]

    @builtins.property
    def num_timelines(self) -> int:
        return int(self.num_events_B.shape[0])

    @builtins.property
    def num_moments(self) -> int:
        return int(self.moment_row_M.shape[0])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with every tensor on `device`."""

    def move(ids: Ids) -> Ids:
        if isinstance(ids, Jagged):
            return Jagged(values_N=ids.values_N.to(device), lengths=ids.lengths.to(device))
        return ids.to(device)

    def move_all(columns: dict[str, Ids]) -> dict[str, Ids]:
        return {name: move(ids) for name, ids in columns.items()}

    def move_examples(examples: Examples) -> Examples:
        return Examples(
            moment_E=examples.moment_E.to(device),
            ids=move_all(examples.ids),
            dense_EF=examples.dense_EF.to(device),
            labels={name: label.to(device) for name, label in examples.labels.items()},
        )

    return Batch(
        user_B=batch.user_B.to(device),
        num_events_B=batch.num_events_B.to(device),
        num_carried_B=batch.num_carried_B.to(device),
        event_time_T=batch.event_time_T.to(device),
        event=move_all(batch.event),
        property=move_all(batch.property),
        profile=move_all(batch.profile),
        moment_row_M=batch.moment_row_M.to(device),
        moment_position_M=batch.moment_position_M.to(device),
        moment_time_M=batch.moment_time_M.to(device),
        query=move_all(batch.query),
        groups={name: move_examples(examples) for name, examples in batch.groups.items()},
    )
