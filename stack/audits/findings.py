"""What an audit found, and how bad it is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec


class Level(Enum):
    """`critical` stops a release."""

    ok = "ok"
    warning = "warning"
    critical = "critical"


class Drift(Enum):
    """Whether a layer is given what it has learnt. What comes of it is said by findings."""

    none = "as learnt"
    off = "off"
    far = "far off"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`measured`, `allowed` and `remedy` as a person reads them."""

    level: Level
    name: str
    measured: str
    allowed: str
    remedy: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.measured}, allowed is {self.allowed}: {self.remedy}"


def worst(levels: Iterable[Level]) -> Level:
    """The worst of them; ok where there are none."""
    return max(levels, key=_ORDER.index, default=Level.ok)


_ORDER = (Level.ok, Level.warning, Level.critical)
