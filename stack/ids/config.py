"""How each table's ids become rows: as they are, hashed into fewer, or managed within a bounded number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stack.base.errors import ConfigError
from stack.ids.hashing import HashVariant

MIN_ROWS = 4
MAX_ROWS = 2**31 - 1


class IdMode(Enum):
    """The kind of a table's map."""

    direct = "direct"
    """A key is its row: one row for each id of the vocabulary. Not for ids that have none."""
    hashed = "hashed"
    """A hash of the key gives its row or rows; ids share rows by chance."""
    managed = "managed"
    """Rows are given to the ids that are worth one, and taken back: unbounded ids, bounded rows, no sharing."""


class Policy(Enum):
    """Which id loses its row first when a full table admits another."""

    lru = "lru"
    """The one not seen for longest."""
    lfu = "lfu"
    """The one seen in fewest steps; a new id must have been seen in more."""
    distance_lfu = "distance_lfu"
    """The lowest of steps seen / (steps since last seen + 1) ^ decay; a new id must be above it."""


class Implementation(Enum):
    """What manages the rows."""

    bounded = "bounded"
    """Our own map: every guarantee of `stack.ids.managed` holds."""
    torchrec = "torchrec"
    """TorchRec's MCHManagedCollisionModule; docs/ids.md lists the guarantees it cannot give."""
    hash_zch = "hash_zch"
    """TorchRec's HashZchManagedCollisionModule (MPZCH): it trains on CUDA alone, and is refused here."""


@dataclass(kw_only=True)
class ManagedConfig:
    """How rows are given and taken back. A step is one training batch over all processes."""

    implementation: Implementation = Implementation.bounded
    policy: Policy = Policy.distance_lfu
    admit_after: int = 2
    # an id gets a row in the step in which it is seen for this many-th time; until then it shares row 0
    max_age_steps: int = 0
    # ids not seen for more steps lose their row at the next sweep, of which there are eight in this time; 0: never
    decay: float = 1.0
    # exponent of distance_lfu: how fast the steps in which an id was seen lose weight
    waiting_per_row: float = 2.0
    # places for ids that are counted but have no row yet, for each row of the table (12 bytes each)
    interval_steps: int = 10
    # implementation torchrec: how often it admits and evicts

    def __post_init__(self) -> None:
        for name, low in (("admit_after", 1), ("max_age_steps", 0), ("interval_steps", 1)):
            if (value := getattr(self, name)) < low:
                raise ConfigError(f"ids.managed.{name}={value} must be {low} or more")
        if not self.decay > 0.0:
            raise ConfigError(
                f"ids.managed.decay={self.decay} must be above 0; for no decay set ids.managed.policy=lfu"
            )
        if not 0.0 < self.waiting_per_row <= 10_000.0:
            raise ConfigError(f"ids.managed.waiting_per_row={self.waiting_per_row} must be above 0 and at most 10,000")
        if self.implementation is Implementation.hash_zch:
            raise ConfigError(
                "ids.managed.implementation=hash_zch (TorchRec 1.8's MPZCH) does not train on a CPU: its "
                "fbgemm kernel fails with 'Expected readonly to be true, but got false', and it was not tried on CUDA; "
                "use bounded, or torchrec for TorchRec's sorted map"
            )


@dataclass(kw_only=True)
class IdsConfig:
    """The `ids` group of the configuration."""

    mode: IdMode = IdMode.direct
    # of every table that `modes` does not name
    modes: dict[str, IdMode] = field(default_factory=dict)
    # exceptions from `mode`, by table name
    default_rows: int | None = None
    # rows of every hashed or managed table that `rows` does not name; row 0 among them
    rows: dict[str, int] = field(default_factory=dict)
    # rows of hashed and managed tables by name, over all processes
    hash: HashVariant = HashVariant.modulo
    # of hashed tables: one row for a key, or two that are summed
    managed: ManagedConfig = field(default_factory=ManagedConfig)
    # of managed tables

    def __post_init__(self) -> None:
        given = [(f"rows.{name}", rows) for name, rows in self.rows.items()]
        if self.default_rows is not None:
            given.append(("default_rows", self.default_rows))
        for name, rows in given:
            if not MIN_ROWS <= rows <= MAX_ROWS:
                raise ConfigError(f"ids.{name}={rows} must be from {MIN_ROWS} to {MAX_ROWS:,}: rows of the whole table")
        direct = [name for name in self.rows if self.mode_of(name) is IdMode.direct]
        if direct:
            raise ConfigError(
                f"ids.rows.{direct[0]}={self.rows[direct[0]]} has no effect on a direct table: "
                f"set ids.modes.{direct[0]} to hashed or managed, or leave the rows out"
            )

    def mode_of(self, table: str) -> IdMode:
        return self.modes.get(table, self.mode)


@dataclass(frozen=True, kw_only=True)
class IdSpec:
    """The map of one table. `num_rows`: rows of the whole table, row 0 among them."""

    name: str
    mode: IdMode
    num_rows: int
    hash: HashVariant
    managed: ManagedConfig


def id_specs(config: IdsConfig, *, names: Iterable[str], num_rows: Mapping[str, int]) -> list[IdSpec]:
    """The maps of the tables `names`. `num_rows`: what direct tables have, by name.

    Raises: `ConfigError` where `modes` or `rows` name no table, or a hashed or managed table has no rows.
    """
    names = list(names)
    for option in ("modes", "rows"):
        for name in getattr(config, option):
            if name not in names:
                raise ConfigError(f"ids.{option} names {name!r}; the tables are: {', '.join(names)}")
    return [_spec(config, name, num_rows) for name in names]


def _spec(config: IdsConfig, name: str, num_rows: Mapping[str, int]) -> IdSpec:
    mode = config.mode_of(name)
    rows = num_rows[name] if mode is IdMode.direct else config.rows.get(name, config.default_rows)
    if rows is None:
        raise ConfigError(
            f"table {name!r} is {mode.value} and has no number of rows: set ids.rows.{name} or ids.default_rows"
        )
    return IdSpec(name=name, mode=mode, num_rows=rows, hash=config.hash, managed=config.managed)
