"""Picks timelines out of a block and lays them out as a `Batch`: index arithmetic on offsets, no loop over rows.

Shape legend: B timelines, T events, M moments, E examples of one group, K owners picked, N ids.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stack.data.batch import Batch, Examples, Ids, Jagged
from stack.data.parquet import Block, Column, Level, Offsets, Ragged
from stack.data.schema import Feature, Group, Schema


def collate(block: Block, timelines_B: Offsets, *, schema: Schema, groups: tuple[Group, ...]) -> Batch:
    """The batch of the block's timelines `timelines_B`, in that order."""
    num_events_B, event_T = _pick(block.event.offsets, timelines_B)
    num_moments_B, moment_M = _pick(block.moment.offsets, timelines_B)
    first_moment_B = np.cumsum(num_moments_B) - num_moments_B
    event, moment, timeline = block.event.columns, block.moment.columns, block.timeline
    return Batch(
        user_B=_int64(timeline["user"], timelines_B),
        num_events_B=torch.from_numpy(num_events_B),
        num_carried_B=_int64(timeline["num_carried"], timelines_B),
        event_time_T=_int64(event["time"], event_T),
        event=_ids(event, schema.event, event_T),
        property=_ids(event, schema.property, event_T),
        profile=_ids(timeline, schema.profile, timelines_B),
        moment_row_M=torch.from_numpy(np.repeat(np.arange(len(timelines_B)), num_moments_B)),
        moment_position_M=_int64(moment["position"], moment_M),
        moment_time_M=_int64(moment["time"], moment_M),
        query=_ids(moment, schema.query, moment_M),
        groups={
            group.name: _examples(block.groups[group.name], group, timelines_B, first_moment_B) for group in groups
        },
    )


def _examples(level: Level, group: Group, timelines_B: Offsets, first_moment_B: Offsets) -> Examples:
    num_examples_B, example_E = _pick(level.offsets, timelines_B)
    moment_E = _int64(level.columns["moment"], example_E) + torch.from_numpy(np.repeat(first_moment_B, num_examples_B))
    return Examples(
        moment_E=moment_E,
        ids=_ids(level.columns, group.candidate, example_E),
        dense_EF=torch.from_numpy(_plain(level.columns["dense"])[example_E]),
        labels={name: torch.from_numpy(_plain(level.columns[name])[example_E]) for name in group.labels},
    )


def _pick(offsets: Offsets, owners_B: Offsets) -> tuple[Offsets, Offsets]:
    """How many entries each owner has, and the index of every entry of every owner::

    offsets [0 2 2 5], owners [2, 0]  ->  lengths [3, 2], index [2 3 4 0 1]
    """
    first_B = offsets[owners_B]
    lengths_B = offsets[owners_B + 1] - first_B
    end_B = np.cumsum(lengths_B)
    num_entries = int(end_B[-1]) if len(end_B) else 0
    return lengths_B, np.arange(num_entries) + np.repeat(first_B - end_B + lengths_B, lengths_B)


def _ids(columns: dict[str, Column], features: tuple[Feature, ...], index_K: Offsets) -> dict[str, Ids]:
    return {feature.name: _take(columns[feature.name], index_K) for feature in features}


def _take(column: Column, index_K: Offsets) -> Ids:
    if not isinstance(column, Ragged):
        return _int64(column, index_K)
    lengths_K, index_N = _pick(column.offsets, index_K)
    return Jagged(values_N=_int64(column.values_N, index_N), lengths=torch.from_numpy(lengths_K))


def _int64(column: Column, index_K: Offsets) -> Tensor:
    return torch.from_numpy(_plain(column)[index_K].astype(np.int64, copy=False))


def _plain(column: Column) -> np.ndarray:
    assert isinstance(column, np.ndarray)
    return column
