"""What happens beside learning, each with its own cadence; the loop calls all of them after every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from stack.base.errors import NotFiniteError
from stack.data.loader import Cursor
from stack.telemetry.console import say
from stack.telemetry.logs import Board, LineLog
from stack.telemetry.mishaps import Mishaps
from stack.telemetry.progress import Progress
from stack.train.step import Own, StepResult
from stack.train.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where training stands after a step: `step` steps are done, `cursor` is the next batch, `day` the first of the
    block just learnt from. `seconds` is the step's time, `wait_seconds` what of it was waiting for the loader. `tally`
    adds up the stretch so far."""

    step: int
    num_steps: int
    cursor: Cursor
    day: str
    num_refused: int
    result: StepResult
    own: Own
    seconds: float
    wait_seconds: float
    tally: Tally = field(default_factory=Tally)


class Periodic(ABC):
    """Something to do after steps."""

    def at_start(self) -> None:  # noqa: B027  # most have nothing to begin
        """Called once before the first step."""

    @abstractmethod
    def after_step(self, moment: Moment) -> None:
        """Called after every step, on every rank."""

    def at_end(self, moment: Moment | None) -> None:  # noqa: B027  # most have nothing left to do
        """Called once after the last step (None if there was none), also where a stop was asked for."""

    def close(self) -> None:  # noqa: B027
        """Called last of all, also where a step or another periodic raised."""


class RefusalLimit(Periodic):
    """Ends training with one line where more than `limit` batches were refused."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._columns: dict[str, None] = {}

    def after_step(self, moment: Moment) -> None:
        if moment.result.refused:
            losses = ", ".join(f"{name} {loss:.4g}" for name, loss in moment.result.losses.items())
            where = ", ".join(moment.result.not_finite) or "none of its columns"
            say(f"step {moment.step}: refused a batch of {moment.day}: not finite: {where} ({losses})")
            self._columns |= dict.fromkeys(moment.result.not_finite)
        if moment.num_refused > self._limit:
            raise NotFiniteError(
                f"{moment.num_refused} batches had numbers that are not finite, above train.max_refused_batches="
                f"{self._limit}; the last at step {moment.step}, day {moment.day}: {self._way_out()}"
            )

    def _way_out(self) -> str:
        if not self._columns:
            return "no column held them, so lower the learning rates"
        return f"look for infinite or missing values in {', '.join(self._columns)}"


class StepLog(Periodic):
    """`steps.jsonl`: a line for every step, also refused ones. Lines after `first_step` (a killed run's) are cut."""

    def __init__(self, path: Path, *, first_step: int, mishaps: Mishaps) -> None:
        def learnt(line: bytes) -> bool:
            return msgspec.json.decode(line, type=_Step).step <= first_step

        self._log = LineLog(path, keep=learnt, part="steps", mishaps=mishaps)

    def after_step(self, moment: Moment) -> None:
        record = {
            "step": moment.step,
            "day": moment.day,
            **asdict(moment.result),
            "seconds": moment.seconds,
            "wait_seconds": moment.wait_seconds,
        }
        del record["stop"]
        if not moment.result.not_finite:
            del record["not_finite"]
        self._log.add(record)

    def close(self) -> None:
        self._log.close()


class Curves(Periodic):
    """TensorBoard: losses by task, gradient norm, learning rate share, speed, every `every_steps` steps."""

    def __init__(self, folder: Path, *, every_steps: int, first_step: int, mishaps: Mishaps) -> None:
        self._every_steps = every_steps
        self._board = Board(folder, first_step=first_step, part="curves", mishaps=mishaps)

    def after_step(self, moment: Moment) -> None:
        if moment.step % self._every_steps:
            return
        result = moment.result
        curves = {f"loss/{name}": loss for name, loss in result.losses.items()}
        curves |= {
            "loss/total": result.loss,
            "optim/gradient_norm": result.gradient_norm,
            "optim/rate_share": result.rate_share,
            "speed/examples_per_second": result.num_examples / moment.seconds,
            "speed/wait_share": moment.wait_seconds / moment.seconds,
            "data/refused_batches": moment.num_refused,
        }
        self._board.add(curves, step=moment.step)

    def close(self) -> None:
        self._board.close()


class Line(Periodic):
    """A line for people every `every_steps` steps: means over the steps since the last one."""

    def __init__(self, *, every_steps: int) -> None:
        self._every_steps = every_steps
        self._since: list[Moment] = []

    def after_step(self, moment: Moment) -> None:
        self._since.append(moment)
        if moment.step % self._every_steps == 0:
            self._say()

    def at_end(self, moment: Moment | None) -> None:
        self._say()

    def _say(self) -> None:
        if not self._since:
            return
        last, steps = self._since[-1], [moment.result for moment in self._since]
        losses = {name: [step.losses[name] for step in steps if name in step.losses] for name in steps[-1].losses}
        by_task = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in losses.items())
        seconds = sum(moment.seconds for moment in self._since)
        waited = sum(moment.wait_seconds for moment in self._since)
        rate = sum(step.num_examples for step in steps) / seconds
        refused = f"  refused {last.num_refused}" if last.num_refused else ""
        say(
            f"step {last.step:,}/{last.num_steps:,}  {last.day}  {by_task}  {rate:,.0f} examples/s  "
            f"loader wait {waited / seconds:.0%}{refused}"
        )
        self._since.clear()


class Bar(Periodic):
    """Progress on a terminal."""

    def __init__(self, *, num_steps: int, num_steps_done: int) -> None:
        self._progress = Progress(total=num_steps, description="train", unit="steps")
        self._progress.__enter__()
        self._progress.advance(num_steps_done)

    def after_step(self, moment: Moment) -> None:
        self._progress.advance(1, note=f"{moment.day} loss {moment.result.loss:.4f}")

    def close(self) -> None:
        self._progress.__exit__(None, None, None)


class Saves(Protocol):
    """Takes versions; each method is called on every rank."""

    def save(self, moment: Moment) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Save(Periodic):
    """A version every `every_steps` steps and at the end."""

    def __init__(self, saver: Saves, *, every_steps: int) -> None:
        self._saver = saver
        self._every_steps = every_steps
        self._saved_step = -1

    def after_step(self, moment: Moment) -> None:
        if moment.step % self._every_steps == 0:
            self._write(moment)

    def at_end(self, moment: Moment | None) -> None:
        if moment is not None and moment.step != self._saved_step:
            self._write(moment)
        self._saver.finish()

    def close(self) -> None:
        self._saver.close()

    def _write(self, moment: Moment) -> None:
        self._saver.save(moment)
        self._saved_step = moment.step


class _Step(msgspec.Struct):
    step: int
