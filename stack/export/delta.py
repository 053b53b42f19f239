"""Row deltas: what later versions of a chain changed in the tables of a package, to be laid over them while it serves.

A folder beside packages, complete when its manifest is in it::

    delta/
      manifest.json                  DeltaManifest: the package, the versions it leads from and to, digests of all files
      signature.json                 where export was given a key
      rows/item/rows.npy keys.npy gone.npy default.npy    as in a package; gone: ids that have lost their rows

It holds rows alone: the graphs stay those of the package, until the next package. Deltas of a package follow each
other: each begins at the version that the one before, or the package, ends with.

Legend: N rows or keys, D width of a table.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.base.errors import CheckpointError, PackageError
from stack.base.files import folder_aside
from stack.export.package import DEFAULT, ROWS, PackageManifest, read_manifest
from stack.export.run_writer import merge_deltas, write_run
from stack.export.runs import Run
from stack.export.sealed import (
    FORMAT_VERSION,
    MANIFEST,
    Sealed,
    check_files,
    describe_files,
    read_sealed,
    refuse_name,
    write_sealed,
)

if TYPE_CHECKING:  # servers read deltas without torch
    from torch import Tensor

    from stack.checkpoint.chain import Chain, Layer
    from stack.checkpoint.manifest import VersionManifest
    from stack.checkpoint.rows import TableReader


class DeltaTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that a delta has of a table, and ids that have lost theirs."""

    num_rows: int
    num_gone: int


