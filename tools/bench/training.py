"""Loading alone and training on the same days: the first must be several times the second."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from stack.base.dist import own_device, process_group
from stack.base.seed import seed_everything
from stack.data.batch import to_device
from stack.train.build import build_loop
from tools.bench import harness
from tools.bench.assembly import Workload, build_loader, use_threads

Measured = tuple[float, float]
"""Timelines and examples per second."""


def measure_loading(workload: Workload, *, num_rounds: int) -> list[harness.Figure]:
    """Every batch of the days is made and dropped."""
    found = [_load(workload) for _ in range(num_rounds + 1)][1:]
    timelines, examples = zip(*found, strict=True)
    return [
        harness.Figure(name="loading alone", unit="timelines/s", values=timelines),
        harness.Figure(name="loading alone", unit="examples/s", values=examples),
    ]


def measure_training(workload: Workload, *, num_rounds: int) -> list[harness.Figure]:
    """Loading and training in turn, round by round, and their ratio; peak memory is that of the whole process."""
    use_threads(workload)
    variants: dict[str, Callable[[], float]] = {
        "loading": lambda: _load(workload)[1],
        "training": lambda: _train(workload)[1],
    }
    found = harness.interleaved(variants, num_rounds=num_rounds)
    peak = harness.gib(harness.peak_bytes_of())
    return [
        harness.Figure(name="loading alone, beside training", unit="examples/s", values=found["loading"]),
        harness.Figure(name="training, with its loading", unit="examples/s", values=found["training"]),
        harness.ratio("loading over training", found["loading"], found["training"]),
        harness.Figure(name="training: peak memory of the process", unit="GiB", values=(peak,)),
    ]


def _load(workload: Workload) -> Measured:
    num_timelines = num_examples = 0

    def action() -> None:
        nonlocal num_timelines, num_examples
        for batch in build_loader(workload):
            num_timelines += batch.num_timelines
            num_examples += sum(group.num_examples for group in batch.groups.values())

    seconds = harness.seconds_of(action)
    return num_timelines / seconds, num_examples / seconds


def _train(workload: Workload) -> Measured:
    """The training job's steps over the days, without its checkpoints and logs; building the model is not counted."""
    num_timelines = num_examples = 0
    device = own_device()
    with tempfile.TemporaryDirectory() as folder, process_group(device=device):
        setup = workload.in_folder(Path(folder))
        setup.run.folder.mkdir(parents=True)
        seed_everything(setup.run.seed)
        loop = build_loop(setup, device=device, checkpoint=None)

        def action() -> None:
            nonlocal num_timelines, num_examples
            for step, batch in enumerate(islice(loop.loader, loop.num_steps)):
                result = loop.stepper(to_device(batch, device), step=step, asked_to_stop=False)
                assert not result.refused, f"step {step}: the loss is not finite"
                num_timelines += batch.num_timelines
                num_examples += result.num_examples

        seconds = harness.seconds_of(action)
        for periodic in loop.periodics:
            periodic.at_end(None)
    return num_timelines / seconds, num_examples / seconds
