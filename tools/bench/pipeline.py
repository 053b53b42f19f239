"""Training steps without and with TorchRec's pipeline, on one process and on two over gloo, and what it could hide.

The parent starts the processes; each builds the training job once and takes the same batches through it by both ways in
interleaved rounds. A round's value is its median step, without the first and last ones, where a pipeline fills and runs
empty. What could be hidden is measured by itself: asking the tables for a batch, and sending its ids to their rows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from stack.base.dist import own_device, process_group, share_cores
from stack.base.memory import keep_freed_memory
from stack.base.seed import seed_everything
from stack.data.batch import to_device
from stack.data.loader import Cursor, Loader
from stack.model import UserModel
from stack.tables.asked import Asked
from stack.tables.shard import dense_module
from stack.train.build import build_loop
from stack.train.config import Pipeline
from stack.train.loop import Loop
from stack.train.steps import Loaded, OneByOne, SparseDist, Steps
from stack.train.verb import own_share_of_cores
from tools.bench import harness
from tools.bench.assembly import workload_of

SIZES = (1, 2)
EDGE_STEPS = 3


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes do: `num_steps` steps of the job that `overrides` describe, in each round and either way."""

    overrides: list[str]
    num_steps: int
    num_rounds: int
    out: str


def measure(overrides: list[str], *, num_steps: int, num_rounds: int) -> list[harness.Figure]:
    """Milliseconds of a step by number of processes and `train.pipeline`."""
    if num_steps <= 2 * EDGE_STEPS:
        raise SystemExit(f"--steps {num_steps} must be above {2 * EDGE_STEPS}, which are left out")
    share_cores()
    workload_of(overrides, num_batches=0)  # says what is wrong with the options before processes do
    figures = []
    for size in SIZES:
        found = _run(Work(overrides=overrides, num_steps=num_steps, num_rounds=num_rounds, out=""), size)
        head = f"{size} process{'es' * (size > 1)}"
        figures += [
            harness.Figure(name=f"{head}: {name}", unit="ms/step", values=tuple(1e3 * value for value in seconds))
            for name, seconds in found.items()
        ]
        figures.append(harness.ratio(f"{head}: gain", found[Pipeline.none.value], found[Pipeline.sparse_dist.value]))
    return figures


def _run(work: Work, size: int) -> dict[str, tuple[float, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        out, order = Path(folder) / "out.json", Path(folder) / "work.json"
        order.write_bytes(msgspec.json.encode(msgspec.structs.replace(work, out=str(out))))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        subprocess.run([sys.executable, *launcher, "-m", "tools.bench.pipeline", str(order)], check=True)
        return msgspec.json.decode(out.read_bytes(), type=dict[str, tuple[float, ...]])


def main(order: Path) -> None:
    """One of the processes."""
    work = msgspec.json.decode(order.read_bytes(), type=Work)
    workload = workload_of(work.overrides, num_batches=0)
    keep_freed_memory()
    device = own_device()
    with tempfile.TemporaryDirectory() as folder, process_group(device=device) as here:
        torch.set_num_threads(workload.setup.train.num_threads or own_share_of_cores(here))
        setup = workload.in_folder(Path(folder))
        setup.run.folder.mkdir(parents=True)
        seed_everything(setup.run.seed)
        loop = build_loop(setup, device=device, checkpoint=None)
        ways: dict[str, Steps] = {
            Pipeline.none.value: OneByOne(loop.stepper, device=device),
            Pipeline.sparse_dist.value: SparseDist(loop.stepper, device=device, save_every_steps=work.num_steps),
        }
        variants: dict[str, Callable[[], float]] = {
            name: partial(_median_step, steps, loop, work.num_steps) for name, steps in ways.items()
        }
        variants["asking the tables"] = partial(_ask, loop, work.num_steps, send=False)
        variants["asking the tables, sending ids"] = partial(_ask, loop, work.num_steps, send=True)
        found = harness.interleaved(variants, num_rounds=work.num_rounds)
        for periodic in loop.periodics:
            periodic.close()
        if here.first:
            Path(work.out).write_bytes(msgspec.json.encode(found))


def _again(loop: Loop) -> Loader:
    """The loader at its beginning."""
    loop.loader.cursor = Cursor()
    return loop.loader


def _median_step(steps: Steps, loop: Loop, num_steps: int) -> float:
    """Seconds; the first batches' loading is not part of it."""
    loader = _again(loop)
    loaded = (Loaded(batch=batch, cursor=loader.cursor, day="") for batch in islice(loader, num_steps))
    dist.barrier()
    ended = [time.perf_counter() for _ in steps.run(loaded, first_step=0, asked_to_stop=lambda: False)]
    seconds = [end - begin for begin, end in pairwise(ended)]
    return statistics.median(seconds[EDGE_STEPS - 1 : -EDGE_STEPS])


def _ask(loop: Loop, num_steps: int, *, send: bool) -> float:
    """Median seconds of what a pipeline can do ahead for a batch, done by itself."""
    model = dense_module(loop.stepper.model)
    assert isinstance(model, UserModel)
    collection = model.tables.collection
    assert isinstance(collection, ShardedEmbeddingBagCollection)
    seconds = []
    for batch in islice(_again(loop), num_steps):
        moved = to_device(batch, loop.steps.device)
        dist.barrier()
        started = time.perf_counter()
        asked = model.ask(moved).ids
        assert isinstance(asked, Asked)
        if send:
            collection.input_dist(collection.create_context(), asked.bags).wait().wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
