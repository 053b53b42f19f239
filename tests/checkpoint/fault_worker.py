"""What the fault tests disturb: a chain that grows by a day, is compacted and pruned, the same bytes each time.

    python -m tests.checkpoint.fault_worker <folder> first|save|compact|prune [day]

All of it runs in one thread, so that the N-th call to the system is the same call each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import Lease, write_lease
from stack.checkpoint.manifest import Lineage, VersionManifest
from stack.checkpoint.retain import prune
from stack.checkpoint.save import ChainWriter, Facts
from tests.checkpoint.chains import DELTAS, Toy

NUM_DAYS = 4
"""Days of a prepared chain; the fifth is what `save` adds."""
AT_ONCE = replace(DELTAS, asynchronous=False)
KEEP = CheckpointConfig(keep_last=1, keep_days=1)
LATER_SECONDS = 7200.0
"""After so long no lease of a dead process holds."""
REFUSED = 3
"""Exit status of an action that said why it could not be done."""


class Inline:
    """A pool of threads without threads."""

    def __init__(self, max_workers: int = 1, thread_name_prefix: str = "") -> None:
        del max_workers, thread_name_prefix

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        return list(map(function, *arguments))

    def shutdown(self, wait: bool = True) -> None:
        del wait


def in_one_thread() -> None:
    """For the rest of this process."""
    torch.set_num_threads(1)
    for name, module in list(sys.modules.items()):
        if name.startswith("stack.checkpoint.") and hasattr(module, "ThreadPoolExecutor"):
            mock.patch.object(module, "ThreadPoolExecutor", Inline).start()


def toy_before(chain: Chain, day: int) -> Toy:
    """The toy with which a day's version is saved: all that was learnt before, and that day."""
    toy = Toy(seed=5, tables={"item": (12, 4)}, managed={"user": (7, 2)})
    for number in range(1, day + 1):
        if number > 1:
            toy.saved_clock, toy.parent = toy.step, chain.manifest(number - 1)
            toy.changed = {name: set() for name in toy.changed}
            toy.gone = {name: {} for name in toy.gone}
        toy.train(rows=3)
        if number % 2 == 0:
            toy.evict("user")
            toy.grow("item", 1)
    return toy


def save_day(chain: Chain, day: int, *, options: CheckpointConfig = AT_ONCE) -> bool:
    """Adds a day's version, unless it is there: the answer to an earlier try may have been lost. Whether it did."""
    head = chain.head()
    if head is not None and head.context.data_days[-1] >= _name(day):
        return False
    toy = toy_before(chain, day)
    writer = ChainWriter(
        chain, options=options, parent=toy.parent, clocks=dict.fromkeys(toy.keys, toy.saved_clock)
    )  # fmt: skip
    writer.save(toy._state(0, 1, {}), facts_of(toy, day))
    writer.wait()
    return True


def facts_of(toy: Toy, day: int) -> Facts:
    return Facts(
        step=toy.step, complete=True, context=toy.context(_name(day)), lineage=Lineage(verb="daily", day=_name(day)),
    )  # fmt: skip


def _name(day: int) -> str:
    return f"2017-11-{day:02d}"


def prepare(folder: Path, action: str) -> None:
    """A chain with something to do for an action."""
    if action == "first":
        folder.mkdir()
        return
    chain = chain_of(folder, for_writing=True)
    for day in range(1, NUM_DAYS + 1):
        save_day(chain, day)
    if action != "prune":
        return
    for number in (2, 4):
        compact(chain, chain.manifest(number))
    store = chain.store
    for name in ("1" * 32, "2" * 32):  # what dead writers left, and a sweep that was killed
        with store.create(f"data/{name}/tables/item/part-00000-0.safetensors") as file:
            file.write(b"1" * 100)
    store.set_aside(f"data/{'2' * 32}")
    write_lease(store, Lease(data="1" * 32, seconds=60), clock=lambda: 0.0)


def act(folder: Path, action: str, *, day: int = NUM_DAYS + 1) -> None:
    chain = chain_of(folder)
    ACTIONS[action](chain, day)


def _compact_head(chain: Chain, day: int) -> None:
    compact(chain, _head(chain))


def _head(chain: Chain) -> VersionManifest:
    head = chain.head()
    assert head is not None
    return head


def _first(chain: Chain, day: int) -> None:
    save_day(chain_of(chain.store.url, for_writing=True), 1)


ACTIONS: Mapping[str, Callable[[Chain, int], object]] = {
    "first": _first,
    "save": save_day,
    "compact": _compact_head,
    "prune": lambda chain, day: prune(chain, KEEP),
}


def status_of(folder: Path, action: str, *, day: int = NUM_DAYS + 1) -> int:
    """Does the action; the exit status of the process."""
    try:
        act(folder, action, day=day)
    except (CheckpointError, OSError):
        return REFUSED
    return 0


if __name__ == "__main__":
    in_one_thread()
    sys.exit(status_of(Path(sys.argv[1]), sys.argv[2], day=int((sys.argv[3:] or [NUM_DAYS + 1])[0])))
