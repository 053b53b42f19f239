"""Writes versions: every process its rows, the first one the rest; a version appears only when all of it is on disk.

::

    process 0   take | write own files | wait for the others' | manifest, flush, publish |
    process 1   take | write own files |
                     | training goes on                                                  | next save, or the end

What is taken is a copy, so writing runs beside training in a thread; what would be too large to copy is written while
training waits. A process says what it wrote in a small file; one that fails says so, one that dies says nothing, and
then process 0 publishes nothing and every process raises at its next save. A kill at any moment leaves the older
versions as they were, and a folder of files that no version has, which pruning deletes.

Publishing is a link that fails where the name exists, and the number is that after the newest version when this job
chose what it builds on: of two jobs that train one run, one is refused, however long it read or slept before.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.base.threads import step_back
from stack.checkpoint.chain import Chain
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.crew import Crew
from stack.checkpoint.leases import Lease, holding, write_lease
from stack.checkpoint.manifest import (
    DENSE,
    FORMAT_VERSION,
    KEY,
    LOOP,
    MANIFEST,
    OPTIMIZER,
    Context,
    FileEntry,
    KeyKind,
    Lineage,
    Link,
    Part,
    TableEntry,
    TableShape,
    VersionManifest,
    data_folder,
    encode_manifest,
    ids_part_name,
    manifest_name,
    part_name,
    table_entry,
    with_digest,
)
from stack.checkpoint.snapshot import Run, Snapshot, State, refuse_not_finite, shape_of, take
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import side_by_side, write_tensors
from stack.telemetry.console import say

_POLL_SECONDS = 0.02
_WRITE_THREADS = 4
_NICE = 10


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a process wrote: its parts of each table with the table's shape, and all its files; or why it could not."""

    parts: dict[str, list[Part]] = {}
    shapes: dict[str, TableShape] = {}
    files: dict[str, FileEntry] = {}
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a version says of itself besides its numbers."""

    step: int
    complete: bool
    context: Context
    lineage: Lineage
    shardings: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Parent:
    """What the next delta lies over, as every process knows it."""

    shapes: Mapping[str, TableShape]
    num_deltas: Mapping[str, int]
    clocks: Mapping[str, int]


@dataclass(kw_only=True)
class _Job:
    """One version on its way."""

    folder: str
    whole: Mapping[str, bool]
    keys: Mapping[str, KeyKind]
    snapshot: Snapshot | None
    facts: Facts
    lease: Lease
    failure: Exception | None = None
    thread: threading.Thread | None = None
    published: VersionManifest | None = None


class ChainWriter:
    """Writes one version after the other; made and called by every process of a job together.

    `parent`: the version that the state of the job comes from (None: from the beginning), and `clocks` the steps of its
    maps of ids. `newest`: the number of the newest version when this process chose the parent (None: now).
    `rewritten`: tables whose rows are no longer where the parent has them; they are written whole. `after` is called on
    process 0, in the thread that writes, when a version is out; where it fails a line says so.

    Raises: `CheckpointError` on every process where a version came while any of them read its parent.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        options: CheckpointConfig,
        crew: Crew | None = None,
        parent: VersionManifest | None = None,
        newest: int | None = None,
        clocks: Mapping[str, int] | None = None,
        rewritten: Sequence[str] = (),
        after: Callable[[VersionManifest], None] | None = None,
    ) -> None:
        self._chain = chain
        self._options = options
        self._crew = crew or Crew()
        self._parent = parent.link if parent else None
        self._newest = _link_of(chain.newest_readable()) if self._crew.first else None
        self._number = self._next_number(newest)
        kept = {} if parent is None else {name: one for name, one in parent.tables.items() if name not in rewritten}
        layers = {} if parent is None else chain.layers(parent)
        self._below = _Parent(
            shapes={name: one.shape for name, one in kept.items()},
            num_deltas={name: len(layers[name]) - 1 for name in kept},
            clocks=clocks or {},
        )
        self._after = after or _nothing
        self._job: _Job | None = None
        self._last: VersionManifest | None = None
        self._failed = False

    def _next_number(self, newest: int | None) -> int:
        now = self._chain.newest_number()
        (num_overtaken,) = self._crew.totals([float(newest not in (None, now))])
        if num_overtaken:
            raise CheckpointError(
                f"{self._chain.store.url}: another job has committed version {now} while this one read what it builds "
                "on: only one can train a run at a time; `stack checkpoint list` shows it"
            )
        return now + 1

    def save(self, state: State, facts: Facts) -> None:
        """Takes a version, and writes it beside what comes next; `wait` tells whether it is out.

        Raises: `CheckpointError` where this version, or one before, could not be written: the rows that changed until
        then are in no version, so nothing can be built on it.
        """
        self.wait()
        if self._failed:
            raise CheckpointError(
                f"{self._chain.store.url}: an earlier version was not written, and what changed until then is lost to "
                "this process: begin again from the newest version"
            )
        lease = Lease(data=uuid.uuid4().hex, seconds=self._options.lease_seconds)
        failure = self._begin(lease)
        folder = data_folder(self._crew.from_first(str(lease.data).encode()).decode())
        whole = self._whole(state)
        copies = self._options.asynchronous and self._fits(state, whole)
        snapshot = take(
            state, whole=whole, old=self._below.shapes, since=self._below.clocks, copies=copies, first=self._crew.first
        )
        keys = {name: KeyKind.id if name in state.maps else KeyKind.row for name in state.tables}
        self._job = _Job(
            folder=folder, whole=whole, keys=keys, snapshot=snapshot, facts=facts, lease=lease, failure=failure
        )
        self._below = _Parent(
            shapes={shard.name: shape_of(shard) for shard in state.shards},
            num_deltas={name: 0 if whole[name] else self._below.num_deltas.get(name, 0) + 1 for name in whole},
            clocks={name: one.clock for name, one in state.maps.items()},
        )
        if not copies:
            self._write(self._job)
            self.wait()
            return
        self._job.thread = threading.Thread(target=self._write_beside, args=(self._job,), name="checkpoint")
        self._job.thread.start()

    def wait(self) -> VersionManifest | None:
        """Waits until the version taken last is out, and gives its manifest on process 0.

        Raises: `CheckpointError` on every process where any could not write its part.
        """
        job, self._job = self._job, None
        if job is None:
            return self._last
        self._join(job)
        (num_failed,) = self._crew.totals([float(job.failure is not None)])
        if num_failed:
            self._failed = True
            raise CheckpointError(
                f"{self._chain.store.url}: the version of step {job.facts.step} was not written: "
                f"{job.failure or 'another process could not write'}; older versions are as they were"
            ) from job.failure
        if job.published is not None:
            self._parent = self._newest = job.published.link
            self._number += 1
        self._last = job.published
        return job.published

    def close(self) -> None:
        """Lets the version taken last be written, without asking the other processes: after a failure elsewhere."""
        if self._job is not None:
            self._join(self._job)

    @staticmethod
    def _join(job: _Job) -> None:
        if job.thread is not None:
            job.thread.join()

    def _whole(self, state: State) -> dict[str, bool]:
        """Which tables are written whole; the same on every process, whichever of them it holds."""
        names = state.tables
        must, changed, held = (dict.fromkeys(names, 0.0) for _ in range(3))
        for shard in (one for one in state.shards if one.written):
            name, share, below = shard.name, shard.num_columns / shard.dim, self._below.shapes.get(shard.name)
            managed, rows = state.maps.get(name), state.changed.get(name)
            must[name] += not _lies_over(shape_of(shard), below, managed=managed is not None)
            held[name] += int(shard.weight_ND.shape[0]) * share
            if managed is not None:
                changed[name] += int((managed.last_N > self._below.clocks.get(name, 0)).sum())
            elif rows is not None:
                first, last = shard.first_row, shard.first_row + int(shard.weight_ND.shape[0])
                changed[name] += int(((rows >= first) & (rows < last)).sum()) * share
            must[name] += rows is None and (managed is None or name not in state.gone)
        sums = iter(self._crew.totals([one[name] for name in names for one in (must, changed, held)]))
        whole = {}
        for name in names:
            num_must, num_changed, num_held = next(sums), next(sums), next(sums)
            much = num_changed >= self._options.whole_share * num_held
            whole[name] = num_must > 0 or much or self._below.num_deltas.get(name, 0) >= self._options.max_deltas
        return whole

    def _fits(self, state: State, whole: Mapping[str, bool]) -> bool:
        """Whether every process can copy what it writes."""
        size = sum(
            one.weight_ND.nbytes + sum(value.nbytes for value in one.state.values())
            for one in state.shards
            if one.written and whole[one.name]
        )
        (num_too_large,) = self._crew.totals([float(size > self._options.max_snapshot_gib * 2**30)])
        return not num_too_large

    def _begin(self, lease: Lease) -> Exception | None:
        """Process 0 protects the folder before anybody writes into it; what fails is kept, since others wait."""
        if not self._crew.first:
            return None
        try:
            write_lease(self._chain.store, lease)
        except OSError as error:
            return error
        return None

    def _write_beside(self, job: _Job) -> None:
        step_back(_NICE)  # training goes first
        self._write(job)

    def _write(self, job: _Job) -> None:
        """This process's files, and on process 0 the version; a failure is kept for `wait`."""
        crew, store = self._crew, self._chain.store
        try:
            if job.failure is not None:
                raise job.failure
            with holding(store, job.lease) if crew.first else nullcontext():
                self._say(job, self._write_own(job))
                if crew.first:
                    job.published = self._publish(job, job.lease)
        except Exception as error:  # whatever it is, the others must not wait, and `wait` raises it
            job.failure = error
            if not crew.first:
                self._say_failure(job, error)
        finally:
            job.snapshot = None  # what was copied is no longer needed
            with suppress(OSError):  # it runs out by itself
                job.lease.release(store)
        if job.published is not None:
            try:
                self._after(job.published)
            except (CheckpointError, OSError) as error:
                say(f"version {job.published.version} is out, but what comes after it failed: {error}")

    def _write_own(self, job: _Job) -> _Said:
        snapshot = job.snapshot
        assert snapshot is not None
        refuse_not_finite(snapshot)
        tensors: dict[str, Mapping[str, Tensor]] = {}
        parts: dict[str, list[Part]] = {}
        shapes: dict[str, TableShape] = {}
        for run in snapshot.runs:
            shapes[run.table] = run.shape
            own = parts.setdefault(run.table, [])
            for first, last in _cuts(run, part_bytes=self._options.part_mib * 2**20):
                name = part_name(run.table, self._crew.rank, len(own))
                piece = {key: value[first:last] for key, value in run.tensors.items()}
                tensors[name] = piece
                own.append(_part(name, run, piece))
        for table, state in snapshot.ids.items():
            tensors[ids_part_name(table, self._crew.rank)] = state
        if self._crew.first:
            tensors |= {DENSE: snapshot.dense, OPTIMIZER: snapshot.optimizer}
        tasks = [partial(self._tensors, job, name, values) for name, values in tensors.items()]
        files = dict(zip(tensors, side_by_side(tasks, num_threads=_WRITE_THREADS), strict=True))
        if self._crew.first:
            files[LOOP] = write_file(self._chain, f"{job.folder}/{LOOP}", msgspec.json.encode(snapshot.loop))
        return _Said(parts=parts, shapes=shapes, files=files)

    def _tensors(self, job: _Job, name: str, tensors: Mapping[str, Tensor]) -> FileEntry:
        with self._chain.store.create(f"{job.folder}/{name}") as file:
            return write_tensors(file, tensors)

    def _say(self, job: _Job, said: _Said, *, part: str = "part") -> None:
        """Under its name only when it is whole: process 0 may be reading."""
        name = _said_name(job, self._crew.rank)
        write_file(self._chain, f"{name}.{part}", msgspec.json.encode(said))
        self._chain.store.publish(f"{name}.{part}", name)

    def _say_failure(self, job: _Job, error: Exception) -> None:
        """Best effort: where even this cannot be written, process 0 gives up when its patience ends."""
        try:
            self._say(job, _Said(failure=str(error)), part="failed")
        except OSError:
            return

    def _publish(self, job: _Job, lease: Lease) -> VersionManifest:
        """Process 0: gathers what all wrote, writes the manifest, flushes the folders, and publishes."""
        store, crew = self._chain.store, self._crew
        said = [self._await_said(job, rank) for rank in range(crew.world_size)]
        manifest = with_digest(
            VersionManifest(
                format_version=FORMAT_VERSION,
                version=self._number,
                previous=self._newest,
                parent=self._parent,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                complete=job.facts.complete,
                step=job.facts.step,
                world_size=crew.world_size,
                shardings=dict(job.facts.shardings),
                context=job.facts.context,
                lineage=job.facts.lineage,
                metrics=dict(job.facts.metrics),
                tables={table: _entry(table, job, said) for table in sorted(job.whole)},
                data=job.folder.rpartition("/")[2],
                files=dict(sorted((name, entry) for one in said for name, entry in one.files.items())),
            )
        )
        for rank in range(crew.world_size):
            store.delete(_said_name(job, rank))
            store.delete(f"{_said_name(job, rank)}.part")
        staged = f"{job.folder}/{MANIFEST}"
        write_file(self._chain, staged, encode_manifest(manifest))
        store.seal(job.folder)
        _refuse_swept(store, job.folder, manifest.files)
        lease.check()
        try:
            store.publish(staged, manifest_name(manifest.version))
        except FileExistsError as error:
            store.delete_folder(job.folder)
            raise CheckpointError(
                f"another job has committed version {manifest.version} meanwhile: only one can train a run at a time; "
                "`stack checkpoint list` shows it"
            ) from error
        return manifest

    def _await_said(self, job: _Job, rank: int) -> _Said:
        store, name = self._chain.store, _said_name(job, rank)
        deadline = time.monotonic() + self._crew.patience_seconds
        while True:
            try:
                said = msgspec.json.decode(store.read(name), type=_Said)
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"process {rank} of {self._crew.world_size} did not write its part within "
                        f"{self._crew.patience_seconds:g} s"
                    ) from None
                time.sleep(_POLL_SECONDS)
                continue
            if said.failure is not None:
                raise CheckpointError(f"process {rank}: {said.failure}")
            return said


