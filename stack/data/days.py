"""Days as numbers: int32 days since 1970-01-01, in the log's local time; on disk and to people as YYYY-MM-DD."""

from __future__ import annotations

import re

import numpy as np

from stack.base.errors import ConfigError

SECONDS_PER_DAY = 86_400


def day_number(name: str, *, what: str = "day") -> int:
    """The number of the day `name`; `what` tells in the error which setting it comes from."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", name) is None:
        raise ConfigError(f"{what}={name!r} is not a day: write it as YYYY-MM-DD")
    try:
        return int(np.datetime64(name, "D").astype(np.int64))
    except ValueError as error:
        raise ConfigError(f"{what}={name!r} is not a day of the calendar: write it as YYYY-MM-DD") from error


def day_name(number: int) -> str:
    """YYYY-MM-DD."""
    return str(np.datetime64(number, "D"))
