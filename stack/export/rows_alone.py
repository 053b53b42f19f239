"""`stack export export.delta_of=...`: what later versions of a run changed in the rows of a package, without its model.

No model is built and nothing of training is imported, so it takes seconds, where a package takes minutes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stack.base.errors import ConfigError
from stack.checkpoint.chain import Chain
from stack.checkpoint.load import check_file
from stack.checkpoint.manifest import FileEntry, VersionManifest
from stack.checkpoint.tensors import side_by_side
from stack.export.config import ExportConfig
from stack.export.delta import Begin, DeltaManifest, beginning, is_delta, write_delta
from stack.telemetry.console import say

_THREADS = 8


def export_delta(chain: Chain, *, config: ExportConfig, verify: bool) -> DeltaManifest:
    """Writes the delta that follows `config.delta_of`, and says so.

    Raises: `PackageError` where it cannot follow; `CheckpointError` where a file of the chain is missing or damaged.
    """
    assert config.delta_of is not None
    follows = Path(config.delta_of)
    if is_delta(follows) and config.package is None:
        raise ConfigError(f"export.delta_of={follows} is a delta: set export.package=<folder of the package it is of>")
    if not is_delta(follows) and config.package is not None:
        raise ConfigError(f"export.delta_of={follows} is a package: leave out export.package={config.package}")
    begin = beginning(follows, Path(config.package) if config.package is not None else None)
    head = chain.finished(config.version)
    package = Path(config.package or config.delta_of)
    out = Path(config.out) if config.out else package.parent / f"{max(head.context.data_days)}.delta"
    if verify:
        _verify(chain, head, begin)
    manifest = write_delta(chain, head, begin, out, sign_key=Path(config.sign_key) if config.sign_key else None)
    say(_told(manifest, out))
    return manifest


def _verify(chain: Chain, head: VersionManifest, begin: Begin) -> None:
    """Reads the files of the versions after `begin`, as restoring does. Of older ones the row of unknown ids and the
    keys of ids that are gone are read, and not verified: a base takes as long to read as a package to write, and was
    verified when the package was written."""
    needed: dict[str, FileEntry] = {}
    for name, layers in chain.layers(head).items():
        for layer in layers:
            if name not in begin.package.tables or layer.version <= begin.version:
                continue
            parts = {part.file for part in layer.entry.parts}
            needed |= {
                f"{layer.folder}/{file}": entry
                for file, entry in layer.files.items()
                if file in parts or file.startswith(f"ids/{name}/")
            }
    side_by_side(
        [partial(check_file, chain.store, name, entry) for name, entry in sorted(needed.items())], num_threads=_THREADS
    )


def _told(manifest: DeltaManifest, folder: Path) -> str:
    rows = ", ".join(
        f"{name} {table.num_rows:,}" + (f" ({table.num_gone:,} gone)" if table.num_gone else "")
        for name, table in sorted(manifest.tables.items())
        if table.num_rows or table.num_gone
    )
    num_bytes = sum(file.num_bytes for file in manifest.files.values())
    return (
        f"exported what version {manifest.to_version} ({manifest.last_day}) changed after version "
        f"{manifest.from_version} to {folder}: {num_bytes / 1e6:,.1f} MB; rows: {rows or 'none'}"
    )
