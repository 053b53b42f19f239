"""Options of `stack export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError
from stack.export.package import GraphFormat
from stack.export.quantize import RowType


class AuditGate(Enum):
    """What the last report of `stack audit` in the run's folder has to say."""

    if_audited = "if_audited"
    """Where it is of the version exported, its critical findings stop it."""
    required = "required"
    """There must be one of the version exported, without critical findings."""
    ignored = "ignored"
    """Nothing."""


class Allow(Enum):
    """What is exported all the same, on record: the package says so."""

    critical_findings = "critical_findings"


@dataclass(kw_only=True)
class ExportConfig:
    version: str | None = None
    # the version to export, by its number or by the last day it was trained on; null is the newest
    out: str | None = None
    # folder to write; null is `package` in the run's folder, and for a delta <its last day>.delta beside the package
    overwrite: bool = False
    # replace the package that is there; otherwise refuse
    formats: list[GraphFormat] = field(default_factory=lambda: [GraphFormat.onnx])
    # how graphs are kept: onnx (any machine), aoti (native code, half a minute a graph); the first is served by default
    row_type: RowType = RowType.fp16
    # how rows are kept: fp32, fp16, int8, int4; what each costs is in the package's quality.json
    row_types: dict[str, RowType] = field(default_factory=dict)
    # of single tables, in place of row_type
    tolerance: float = 1e-4
    # largest absolute difference of any output (vector, logits) from the trained model; above it nothing is written
    max_auc_loss: float = 0.005
    # AUC that a task may lose by the type of its rows; above it nothing is written
    parity_timelines: int = 64
    # timelines of a held-out day on which package and model are compared
    quality_timelines: int = 1024
    # timelines of that day on which the types of rows are judged
    num_requests: int = 16
    # requests recorded with their answers, for servers to warm and prove themselves with
    max_events: int = 512
    # events accepted in one request; more are refused by the server
    index_days: int = 28
    # days whose candidates can be retrieved, where a task retrieves (tasks.next_item)
    exact_up_to: int = 100_000
    # items up to which retrieval is exact; above, an HNSW graph
    audit: AuditGate = AuditGate.if_audited
    # whether an audit decides: if_audited, required, ignored
    allow: list[Allow] = field(default_factory=list)
    # critical_findings: export although the audit has some; they stand in the package's manifest
    sign_key: str | None = None
    # file of the key that signs the package (`stack.export.sign`); null: not signed
    delta_of: str | None = None
    # folder of a package, or of its last delta: write what changed in its rows since, instead of a package
    package: str | None = None
    # with delta_of, where that is a delta: folder of the package it is of

    def __post_init__(self) -> None:
        if not self.formats:
            raise ConfigError("export.formats is empty: choose onnx, aoti, or both")
        if self.package is not None and self.delta_of is None:
            raise ConfigError(
                f"export.package={self.package} belongs to export.delta_of: a package is written to export.out"
            )
        if self.delta_of is not None and self.overwrite:
            raise ConfigError("export.overwrite is for packages: deltas are not changed; choose another export.out")
        if self.delta_of is not None and self.audit is AuditGate.required:
            raise ConfigError(
                "export.audit=required is for packages: a delta has rows alone, and asks no audit; leave it out, after "
                "`stack audit` of the version"
            )
        if self.tolerance <= 0:
            raise ConfigError(f"export.tolerance={self.tolerance} must be above 0")
        if self.max_auc_loss < 0:
            raise ConfigError(f"export.max_auc_loss={self.max_auc_loss} must be 0 or more")
        for name in ("parity_timelines", "quality_timelines", "num_requests", "max_events", "index_days"):
            value: int = getattr(self, name)
            if value < 1:
                raise ConfigError(f"export.{name}={value} must be at least 1")

    def row_type_of(self, table: str) -> RowType:
        return self.row_types.get(table, self.row_type)
