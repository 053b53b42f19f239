"""Which versions are kept, and the deletion of what nobody needs any more.

A version is kept by policy (`CheckpointConfig`), because it is the newest, because somebody reads it, or because
another that is kept builds on its rows. Deleting is done in three steps, so that whoever takes a version meanwhile is
safe:

1. versions that go are marked (`pruned/`): from now on nobody begins to read them;
2. leases, then versions are read again: who had taken a marked version before has a lease, or has published what he
   built on it;
3. files that nobody needs, as of now, are deleted, the staged manifest of a folder first.

A mark is never taken back; files of a marked version that somebody needs stay until a later time. Folders that no
manifest names and no lease holds are what a dead writer left: they are renamed aside, so that a writer which was only
asleep cannot publish out of them, looked at again, and deleted. Manifests of versions are never deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from stack.base.files import ASIDE
from stack.checkpoint.chain import Chain
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import drop_expired, held
from stack.checkpoint.manifest import MANIFEST, base_name, data_folder, manifest_name, pruned_name
from stack.checkpoint.nodes import Node, Nodes, ancestors
from stack.checkpoint.store import Store

_SEVENTH = 7


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What is kept, by version with the reason, and what goes.

    `folders`: those below `data/` that are deleted with their versions and compactions, each with what it was;
    `abandoned`: those that no manifest names; `set_aside`: folders that a sweep renamed and did not come to
    delete; `waiting`: marked versions whose files somebody needs still.
    """

    kept: Mapping[int, str]
    goes: tuple[int, ...]
    folders: Mapping[str, str]
    compactions: tuple[int, ...]
    abandoned: tuple[str, ...]
    set_aside: tuple[str, ...]
    waiting: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Needed:
    """Versions whose own files, and whose compactions, are needed; each with a version that needs them."""

    files: dict[int, int] = field(default_factory=dict)
    compactions: dict[int, int] = field(default_factory=dict)


def plan_prune(
    chain: Chain, options: CheckpointConfig, *, nodes: Nodes | None = None, clock: Callable[[], float] = time.time
) -> Pruning:
    """What pruning would do now; changes nothing.

    Raises: `CheckpointError` where a manifest is damaged: what it needs is not known then, so nothing may go.
    """
    nodes = nodes or Nodes(chain)
    # In this order: a folder is younger than its lease, and a lease ends when its version is out.
    names = [name.split("/") for name in chain.store.list()]
    folders = {name[1] for name in names if name[0] == "data" and len(name) > 2}
    leases = held(chain.store, clock=clock)
    compactions, marked = nodes.compactions(), set(chain.pruned())
    known = nodes.all()
    kept = {number: why for number, why in by_policy(known, options).items() if number not in marked}
    read = {lease.version for lease in leases if lease.version is not None} & known.keys()
    kept |= dict.fromkeys(sorted(read - marked - kept.keys()), "somebody reads it")
    needed = _needed(known, kept, read=read, compacted=compactions)
    for number, by in needed.files.items():
        if number not in marked:
            kept.setdefault(number, f"version {by} builds on it")
    unneeded = [number for number in known if number not in needed.files]
    dropped = tuple(number for number in compactions if number not in needed.compactions)
    going = {known[number].data: (f"version {number}", known[number].num_bytes) for number in unneeded}
    going |= {compactions[one].data: (f"compaction of version {one}", compactions[one].num_bytes) for one in dropped}
    going = {data: about for data, about in going.items() if data in folders}
    named = {node.data for node in known.values()} | {one.data for one in compactions.values()}
    abandoned = tuple(sorted(folders - named - {lease.data for lease in leases}))
    return Pruning(
        kept=dict(sorted(kept.items())),
        goes=tuple(number for number in unneeded if number not in marked),
        folders={data: what for data, (what, _) in going.items()},
        compactions=dropped,
        abandoned=abandoned,
        set_aside=tuple(
            sorted({"/".join(name[:3]) for name in names if name[0].startswith(ASIDE) and name[1:2] == ["data"]})
        ),
        waiting=tuple(sorted(number for number in marked & needed.files.keys() if known[number].data in folders)),
        num_bytes=sum(size for _, size in going.values()) + sum(_size(chain.store, data) for data in abandoned),
    )


def prune(
    chain: Chain, options: CheckpointConfig, *, dry_run: bool = False, clock: Callable[[], float] = time.time
) -> Pruning:
    """Deletes what nobody needs, and says what it was; with `dry_run` what it would be.

    Raises: `CheckpointError` where a manifest is damaged; `OSError` where something cannot be deleted. What is not done
    then, the next one does.
    """
    if dry_run:
        return plan_prune(chain, options, clock=clock)
    return _prune(chain, options, nodes=Nodes(chain), clock=clock)


class Retention:
    """Prunes after each save, in the process that publishes. Remembers what manifests say, since they never change."""

    def __init__(self, chain: Chain, options: CheckpointConfig) -> None:
        self._chain = chain
        self._options = options
        self._nodes = Nodes(chain)
        self._first = True

    def __call__(self, version: object = None) -> None:
        """To be called when a version is out. Files are listed where something goes, and the first time.

        Raises: as `prune`; what was not done, the next call does.
        """
        if self._first or self._something_goes():
            self._first = True  # until all is done
            _prune(self._chain, self._options, nodes=self._nodes, clock=time.time)
        self._first = False

    def _something_goes(self) -> bool:
        known, marked = self._nodes.all(), set(self._chain.pruned())
        kept = [number for number in by_policy(known, self._options) if number not in marked]
        needed = _needed(known, kept, read=(), compacted=self._chain.compacted())
        return bool(known.keys() - marked - needed.files.keys())


