"""Files of a run that grow: lines of JSON, and curves of TensorBoard. A full disk stops no training."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from stack.base.files import cut_lines
from stack.telemetry.mishaps import Mishaps

FILE_VERSION = "brain.Event:2"
"""How TensorBoard knows its files."""


class _Records:
    """The end of a file, to which whole records of less than a buffer are added.

    What the disk does not take waits in the buffer, which goes on where it stopped; what the buffer does not take is
    left out. So no record is ever cut, and a reader loses those alone for which there was no room.
    """

    def __init__(self, path: Path, *, part: str, mishaps: Mishaps) -> None:
        self._part = part
        self._mishaps = mishaps
        self._file: BinaryIO | None = None
        with mishaps.survived(part):
            self._file = path.open("ab")

    def add(self, record: bytes) -> None:
        if self._file is None:
            return
        with self._mishaps.survived(self._part):
            self._file.write(record)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._mishaps.survived(self._part):
                self._file.close()


class LineLog:
    """Lines of JSON. Of a file that is there, lines are cut off the end until one is to be kept."""

    def __init__(self, path: Path, *, keep: Callable[[bytes], bool], part: str, mishaps: Mishaps) -> None:
        with mishaps.survived(part):
            cut_lines(path, keep=keep)
        self._records = _Records(path, part=part, mishaps=mishaps)

    def add(self, record: Mapping[str, object]) -> None:
        self._records.add(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        self._records.close()


class Board:
    """Curves of TensorBoard in a folder; points that a killed run wrote after `first_step` are no longer shown.

    TensorBoard's own writer hands events to a thread, whose end on a full disk is told to nobody but the next caller.
    """

    def __init__(self, folder: Path, *, first_step: int, part: str, mishaps: Mishaps) -> None:
        with mishaps.survived(part):
            folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
        self._records = _Records(folder / name, part=part, mishaps=mishaps)
        self._add(Event(file_version=FILE_VERSION))
        self._add(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, curves: Mapping[str, float], *, step: int) -> None:
        """A point of each curve."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in curves.items()]
        self._add(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._records.add(record.getvalue())