def write_file(chain: Chain, name: str, data: bytes) -> FileEntry:
    """A small file."""
    with chain.store.create(name) as file:
        file.write(data)
    return FileEntry(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _said_name(job: _Job, rank: int) -> str:
    return f"{job.folder}/said/rank-{rank:05d}.json"


def _refuse_swept(store: Store, folder: str, files: Mapping[str, FileEntry]) -> None:
    """A job that slept for longer than its lease may find its files swept away, and its folder made again."""
    there = set(store.list(folder))
    missing = [name for name in files if f"{folder}/{name}" not in there]
    if missing:
        raise CheckpointError(f"{folder}/{missing[0]} was deleted while it was written: save again")


def _link_of(manifest: VersionManifest | None) -> Link | None:
    return None if manifest is None else manifest.link


def _nothing(manifest: VersionManifest) -> None:
    """What comes after a version where nobody asked for anything."""


def _lies_over(shape: TableShape, below: TableShape | None, *, managed: bool) -> bool:
    """Whether a delta of a table of this shape can lie over the parent's."""
    if below is None or (shape.dim, shape.dtype, shape.state) != (below.dim, below.dtype, below.state):
        return False
    return shape.num_rows == below.num_rows or (not managed and shape.num_rows > below.num_rows)


def _cuts(run: Run, *, part_bytes: int) -> list[tuple[int, int]]:
    """Ranges of the run's rows, each of a file; none for a run without rows."""
    row_bytes = sum(value.nbytes for value in run.tensors.values()) / max(run.num_rows, 1)
    step = max(int(part_bytes / max(row_bytes, 1)), 1)
    return [(first, min(first + step, run.num_rows)) for first in range(0, run.num_rows, step)]


def _part(name: str, run: Run, piece: Mapping[str, Tensor]) -> Part:
    keys = piece[KEY]
    return Part(
        file=name,
        num_rows=len(keys),
        first_key=int(keys[0]),
        last_key=int(keys[-1]),
        first_column=run.first_column,
        num_columns=run.num_columns,
    )


def _entry(table: str, job: _Job, said: Sequence[_Said]) -> TableEntry:
    return table_entry(
        table,
        keys=job.keys[table],
        whole=job.whole[table],
        shapes={str(rank): one.shapes[table] for rank, one in enumerate(said) if table in one.shapes},
        parts=[part for one in said for part in one.parts.get(table, ())],
    )
