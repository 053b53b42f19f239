"""A version into a model: as it was, or with the differences that `checkpoint.allow` names.

Tables keep their rows by key, so processes and shardings may be others than those that wrote it, and a vocabulary may
have grown, without being asked. What else differs is refused with one line, unless it is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import CheckpointError
from stack.checkpoint.config import Change
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import KeyKind
from stack.data.dataset import Dataset
from stack.data.schema import PADDING_ROW
from stack.ids.config import IdMode
from stack.ids.managed import Moved
from stack.tables.rows import TableShard
from stack.tables.shard import dense_module, dense_tensors, shardings, table_shards
from stack.telemetry.console import say
from stack.towers.behavior import PropertyEncoder
from stack.train.id_state import id_maps
from stack.train.optim import restore_optimizer_state
from stack.train.vocabularies import other_vocabularies


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`clocks`: steps of each managed map. `rewritten`: tables whose keys did not all stay in their rows. `anew`: dense
    tensors that begin at their first values."""

    clocks: dict[str, int]
    rewritten: tuple[str, ...]
    anew: frozenset[str] = field(default_factory=frozenset)


def restore_model(
    model: DistributedModelParallel, checkpoint: Checkpoint, *, dataset: Dataset, allow: Collection[Change] = ()
) -> Restored:
    """Fills tables, maps of ids and dense tensors, whatever number of processes wrote them. Rows that the version does
    not have, and rows that no id has, keep their first values.

    Raises: `CheckpointError` naming the first difference that is not allowed, and how to allow it.
    """
    changes = _Changes(checkpoint, allow)
    found = _TableChanges(model, checkpoint, dataset, changes)
    maps = id_maps(model)
    managed = [name for name in (maps.managed_names if maps else ()) if name not in found.new]
    whole = {name: checkpoint.map_state(name) for name in managed}
    moved = maps.load(whole) if maps and whole else {}
    as_they_are = []
    for shard in (one for one in table_shards(model) if one.name not in found.new):
        if shard.name in moved:
            _place_managed(shard, checkpoint, moved[shard.name])
        elif shard.name in found.other_rows:
            _place_by_id(shard, checkpoint, dataset)
        elif shard.name in found.fewer_rows:
            row_N = torch.arange(shard.first_row, shard.first_row + shard.weight_ND.shape[0])
            checkpoint.place(shard, from_row_N=row_N, to_row_N=row_N)
        else:
            as_they_are.append(shard)
    merged = checkpoint.restore(as_they_are)
    if merged:
        say(
            f"row-wise optimizer state of {', '.join(merged)} was saved for other blocks of columns than this job has: "
            "each block goes on with the mean of those it came from, so the steps differ from an uninterrupted run"
        )
    rewritten = {name for name in managed if not _stays(moved[name], checkpoint)}
    return Restored(
        clocks={name: state.clock for name, state in whole.items()},
        rewritten=tuple(sorted(rewritten | found.other_rows | found.fewer_rows | found.new)),
        anew=_restore_dense(model, checkpoint, changes),
    )


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    checkpoint: Checkpoint,
    *,
    anew: Collection[str] = (),
) -> None:
    """Fills the dense optimizer's state, but for the parameters in `anew`; that of the tables comes with their rows."""
    saved = {key: value for key, value in checkpoint.optimizer().items() if key.rpartition("/")[0] not in anew}
    restore_optimizer_state(optimizer, parameters, saved)


class _Changes:
    """Refuses what is not allowed, and says what is."""

    def __init__(self, checkpoint: Checkpoint, allow: Collection[Change]) -> None:
        self._checkpoint = checkpoint
        self._allow = allow

    def take(self, change: Change, what: str, then: str) -> None:
        if change not in self._allow:
            raise CheckpointError(
                f"{what}: use the configuration and data that {self._checkpoint.name} was saved with, or "
                f"checkpoint.allow=[{change.value}], and {then}"
            )
        say(f"{what}: {then}")


