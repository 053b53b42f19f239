"""Cuts the power before every call of saving, compacting and pruning, and shows a reader what a disk may have kept.

    python -m tests.checkpoint.lose_power [--action NAME] [--every N] [--json]

A disk keeps for certain only what was flushed: the bytes of a file as of its last fsync, the names in a folder as of
the folder's. Two disks are tried at each moment: `strict` has kept nothing else, `names` has kept all names, as a
journal does, and of the bytes only those that were flushed. What is real lies in memory, where numbers of files are
never used again; there the flushed bytes and names are noted by these numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stack.checkpoint.chain import chain_of
from tests.checkpoint.count_faults import Subject, _wrapped
from tests.checkpoint.fault_worker import ACTIONS, in_one_thread, status_of

DISKS = ("strict", "names")


@dataclass(kw_only=True)
class Row:
    """`points`: moments at which the power went."""

    action: str
    disk: str
    points: int = 0
    old: int = 0
    new: int = 0
    between: int = 0
    wrong: list[str] = field(default_factory=list)


class Disk:
    """What of the files below a folder is safe. What is there at first is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        for parent, _, names in os.walk(root):
            self._flush(Path(parent))
            for name in names:
                self._flush(Path(parent, name))

    def flushed(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(self._root):
            self._flush(path)

    def _flush(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self._names[number] = _names(path)
        else:
            self._bytes[number] = path.read_bytes()

    def keep(self, to: Path, *, disk: str) -> None:
        """Writes to a folder what the disk has after the power went now."""
        now = {Path(parent).stat().st_ino: _names(Path(parent)) for parent, _, _ in os.walk(self._root)}
        made: dict[int, Path] = {}

        def put(number: int, folder: Path) -> None:
            folder.mkdir()
            names = now.get(number, {}) if disk == "names" else self._names.get(number, {})
            for name, (below, is_folder) in names.items():
                if is_folder:
                    put(below, folder / name)
                elif below in made:
                    os.link(made[below], folder / name)
                else:
                    (folder / name).write_bytes(self._bytes.get(below, b""))
                    made[below] = folder / name

        put(self._root.stat().st_ino, to)


def _names(folder: Path) -> dict[str, tuple[int, bool]]:
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}


def cut(folder: Path, action: str, *, every: int) -> list[Row]:
    """The power goes before each call (or every N-th) of an action, and after the last."""
    subject = Subject(folder, action)
    rows = [Row(action=action, disk=disk) for disk in DISKS]
    with subject.copy() as chain:
        root, kept = Path(chain.store.url), folder / "kept"
        kept.mkdir()
        disk = Disk(root)
        state = {"points": 0, "busy": False}

        def note() -> None:
            for one in DISKS:
                disk.keep(kept / f"{one}-{state['points']}", disk=one)
            state["points"] += 1

        def watched(call: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
            if state["busy"]:
                return function
            state["busy"] = True
            note()
            state["busy"] = False
            if call not in ("fsync", "fdatasync"):
                return function

            def flush(descriptor: int) -> None:
                function(descriptor)
                disk.flushed(descriptor)

            return flush

        with _wrapped(watched):
            assert status_of(root, action) == 0
        note()
    last = state["points"] - 1
    for row in rows:
        points = sorted({*range(0, last, every), last})
        row.points = len(points)
        for point in points:
            try:
                _look(row, subject, kept / f"{row.disk}-{point}", ended=point == last)
            except AssertionError as error:
                row.wrong.append(f"{action}: {row.disk} disk, power gone before call {point + 1} of {last}: {error}")
    return rows


def _look(row: Row, subject: Subject, folder: Path, *, ended: bool) -> None:
    chain = chain_of(folder)
    seen = subject.look(chain)
    setattr(row, seen, getattr(row, seen) + 1)
    assert not ended or seen == "new", "what was done is not on the disk"
    subject.converge(chain)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--action", choices=sorted(ACTIONS), action="append")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    in_one_thread()
    rows = []
    for action in asked.action or ACTIONS:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            rows += cut(Path(folder), action, every=asked.every)
    wrong = [line for row in rows for line in row.wrong]
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))  # noqa: T201
    else:
        print("| action | disk | moments | old seen | new seen | between | wrong |\n|---|---|---:|---:|---:|---:|---:|")  # noqa: T201
        for row in rows:
            cells = (row.action, row.disk, row.points, row.old, row.new, row.between, len(row.wrong))
            print(f"| {' | '.join(map(str, cells))} |")  # noqa: T201
        print("\n".join(wrong), file=sys.stderr)  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
