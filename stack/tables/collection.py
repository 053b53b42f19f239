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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stack.data.batch import Ids, Jagged
from stack.data.schema import PADDING_ROW
from stack.ids.config import IdMode
from stack.ids.maps import IdMaps
from stack.tables.asked import Asked, HandOut, LongestOfAll, Renew
from stack.tables.config import TableSpec
from stack.tables.first_values import FirstValues
from stack.tables.fused import FusedOptimizer
from stack.tables.placement import Sharding
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
        self.renew = Renew()
        self.collection: nn.Module = collection_of(specs)
        self.hand_out = HandOut()
        self.fused: FusedOptimizer | None = None
        self.first_values: FirstValues | None = None
        self.shardings: dict[str, Sharding] = {}

    @property
    def replicated(self) -> Replicated | None:
        """The tables that every process holds whole."""
        return self.hand_out.replicated

    def replicate(self, replicated: Replicated) -> None:
        """Hands tables to `replicated`, which holds them whole; the others stay for TorchRec to shard."""
        self.hand_out.replicated = replicated
        self.collection = collection_of([self.specs[name] for name in self.sharded])

    @property
    def sharded(self) -> tuple[str, ...]:
        """The tables in TorchRec's hands."""
        return tuple(name for name in self.specs if self.replicated is None or name not in self.replicated.tables)

    @property
    def dims(self) -> dict[str, int]:
        """Width by table."""
        return {name: spec.dim for name, spec in self.specs.items()}

    def ask(self, requests: Mapping[str, Sequence[Ids]]) -> Asked:
        """The requests of a step in the form that the lookup takes. Neither reads nor writes weights.

        Where ids are managed this is their step of admissions and evictions, so batches are asked for in the order in
        which they are learnt from. With several processes every one must call this the same number of times.
        """
        distinct: dict[str, Tensor] = {}
        position: dict[str, Tensor] = {}
        num_distinct_ids: dict[str, int] = {}
        for name in self.specs:
            rows_U, position_N, num_ids = self._distinct_rows(name, requests.get(name, ()))
            distinct[name], position[name], num_distinct_ids[name] = rows_U, position_N, num_ids
        return Asked(
            requests=requests,
            distinct=distinct,
            position=position,
            resets={} if self.ids is None else self.ids.drain_resets(),
            sharded=self.sharded,
            longest=LongestOfAll(max([1, *(int(distinct[name].shape[0]) for name in self.sharded)])),
            num_distinct_ids=num_distinct_ids,
        )

    def forward(self, asked: Asked | Mapping[str, Sequence[Ids]]) -> dict[str, list[Tensor]]:
        """Vectors for every request, by table and in the order asked; requests that were not asked before are now.

        A tensor of N ids gives (N, D). Jagged ids give the mean over each owner's ids, (owners, D), zeros for an owner
        without any. With several processes every one must call this the same number of times, in the order of `ask`.
        """
        if isinstance(asked, Mapping):
            asked = self.ask(asked)
        self.renew(asked)
        vectors = self.collection(asked.bags) if self.sharded else None
        found: dict[str, list[Tensor]] = self.hand_out(asked, vectors)
        return found

    def _distinct_rows(self, name: str, asked: Sequence[Ids]) -> tuple[Tensor, Tensor, int]:
        """The distinct rows (U,) of a table, for each id which of them are its own: (N,), or (N, K); and how many
        distinct ids there are."""
        num_rows = self.specs[name].num_rows
        if self.ids is None or self.ids.specs[name].mode is IdMode.direct:
            row_U, position_N = _distinct(_within(_flat_ids(asked), num_rows), num_rows)
            return row_U, position_N, int(row_U.shape[0])
        key_U, position_N = torch.unique(_flat_ids(asked), return_inverse=True)
        row_UK = self.ids(name, key_U)
        distinct, place = _distinct(row_UK.reshape(-1), num_rows)
        return distinct, place.view(row_UK.shape).index_select(0, position_N), int(key_U.shape[0])


def collection_of(specs: Sequence[TableSpec]) -> nn.Module:
    """TorchRec's collection of the tables, on the meta device: nothing is allocated. Without any, an empty module."""
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


def _leave_to_sharding(weight: Tensor) -> Tensor:
    """Rows get their first values in `stack.tables.shard`, where they do not depend on who holds them."""
    return weight
