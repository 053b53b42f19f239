"""What deduplicating ids and quantised communication save, on one process and between two over gloo.

The parent writes the ids of each batch to a file and starts the processes; each does the same steps with every variant
in interleaved rounds, and the first one writes what it measured. A step is look-up, backward and update of one table.

Legend: N ids of a step on one process, U distinct ones, D width of the table.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import World, process_group
from stack.tables.asked import LongestOfAll
from stack.tables.collection import Tables
from stack.tables.config import Communication, Sharding, TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import shard, table_shards
from tools.bench.harness import Figure, interleaved, ratio, seconds_of

DIM, NUM_ROWS, NUM_IDS, NUM_STEPS = 32, 1_000_000, 50_000, 4
NUMBERS_PER_SCALE, BYTES_PER_SCALE = 32, 8


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes do: `ids` is a safetensors file of batches "0", "1" ..., each (processes, N)."""

    kind: str
    num_rows: int
    ids: str
    out: str
    num_rounds: int


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step by variant, a value for each round; and other numbers by name."""

    seconds: dict[str, tuple[float, ...]]
    numbers: dict[str, float]


def skewed_ids(num_processes: int) -> list[Tensor]:
    """Batches of (processes, N). A row's number is rows^u, u uniform, so the k-th is asked for about 1/k as often as
    the first (Zipf's law), and a hundredth of the rows have two thirds of the ids."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_processes, NUM_IDS)
    draws = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(NUM_STEPS))
    return [(NUM_ROWS**draw).long() - 1 for draw in draws]


def measure_dedup(histories: list[Tensor] | None, *, num_rows: int, num_rounds: int) -> list[Figure]:
    """Steps with and without, for skewed ids and for `histories` (N ids each) of a dataset."""
    figures: list[Figure] = []
    for size in (1, 2):
        figures += _dedup("skewed ids", skewed_ids(size), NUM_ROWS, size, num_rounds)
        if histories is not None:
            length = min(map(len, histories))
            batches = [torch.stack([ids[:length] for ids in histories[at : at + size]]) for at in range(0, 4, size)]
            figures += _dedup("histories", batches, num_rows, size, num_rounds)
    return figures


def measure_communication(*, num_rounds: int) -> list[Figure]:
    """Two processes, the table cut into columns: error of vectors and weights, bytes, and seconds, by type."""
    found = _run(Work(kind="communication", num_rows=NUM_ROWS, ids="", out="", num_rounds=num_rounds), skewed_ids(2))
    figures = [_milliseconds(name, seconds) for name, seconds in found.seconds.items()]
    for name, number in found.numbers.items():
        what, unit = name.rsplit("|", 1)
        figures.append(Figure(name=what, unit=unit, values=(number,)))
    return figures


def _dedup(name: str, batches: list[Tensor], num_rows: int, size: int, num_rounds: int) -> list[Figure]:
    found = _run(Work(kind="dedup", num_rows=num_rows, ids="", out="", num_rounds=num_rounds), batches)
    head = f"{name}, {size} process{'es' * (size > 1)}"
    return [
        Figure(name=f"{head}: ids for each distinct one", unit="x", values=(found.numbers["ids per distinct"],)),
        *(_milliseconds(f"{head}: {variant}", seconds) for variant, seconds in found.seconds.items()),
        ratio(f"{head}: gain", found.seconds["every id"], found.seconds["distinct ids"]),
    ]


def _milliseconds(name: str, seconds: tuple[float, ...]) -> Figure:
    return Figure(name=name, unit="ms/step", values=tuple(value * 1e3 / NUM_STEPS for value in seconds))


def _run(work: Work, batches: list[Tensor]) -> Measured:
    """Starts as many processes as the batches are for."""
    with tempfile.TemporaryDirectory() as folder:
        ids, out, order = (Path(folder) / name for name in ("ids.safetensors", "out.json", "work.json"))
        save_file({str(number): batch.contiguous() for number, batch in enumerate(batches)}, ids)
        order.write_bytes(msgspec.json.encode(msgspec.structs.replace(work, ids=str(ids), out=str(out))))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(batches[0]))]
        subprocess.run([sys.executable, *launcher, "-m", "tools.bench.exchange", str(order)], check=True)
        return msgspec.json.decode(out.read_bytes(), type=Measured)


