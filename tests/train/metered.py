"""A training of several processes that stands still after a step until it is told to go on, to be scraped meanwhile:

python -m tests.train.metered <arguments of `Run` as JSON> <folder>

Rank r makes `paused-<r>` in the folder, and goes on when there is a file `go`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from stack.base.dist import process_group
from stack.train.build import build_loop
from stack.train.periodic import Moment, Periodic
from stack.train.run_folder import write_facts
from stack.train.telemetry import Telemetry
from tests.clocks import wait_for
from tests.train.worker import Poisoned, Run, setup_of

PAUSED_STEP = 8


class Pause(Periodic):
    def __init__(self, folder: Path, *, rank: int) -> None:
        self._folder = folder
        self._rank = rank

    def after_step(self, moment: Moment) -> None:
        if moment.step == PAUSED_STEP:
            (self._folder / f"paused-{self._rank}").touch()
            wait_for((self._folder / "go").exists, "nobody says go")


def main(run: Run, folder: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    setup = setup_of(run)
    with process_group(device=device) as world:
        write_facts(run.folder, composed=setup.composed, seed=0, world_size=world.size, device=device)
        telemetry = Telemetry(setup.telemetry)
        loop = build_loop(setup, device=device, checkpoint=None, telemetry=telemetry)
        loop = replace(loop, periodics=[*loop.periodics, Pause(folder, rank=world.rank)])
        if world.rank == world.size - 1:
            loop = replace(loop, loader=Poisoned(loop.loader, run.poisoned_step))  # type: ignore[arg-type]
        with telemetry.shown(setup.run, world):
            loop.run()


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Run), Path(sys.argv[2]))
