"""`stack export`: writes the package of a trained run, and refuses to where it does not equal the trained model."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.base.files import folder_aside
from stack.checkpoint.load import Checkpoint
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.data.schema import Schema
from stack.export.config import ExportConfig
from stack.export.graphs import build_graphs
from stack.export.ids import ExportedIds
from stack.export.lookup import write_map
from stack.export.package import (
    FORMAT_VERSION,
    PARITY,
    Lineage,
    PackageManifest,
    Parity,
    Table,
    Vocabulary,
    describe_files,
    write_manifest,
)
from stack.export.parity import ParityCheck
from stack.export.rows import write_table, write_vocabulary
from stack.export.runner import Runner
from stack.model import UserModel
from stack.telemetry.console import say

NO_PARITY = Parity(tolerance=0.0, num_moments=0, num_examples={}, max_abs_difference={})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What export must know of a run: the model with its rows loaded, the checkpoint they came from, the data."""

    name: str
    model: UserModel
    checkpoint: Checkpoint
    dataset: Dataset
    ids: ExportedIds = field(default_factory=ExportedIds)


def export(trained: Trained, *, folder: Path, config: ExportConfig) -> PackageManifest:
    """Writes the package to `folder`, whole or not at all.

    Raises: `PackageError` where `folder` exists and is not to be replaced, or the package differs from the model.
    """
    if folder.exists() and not config.overwrite:
        raise PackageError(f"{folder} exists: packages are not changed; set export.overwrite=true to replace it whole")
    trained.model.eval()
    trained.ids.check(trained.dataset.schema)
    dims = {name: table.dim for name, table in trained.checkpoint.manifest.tables.items()}
    graphs = build_graphs(trained.model, trained.dataset.schema, dims)
    with folder_aside(folder) as aside:
        tables = dict(_write_tables(trained, aside))
        vocabularies = dict(_write_vocabularies(trained, graphs.schema, aside))
        graphs.save(aside)
        manifest = PackageManifest(
            format_version=FORMAT_VERSION,
            schema=graphs.schema,
            max_history=trained.dataset.manifest.max_history,
            max_events=config.max_events,
            vector_dim=trained.model.user.num_outputs,
            query_in_vector=trained.model.user.query is not None,
            scorer_needs_states=graphs.scorer_needs_states,
            graphs=graphs.described,
            tasks=graphs.tasks,
            tables=tables,
            vocabularies=vocabularies,
            lineage=_lineage(trained),
            parity=NO_PARITY,
            files={},
        )
        parity = _check_parity(trained, aside, manifest, config)
        (aside / PARITY).write_bytes(msgspec.json.format(msgspec.json.encode(parity), indent=1))
        files = describe_files(aside)
        manifest = write_manifest(aside, msgspec.structs.replace(manifest, parity=parity, files=files))
    say(
        f"exported {trained.name} at step {trained.checkpoint.manifest.step} to {folder}: "
        f"{sum(file.num_bytes for file in manifest.files.values()) / 1e6:,.1f} MB, {len(tables)} tables; largest "
        f"difference from the trained model {parity.worst:.2g} over {parity.num_moments} moments"
    )
    return manifest


def _write_tables(trained: Trained, folder: Path) -> Iterator[tuple[str, Table]]:
    def parts(table: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for shard in trained.checkpoint.table_parts(table, with_state=False):
            weight_ND = shard.weight_ND.float().numpy()
            yield np.arange(shard.first_row, shard.first_row + len(weight_ND)), weight_ND

    for table in trained.model.places.tables():
        entry = trained.checkpoint.manifest.tables[table]
        file = folder / "tables" / f"{table}.npy"
        num_rows = entry.num_rows
        if table in trained.ids.summed:
            num_rows = 1 + len(trained.dataset.vocabulary(table).raw)
            write_table(file, num_rows=num_rows, dim=entry.dim, parts=trained.ids.sums(table, num_rows, parts(table)))
        else:
            write_table(file, num_rows=num_rows, dim=entry.dim, parts=parts(table))
        yield table, Table(num_rows=num_rows, dim=entry.dim)


def _write_vocabularies(trained: Trained, schema: Schema, folder: Path) -> Iterator[tuple[str, Vocabulary]]:
    """Vocabularies of all features, or what they have instead. Ids that have no row in their table are left out: it
    does not know them."""
    for table in tables_of(schema):
        raw_ids = trained.dataset.schema.without_vocabulary(table)
        if raw_ids is not None:
            yield table, write_map(folder, raw_ids, trained.ids.raw[table])
            continue
        raw = trained.dataset.vocabulary(table).raw
        entry = trained.checkpoint.manifest.tables.get(table)
        if entry is not None and table not in trained.ids.of_keys:
            raw = raw.slice(0, entry.num_rows - 1)
        rows = trained.ids.rows(table, np.arange(1, len(raw) + 1))
        raw, rows = raw.filter(pa.array(rows > 0)), rows[rows > 0]
        is_text = not pa.types.is_integer(raw.type)
        ids = raw.to_pylist() if is_text else raw.to_numpy().astype(np.int64)
        write_vocabulary(folder / "vocab", table, raw=ids, rows=rows.astype(np.int32))
        yield table, Vocabulary(num_ids=len(raw), text=is_text)


def tables_of(schema: Schema) -> list[str]:
    """The tables of all features a package reads, the user's own where it is a profile feature."""
    own = {feature.table for feature in schema.profile} & {"user"}
    return sorted({*schema.tables(), *own})


def _check_parity(trained: Trained, folder: Path, manifest: PackageManifest, config: ExportConfig) -> Parity:
    """On the first day after training, or the last trained one where there is no later."""
    last = max(trained.checkpoint.manifest.context.data_days)
    later = [day for day in trained.dataset.days() if day > last]
    day = later[0] if later else last
    loader = Loader(trained.dataset, days=[day], global_batch_size=min(config.parity_timelines, 32), num_prefetch=0)
    check = ParityCheck(Runner(folder, manifest), manifest, trained.model, rows_of=trained.ids.rows)
    num_timelines = 0
    for batch in loader:
        check.add(batch)
        num_timelines += batch.num_timelines
        if num_timelines >= config.parity_timelines:
            break
    return check.result(config.tolerance)


def _lineage(trained: Trained) -> Lineage:
    manifest = trained.checkpoint.manifest
    days = manifest.context.data_days
    return Lineage(
        run=trained.name,
        step=manifest.step,
        checkpoint_digest=manifest.digest,
        source=trained.dataset.manifest.source,
        first_day=min(days),
        last_day=max(days),
        code_version=manifest.context.code_version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    )
