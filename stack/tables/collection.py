"""Every lookup of a step, in one call: distinct rows are fetched once and shared by all who ask.

TorchRec keeps a table apart for pooled and for sequence features, and its sequence lookup is the slow one on a CPU;
so everything goes through one EmbeddingBagCollection with bags of at most one id, and widths may differ.

Shape legend: N ids of one request, U distinct ids of a table, K rows of an id, P rows per table after padding, D width
of the table.

A step that asks the table `item` for history and candidates::

    requests["item"]   [3 7 7 9]  [7 2]                (3, 9 and 2 in history or candidates alone, 7 in both)
    distinct           [2 3 7 9 . .]                   padded with empty bags to the longest of all tables
    looked up          (P, D), of which (U, D) are used
    gathered           (4, D)     (2, D)               their gradients meet again in the row of 7

A row's gradient is therefore the sum over the step, and the fused optimizer updates each row at most once a step.

Where a table's ids are hashed or managed (`stack.ids`), distinct ids become rows before rows are made distinct in turn:
an id of several rows gets their sum, and all ids without a row share row 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stack.data.batch import Ids, Jagged
from stack.data.schema import PADDING_ROW
from stack.ids.config import IdMode
from stack.ids.maps import IdMaps
from stack.tables.config import TableSpec
from stack.tables.first_values import FirstValues
from stack.tables.fused import FusedOptimizer
from stack.tables.replicated import Replicated

_PREFIX = "t_"  # a table named "type" would hide an attribute of the module that holds it

_COUNT_BELOW_ROWS_PER_ID = 4


class Tables(nn.Module):
    """All embedding tables of a model.

    Rows are allocated by `stack.tables.shard.shard`, not here. Ids are rows, and those below zero or beyond the table
    count as row 0, the learned vector of an unknown id; but ids of tables that `ids` hashes or manages are keys of it.
    """

    def __init__(self, specs: Sequence[TableSpec], *, ids: IdMaps | None = None) -> None:
        super().__init__()
        self.specs = {spec.name: spec for spec in specs}
        self.ids = ids
        self.reset_rows: Callable[[str, Tensor], None] | None = None
        self.collection: nn.Module = _collection(specs)
        self.replicated: Replicated | None = None
        self.fused: FusedOptimizer | None = None
        self.first_values: FirstValues | None = None

    def replicate(self, replicated: Replicated) -> None:
        """Hands tables to `replicated`, which holds them whole; the others stay for TorchRec to shard."""
        self.replicated = replicated
        self.collection = _collection([spec for name, spec in self.specs.items() if name not in replicated.tables])

    @property
    def dims(self) -> dict[str, int]:
        """Width by table."""
        return {name: spec.dim for name, spec in self.specs.items()}

    def forward(self, requests: Mapping[str, Sequence[Ids]]) -> dict[str, list[Tensor]]:
        """Vectors for every request, by table and in the order asked.

        A tensor of N ids gives (N, D). Jagged ids give the mean over each owner's ids, (owners, D), zeros for an owner
        without any. With several processes every one must call this the same number of times.
        """
        distinct: dict[str, Tensor] = {}
        positions: dict[str, Tensor] = {}
        for name in self.specs:
            distinct[name], positions[name] = self._distinct_rows(name, requests.get(name, ()))
        if self.ids is not None:
            self._reset_evicted(self.ids)
        looked_up = self._look_up_all(distinct)
        return {name: _spread(looked_up[name], positions[name], asked) for name, asked in requests.items()}

    def _distinct_rows(self, name: str, asked: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """The distinct rows (U,) of a table, and for each id which of them are its own: (N,), or (N, K)."""
        num_rows = self.specs[name].num_rows
        if self.ids is None or self.ids.specs[name].mode is IdMode.direct:
            return _distinct(_within(_flat_ids(asked), num_rows), num_rows)
        key_U, position_N = torch.unique(_flat_ids(asked), return_inverse=True)
        row_UK = self.ids(name, key_U)
        distinct, place = _distinct(row_UK.reshape(-1), num_rows)
        return distinct, place.view(row_UK.shape).index_select(0, position_N)

    def _reset_evicted(self, ids: IdMaps) -> None:
        """Rows that changed hands in this step begin anew, before they are looked up."""
        for name, rows in ids.drain_resets().items():
            assert self.reset_rows is not None, "managed ids come after shard"
            self.reset_rows(name, rows)

    def _look_up_all(self, distinct: dict[str, Tensor]) -> dict[str, Tensor]:
        """(U, D) for the distinct ids of each table, wherever it is."""
        if self.replicated is None:
            return self._look_up(distinct)
        here = self.replicated.tables
        sharded = {name: ids for name, ids in distinct.items() if name not in here}
        found = self.replicated.look_up({name: distinct[name] for name in here})
        return found | self._look_up(sharded) if sharded else found

    def _look_up(self, distinct: dict[str, Tensor]) -> dict[str, Tensor]:
        """(U, D) for the distinct ids of each table, through one call of the collection."""
        names = list(distinct)
        counts = [int(ids.shape[0]) for ids in distinct.values()]
        device = distinct[names[0]].device
        # TorchRec wants as many bags of each table, and row-wise sharding over gloo as many in each process.
        num_bags = _largest_over_processes(max(counts), device)
        bag = torch.arange(num_bags, device=device)
        asked = KeyedJaggedTensor(
            keys=names,
            values=torch.cat(list(distinct.values())),
            lengths=torch.cat([bag < count for count in counts]).to(torch.int32),
            stride=num_bags,
        )
        vectors = self.collection(asked).to_dict()
        return {name: vectors[name][:count] for name, count in zip(names, counts, strict=True)}


def _collection(specs: Sequence[TableSpec]) -> nn.Module:
    """Not allocated yet; without tables, an empty module."""
    if not specs:
        return nn.Module()
    collection: nn.Module = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=module_name(spec.name),
                num_embeddings=spec.num_rows,
                embedding_dim=spec.dim,
                data_type=DataType[spec.dtype.name.upper()],
                feature_names=[spec.name],
                pooling=PoolingType.SUM,
                init_fn=_leave_to_sharding,
            )
            for spec in specs
        ],
    )
    return collection


def module_name(table: str) -> str:
    """The table's name inside TorchRec."""
    return _PREFIX + table


