"""The training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from stack.data.loader import Loader
from stack.train.periodic import Moment, Periodic
from stack.train.step import Stepper
from stack.train.steps import Loaded, Steps
from stack.train.stop import StopRequest
from stack.train.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Loop:
    """All that training needs, made by `stack.train.build`. `step` steps are done, of which `tally` counts those
    of this stretch."""

    loader: Loader
    steps: Steps
    periodics: Sequence[Periodic]
    step: int
    num_steps: int
    tally: Tally = field(default_factory=Tally)

    @property
    def stepper(self) -> Stepper:
        """What a step is."""
        return self.steps.stepper

    def run(self) -> bool:
        """Trains; returns whether it came to the end, or was asked to stop before."""
        try:
            with StopRequest() as request:
                return self._train(request)
        finally:
            for periodic in self.periodics:
                periodic.close()

    def _train(self, request: StopRequest) -> bool:
        moment: Moment | None = None
        step, tally = self.step, copy.deepcopy(self.tally)
        arrivals = _Arrivals(self.loader, num_batches=self.num_steps - self.step)
        for periodic in self.periodics:
            periodic.at_start()
        started = time.perf_counter()
        for done in self.steps.run(arrivals, first_step=step, asked_to_stop=lambda: request.asked):
            step += 1
            tally.add(done.result)
            ended = time.perf_counter()
            moment = Moment(
                step=step,
                num_steps=self.num_steps,
                day=done.day,
                cursor=done.cursor,
                num_refused=tally.num_refused,
                result=done.result,
                own=done.own,
                seconds=ended - started,
                wait_seconds=arrivals.take_waited(),
                tally=copy.deepcopy(tally),
            )
            started = ended
            for periodic in self.periodics:
                periodic.after_step(moment)
        for periodic in self.periodics:
            periodic.at_end(moment)
        return step == self.num_steps


class _Arrivals:
    """The loader's next batches, each with its place, and how long they were waited for."""

    def __init__(self, loader: Loader, *, num_batches: int) -> None:
        self._loader = loader
        self._num_batches = num_batches
        self._waited_seconds = 0.0

    def __iter__(self) -> Iterator[Loaded]:
        here, started = self._loader.cursor, time.perf_counter()
        for batch in islice(self._loader, self._num_batches):
            self._waited_seconds += time.perf_counter() - started
            yield Loaded(batch=batch, cursor=self._loader.cursor, day=self._loader.blocks[here.block][0])
            here, started = self._loader.cursor, time.perf_counter()

    def take_waited(self) -> float:
        """Seconds since this was last asked."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited
