"""Deletes old checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from stack.base.errors import CheckpointError
from stack.base.files import ASIDE, remove_leftovers
from stack.checkpoint.load import complete_checkpoints


def keep_last(folder: Path, *, count: int) -> list[str]:
    """Deletes all but the newest `count` complete checkpoints, and what killed saves left; returns the names deleted.

    A folder that is not complete is left for a person to look at and does not count. For the run's only writer, while
    no save is going on. Raises `CheckpointError` if `count` is below 1: the newest is never deleted.
    """
    if count < 1:
        raise CheckpointError(f"cannot keep {count} checkpoints: keep at least 1")
    complete, _ = complete_checkpoints(folder)
    deleted = []
    for checkpoint in complete[:-count]:
        aside = folder / f"{ASIDE}{checkpoint.path.name}"
        checkpoint.path.rename(aside)  # first the name goes, so that no reader finds half of it
        shutil.rmtree(aside)
        deleted.append(checkpoint.path.name)
    remove_leftovers(folder)
    return deleted
