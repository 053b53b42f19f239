"""The version that training goes on from: the newest, read through before it is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import reading
from stack.checkpoint.load import Checkpoint, open_version
from stack.telemetry.console import say
from stack.train.ranks import totals


def sound_checkpoint(chain: Chain, options: CheckpointConfig) -> Checkpoint | None:
    """The newest version, None where there is none; for all ranks together, each of which reads its share of the files.

    Raises: `CheckpointError` where it is damaged, unless `checkpoint.fall_back` has an older one taken.
    """
    pruned = chain.pruned()
    for number in reversed(chain.numbers()):
        if number in pruned:
            continue
        checkpoint, failure = _tried(chain, number, verify=options.verify)
        (num_failed,) = totals(torch.tensor([float(failure is not None)]))
        if not num_failed:
            return checkpoint
        reason = failure or "another process found it damaged"
        if not options.fall_back:
            raise CheckpointError(
                f"version {number} cannot be gone on from: {reason}; `stack checkpoint verify` names the last good "
                "version, and checkpoint.fall_back=true goes on from that"
            )
        say(f"passed over version {number}: {reason}")
    return None


def opened(chain: Chain, number: int, *, verify: bool) -> Checkpoint:
    """A version, read through first where asked: by all ranks together, each its share of the files.

    Raises: `CheckpointError` where it is damaged.
    """
    checkpoint, failure = _tried(chain, number, verify=verify)
    (num_failed,) = totals(torch.tensor([float(failure is not None)]))
    if checkpoint is None or num_failed:
        raise CheckpointError(
            f"version {number} cannot be gone on from: {failure or 'another process found it damaged'}; `stack "
            "checkpoint verify` names the last good version, `stack checkpoint restore` goes back to it"
        )
    return checkpoint


def origin_of(options: CheckpointConfig) -> Checkpoint | None:
    """The version that `checkpoint.start_from` names, read through like any other; None where it names none."""
    if options.start_from is None:
        return None
    place, _, version = options.start_from.partition("@")
    chain = chain_of(place)
    return opened(chain, chain.find(version or None).version, verify=options.verify)


@contextmanager
def held(chain: Chain, checkpoint: Checkpoint | None, options: CheckpointConfig) -> Iterator[None]:
    """Keeps pruning from the files of a version while it is read."""
    if checkpoint is None or dist.get_rank() > 0:
        yield
        return
    with reading(chain.store, checkpoint.manifest.version, seconds=options.lease_seconds):
        yield


def _tried(chain: Chain, number: int, *, verify: bool) -> tuple[Checkpoint | None, CheckpointError | None]:
    try:
        checkpoint = open_version(chain, chain.manifest(number))
        if verify:
            checkpoint.verify(rank=dist.get_rank(), world_size=dist.get_world_size())
    except CheckpointError as error:
        return None, error
    return checkpoint, None