class _TableChanges:
    """Which tables are not as in the version. `new`: begin at their first values; `other_rows`: their vocabulary gives
    ids other rows; `fewer_rows`: those beyond are left behind."""

    def __init__(
        self, model: DistributedModelParallel, checkpoint: Checkpoint, dataset: Dataset, changes: _Changes
    ) -> None:
        maps = id_maps(model)
        saved, name = checkpoint.manifest.tables, checkpoint.name
        sizes = {shard.name: shard.num_rows for shard in table_shards(model)}
        self.new = {table for table in shardings(model) if table not in saved}
        for table in sorted(self.new):
            changes.take(Change.new_table, f"{name} has no table '{table}'", "it begins at its first values")
        for table in sorted(set(saved) - set(shardings(model))):
            changes.take(Change.lost_table, f"the model has no table '{table}', {name} has", "its rows are left behind")
        self.other_rows = _other_vocabularies(checkpoint, dataset) - self.new
        self.fewer_rows: set[str] = set()
        for table in sorted(self.other_rows - set(saved)):
            raise CheckpointError(
                f"vocabulary {table!r} is not the one that {name} was trained with, and the user tower holds its rows, "
                "which stay where they are: use the data it was trained on"
            )
        for table in sorted(self.other_rows):
            changes.take(
                Change.vocabulary,
                f"vocabulary {table!r} is not the one that {name} was trained with (ingested anew?)",
                "its rows go where their ids are now",
            )
        for table in sorted(set(sizes) & set(saved)):
            mode = maps.specs[table].mode if maps else IdMode.direct
            kind = KeyKind.id if mode is IdMode.managed else KeyKind.row
            rows = saved[table].num_rows
            if saved[table].keys is not kind:
                what = f"the ids of table '{table}' are {mode.value} here and were not in {name} (ids.modes.{table})"
            elif mode is IdMode.managed and table in self.other_rows:
                what = f"the managed ids of table '{table}' have another vocabulary"
            elif mode is IdMode.hashed and rows != sizes[table]:
                what = f"table '{table}' is hashed into {sizes[table]} rows, in {name} into {rows}"
            else:
                if rows > sizes[table] and kind is KeyKind.row and table not in self.other_rows:
                    told = f"table '{table}' has {sizes[table]} rows, in {name} {rows}"
                    changes.take(Change.fewer_rows, told, "the rows beyond are left behind")
                    self.fewer_rows.add(table)
                continue
            changes.take(Change.new_table, what, "it begins at its first values")
            self.new.add(table)
        self.other_rows -= self.new


def check_vocabularies(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Raises `CheckpointError` where ids have other rows than those that the version learnt."""
    for table in sorted(_other_vocabularies(checkpoint, dataset)):
        raise CheckpointError(
            f"vocabulary {table!r} is not the one that {checkpoint.name} was trained with (ingested anew?): its rows "
            "would stand for other ids"
        )


def _other_vocabularies(checkpoint: Checkpoint, dataset: Dataset) -> set[str]:
    saved = checkpoint.manifest.context
    return other_vocabularies(dataset, saved.vocabulary_digests, last_day=saved.data_days[-1])


def _place_managed(shard: TableShard, checkpoint: Checkpoint, move: Moved) -> None:
    unknown = torch.tensor([PADDING_ROW] if shard.first_row == PADDING_ROW else [], dtype=torch.int64)
    checkpoint.place(
        shard,
        from_row_N=torch.cat([unknown, move.from_row_N.cpu()]),
        to_row_N=torch.cat([unknown, move.to_row_N.cpu()]),
    )


def _place_by_id(shard: TableShard, checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Each row from the one that its id had in the version; ids that are new keep their first values."""
    raw, order = torch.sort(checkpoint.raw_keys(shard.name))
    here = torch.arange(shard.first_row, shard.first_row + shard.weight_ND.shape[0])
    wanted = torch.from_numpy(dataset.keys(shard.name))[here]
    at = torch.searchsorted(raw, wanted).clamp_(max=len(raw) - 1)
    known = raw[at] == wanted
    checkpoint.place(shard, from_row_N=order[at[known]], to_row_N=here[known])


def _stays(move: Moved, checkpoint: Checkpoint) -> bool:
    """Whether the keys of this process are in the rows that the checkpoint has them in, and none was dropped."""
    same_processes = checkpoint.manifest.world_size == dist.get_world_size()
    return same_processes and torch.equal(move.from_row_N, move.to_row_N)


def _restore_dense(model: DistributedModelParallel, checkpoint: Checkpoint, changes: _Changes) -> frozenset[str]:
    saved, wanted = checkpoint.dense(), dense_tensors(model)
    growing, anew = _growing(model), set()
    for name in sorted(saved.keys() | wanted.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, wanted)]
        if shapes[0] == shapes[1] or (name in growing and _grown(shapes[0], shapes[1])):
            continue
        told = f"{name!r} has shape {shapes[0]} in {checkpoint.name} and {shapes[1]} in the model"
        changes.take(Change.dense, told, "it begins at its first values" if name in wanted else "it is left behind")
        anew.add(name)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name not in anew:
                _fill(tensor, saved[name], rows_alone=name in growing)
    return frozenset(anew)


def _fill(tensor: Tensor, saved: Tensor, *, rows_alone: bool) -> None:
    (tensor[: len(saved)] if rows_alone else tensor).copy_(saved)


def _growing(model: DistributedModelParallel) -> set[str]:
    """The dense tensors with a row for each value of a property: later days bring new values."""
    encoders = {
        name: module for name, module in dense_module(model).named_modules() if isinstance(module, PropertyEncoder)
    }
    return {f"{name}.columns.{column}.weight" for name, one in encoders.items() for column in range(len(one.columns))}


def _grown(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> bool:
    return old is not None and new is not None and old[1:] == new[1:] and old[:1] < new[:1]
