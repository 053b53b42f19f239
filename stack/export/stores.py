"""The tables of a package on disk, opened: rows found by key, a later day's laid over them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.export.package import DEFAULT, ROWS, PackageManifest, Table
from stack.export.runs import RowStore, Run


def open_stores(folder: Path, manifest: PackageManifest) -> dict[str, RowStore]:
    """By table. Raises: `PackageError` where a file does not fit what the manifest says."""
    return {
        name: RowStore(_default(folder, name, table), [_run(folder, name, table)])
        for name, table in manifest.tables.items()
    }


def with_deltas(
    stores: Mapping[str, RowStore], manifest: PackageManifest, deltas: Sequence[Path]
) -> dict[str, RowStore]:
    """`stores` with the rows of deltas, the oldest first, over them. A delta need not speak of every table.

    Raises: `PackageError` where a file does not fit.
    """
    found = dict(stores)
    for delta in deltas:
        for name, table in manifest.tables.items():
            if (delta / ROWS / name).is_dir():
                run = Run(delta / ROWS / name, row_type=table.row_type, dim=table.dim)
                found[name] = found[name].with_delta(run).with_default(_default(delta, name, table))
    return found


def _run(folder: Path, name: str, table: Table) -> Run:
    place = folder / ROWS / name
    run = Run(place, row_type=table.row_type, dim=table.dim)
    if run.num_rows != table.num_rows or (run.keys is not None) != table.keyed:
        has = "keyed" if run.keys is not None else "numbered"
        raise PackageError(
            f"{place} has {run.num_rows} {has} rows, its manifest says {table.num_rows} "
            f"{'keyed' if table.keyed else 'numbered'}"
        )
    return run


def _default(folder: Path, name: str, table: Table) -> NDArray[np.float32]:
    file = folder / ROWS / name / DEFAULT
    try:
        found: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PackageError(f"{file} cannot be read as an array: {error}") from error
    if found.dtype != np.float32 or found.shape != (table.dim,):
        raise PackageError(f"{file} has {found.dtype} of shape {found.shape}, not float32 of ({table.dim},)")
    return found
