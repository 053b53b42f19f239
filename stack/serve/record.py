"""Requests recorded with their answers, so that an audit can replay them on prepared data (`stack.export.skew`).

Off unless `serve.record` names a folder. Each worker appends to a file of its own that its owner alone can read: the
lines hold users' ids and what they did. Recording is never the reason that a request fails: what cannot be written is
counted. A line goes to the kernel in one call before the answer is sent: 0.02 ms for one of 20 KB.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Raw

from stack.base.errors import ConfigError
from stack.base.files import make_folder
from stack.export.skew_log import SUFFIX, Line, encode_line
from stack.serve.service import Served

RECORDED_ROUTES = ("/v1/users:embed", "/v1/items:score")
"""Those that an audit can replay. Retrieval and the Open Inference Protocol are not recorded."""


class Recorder:
    """`share` of the requests, until all files of the folder have `max_bytes` together. `count` is told of each:
    written, full, failed.

    Raises: `ConfigError` where no file can be made in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float,
        max_bytes: int,
        count: Callable[[str], None],
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._share, self._max_bytes = folder, share, max_bytes
        self._count, self._draw, self._clock = count, draw, clock
        self._is_cut = False
        name = f"requests-{time.time_ns()}-{os.getpid()}{SUFFIX}"
        try:
            self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigError(
                f"serve.record={folder} cannot be written ({error.strerror}): choose another folder, or make it "
                "writable"
            ) from error

    def offer(self, route: str, served: Served, body: bytes, answer: bytes) -> None:
        """Records a request that was answered, or does not, by chance."""
        if route not in RECORDED_ROUTES or self._draw() >= self._share:
            return
        predictor = served.predictor
        line = encode_line(
            Line(
                at=self._clock(), route=route, package=served.package, num_deltas=predictor.num_deltas, body=Raw(body),
                answer=Raw(answer),
            )
        )  # fmt: skip
        if self._is_cut:
            line = b"\n" + line
        try:
            if self._num_bytes() + len(line) > self._max_bytes:
                self._count("full")
                return
            written = os.write(self._file, line)
        except OSError:
            self._count("failed")
            return
        self._is_cut = written < len(line)
        self._count("failed" if self._is_cut else "written")

    def close(self) -> None:
        os.close(self._file)

    def _num_bytes(self) -> int:
        """Of all workers of this server, and of those before it."""
        with os.scandir(self._folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(SUFFIX))


def make_record_folder(path: str) -> None:
    """For the owner alone, where it is not there yet. Raises: `ConfigError` where it cannot be."""
    folder = Path(path)
    is_new = not folder.exists()
    make_folder(folder, option="serve.record")
    if is_new:
        folder.chmod(0o700)
