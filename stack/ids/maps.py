"""The maps of all tables together: the one place where keys become rows, in training and everywhere after it.

Legend: U distinct keys of a table in a step, K rows of a key (1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from stack.data.keys import UNKNOWN_KEY
from stack.data.schema import PADDING_ROW
from stack.ids.blocks import Blocks, Exchange, even_blocks
from stack.ids.bounded import BoundedMap
from stack.ids.config import IdMode, IdSpec, Implementation, ManagedConfig
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashedRows
from stack.ids.managed import ManagedMap, MapFigures, MapState, Moved

RowsOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Keys to rows, outside of torch."""


class IdMaps(nn.Module):
    """Keys to rows for every table.

    A module, so that it is told of training and evaluation with the model it is part of; but without parameters or
    buffers, since what it knows belongs to this process alone: data parallelism must not copy it from rank 0, and a
    checkpoint keeps it by key (`state`), not by the name of a tensor.
    """

    def __init__(
        self,
        specs: Iterable[IdSpec],
        *,
        blocks: Mapping[str, Blocks] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`blocks`: rows of the managed tables by process; without, row-wise over the process group there is."""
        super().__init__()
        self.specs = {spec.name: spec for spec in specs}
        device = self._device = device or torch.device("cpu")
        self._hashed = {
            spec.name: HashedRows(num_rows=spec.num_rows, variant=spec.hash)
            for spec in self.specs.values()
            if spec.mode is IdMode.hashed
        }
        managed = [spec for spec in self.specs.values() if spec.mode is IdMode.managed]
        self._blocks = {spec.name: (blocks or {}).get(spec.name) or _own_blocks(spec.num_rows) for spec in managed}
        self._managed = {
            spec.name: _managed_map(spec.managed, self._blocks[spec.name], device=device) for spec in managed
        }

    def rows_per_key(self, name: str) -> int:
        """K: how many rows of the table are summed for a key."""
        return self._hashed[name].rows_per_key if name in self._hashed else 1

    def hashed(self, name: str) -> HashedRows:
        """The map of a hashed table."""
        return self._hashed[name]

    @property
    def managed_names(self) -> tuple[str, ...]:
        return tuple(self._managed)

    def forward(self, name: str, key_U: Tensor) -> Tensor:
        """Rows of *distinct* keys: (U,), or (U, K) where K is above 1. `UNKNOWN_KEY` is row 0.

        For a managed table this is a step of training if the module is in training mode, and all processes must call
        it together. Rows taken from other keys are then in `drain_resets`, to be re-initialised before they are
        looked up. A direct table's keys must be rows already: those outside the table are unknown.
        """
        spec = self.specs[name]
        if spec.mode is IdMode.direct:
            return torch.where((key_U < 0) | (key_U >= spec.num_rows), PADDING_ROW, key_U)
        if spec.mode is IdMode.hashed:
            return self._hashed[name].rows(key_U)
        row_U = torch.zeros_like(key_U)
        known = (key_U != UNKNOWN_KEY).nonzero().squeeze(1)
        row_U[known] = self._managed_rows(name, key_U[known])
        return row_U

    def drain_resets(self) -> dict[str, Tensor]:
        """By table, the rows held here that were evicted since the last call, ascending; tables with none left out."""
        drained = {name: managed.drain_resets() for name, managed in self._managed.items()}
        return {name: rows for name, rows in drained.items() if rows.numel()}

    def tracks_changes(self, name: str) -> bool:
        """Whether what changed in a managed map since a state can be told: by `drain_gone`, and as the keys with
        `last_N` above the state's clock. Otherwise its states must be kept whole."""
        return self._managed[name].tracks_changes

    def drain_gone(self) -> dict[str, Tensor]:
        """By managed table that tracks changes, the keys managed here that have lost their row since the last call
        or the load after it, ascending. Belongs with `state()`: what is drained is told no more."""
        return {name: managed.drain_gone() for name, managed in self._managed.items() if managed.tracks_changes}

    def put_back_gone(self, gone: Mapping[str, Tensor]) -> None:
        """Has the next `drain_gone` tell these again: the state that they belong with was not kept."""
        for name, key_G in gone.items():
            self._managed[name].put_back_gone(key_G)

    def figures(self) -> dict[str, MapFigures]:
        """What happened in this process, by managed table. Sums over processes are those of the table."""
        return {name: managed.figures() for name, managed in self._managed.items()}

    def state(self) -> dict[str, MapState]:
        """This process's part of every managed map (`stack.ids.managed.join_states` makes the whole)."""
        return {name: managed.state() for name, managed in self._managed.items()}

    def load(self, states: Mapping[str, MapState]) -> dict[str, Moved]:
        """Takes over whole states, saved by any number of processes and rows; tells where each kept row goes."""
        return {name: self._managed[name].load(state.to(self._device)) for name, state in states.items()}

    def exported(self, whole: Mapping[str, MapState]) -> dict[str, RowsOf]:
        """For each table what serving computes, in NumPy: (N,) or (N, K). `whole`: the managed maps' joined states."""
        return {name: self._exported(spec, whole) for name, spec in self.specs.items()}

    def _exported(self, spec: IdSpec, whole: Mapping[str, MapState]) -> RowsOf:
        if spec.mode is IdMode.direct:
            return lambda keys: np.where((keys < 0) | (keys >= spec.num_rows), PADDING_ROW, keys)
        if spec.mode is IdMode.hashed:
            return self._hashed[spec.name].rows
        return frozen(whole[spec.name]).rows

    def _managed_rows(self, name: str, key_U: Tensor) -> Tensor:
        managed, blocks = self._managed[name], self._blocks[name]
        if blocks.num_blocks == 1:
            return managed.rows(key_U, training=self.training)
        exchange = Exchange(key_U, blocks.owner(key_U))
        key, place_M = torch.unique(exchange.key_M, return_inverse=True)
        return exchange.answer(managed.rows(key, training=self.training)[place_M])


def frozen(state: MapState) -> FrozenMap:
    """The arrays of a whole managed map."""
    return FrozenMap(key_N=state.key_N.cpu().numpy(), row_N=state.row_N.cpu().numpy())


def _managed_map(config: ManagedConfig, blocks: Blocks, *, device: torch.device) -> ManagedMap:
    if config.implementation is Implementation.bounded:
        return BoundedMap(config, blocks, device=device)
    from stack.ids.torchrec_map import TorchRecMap  # seconds to import, for those who ask for it

    return TorchRecMap(config, blocks, device=device)


def _own_blocks(num_rows: int) -> Blocks:
    if not dist.is_initialized():
        return even_blocks(num_rows)
    return even_blocks(num_rows, num_blocks=dist.get_world_size(), rank=dist.get_rank())