def by_policy(known: Mapping[int, Node], options: CheckpointConfig) -> dict[int, str]:
    """The versions that the options keep, with the reason for each; the newest is always one.

    Saves on the way are those of the last training, whether it has ended or not: older ones are worth nothing any more.
    Finished trainings are counted on the newest version's own line, where each day is once, and among all: a version
    that another took the place of does not go sooner for it. Each seventh is counted from the first of the line: the
    same ones stay, whenever pruning runs.
    """
    if not known:
        return {}
    head = max(known)
    kept = {head: "the newest"}
    finished = sorted((number for number, node in known.items() if node.complete), reverse=True)
    begun = next((number for number in finished if number != head), 0)
    on_the_way = [number for number in sorted(known, reverse=True) if number > begun and not known[number].complete]
    for number in on_the_way[: options.keep_last]:
        kept.setdefault(number, f"a save on the way (keep_last={options.keep_last})")
    line = [node.version for node in ancestors(known, head) if node.complete]
    days = len(finished) if options.keep_days is None else options.keep_days
    told = "" if options.keep_days is None else f" (keep_days={days})"
    for number in (*finished[:days], *line[:days]):
        kept.setdefault(number, f"a finished training{told}")
    place = {number: at for at, number in enumerate(reversed(line), start=1)}
    sevenths = [number for number in line[days:] if place[number] % _SEVENTH == 0]
    for number in sevenths[: options.keep_weekly]:
        kept.setdefault(number, f"a seventh finished training (keep_weekly={options.keep_weekly})")
    return kept


def _needed(
    known: Mapping[int, Node], kept: Collection[int], *, read: Collection[int], compacted: Collection[int]
) -> _Needed:
    """What versions are made of, as `Chain.layers` walks. Of those being `read` also what a compaction stands for:
    they may have been opened before it came."""
    needed = _Needed()
    for version in sorted({*kept, *read}, reverse=True):
        open_tables = set(known[version].tables)
        for node in ancestors(known, version):
            stands = node.version in compacted
            if stands:
                needed.compactions.setdefault(node.version, version)
            if node.version == version or not stands or version in read:
                needed.files.setdefault(node.version, version)
            open_tables -= node.whole
            if not open_tables or (stands and version not in read):
                break
    return needed


def _prune(chain: Chain, options: CheckpointConfig, *, nodes: Nodes, clock: Callable[[], float]) -> Pruning:
    store, plan = chain.store, plan_prune(chain, options, nodes=nodes, clock=clock)
    for number in plan.goes:  # by a second name of what is there: it takes no room on a full disk
        store.publish(manifest_name(number), pruned_name(number))
    now = plan_prune(chain, options, nodes=nodes, clock=clock)
    known, compactions = nodes.all(), nodes.compactions()
    dropped = [number for number in now.compactions if number in compactions]
    for number in dropped:
        store.delete(base_name(number))
    if dropped:
        store.seal("bases")  # after a power cut a name must not be there again without its files
    for number in dropped:
        _delete(store, compactions[number].data)
    for data in {known[number].data for number in chain.pruned() if number in known} & now.folders.keys():
        _delete(store, data)
    for data in now.abandoned:
        _sweep(chain, data, nodes)
    for aside in now.set_aside:
        _finish_sweep(chain, aside, nodes)
    drop_expired(store, clock=clock)
    return plan


def _delete(store: Store, data: str) -> None:
    """The staged manifest first: who finds it may take the rest for complete (`Chain.has_files`)."""
    store.delete(f"{data_folder(data)}/{MANIFEST}")
    store.delete_folder(data_folder(data))


def _sweep(chain: Chain, data: str, nodes: Nodes) -> None:
    """Deletes a folder that no manifest names. An object store cannot rename: there the staged manifest, out of which a
    late writer would publish, goes first."""
    store, folder = chain.store, data_folder(data)
    try:
        aside = store.set_aside(folder)
    except FileNotFoundError:  # another one swept it
        return
    if aside == folder and data not in _named(nodes):
        store.delete(f"{folder}/{MANIFEST}")
    _finish_sweep(chain, aside, nodes)


def _finish_sweep(chain: Chain, aside: str, nodes: Nodes) -> None:
    """Deletes a folder that was set aside, or puts it back where a manifest names it after all."""
    folder = aside[aside.index("data/") :]
    if folder.removeprefix("data/") not in _named(nodes):
        chain.store.delete_folder(aside)
    elif aside != folder:
        chain.store.put_back(aside, folder)


def _named(nodes: Nodes) -> set[str]:
    """The data folders that manifests name now."""
    return {one.data for one in nodes.all().values()} | {one.data for one in nodes.compactions().values()}


def _size(store: Store, data: str) -> int:
    """Bytes of a folder, as far as they are still there."""
    size = 0
    for name in store.list(data_folder(data)):
        try:
            size += store.size(name)
        except FileNotFoundError:  # deleted meanwhile
            continue
    return size
