"""`stack train`."""

from __future__ import annotations

import os

import torch

from stack.base.dist import World, own_device, process_group
from stack.base.memory import keep_freed_memory
from stack.base.seed import seed_everything
from stack.checkpoint.chain import chain_of
from stack.telemetry.console import say
from stack.train.build import Setup, build_loop
from stack.train.ranks import barrier
from stack.train.resume import held, origin_of, sound_checkpoint
from stack.train.run_folder import check_start, write_facts
from stack.train.telemetry import Telemetry

STOPPED_STATUS = 143


def own_share_of_cores(world: World) -> int:
    """The machine's cores over the processes on it, of which a job of several machines has more elsewhere."""
    return max(1, (os.cpu_count() or 1) // world.local_size)


def train(setup: Setup) -> None:
    """Trains a model into its run folder, or goes on where the folder's last checkpoint stands.

    Raises `SystemExit(143)` where SIGTERM or Ctrl-C ended it early; the state is saved then.
    """
    keep_freed_memory()
    device = own_device()
    timeout = setup.train.collective_timeout_seconds
    with process_group(device=device, collective_timeout_seconds=timeout) as world:
        torch.set_num_threads(setup.train.num_threads or own_share_of_cores(world))
        seed_everything(setup.run.seed)
        folder = setup.run.folder
        chain = chain_of(setup.chain_place)
        check_start(folder, chain=chain, composed=setup.composed, resume=setup.train.resume)
        newest = chain.newest_number()
        checkpoint = sound_checkpoint(chain, setup.checkpoint)
        origin = None if checkpoint is not None else origin_of(setup.checkpoint)
        barrier()  # nobody writes before everybody has looked
        if world.first:
            write_facts(
                folder,
                composed=setup.composed,
                seed=setup.run.seed,
                world_size=world.size,
                device=device,
                first_step=0 if checkpoint is None else checkpoint.manifest.step,
            )
            chain_of(setup.chain_place, for_writing=True)  # refuses what cannot keep a chain before any work is done
        barrier()
        telemetry = Telemetry(setup.telemetry)
        with held(chain, checkpoint, setup.checkpoint):
            loop = build_loop(
                setup, device=device, checkpoint=checkpoint, newest=newest, origin=origin, telemetry=telemetry
            )
        with telemetry.shown(setup.run, world):
            finished = loop.run()
    if not finished:
        say(f"stopped as asked, and saved: the same command goes on from {folder}")
        raise SystemExit(STOPPED_STATUS)
    say(f"trained: {folder}")
