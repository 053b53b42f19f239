"""Saves small checkpoints of known content, on any number of ranks (threads that meet at a barrier)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stack.checkpoint.manifest import Context, LoopState
from stack.checkpoint.save import save_checkpoint
from stack.data.loader import Cursor
from stack.tables.rows import TableShard
from tests.prepared import SCHEMA

CONTEXT = Context(
    schema=SCHEMA,
    config_digest="c0ffee",
    data_days=("2016-07-18", "2016-07-19"),
    vocabulary_digests={"item": "ab12"},
    code_version="test",
)
NUM_ROWS = {"item": 11, "shop": 3}
DIM = {"item": 4, "shop": 2}


def tables(step: int) -> dict[str, TableShard]:
    """Whole tables whose every number tells the step, the table and the place."""
    whole = {}
    for number, (name, num_rows) in enumerate(NUM_ROWS.items()):
        base = (
            torch.arange(num_rows * DIM[name], dtype=torch.float32).view(num_rows, DIM[name])
            + 100 * number
            + 1000 * step
        )
        state = {"momentum": base[:, 0] / 2, "second": base / 4}
        whole[name] = TableShard(name=name, num_rows=num_rows, dim=DIM[name], first_row=0, weight_ND=base, state=state)
    return whole


def split(whole: TableShard, cuts: Sequence[int]) -> list[TableShard]:
    """The table's rows cut at `cuts` into len(cuts) + 1 shards, empty ones among them."""
    bounds = [0, *sorted(cuts), whole.num_rows]
    return [
        TableShard(
            name=whole.name,
            num_rows=whole.num_rows,
            dim=whole.dim,
            first_row=first,
            weight_ND=whole.weight_ND[first:last],
            state={key: value[first:last] for key, value in whole.state.items()},
        )
        for first, last in itertools.pairwise(bounds)
    ]


def dense(step: int) -> dict[str, Tensor]:
    return {"head.weight": torch.full((2, 3), float(step)), "norm.num_batches": torch.tensor(step)}


def optimizer(step: int) -> dict[str, Tensor]:
    return {"head.weight/exp_avg": torch.full((2, 3), step / 8), "head.weight/step": torch.tensor(float(step))}


def loop(step: int) -> LoopState:
    cursor = Cursor(epoch=1, block=2, step=step)
    return LoopState(step=step, epoch=1, cursor=cursor, random={"torch": [step, 255]}, numbers={"seen": step / 2})


def save(folder: Path, step: int, *, shards: Sequence[TableShard] | None = None) -> Path:
    """On one rank."""
    return save_checkpoint(
        folder,
        step=step,
        shards=list(tables(step).values()) if shards is None else shards,
        dense=dense(step),
        optimizer=optimizer(step),
        loop=loop(step),
        context=CONTEXT,
    )


def save_on_ranks(folder: Path, step: int, shards_by_rank: Sequence[Sequence[TableShard]]) -> list[Path | Exception]:
    """On as many ranks as there are shard lists; what each returned or raised."""
    world_size = len(shards_by_rank)
    barrier = threading.Barrier(world_size, timeout=20)
    results: list[Path | Exception] = [RuntimeError("did not end")] * world_size

    def one(rank: int) -> None:
        try:
            results[rank] = save_checkpoint(
                folder,
                step=step,
                shards=shards_by_rank[rank],
                dense=dense(step) if rank == 0 else {},
                optimizer=optimizer(step) if rank == 0 else {},
                loop=loop(step),
                context=CONTEXT,
                rank=rank,
                world_size=world_size,
                barrier=barrier.wait,
            )
        except Exception as error:
            results[rank] = error

    _run([lambda rank=rank: one(rank) for rank in range(world_size)])  # type: ignore[misc]
    return results


def _run(bodies: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def equal(one: TableShard, other: TableShard) -> bool:
    """Bit for bit."""
    return (
        (one.name, one.num_rows, one.first_row, one.state.keys())
        == (other.name, other.num_rows, other.first_row, other.state.keys())
        and torch.equal(one.weight_ND, other.weight_ND)
        and all(torch.equal(value, other.state[key]) for key, value in one.state.items())
    )