def table_name(module: str) -> str:
    """The inverse of `module_name`."""
    return module.removeprefix(_PREFIX)


def _flat_ids(asked: Sequence[Ids]) -> Tensor:
    """All ids of a table's requests in one tensor."""
    parts = [ids.values_N if isinstance(ids, Jagged) else ids for ids in asked]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _within(ids: Tensor, num_rows: int) -> Tensor:
    """Unknown ids as row 0."""
    return torch.where((ids < 0) | (ids >= num_rows), PADDING_ROW, ids)


def _distinct(ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The distinct ids in ascending order, and for each id which of them it is."""
    if num_rows > _COUNT_BELOW_ROWS_PER_ID * ids.shape[0]:
        distinct, inverse = torch.unique(ids, return_inverse=True)
        return distinct, inverse
    # Marking rows beats sorting ids where ids are many: 160,000 ids of 1,500 rows in 0.4 ms against 3.1 ms.
    asked = torch.zeros(num_rows, dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)
    position = torch.cumsum(asked, 0) - 1
    return asked.nonzero().squeeze(1), position.index_select(0, ids)


def _spread(rows_UD: Tensor, position: Tensor, asked: Sequence[Ids]) -> list[Tensor]:
    """Hands each request its vectors; `position` says for all requests in turn which distinct row an id became, or,
    of (N, K), which K rows are summed for it."""
    if position.dim() == 2:
        summed_ND = functional.embedding_bag(position, rows_UD, mode="sum")
        return _spread(summed_ND, torch.arange(position.shape[0], device=position.device), asked)
    vectors: list[Tensor] = []
    start = 0
    for ids in asked:
        count = int((ids.values_N if isinstance(ids, Jagged) else ids).shape[0])
        own = position[start : start + count]
        start += count
        if isinstance(ids, Jagged):
            offsets = functional.pad(torch.cumsum(ids.lengths, 0), (1, 0))
            vectors.append(functional.embedding_bag(own, rows_UD, offsets, mode="mean", include_last_offset=True))
        else:
            vectors.append(rows_UD.index_select(0, own))
    return vectors


def _largest_over_processes(value: int, device: torch.device) -> int:
    """The largest `value` of all processes, at least 1 (TorchRec has no empty batch)."""
    value = max(value, 1)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def _leave_to_sharding(weight: Tensor) -> Tensor:
    """Rows get their first values in `stack.tables.shard`, where they do not depend on who holds them."""
    return weight
