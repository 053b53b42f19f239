"""Compaction: what a version's runs come to, written whole, so that its deltas need not be read, nor kept.

The version stays what it is: its tables are read from the compaction, all else from its own files. Reading gives the
same bits before and after, and beside a compaction at work: it appears when it is complete, under a name that only the
first gets.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from stack.checkpoint.chain import Chain, Layer
from stack.checkpoint.leases import Lease, holding
from stack.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    BaseManifest,
    FileEntry,
    Part,
    TableEntry,
    VersionManifest,
    base_name,
    data_folder,
    encode_manifest,
    part_name,
    table_entry,
    with_digest,
)
from stack.checkpoint.merge import Merged, Piece, merge
from stack.checkpoint.save import write_file
from stack.checkpoint.store import Store
from stack.checkpoint.tensors import write_tensors


def compact(
    chain: Chain,
    version: VersionManifest,
    *,
    part_mib: int = 256,
    lease_seconds: float = 3600.0,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> BaseManifest | None:
    """Compacts a version, or finds that somebody has; None where it is a base itself. `progress` is told of bytes.

    Raises: `CheckpointError` where the version builds on something that is missing or damaged; `OSError` where it
    cannot be written. The chain is then as it was.
    """
    if version.whole:
        return None
    store, data = chain.store, uuid.uuid4().hex
    with holding(store, Lease(version=version.version, seconds=lease_seconds)):
        found = chain.base(version)
        layers = chain.layers(version)
        if found is not None:
            return found
        with holding(store, Lease(data=data, seconds=lease_seconds)) as lease:
            try:
                written = _write(chain, version, layers, data=data, part_bytes=part_mib << 20, progress=progress)
                lease.check()
            except BaseException:
                with suppress(OSError):  # nobody can use it, and the disk may be full; else pruning finds it
                    store.delete_folder(data_folder(data))
                raise
            try:  # if this fails in another way, the compaction may be out all the same
                store.publish(f"{data_folder(data)}/{MANIFEST}", base_name(version.version))
            except FileExistsError:
                store.delete_folder(data_folder(data))
                return chain.base(version)
            return written


def _write(
    chain: Chain,
    version: VersionManifest,
    layers: Mapping[str, Sequence[Layer]],
    *,
    data: str,
    part_bytes: int,
    progress: Callable[[int], None],
) -> BaseManifest:
    store, folder = chain.store, data_folder(data)
    tables: dict[str, tuple[TableEntry, ...]] = {}
    files: dict[str, FileEntry] = {}
    for table, below in layers.items():
        runs = merge(store, table, below, part_bytes=part_bytes)
        tables[table] = tuple(
            write_run(store, folder, table, run, number=number, files=files, progress=progress)
            for number, run in enumerate(runs)
        )
    manifest = with_digest(
        BaseManifest(
            format_version=FORMAT_VERSION,
            of=version.link,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tables=tables,
            data=data,
            files=dict(sorted(files.items())),
        )
    )
    write_file(chain, f"{folder}/{MANIFEST}", encode_manifest(manifest))
    store.seal(folder)
    return manifest


def write_run(
    store: Store,
    folder: str,
    table: str,
    run: Merged,
    *,
    number: int,
    files: dict[str, FileEntry],
    progress: Callable[[int], None],
) -> TableEntry:
    """Writes a run into a folder, as if process `number` had; adds its files to `files`, and gives its entry.

    A piece is written while the next one is made.
    """
    parts: list[Part] = []

    def write(name: str, piece: Piece) -> None:
        with store.create(f"{folder}/{name}") as file:
            files[name] = write_tensors(file, piece.tensors)
        progress(files[name].num_bytes)

    with ThreadPoolExecutor(1, thread_name_prefix="compact") as pool:
        writing: Future[None] | None = None
        for piece in run.pieces:
            if writing is not None:
                writing.result()
            parts.append(msgspec.structs.replace(piece.part, file=part_name(table, number, len(parts))))
            writing = pool.submit(write, parts[-1].file, piece)
        if writing is not None:
            writing.result()
    return table_entry(table, keys=run.keys, whole=run.whole, shapes={"": run.shape}, parts=parts)


def size_of(layers: Mapping[str, Sequence[Layer]]) -> int:
    """About how many bytes a compaction will have: those of the whole runs."""
    return sum(below[0].files[part.file].num_bytes for below in layers.values() for part in below[0].entry.parts)
