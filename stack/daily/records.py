"""What days leave beside the versions: reports and quarantines in the store, a line a day in the run's folder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import msgspec

from stack.audits.findings import Finding
from stack.base.errors import CheckpointError
from stack.base.files import cut_lines
from stack.checkpoint.manifest import Link
from stack.checkpoint.store import Store
from stack.evaluate.figures import Figures

LOG = "daily.jsonl"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a version on a day that it had not learnt: by task, set of examples and metric."""

    version: Link
    day: str
    figures: Figures


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A day that was not committed: what it was made from, on top of which version, and why."""

    day: str
    inputs: str
    base: Link
    created: str
    findings: tuple[Finding, ...]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `daily.jsonl`. `outcome`: trained, or quarantined (then `version` is null). `seconds` by phase; none
    where the line was lost in a kill and is told again from the version. `rows` and `bytes`: written for the day.
    `findings`: what the day was refused for, or what was said of it and did not stop it."""

    day: str
    outcome: str
    version: int | None
    base: int
    inputs: str
    step: int
    steps: int
    rows: int
    bytes: int
    seconds: dict[str, float]
    metrics: dict[str, float | None]
    findings: tuple[Finding, ...] = ()


def report_name(version: int, day: str) -> str:
    return f"reports/{version:08d}-{day}.json"


def quarantine_name(day: str, inputs: str, *, number: int = 1) -> str:
    """Of the `number`-th time that a day with these inputs was refused."""
    again = f"-{number}" if number > 1 else ""
    return f"quarantine/{day}-{inputs[:12]}{again}.json"


def quarantines(store: Store, day: str, inputs: str) -> list[Quarantine]:
    """What a day with these inputs was refused for, each time. Raises: `CheckpointError` where a record is damaged."""
    found: list[Quarantine] = []
    while exists(store, name := quarantine_name(day, inputs, number=len(found) + 1)):
        try:
            found.append(msgspec.json.decode(store.read(name), type=Quarantine))
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{store.url}/{name} is damaged ({error}): move it away to go on") from error
    return found


def put_once(store: Store, name: str, record: Report | Quarantine) -> None:
    """Writes a record that nobody has written; one that is there stays as it is."""
    folder, _, file = name.rpartition("/")
    staged = f"{folder}/part-{uuid.uuid4().hex}-{file}"
    with store.create(staged) as out:
        out.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    try:
        store.publish(staged, name)
    except FileExistsError:
        return
    finally:
        store.delete(staged)


def report_of(store: Store, version: int, day: str) -> list[Report]:
    """The report of a version on a day; none where it was not judged on it."""
    try:
        return [msgspec.json.decode(store.read(report_name(version, day)), type=Report)]
    except FileNotFoundError:
        return []


def exists(store: Store, name: str) -> bool:
    try:
        store.size(name)
    except FileNotFoundError:
        return False
    return True


class DayLog:
    """`daily.jsonl`; half a line that a kill left is cut off."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG
        cut_lines(self._path, keep=lambda line: True)
        lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
        self._versions = {msgspec.json.decode(line, type=Line).version for line in lines}

    def has(self, version: int) -> bool:
        """Whether there is a line of this version."""
        return version in self._versions

    def append(self, line: Line) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._versions.add(line.version)
