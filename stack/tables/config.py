"""What tables there are: their rows, widths, placement over processes, and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError, DataError
from stack.tables.placement import TableOptimizer as TableOptimizer

BYTES_PER_WEIGHT = 4


class Placement(Enum):
    """How the rows of a table are spread over processes."""

    row_wise = "row_wise"
    table_wise = "table_wise"


@dataclass(kw_only=True)
class TablesConfig:
    """The `tables` group of the configuration."""

    dims: dict[str, int] = field(default_factory=dict)
    # embedding width by table name; DUPN section 4.1 for item, shop, brand, category, tags
    default_dim: int = 16
    # width of every table that `dims` does not name
    placement: Placement = Placement.row_wise
    # over processes: blocks of rows on each, or whole tables on one
    placements: dict[str, Placement] = field(default_factory=dict)
    # exceptions from `placement`, by table name
    headroom: float = 0.0
    # share of additional rows for ids that later days bring
    init_range: float = 0.05
    # rows start uniform in [-init_range, init_range]

    def __post_init__(self) -> None:
        for name, dim in [*self.dims.items(), ("default_dim", self.default_dim)]:
            if dim < 4 or dim % 4:
                raise ConfigError(f"tables.dims: {name}={dim} must be a positive multiple of 4 (FBGEMM)")
        if not self.headroom >= 0.0:
            raise ConfigError(f"tables.headroom={self.headroom} must be a share of rows, 0 or more")
        if not self.init_range > 0.0:
            raise ConfigError(
                f"tables.init_range={self.init_range} must be above 0: rows that are all zero never learn"
            )


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table as it will be allocated."""

    name: str
    num_rows: int
    dim: int
    placement: Placement = Placement.row_wise

    @property
    def num_bytes(self) -> int:
        """Memory of the weights and of row-wise Adagrad's one number per row, over all processes."""
        return self.num_rows * (self.dim + 1) * BYTES_PER_WEIGHT


def table_specs(config: TablesConfig, *, names: Iterable[str], num_rows: Mapping[str, int]) -> list[TableSpec]:
    """The tables `names` (as a schema lists them), sized by the vocabularies `num_rows` and the headroom.

    Raises:
        ConfigError: `placements` names no table of the dataset.
        DataError: a table has no vocabulary.
    """
    names = list(names)
    for name in config.placements:
        if name not in names:
            raise ConfigError(f"tables.placements names {name!r}; the dataset has the tables: {', '.join(names)}")
    missing = [name for name in names if name not in num_rows]
    if missing:
        known = ", ".join(sorted(num_rows))
        raise DataError(f"the dataset has no vocabulary for {', '.join(missing)}; it has: {known}")
    return [
        TableSpec(
            name=name,
            num_rows=math.ceil(num_rows[name] * (1.0 + config.headroom)),
            dim=config.dims.get(name, config.default_dim),
            placement=config.placements.get(name, config.placement),
        )
        for name in names
    ]
