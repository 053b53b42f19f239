"""What a disk and a memory can do at best, to hold beside what is made of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_BLOCK_BYTES = 4 << 20
_POLL_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds by the clock, and those of all processors together, the system's in this process's name among them."""

    seconds: float
    processor_seconds: float


def spent(act: Callable[[], object]) -> Spent:
    """What a call takes."""
    seconds, processor = time.perf_counter(), time.process_time()
    act()
    return Spent(seconds=time.perf_counter() - seconds, processor_seconds=time.process_time() - processor)


def write_files(folder: Path, sizes: Sequence[int], *, num_threads: int) -> Spent:
    """Writes new files of these sizes out of one block of memory, several at once, and flushes each; deletes them."""
    block = memoryview(os.urandom(_BLOCK_BYTES))

    def write(numbered: tuple[int, int]) -> None:
        number, size = numbered
        with (folder / f"bare-{number}").open("xb", buffering=0) as file:
            for first in range(0, size, _BLOCK_BYTES):
                left = block[: size - first]
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())

    found = spent(lambda: _at_once(write, list(enumerate(sizes)), num_threads))
    for number in range(len(sizes)):
        (folder / f"bare-{number}").unlink()
    return found


def read_files(files: Sequence[Path], *, num_threads: int) -> Spent:
    """Reads files whole, several at once, each into one block of memory."""

    def read(path: Path) -> None:
        block = memoryview(bytearray(_BLOCK_BYTES))
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    return spent(lambda: _at_once(read, files, num_threads))


def forget(files: Sequence[Path]) -> None:
    """Has the system drop what it keeps of files in memory, so that the next read comes from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(kw_only=True)
class Memory:
    """Most bytes above those at the start. `own`: without pages of mapped files, which the system may take back."""

    own_bytes: int = 0
    all_bytes: int = 0


@contextmanager
def watched_memory() -> Iterator[Memory]:
    """Watches this process during a block of code (Linux)."""
    memory, done = Memory(), threading.Event()
    own, whole = _resident()

    def look() -> None:
        now_own, now_whole = _resident()
        memory.own_bytes = max(memory.own_bytes, now_own - own)
        memory.all_bytes = max(memory.all_bytes, now_whole - whole)

    def watch() -> None:
        while not done.is_set():
            look()
            time.sleep(_POLL_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        look()


@contextmanager
def counted_flushes() -> Iterator[list[int]]:
    """Counts flushes to disk during a block of code: the list grows by one for each."""
    flushes: list[int] = []
    kept = os.fsync, os.fdatasync

    def counted(flush: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            flushes.append(descriptor)
            flush(descriptor)

        return call

    os.fsync, os.fdatasync = counted(os.fsync), counted(os.fdatasync)  # type: ignore[assignment]
    try:
        yield flushes
    finally:
        os.fsync, os.fdatasync = kept


def _at_once(act: Callable[[T], None], things: Sequence[T], num_threads: int) -> None:
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(act, things))


def _resident() -> tuple[int, int]:
    status = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in status if line.startswith(("RssAnon", "VmRSS"))}
    return int(fields["RssAnon"]) * 1024, int(fields["VmRSS"]) * 1024