class _Model(nn.Module):
    """One table."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids_N: Tensor, *, distinct: bool) -> Tensor:
        asked = self.tables.ask({"item": [ids_N]})
        if not distinct:
            every = {"item": ids_N}, {"item": torch.arange(len(ids_N))}
            asked = replace(asked, distinct=every[0], position=every[1], longest=LongestOfAll(len(ids_N)))
        vectors: Tensor = self.tables(asked)["item"][0]
        return vectors


def _build(work: Work, here: World, sharding: Sharding, communication: Communication) -> DistributedModelParallel:
    specs = [TableSpec(name="item", num_rows=work.num_rows, dim=DIM, sharding=sharding)]
    tables = Tables(specs)
    fuse_optimizer(tables, optimizer=TableOptimizer.rowwise_adagrad, learning_rate=0.02, eps=1e-8)
    plan = fixed_plan(
        specs, world_size=here.size, local_size=here.size, device="cpu", optimizer=TableOptimizer.rowwise_adagrad
    )
    return shard(
        _Model(tables), plan=plan, device=torch.device("cpu"), seed=0, init_range=0.05, communication=communication
    )


def _steps(model: DistributedModelParallel, batches: list[Tensor], *, distinct: bool = True) -> Callable[[], float]:
    def action() -> None:
        for ids_N in batches:
            model(ids_N, distinct=distinct).square().sum().backward()

    def timed() -> float:
        dist.barrier()
        return seconds_of(action)

    return timed


def _measure_dedup(work: Work, here: World, batches: list[Tensor]) -> Measured:
    models = {name: _build(work, here, Sharding.row_wise, Communication.fp32) for name in ("every id", "distinct ids")}
    variants = {name: _steps(model, batches, distinct=name != "every id") for name, model in models.items()}
    for timed in variants.values():
        timed()
    one, other = (table_shards(model)[0].weight_ND for model in models.values())
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    seconds = interleaved(variants, num_rounds=work.num_rounds, num_warmup=0)
    share = sum(len(ids) / len(ids.unique()) for ids in batches) / len(batches)
    return Measured(seconds=seconds, numbers={"ids per distinct": share})


def _measure_communication(work: Work, here: World, batches: list[Tensor]) -> Measured:
    models = {
        kind: _build(work, here, Sharding.column_wise, kind)
        for kind in (Communication.fp32, Communication.fp16, Communication.int8)
    }
    exact = models[Communication.fp32](batches[0], distinct=True).detach()
    numbers: dict[str, float] = {}
    answers = {kind.value: model(batches[0], distinct=True).detach() for kind, model in models.items()}
    variants = {kind.value: _steps(model, batches) for kind, model in models.items()}
    for timed in variants.values():
        timed()
    weights = {kind.value: table_shards(model)[0].weight_ND.clone() for kind, model in models.items()}
    moved = weights["fp32"] - table_shards(_build(work, here, Sharding.column_wise, Communication.fp32))[0].weight_ND
    num_distinct = sum(len(ids.unique()) for ids in batches) / len(batches)
    for kind in models:
        name = kind.value
        error, wrong = answers[name] - exact, weights[name] - weights["fp32"]
        numbers[f"{name}: error of a vector, root of mean square over that of vectors|%"] = _percent(error, exact)
        numbers[f"{name}: error of the weights' way in {NUM_STEPS} steps, likewise|%"] = _percent(wrong, moved)
        numbers[f"{name}: sent by a process each way, from the shapes|MiB/step"] = _mib(kind, num_distinct, here.size)
    return Measured(seconds=interleaved(variants, num_rounds=work.num_rounds, num_warmup=0), numbers=numbers)


def _percent(error: Tensor, whole: Tensor) -> float:
    return 100.0 * float(error.square().mean().sqrt() / whole.square().mean().sqrt())


def _mib(kind: Communication, num_distinct: float, num_processes: int) -> float:
    """A process keeps its own share of a vector and sends the rest."""
    numbers = num_distinct * DIM * (num_processes - 1) / num_processes
    if kind is Communication.int8:
        return numbers * (1 + BYTES_PER_SCALE / NUMBERS_PER_SCALE) / 2**20
    return numbers * {Communication.fp32: 4, Communication.fp16: 2, Communication.bf16: 2}[kind] / 2**20


def main(order: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    work = msgspec.json.decode(order.read_bytes(), type=Work)
    with process_group(device=torch.device("cpu")) as here:
        batches = [batch[here.rank].contiguous() for batch in load_file(work.ids).values()]
        measure = {"dedup": _measure_dedup, "communication": _measure_communication}[work.kind]
        measured = measure(work, here, batches)
        if here.first:
            Path(work.out).write_bytes(msgspec.json.encode(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
