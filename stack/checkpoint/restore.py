"""Brings a version back: as the newest of its chain, from which the next training goes on, or whole in another chain.

Going back writes no rows: the new version builds on the old one with empty deltas, and has copies of its dense tensors,
its maps of ids and its place in the data. What came between stays where it is, off the line. A version that is another
with its dense tensors mended (`repaired`) is written in the same way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import torch

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain
from stack.checkpoint.compact import write_run
from stack.checkpoint.leases import Lease, holding, reading
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.manifest import (
    DENSE,
    FORMAT_VERSION,
    GONE,
    LOOP,
    MANIFEST,
    OPTIMIZER,
    FileEntry,
    Lineage,
    TableEntry,
    VersionManifest,
    data_folder,
    encode_manifest,
    manifest_name,
    with_digest,
)
from stack.checkpoint.merge import merge
from stack.checkpoint.save import write_file
from stack.checkpoint.tensors import TensorFile, write_tensors

VERB = "restore"


def restore(
    chain: Chain, version: VersionManifest, *, verify: bool = True, lease_seconds: float = 3600.0
) -> VersionManifest:
    """Publishes a version that is `version` again.

    Raises: `CheckpointError` where a file that it needs is damaged or missing, or another job publishes meanwhile.
    """
    lineage = Lineage(verb=VERB, day=version.lineage.day, restores=version.link)
    return _on_top(chain, version, lineage, dense={}, verify=verify, lease_seconds=lease_seconds)


def repaired(
    chain: Chain,
    version: VersionManifest,
    *,
    verb: str,
    how: str,
    dense: Mapping[str, torch.Tensor],
    metrics: Mapping[str, float | None] | None = None,
    lease_seconds: float = 3600.0,
) -> VersionManifest:
    """Publishes a version that is `version` with other values in the dense tensors and metrics named; `how` says what
    was done.

    Raises: `CheckpointError` where the newest version is another by now, a tensor is not one of the version's or has
    another shape or type, a number is not finite, or a file is missing.
    """
    newest = chain.newest_readable()
    if newest is None or newest.version != version.version:
        raise CheckpointError(
            f"version {version.version} is not the newest of {chain.store.url}: repair the newest, or bring this one "
            f"back first with `stack checkpoint restore {version.version}`"
        )
    lineage = Lineage(verb=verb, repairs=version.link, how=how)
    version = msgspec.structs.replace(version, metrics=version.metrics | dict(metrics or {}))
    return _on_top(chain, version, lineage, dense=dense, verify=False, lease_seconds=lease_seconds)


def _on_top(
    chain: Chain,
    version: VersionManifest,
    lineage: Lineage,
    *,
    dense: Mapping[str, torch.Tensor],
    verify: bool,
    lease_seconds: float,
) -> VersionManifest:
    """As the newest of the chain, with empty deltas on `version`."""
    with reading(chain.store, version.version, seconds=lease_seconds):
        checkpoint = open_version(chain, version)
        if verify:
            checkpoint.verify()
        newest = chain.newest_readable()
        assert newest is not None
        tables = {name: msgspec.structs.replace(entry, whole=False, parts=()) for name, entry in version.tables.items()}
        manifest = msgspec.structs.replace(
            version,
            version=chain.numbers()[-1] + 1,
            previous=newest.link,
            parent=version.link,
            lineage=lineage,
            tables=tables,
        )
        return _publish(
            chain, manifest, lambda folder: _rest(checkpoint, chain, folder, dense=dense), lease_seconds=lease_seconds
        )


def copy_to(
    chain: Chain,
    version: VersionManifest,
    other: Chain,
    *,
    part_mib: int = 256,
    weights_only: bool = False,
    verify: bool = True,
    lease_seconds: float = 3600.0,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> VersionManifest:
    """Writes a version, whole, as the first one of an empty chain; with `weights_only` without optimizer state, so that
    nobody trains on from it.

    A table whose blocks of columns changed is written in its newest ones (`stack.checkpoint.merge`).
    Raises: `CheckpointError` where the other chain is not empty, or a file of this one is damaged.
    """
    if other.numbers():
        raise CheckpointError(f"{other.store.url} has versions: choose an empty folder")
    with reading(chain.store, version.version, seconds=lease_seconds):
        checkpoint = open_version(chain, version)
        if verify:
            checkpoint.verify()

        def write(folder: str) -> tuple[dict[str, TableEntry], dict[str, FileEntry]]:
            tables: dict[str, TableEntry] = {}
            _, files = _rest(checkpoint, other, folder, weights_only=weights_only)
            for name, layers in checkpoint.layers.items():
                (run,) = merge(
                    chain.store, name, layers, part_bytes=part_mib << 20, one_run=True, with_state=not weights_only
                )
                tables[name] = write_run(
                    other.store, folder, name, run, number=0, files=files, progress=progress
                )  # fmt: skip
            return tables, files

        lineage = Lineage(verb=VERB)  # links are to versions of the same chain
        manifest = msgspec.structs.replace(version, version=1, previous=None, parent=None, lineage=lineage)
        return _publish(other, manifest, write, lease_seconds=lease_seconds)


def _publish(
    chain: Chain,
    manifest: VersionManifest,
    write: Callable[[str], tuple[Mapping[str, TableEntry], Mapping[str, FileEntry]]],
    *,
    lease_seconds: float,
) -> VersionManifest:
    """`write` fills a folder, and gives the tables (none: those of `manifest`) and the files."""
    store, data = chain.store, uuid.uuid4().hex
    folder = data_folder(data)
    with holding(store, Lease(data=data, seconds=lease_seconds)) as lease:
        try:
            tables, files = write(folder)
            manifest = with_digest(
                msgspec.structs.replace(
                    manifest,
                    format_version=FORMAT_VERSION,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    tables=dict(tables) or manifest.tables,
                    data=data,
                    files=dict(sorted(files.items())),
                )
            )
            write_file(chain, f"{folder}/{MANIFEST}", encode_manifest(manifest))
            store.seal(folder)
            lease.check()
        except BaseException:
            with suppress(OSError):  # nobody can use it; else pruning finds it
                store.delete_folder(folder)
            raise
        try:
            store.publish(f"{folder}/{MANIFEST}", manifest_name(manifest.version))
        except FileExistsError as error:
            store.delete_folder(folder)
            raise CheckpointError(
                f"another job has committed version {manifest.version} meanwhile: look at `stack checkpoint list`, and "
                "restore again"
            ) from error
    return manifest


def _rest(
    checkpoint: Checkpoint,
    chain: Chain,
    folder: str,
    *,
    weights_only: bool = False,
    dense: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, TableEntry], dict[str, FileEntry]]:
    """Copies what is not rows, with other values where `dense` has them. Keys that were gone since the version's parent
    are not gone since the version."""
    source, own = checkpoint.store, data_folder(checkpoint.manifest.data)
    files: dict[str, FileEntry] = {}
    for name in checkpoint.manifest.files:
        if name not in (DENSE, OPTIMIZER) and not name.startswith("ids/"):
            continue
        tensors = TensorFile(source, f"{own}/{name}").all()
        if GONE in tensors and name.startswith("ids/"):
            tensors[GONE] = torch.empty(0, dtype=torch.int64)
        if name == OPTIMIZER and weights_only:
            tensors = {}
        if name == DENSE and dense:
            tensors |= {key: _mended(key, value, tensors) for key, value in dense.items()}
        with chain.store.create(f"{folder}/{name}") as file:
            files[name] = write_tensors(file, tensors)
    files[LOOP] = write_file(chain, f"{folder}/{LOOP}", source.read(f"{own}/{LOOP}"))
    return {}, files


def _mended(name: str, value: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    before = tensors.get(name)
    if before is None or (before.shape, before.dtype) != (value.shape, value.dtype):
        raise CheckpointError(f"dense tensor {name!r} of this shape and type is not in the version that it would mend")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError(f"dense tensor {name!r} would hold a number that is NaN or infinite")
    return value.detach().cpu().contiguous()
