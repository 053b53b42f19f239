"""Small training runs, for tests in this process and as a program of one or several processes:

python -m tests.train.worker <arguments of `Run` as JSON>

With several of them, and not through the verb, one run after the other.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
import yaml

from stack.base.dist import process_group
from stack.base.run import RunConfig
from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import Checkpoint, open_version
from stack.data.batch import Batch
from stack.data.loader import Cursor, Loader
from stack.ids.config import IdMode, IdsConfig, ManagedConfig
from stack.ids.hashing import HashVariant
from stack.layers.norm import Norm
from stack.tables.config import TablesConfig
from stack.tables.shard import dense_module
from stack.tasks import TasksConfig
from stack.telemetry.config import TelemetryConfig
from stack.towers.config import ModelConfig
from stack.train import verb
from stack.train.build import Setup, build_loop
from stack.train.config import Pipeline, TrainConfig
from stack.train.norm_spread import rank_spread
from stack.train.optim import OptimConfig
from stack.train.periodic import Moment, Periodic
from stack.train.run_folder import write_facts


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the smallest model on a prepared dataset. Where they are not 0, items have `managed_rows`, and brands
    `hashed_rows`, of which each brand has two. `through_verb` trains as `stack train` does; otherwise each
    rank also writes its buffers beside the run, then how far apart those of all are when another than the first has
    moved one of its own by 0.5, the last rank's batch of step `poisoned_step` holds a NaN, and it is
    sent SIGTERM after step `stopped_after`."""

    dataset: str = ""
    runs: str = ""
    name: str = ""
    norm: str = "none"
    dropout: float = 0.0
    pipeline: str = "none"
    dense_learning_rate: float = 1e-3
    tables_learning_rate: float = 0.02
    train: dict[str, int | bool | str] = {}
    checkpoint: dict[str, int | bool | float] = {}
    through_verb: bool = True
    poisoned_step: int = -1
    stopped_after: int = -1
    managed_rows: int = 0
    hashed_rows: int = 0
    telemetry: dict[str, int | bool | str] = {}

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


def setup_of(run: Run) -> Setup:
    options = {"batch_size": 16, "num_epochs": 2, "save_every_steps": 5, "log_every_steps": 5, "num_threads": 1}
    pipeline = Pipeline[run.pipeline]
    train = TrainConfig(**(options | run.train), pipeline=pipeline)
    composed = {
        "train": vars(train) | {"pipeline": pipeline.value},
        "model": {"norm": run.norm, "dropout": run.dropout},
        "run": {"name": run.name},
    }
    return Setup(
        dataset=Path(run.dataset),
        model=ModelConfig(norm=Norm[run.norm], dropout=run.dropout, num_states=16),
        tasks=TasksConfig(),
        tables=TablesConfig(dims={"item": 16, "brand": 8}),
        optim=OptimConfig(
            dense_learning_rate=run.dense_learning_rate, tables_learning_rate=run.tables_learning_rate,
            dense_eps=1e-4, tables_eps=1e-4,
        ),
        train=train,
        run=RunConfig(dir=run.runs, name=run.name),
        composed=yaml.safe_dump(composed),
        ids=_ids(run),
        checkpoint=CheckpointConfig(**run.checkpoint),
        telemetry=TelemetryConfig(**({"port": 0} | run.telemetry)),
    )  # fmt: skip


def _ids(run: Run) -> IdsConfig:
    rows = {table: rows for table, rows in (("item", run.managed_rows), ("brand", run.hashed_rows)) if rows}
    kinds = {"item": IdMode.managed, "brand": IdMode.hashed}
    managed = ManagedConfig(waiting_per_row=2000.0)  # so many places that no count is lost
    modes = {table: kinds[table] for table in rows}
    return IdsConfig(modes=modes, rows=rows, hash=HashVariant.double, managed=managed)


class Poisoned:
    """A loader whose batch number `step` (from 0) has a label that is not a number."""

    def __init__(self, loader: Loader, step: int) -> None:
        self._loader = loader
        self._step = step
        self.blocks = loader.blocks

    @property
    def cursor(self) -> Cursor:
        return self._loader.cursor

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(self._loader):
            yield poisoned(batch) if step == self._step else batch


def poisoned(batch: Batch) -> Batch:
    """The batch with one label of one example turned into NaN."""
    examples = batch.groups["impression"]
    clicked = examples.labels["clicked"].clone()
    clicked[:1] = torch.nan
    return replace(
        batch, groups=batch.groups | {"impression": replace(examples, labels=examples.labels | {"clicked": clicked})}
    )


class Stop(Periodic):
    """Asks this process to stop as a scheduler would, after a step."""

    def __init__(self, *, after_step: int) -> None:
        self._after_step = after_step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self._after_step:
            signal.raise_signal(signal.SIGTERM)


def versions(run: Run) -> dict[int, Checkpoint]:
    """The versions of a run by their steps."""
    chain = chain_of(setup_of(run).chain_place)
    kept = sorted(set(chain.numbers()) - set(chain.pruned()))
    return {one.step: open_version(chain, one) for one in map(chain.manifest, kept)}


def losses(folder: Path) -> list[dict[str, object]]:
    """The run's log without its times."""
    records = [msgspec.json.decode(line) for line in (folder / "steps.jsonl").read_bytes().splitlines()]
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


def run_and_tell_buffers(runs: Sequence[Run]) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with process_group(device=device) as world:
        for run in runs:
            setup = setup_of(run)
            write_facts(run.folder, composed=setup.composed, seed=0, world_size=world.size, device=device)
            loop = build_loop(setup, device=device, checkpoint=None)
            if dist.get_rank() == world.size - 1:
                stop = Stop(after_step=run.stopped_after)
                loop = replace(loop, loader=Poisoned(loop.loader, run.poisoned_step), periodics=[*loop.periodics, stop])
            loop.run()
            buffers = dict(dense_module(loop.stepper.model).named_buffers())
            told = {name: value.tolist() for name, value in buffers.items() if not name.startswith("tables.")}
            (run.folder / f"buffers-{world.rank}.json").write_bytes(msgspec.json.encode(told))
            if world.rank > 0:  # a process that has learnt other statistics than the first
                next(value for name, value in buffers.items() if name.endswith("running_mean_D"))[0] += 0.5
            spread = rank_spread(loop.stepper.model)
            (run.folder / f"spread-{world.rank}.json").write_bytes(msgspec.json.encode(spread))


if __name__ == "__main__":
    asked = [msgspec.json.decode(text, type=Run) for text in sys.argv[1:]]
    if asked[0].through_verb:
        verb.train(setup_of(asked[0]))
    else:
        run_and_tell_buffers(asked)