class DeltaManifest(Sealed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a delta. `package`: the digest of the package that it is of."""

    name: str
    package: str
    from_version: int
    from_digest: str
    to_version: int
    to_digest: str
    last_day: str
    created: str
    tables: dict[str, DeltaTable]


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Where a delta begins: a package, or the last of its deltas."""

    package: PackageManifest
    version: int
    digest: str


def open_delta(folder: Path) -> DeltaManifest:
    """Reads the manifest and compares every file with it. Raises: `PackageError` naming what is wrong."""
    manifest = read_sealed(folder, DeltaManifest)
    check_files(folder, manifest.files)
    return manifest


def follows(manifest: DeltaManifest, package: PackageManifest, before: Sequence[DeltaManifest]) -> None:
    """Raises `PackageError` where a delta cannot be laid over a package with the deltas `before` on it."""
    _refuse_other_package(manifest, package)
    at = (package.lineage.version, package.lineage.checkpoint_digest)
    _refuse_gap(manifest, (before[-1].to_version, before[-1].to_digest) if before else at)


def _refuse_other_package(manifest: DeltaManifest, package: PackageManifest) -> None:
    if manifest.package != package.digest:
        raise PackageError(
            f"delta {manifest.name!r} is of package {manifest.package[:12]}, not of {package.digest[:12]}: export one "
            "with export.delta_of=<the package that is served>"
        )


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise PackageError(f"{folder} exists: deltas are not changed; choose another export.out")


def _refuse_gap(manifest: DeltaManifest, at: tuple[int, str]) -> None:
    """`at`: the version below it, and its digest."""
    if (manifest.from_version, manifest.from_digest) != at:
        raise PackageError(
            f"delta {manifest.name!r} begins at version {manifest.from_version}, and what is below it is version "
            f"{at[0]}: apply the deltas in their order"
        )


def is_delta(folder: Path) -> bool:
    """Whether the manifest of a folder is a delta's; not where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Kind).from_version is not None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False


class _Kind(msgspec.Struct):
    from_version: int | None = None


def beginning(folder: Path, package: Path | None = None) -> Begin:
    """What the next delta of `folder`, a package or a delta, begins at; of a delta `package` is where its package is.

    Raises: `PackageError` where they do not belong together.
    """
    found = read_manifest(folder if package is None else package)
    if package is None:
        return Begin(package=found, version=found.lineage.version, digest=found.lineage.checkpoint_digest)
    delta = read_sealed(folder, DeltaManifest)
    if delta.package != found.digest:
        raise PackageError(f"delta {folder} is not of package {package}")
    return Begin(package=found, version=delta.to_version, digest=delta.to_digest)


def merge(deltas: Sequence[tuple[Path, DeltaManifest]], package: PackageManifest, folder: Path) -> DeltaManifest:
    """Writes one delta that is what several of a package come to, the oldest first, each with the manifest by which it
    was trusted. `folder` must be new.

    Raises: `PackageError` where one is of another package, does not begin where the one before it ends, or is no longer
    what its manifest says.
    """
    _refuse_existing(folder)
    folders, manifests = [one for one, _ in deltas], [one for _, one in deltas]
    for one, manifest in deltas:
        _refuse_other_package(manifest, package)
        check_files(one, manifest.files)
    for below, above in pairwise(manifests):
        _refuse_gap(above, (below.to_version, below.to_digest))
    tables: dict[str, DeltaTable] = {}
    with folder_aside(folder) as aside:
        for name, table in package.tables.items():
            places = [one / ROWS / name for one in reversed(folders) if (one / ROWS / name).is_dir()]
            if not places:
                continue
            runs = [Run(place, row_type=table.row_type, dim=table.dim) for place in places]
            merge_deltas(runs, aside / ROWS / name)
            shutil.copyfile(places[0] / DEFAULT, aside / ROWS / name / DEFAULT)
            merged = Run(aside / ROWS / name, row_type=table.row_type, dim=table.dim)
            tables[name] = DeltaTable(num_rows=merged.num_rows, num_gone=len(merged.gone))
        first, last = manifests[0], manifests[-1]
        manifest = msgspec.structs.replace(
            last, name=folder.name, from_version=first.from_version, from_digest=first.from_digest, tables=tables,
            files=describe_files(aside), digest="",
        )  # fmt: skip
        return write_sealed(aside, manifest)


def write_delta(
    chain: Chain, head: VersionManifest, begin: Begin, folder: Path, *, sign_key: Path | None = None
) -> DeltaManifest:
    """Writes what the versions after `begin`, up to `head`, changed. `folder` must be new.

    Raises: `PackageError` where `head` does not build on the version that `begin` is at, or a table's rows cannot be
    followed, or kept as the package keeps them.
    """
    _refuse_elsewhere(chain, head, begin)
    refuse_name(folder.name, what="delta")
    _refuse_existing(folder)
    layers = chain.layers(head)
    with folder_aside(folder) as aside:
        tables = {}
        for name in begin.package.tables:
            new = [layer for layer in layers[name] if layer.version > begin.version and layer.entry.parts]
            if new:
                tables[name] = _Changes(chain, name, begin, layers[name], new).write(aside / ROWS / name)
        manifest = DeltaManifest(
            format_version=FORMAT_VERSION,
            name=folder.name,
            package=begin.package.digest,
            from_version=begin.version,
            from_digest=begin.digest,
            to_version=head.version,
            to_digest=head.digest,
            last_day=max(head.context.data_days),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tables=tables,
            files=describe_files(aside),
        )
        return write_sealed(aside, manifest, sign_key=sign_key)


def _refuse_elsewhere(chain: Chain, head: VersionManifest, begin: Begin) -> None:
    if head.digest == begin.digest:
        raise PackageError(f"version {head.version} is what is served already: there is nothing to put in a delta")
    if not any(version.digest == begin.digest for version in chain.line(head)):
        raise PackageError(
            f"version {head.version} of {chain.store.url} does not build on version {begin.version}, which is served: "
            "export a package of it instead"
        )


class _Changes:
    """What the runs of some versions say of one table, newest first."""

    def __init__(self, chain: Chain, name: str, begin: Begin, layers: Sequence[Layer], new: Sequence[Layer]) -> None:
        from stack.checkpoint.manifest import KeyKind
        from stack.checkpoint.rows import TableReader

        self._chain, self._name, self._begin = chain, name, begin
        self._table = begin.package.tables[name]
        self._all = TableReader(chain.store, name, layers)
        self._new = TableReader(chain.store, name, new)
        self._of_ids = layers[-1].entry.keys is KeyKind.id
        self._num_summed = begin.package.ids[name].rows_per_id

    def write(self, folder: Path) -> DeltaTable:
        """Writes the run of the delta, and the row of unknown ids as it is now."""
        import torch

        from stack.checkpoint.manifest import WEIGHT

        key_N, row_N, gone_N = self._changed()
        order_N = np.argsort(key_N, kind="stable")
        key_N, row_N = key_N[order_N], row_N[order_N]
        distinct, inverse_N = np.unique(row_N, return_inverse=True)
        vector_ND = np.empty((0, self._table.dim), dtype=np.float32)
        if len(key_N):
            taken = self._new.taken(torch.from_numpy(distinct), columns=(0, self._table.dim), states=())[WEIGHT]
            vector_ND = taken.float().numpy()[inverse_N]
        row_type = self._table.row_type
        try:
            write_run(
                folder, row_type=row_type, dim=self._table.dim, num_rows=len(key_N),
                parts=[(key_N, vector_ND)] if len(key_N) else [], gone=gone_N if len(gone_N) else None,
            )  # fmt: skip
        except ValueError as error:  # numbers that the type cannot hold
            raise PackageError(f"table {self._name!r} cannot be kept as {row_type.value}: {error}") from error
        unknown = self._all.taken(torch.zeros(1, dtype=torch.int64), columns=(0, self._table.dim), states=())[WEIGHT]
        np.save(folder / DEFAULT, self._num_summed * unknown[0].float().numpy(), allow_pickle=False)
        return DeltaTable(num_rows=len(key_N), num_gone=len(gone_N))

    def _changed(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The package's keys of the rows that changed, their trained rows, and the keys that lost theirs."""
        if self._of_ids:
            live = self._new.live
            kept = live.row_N != 0
            return self._raw(live.key_N[kept]), live.row_N[kept].long().numpy(), np.sort(self._raw(self._gone()))
        row_N = np.unique(np.concatenate([self._new.keys_of(layer).numpy() for layer in self._new.layers]))
        row_N = row_N[row_N != 0]
        return (self._raw_of_rows(row_N) if self._table.keyed else row_N), row_N, np.empty(0, dtype=np.int64)

    def _gone(self) -> Tensor:
        """Keys that have lost their rows. A run that is whole does not tell: there they are those that had rows at the
        beginning and have none now."""
        import torch

        gone = [self._new.gone(layer) for layer in self._new.layers]
        if any(layer.entry.whole for layer in self._new.layers):
            gone.append(self._before.live.key_N)
        return torch.from_numpy(np.setdiff1d(torch.cat(gone).numpy(), self._new.live.key_N.numpy()))

    @cached_property
    def _before(self) -> TableReader:
        """The table at the version that the delta begins at. Raises: `PackageError` where it is not there any more."""
        from stack.checkpoint.rows import TableReader

        try:
            layers = self._chain.layers(self._chain.manifest(self._begin.version))
        except CheckpointError as error:
            raise PackageError(
                f"table {self._name!r} was written whole, and which ids it lost cannot be told without version "
                f"{self._begin.version}, which is served ({error}): export a package instead"
            ) from error
        return TableReader(self._chain.store, self._name, layers[self._name])

    def _raw(self, key: Tensor) -> NDArray[np.int64]:
        """The 64-bit keys of raw ids: the map's own keys, or those of the vocabulary's rows that these are."""
        return self._raw_of_rows(key.numpy()) if _has_raw(self._all) else key.numpy()

    def _raw_of_rows(self, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of keys of runs, as the runs tell. Raises: `PackageError` where they do not."""
        if not _has_raw(self._all):
            raise PackageError(
                f"the runs of table {self._name!r} do not tell whose rows they hold (hashed by several rows): its rows "
                "cannot be followed; export a package instead"
            )
        found_N = np.zeros(len(row_N), dtype=np.int64)
        seen_N = np.zeros(len(row_N), dtype=bool)
        for layer in reversed(self._all.layers):
            _tell(self._all, layer, row_N, found_N, seen_N)
        if not seen_N.all():  # gone, and told of by runs that lie below a whole one alone
            for layer in reversed(self._before.layers):
                _tell(self._before, layer, row_N, found_N, seen_N)
        assert seen_N.all(), f"rows {row_N[~seen_N][:5]} of {self._name!r} have no raw id"
        return found_N


def _has_raw(reader: TableReader) -> bool:
    from stack.checkpoint.manifest import RAW

    layer = reader.layers[0]
    return RAW in reader.file(layer, layer.entry.parts[0].file).shapes


def _tell(
    reader: TableReader, layer: Layer, row_N: NDArray[np.int64], found_N: NDArray[np.int64], seen_N: NDArray[np.bool_]
) -> None:
    """Puts the raw ids that a run tells of into `found_N`, where they have not been seen."""
    from stack.checkpoint.manifest import KEY, RAW

    for part in (part for part in layer.entry.parts if part.first_column == 0):
        if seen_N.all():
            return
        file = reader.file(layer, part.file)
        key_K = file.rows(KEY, 0, part.num_rows).numpy()
        place_N = np.minimum(np.searchsorted(key_K, row_N), len(key_K) - 1)
        hit_N = ~seen_N & (key_K[place_N] == row_N)
        found_N[hit_N] = file.rows(RAW, 0, part.num_rows).numpy()[place_N[hit_N]]
        seen_N |= hit_N
