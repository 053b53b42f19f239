"""`stack export`: writes the package of a trained run, and refuses to where it does not equal the trained model."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch

from stack.audits.modes import refuse_modes
from stack.base.errors import PackageError, UserError
from stack.base.files import folder_aside, write_bytes
from stack.base.version import code_version
from stack.checkpoint.load import Checkpoint
from stack.data.dataset import Dataset
from stack.export.audited import audit_findings
from stack.export.catalogue import retriever_of, write_index
from stack.export.config import ExportConfig
from stack.export.fields import fields_of
from stack.export.graphs import Graphs, build_graphs
from stack.export.judge import Judged, Trial, held_out_day, judge
from stack.export.lookup import write_list
from stack.export.package import (
    AUDITS,
    DEFAULT,
    IDS,
    PARITY,
    QUALITY,
    REQUESTS,
    ROWS,
    IdKind,
    Lineage,
    PackageManifest,
    Parity,
    Retrieval,
    Table,
)
from stack.export.run_writer import write_run
from stack.export.sealed import FORMAT_VERSION, describe_files, refuse_name, write_sealed
from stack.export.sign import sign
from stack.export.tables import ExportedTable, TrainedIds, TrainedRows, exported_tables
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
    ids: TrainedIds = field(default_factory=TrainedIds)


def export(trained: Trained, *, folder: Path, config: ExportConfig, audit: Path | None = None) -> PackageManifest:
    """Writes the package to `folder`, whole or not at all. `audit`: the folder of the run's audit (None: nobody asks).

    Raises: `AuditError` where that audit stops it, or naming layers that do not compute as they are served;
    `PackageError` where `folder` exists and is not to be replaced, a table is not the run's, or the package differs
    from the model or loses too much by the type of its rows.
    """
    refuse_name(trained.name, what="run")
    if folder.exists() and not config.overwrite:
        raise PackageError(f"{folder} exists: packages are not changed; set export.overwrite=true to replace it whole")
    if config.sign_key is not None:
        sign(b"", Path(config.sign_key))  # minutes pass before the package can be signed
    audited = () if audit is None else audit_findings(
        audit, run=trained.name, version=trained.checkpoint.manifest.version, config=config
    )  # fmt: skip
    trained.model.eval()
    refuse_modes(trained.model, what="export")
    checkpoint, schema = trained.checkpoint, trained.dataset.schema
    dims = {name: table.dim for name, table in checkpoint.manifest.tables.items()}
    graphs = build_graphs(trained.model, schema, dims, formats=config.formats)
    tables = exported_tables(
        trained.model.places.tables(), schema=graphs.schema, dataset=trained.dataset, checkpoint=checkpoint,
        ids=trained.ids,
    )  # fmt: skip
    _refuse_unknown_tables(config, trained.model.places.tables())
    with folder_aside(folder) as aside:
        described = dict(_write_tables(trained, tables, aside, config))
        _write_lists(tables, aside)
        graphs.save(aside, config.formats)
        manifest = _manifest(trained, graphs, tables, described, config)
        trial = Trial(
            folder=aside, manifest=manifest, modules=graphs.modules, model=trained.model, checkpoint=checkpoint,
            dataset=trained.dataset, tables=tables, config=config,
        )  # fmt: skip
        judged = judge(trial)
        judged = replace(judged, findings=(*audited, *judged.findings))
        retrieval = _write_index(trained, trial, judged, aside)
        _write_found(aside, judged)
        manifest = msgspec.structs.replace(
            manifest, parity=judged.parity, audits=judged.findings, retrieval=retrieval, files=describe_files(aside)
        )
        manifest = write_sealed(aside, manifest, sign_key=None if config.sign_key is None else Path(config.sign_key))
    _tell(trained, manifest, judged, folder)
    return manifest


def _refuse_unknown_tables(config: ExportConfig, tables: tuple[str, ...]) -> None:
    for table in config.row_types:
        if table not in tables:
            raise PackageError(f"export.row_types names the table {table!r}; the run has: {', '.join(tables)}")


def _write_tables(
    trained: Trained, tables: Mapping[str, ExportedTable], folder: Path, config: ExportConfig
) -> Iterator[tuple[str, Table]]:
    for name in trained.model.places.tables():
        rows, row_type = TrainedRows(tables[name], trained.checkpoint), config.row_type_of(name)
        place = folder / ROWS / name
        try:
            write_run(place, row_type=row_type, dim=rows.dim, num_rows=rows.num_stored, parts=rows.parts())
        except UserError:
            raise
        except ValueError as error:  # numbers that the type cannot hold, or that are not finite
            raise PackageError(f"table {name!r} cannot be kept as {row_type.value}: {error}") from error
        np.save(place / DEFAULT, rows.default_D, allow_pickle=False)
        yield name, Table(num_rows=rows.num_stored, dim=rows.dim, row_type=row_type, keyed=tables[name].keyed)


def _write_lists(tables: Mapping[str, ExportedTable], folder: Path) -> None:
    for name, table in tables.items():
        if table.ids.kind is IdKind.list:
            write_list(folder / IDS / name, table.key_N, table.row_NK[:, 0])


def _write_index(trained: Trained, trial: Trial, judged: Judged, folder: Path) -> Retrieval | None:
    task = retriever_of(trained.model)
    if task is None:
        return None
    days = trained.checkpoint.manifest.context.data_days[-trial.config.index_days :]
    return write_index(
        folder, trained.model, task=task, dataset=trained.dataset, days=days, tables=trial.trained_rows(),
        keys_of=trial.keys_of, queries=judged.queries, exact_up_to=trial.config.exact_up_to,
    )  # fmt: skip


def _manifest(
    trained: Trained, graphs: Graphs, tables: Mapping[str, ExportedTable], described: dict[str, Table],
    config: ExportConfig,
) -> PackageManifest:  # fmt: skip
    ids = {name: table.ids for name, table in tables.items()}
    return PackageManifest(
        format_version=FORMAT_VERSION,
        name=trained.name,
        schema=graphs.schema,
        inputs=fields_of(graphs.schema, ids, max_events=config.max_events),
        max_history=trained.dataset.manifest.max_history,
        max_events=config.max_events,
        vector_dim=trained.model.user.num_outputs,
        query_in_vector=trained.model.user.query is not None,
        scorer_needs_states=graphs.scorer_needs_states,
        formats=tuple(config.formats),
        graphs=graphs.described,
        tasks=graphs.tasks,
        tables=described,
        ids=ids,
        lineage=_lineage(trained),
        parity=NO_PARITY,
    )


def _write_found(folder: Path, judged: Judged) -> None:
    for name, found in (
        (PARITY, judged.parities), (QUALITY, judged.quality), (AUDITS, judged.findings), (REQUESTS, judged.requests),
    ):  # fmt: skip
        write_bytes(folder / name, msgspec.json.format(msgspec.json.encode(found), indent=1))


def _lineage(trained: Trained) -> Lineage:
    manifest = trained.checkpoint.manifest
    days = manifest.context.data_days
    return Lineage(
        run=trained.name,
        step=manifest.step,
        version=manifest.version,
        checkpoint_digest=manifest.digest,
        source=trained.dataset.manifest.source,
        first_day=min(days),
        last_day=max(days),
        num_days=len(days),
        code_version=manifest.context.code_version,
        exported_by=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
            "onnxruntime": version("onnxruntime"),
        },
    )  # fmt: skip


def _tell(trained: Trained, manifest: PackageManifest, judged: Judged, folder: Path) -> None:
    num_bytes = sum(file.num_bytes for file in manifest.files.values())
    say(
        f"exported {trained.name} at step {trained.checkpoint.manifest.step} to {folder}: {num_bytes / 1e6:,.1f} MB, "
        f"{len(manifest.tables)} tables; largest difference from the trained model {manifest.parity.worst:.2g} over "
        f"{manifest.parity.num_moments} moments of {held_out_day(trained.dataset, trained.checkpoint)}"
    )
    say(judged.quality_line())
