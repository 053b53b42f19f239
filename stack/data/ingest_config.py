"""Options of the verb `ingest`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from stack.base.errors import ConfigError
from stack.data.engine import EngineName
from stack.data.negatives import NegativesConfig


@dataclass(kw_only=True)
class IngestConfig:
    """How a log becomes a prepared dataset."""

    engine: EngineName = EngineName.duckdb
    # duckdb or spark (a local session); both give the same dataset
    memory_limit_gib: float = 4.0
    # memory of the engine, GiB; what does not fit is spilled to disk
    num_threads: int = 0
    # threads of the engine; 0: one for each core
    temp_folder: str | None = None
    # folder for spilled data; null: the system's
    chunk_days: int = 92
    # days prepared in one pass; changes memory and speed, never the result
    num_buckets: int = 4
    # Parquet files of a day; users are spread over them by id; trainers read whole buckets
    max_history: int = 100
    # events from earlier days that a timeline carries along
    max_bad_share: float = 0.01
    # largest share of bad rows (0 to 1) that is dropped and counted rather than refused
    num_bad_rows: int = 20
    # bad rows kept as a sample, for each day and reason
    allow_gap: bool = False
    # accept days missing between those of the dataset and those asked for: for logs that have nothing on them
    keep_states: int = 3
    # full states kept; others are rebuilt from the days' events
    price_edges: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8, 1.0, 1.3, 1.8])
    # a unit price over the mean of its category: the edges between the seven tiers, ascending
    raw_ids: list[str] = field(default_factory=list)
    # tables whose ids get no vocabulary: prepared data hold their 64-bit keys, for hashed and managed tables
    negatives: NegativesConfig = field(default_factory=NegativesConfig)

    def __post_init__(self) -> None:
        for name, low in (("num_threads", 0), ("chunk_days", 1), ("num_buckets", 1), ("max_history", 1),
                          ("num_bad_rows", 0), ("keep_states", 1)):  # fmt: skip
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"ingest.{name}={value} must be {low} or more")
        if not self.memory_limit_gib >= 0.1:
            raise ConfigError(f"ingest.memory_limit_gib={self.memory_limit_gib} must be 0.1 or more")
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError(f"ingest.max_bad_share={self.max_bad_share} must be from 0 to 1")
        edges = list(self.price_edges)
        if len(edges) != 6 or edges != sorted(edges):
            raise ConfigError(f"ingest.price_edges={edges} must be six ascending numbers: they part seven tiers")

    @property
    def threads(self) -> int:
        """Threads of the engine."""
        return self.num_threads or len(os.sched_getaffinity(0))
