"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stack.data.batch import to_device
from stack.data.loader import Loader
from stack.train.periodic import Moment, Periodic
from stack.train.step import Stepper
from stack.train.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Loop:
    """All that training needs, made by `stack.train.build`. `step` steps are done and `num_refused` were refused."""

    loader: Loader
    stepper: Stepper
    periodics: Sequence[Periodic]
    device: torch.device
    step: int
    num_steps: int
    num_refused: int

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
        step, num_refused = self.step, self.num_refused
        started, here = time.perf_counter(), self.loader.cursor
        for batch in self.loader if step < self.num_steps else ():
            loaded = time.perf_counter()
            result = self.stepper(to_device(batch, self.device), step=step, asked_to_stop=request.asked)
            step, num_refused = step + 1, num_refused + result.refused
            ended = time.perf_counter()
            moment = Moment(
                step=step,
                num_steps=self.num_steps,
                day=self.loader.blocks[here.block][0],
                cursor=self.loader.cursor,
                num_refused=num_refused,
                result=result,
                seconds=ended - started,
                wait_seconds=loaded - started,
            )
            started, here = ended, self.loader.cursor
            for periodic in self.periodics:
                periodic.after_step(moment)
            if result.stop or step == self.num_steps:
                break
        for periodic in self.periodics:
            periodic.at_end(moment)
        return step == self.num_steps
