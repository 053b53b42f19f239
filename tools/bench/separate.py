"""The same examples as most systems hold them: each with its own copy of its history.

Legend: B timelines, M moments, E examples of all groups together, T events, S events of the copies.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stack.data.batch import Batch, Examples, Ids, Jagged


def separate(batch: Batch, *, examples_per_batch: int, max_history: int | None) -> Iterator[Batch]:
    """The examples of `batch`, in order, each as a timeline of its own with one moment.

    Its events are the last `max_history` before the moment (None: all of the row's), as those systems store them.
    """
    names = list(batch.groups)
    group_E = torch.cat([torch.full_like(batch.groups[name].moment_E, i) for i, name in enumerate(names)])
    place_E = torch.cat([torch.arange(batch.groups[name].num_examples) for name in names])
    moment_E = torch.cat([batch.groups[name].moment_E for name in names])
    for start in range(0, len(moment_E), examples_per_batch):
        part = slice(start, start + examples_per_batch)
        chosen = {name: (group_E[part] == i).nonzero()[:, 0] for i, name in enumerate(names)}
        groups = {name: _examples(batch.groups[name], place_E[part][index], index) for name, index in chosen.items()}
        yield _rows(batch, moment_E[part], groups, max_history)


def _rows(batch: Batch, moment_E: Tensor, groups: dict[str, Examples], max_history: int | None) -> Batch:
    row_E, position_E = batch.moment_row_M[moment_E], batch.moment_position_M[moment_E]
    length_E = position_E if max_history is None else position_E.clamp(max=max_history)
    first_B = batch.num_events_B.cumsum(0) - batch.num_events_B
    index_S = _ranges(first_B[row_E] + position_E - length_E, length_E)
    return Batch(
        user_B=batch.user_B[row_E],
        num_events_B=length_E,
        num_carried_B=torch.zeros_like(length_E),
        event_time_T=batch.event_time_T[index_S],
        event=_take_all(batch.event, index_S),
        property=_take_all(batch.property, index_S),
        profile=_take_all(batch.profile, row_E),
        moment_row_M=torch.arange(len(moment_E)),
        moment_position_M=length_E,
        moment_time_M=batch.moment_time_M[moment_E],
        query=_take_all(batch.query, moment_E),
        groups=groups,
    )


def _examples(examples: Examples, index: Tensor, moment: Tensor) -> Examples:
    return Examples(
        moment_E=moment,
        ids=_take_all(examples.ids, index),
        dense_EF=examples.dense_EF[index],
        labels={name: value[index] for name, value in examples.labels.items()},
    )


def _take_all(ids: dict[str, Ids], index: Tensor) -> dict[str, Ids]:
    return {name: _take(value, index) for name, value in ids.items()}


def _take(ids: Ids, index: Tensor) -> Ids:
    if not isinstance(ids, Jagged):
        return ids[index]
    first = ids.lengths.cumsum(0) - ids.lengths
    lengths = ids.lengths[index]
    return Jagged(values_N=ids.values_N[_ranges(first[index], lengths)], lengths=lengths)


def _ranges(first: Tensor, length: Tensor) -> Tensor:
    """first[0], first[0] + 1, ... for length[0] numbers, then first[1], ..."""
    before = length.cumsum(0) - length
    return (first - before).repeat_interleave(length) + torch.arange(int(length.sum()))
