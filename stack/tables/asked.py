"""What tables are asked for in a step, as they are asked: made before the lookup, at any time, and alone in touching no
weights. So the ids of a step can be on their way between processes while the step before is computed.

Shape legend: N ids of one request, U distinct rows of a table, K rows of an id, D width of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stack.data.batch import Ids, Jagged
from stack.tables.replicated import Replicated

BAG_UNIT = 8
"""int8 communication scales 32 numbers together, and widths are multiples of 4."""


class LongestOfAll:
    """The largest of a number over all processes, rounded up to full units, agreed on while they do other things.

    Every process makes these in the same order; `value` waits for the others.
    """

    def __init__(self, value: int) -> None:
        self._largest = torch.tensor(value)
        self._work: dist.Work | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._work = dist.all_reduce(self._largest, op=dist.ReduceOp.MAX, async_op=True)

    @cached_property
    def value(self) -> int:
        if self._work is not None:
            self._work.wait()
        return -(-int(self._largest) // BAG_UNIT) * BAG_UNIT


@dataclass(frozen=True, kw_only=True)
class Asked:
    """`requests` by table, their `distinct` rows (U,), and for each id in turn its `position` among them, (N,) or
    (N, K). `resets`: rows that changed hands since the step before. `sharded`: the tables that TorchRec looks up;
    `longest`: the most distinct rows of one of them on any process, at least 1. `num_distinct_ids` by table: where ids
    are hashed or managed, several may have the same row.
    """

    requests: Mapping[str, Sequence[Ids]]
    distinct: dict[str, Tensor]
    position: dict[str, Tensor]
    resets: dict[str, Tensor]
    sharded: tuple[str, ...]
    longest: LongestOfAll
    num_distinct_ids: dict[str, int]

    @property
    def num_ids(self) -> dict[str, int]:
        """By table, how many ids were asked for."""
        return {name: sum(map(_num_ids, own)) for name, own in self.requests.items()}

    @cached_property
    def bags(self) -> KeyedJaggedTensor:
        """One row a bag; empty bags fill up to `longest`, since TorchRec wants as many bags of each table, and row-wise
        sharding over gloo as many in each process."""
        rows = [self.distinct[name] for name in self.sharded]
        bag = torch.arange(self.longest.value, device=rows[0].device)
        return KeyedJaggedTensor(
            keys=list(self.sharded),
            values=torch.cat(rows),
            lengths=torch.cat([bag < own.shape[0] for own in rows]).to(torch.int32),
            stride=self.longest.value,
        )


class Renew(nn.Module):
    """Rows that changed hands begin anew. A module because tracing for TorchRec's pipeline does not look into one."""

    def __init__(self) -> None:
        super().__init__()
        self.reset_rows: Callable[[str, Tensor], None] | None = None

    def forward(self, asked: Asked) -> None:
        for name, rows in asked.resets.items():
            assert self.reset_rows is not None, "managed ids come after shard"
            self.reset_rows(name, rows)


class HandOut(nn.Module):
    """Looked-up rows to those who asked, of sharded tables and of `replicated` ones. A module for the same reason."""

    def __init__(self) -> None:
        super().__init__()
        self.replicated: Replicated | None = None

    def forward(self, asked: Asked, sharded: KeyedTensor | None) -> dict[str, list[Tensor]]:
        """Vectors for every request, by table and in the order asked."""
        found: dict[str, Tensor] = {}
        if self.replicated is not None:
            found |= self.replicated.look_up({name: asked.distinct[name] for name in self.replicated.tables})
        if sharded is not None:
            found |= {name: rows[: asked.distinct[name].shape[0]] for name, rows in sharded.to_dict().items()}
        return {name: _spread(found[name], asked.position[name], own) for name, own in asked.requests.items()}


def _num_ids(ids: Ids) -> int:
    return int((ids.values_N if isinstance(ids, Jagged) else ids).shape[0])


def _spread(rows_UD: Tensor, position: Tensor, asked: Sequence[Ids]) -> list[Tensor]:
    """Hands each request its vectors; `position` says for all requests in turn which distinct row an id became, or,
    of (N, K), which K rows are summed for it."""
    if position.dim() == 2:
        summed_ND = functional.embedding_bag(position, rows_UD, mode="sum")
        return _spread(summed_ND, torch.arange(position.shape[0], device=position.device), asked)
    vectors: list[Tensor] = []
    start = 0
    for ids in asked:
        count = _num_ids(ids)
        own = position[start : start + count]
        start += count
        if isinstance(ids, Jagged):
            offsets = functional.pad(torch.cumsum(ids.lengths, 0), (1, 0))
            vectors.append(functional.embedding_bag(own, rows_UD, offsets, mode="mean", include_last_offset=True))
        else:
            vectors.append(rows_UD.index_select(0, own))
    return vectors
