"""One pass of the encoder for all examples of a timeline, against one for each example with its own copy of history.

Both score the same examples with the same model in the same process. Copies are made beforehand, outside the clock
(systems that hold them have paid at preparation), and batched by 1,024 examples as DUPN does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.data.batch import Batch
from stack.tables.shard import dense_parameters
from tools.bench import harness
from tools.bench.assembly import Workload, opened
from tools.bench.separate import separate

EXAMPLES_PER_BATCH = 1024


class Variant(Enum):
    """`none` prepares everything and passes nothing: the memory that both others start from."""

    shared = "shared"
    separate = "separate"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The same examples in both forms, and the model."""

    model: DistributedModelParallel
    shared: Sequence[Batch]
    separate: Sequence[Batch]

    def forward(self, batches: Sequence[Batch]) -> float:
        """Seconds of a forward pass over all."""
        self.model.eval()

        def action() -> None:
            with torch.no_grad():
                for batch in batches:
                    self.model(batch)

        return harness.seconds_of(action)

    def forward_backward(self, batches: Sequence[Batch]) -> float:
        """Seconds of forward and backward (with the tables' update) over all."""
        self.model.train()
        parameters = dense_parameters(self.model).values()

        def action() -> None:
            for batch in batches:
                outputs = self.model(batch)
                torch.stack([output.loss_E.sum() for output in outputs.values()]).sum().mul(1e-6).backward()
                for parameter in parameters:
                    parameter.grad = None

        return harness.seconds_of(action)


@contextmanager
def prepared(workload: Workload) -> Iterator[Passes]:
    """Model and batches, in a process group of one that is left at the end of the block."""
    max_history = workload.dataset.manifest.max_history
    with opened(workload) as (model, loader):
        batches = list(islice(loader, workload.num_batches))
        copies = [
            part
            for batch in batches
            for part in separate(batch, examples_per_batch=EXAMPLES_PER_BATCH, max_history=max_history)
        ]
        yield Passes(model=model, shared=batches, separate=copies)


def measure(workload: Workload, *, num_rounds: int) -> list[harness.Figure]:
    """Examples per second of both forms, how many times faster sharing is, and the memory that each adds."""
    with prepared(workload) as passes:
        figures = [
            *_compare("forward", passes.forward, passes, num_rounds),
            *_compare("forward and backward", passes.forward_backward, passes, num_rounds),
        ]
    memory = {variant: _peak(workload, variant) for variant in Variant}
    for variant in (Variant.shared, Variant.separate):
        extra = harness.gib(memory[variant] - memory[Variant.none])
        name = f"encoding, {variant.value}: memory of forward and backward"
        figures.append(harness.Figure(name=name, unit="GiB", values=(extra,)))
    return figures


def _compare(
    name: str, timed: Callable[[Sequence[Batch]], float], passes: Passes, num_rounds: int
) -> Iterator[harness.Figure]:
    num_examples = sum(group.num_examples for batch in passes.shared for group in batch.groups.values())
    seconds = harness.interleaved(
        {"shared": partial(timed, passes.shared), "separate": partial(timed, passes.separate)}, num_rounds=num_rounds
    )
    for variant, values in seconds.items():
        rates = tuple(num_examples / value for value in values)
        yield harness.Figure(name=f"encoding, {variant}: {name}", unit="examples/s", values=rates)
    yield harness.ratio(f"encoding, shared over separate: {name}", seconds["separate"], seconds["shared"])


def pass_once(workload: Workload, variant: Variant) -> None:
    """One forward and backward pass over all batches: what a child process is measured at."""
    with prepared(workload) as passes:
        if variant is not Variant.none:
            passes.forward_backward(passes.shared if variant is Variant.shared else passes.separate)


def _peak(workload: Workload, variant: Variant) -> int:
    command = [sys.executable, "-m", "tools.bench", "once", variant.value, *workload.arguments()]
    return harness.run_child(command).peak_bytes
