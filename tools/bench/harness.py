"""Repeats measurements in interleaved rounds, so that a slow spell of the machine falls on all variants alike.

Medians are reported with the lowest and highest value; a ratio is taken within each round, then its median.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.table import Table

from stack.base.version import code_version

POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured quantity: a value for each round."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def interleaved(
    variants: Mapping[str, Callable[[], float]], *, num_rounds: int, num_warmup: int = 1
) -> dict[str, tuple[float, ...]]:
    """What each variant returns in each round; every other round runs them in reverse order. Warm-up is discarded."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(num_warmup + num_rounds):
        names = list(variants) if number % 2 == 0 else list(reversed(variants))
        for name in names:
            value = variants[name]()
            if number >= num_warmup:
                values[name].append(value)
    return {name: tuple(found) for name, found in values.items()}


def seconds_of(action: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> Figure:
    """The ratio of two variants, round by round."""
    return Figure(name=name, unit="x", values=tuple(a / b for a, b in zip(above, below, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Child:
    """A finished process: its wall time and the most memory it held at once."""

    seconds: float
    peak_bytes: int


def run_child(command: Sequence[str]) -> Child:
    """Runs a command to its end. Raises `CalledProcessError` where it fails.

    The peak is the kernel's high-water mark, read until the process ends. (`ru_maxrss` would not do: it starts at the
    memory of the process that forked.) Memory of the command's own children is not counted.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, peak_bytes_of(process.pid))
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Child(seconds=seconds, peak_bytes=peak_bytes)


def peak_bytes_of(pid: int | str = "self") -> int:
    """The most memory that a process has held at once (Linux); 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else 0


def gib(num_bytes: float) -> float:
    return num_bytes / 2**30


def conditions() -> dict[str, object]:
    """What a figure depends on: code, machine, and how busy it was."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "machine": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def as_json(figures: Sequence[Figure], *, settings: Mapping[str, object], before: Mapping[str, object]) -> str:
    """Figures with their medians, lowest and highest values, and where they come from."""
    found = [{**asdict(figure), "median": figure.median, "low": figure.low, "high": figure.high} for figure in figures]
    return found_json({"figures": found}, settings=settings, before=before)


def found_json(found: Mapping[str, object], *, settings: Mapping[str, object], before: Mapping[str, object]) -> str:
    """`before` are the conditions at the start; the load at the end is added."""
    conditions = {**before, "load_average_at_end": os.getloadavg()}
    text = msgspec.json.encode({"conditions": conditions, "settings": dict(settings), **found})
    return msgspec.json.format(text, indent=1).decode() + "\n"


def as_table(figures: Sequence[Figure]) -> Table:
    table = Table(title="Medians of interleaved rounds", title_justify="left")
    for heading in ("figure", "median", "lowest", "highest", "unit", "rounds"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for figure in figures:
        numbers = (f"{value:,.2f}" for value in (figure.median, figure.low, figure.high))
        table.add_row(figure.name, *numbers, figure.unit, str(len(figure.values)))
    return table


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
