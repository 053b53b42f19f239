"""User vectors kept in one file, which all workers of a server read and write (`stack.serve.cache`)."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb

from stack.base.errors import ConfigError, MachineError
from stack.serve.cache import Counts, written_at
from stack.telemetry.console import say

MIN_BYTES = 4 << 20
"""Smallest LMDB file that is made."""
_ORDER = struct.Struct(">d")
"""Epoch seconds whose bytes sort as they do: true of doubles from 0 on."""
_MOST_EVICTED = 4
"""Entries removed in one transaction: each may copy a page of the second table, out of what is kept free."""
_LOOK_SECONDS = 10.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAMAGED = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.MapResizedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)
"""What LMDB says of a file that it cannot go on with; of a page that names no table it says BadTxnError."""


class LmdbCache(Counts):
    """One file for all workers of a server, that holds the newest entries which fit::

        folder/  users-v1-<boot>.lmdb    two tables: write time and key -> value; key -> write time
                 users-v1-<boot>.lmdb-lock, users.lock

    Values lie in the order of writing, so the oldest are the first and making room frees whole pages. A quarter of the
    file is kept free for LMDB's copies on write. It is used up only while someone is held up inside a `get`, since
    what was freed meanwhile cannot be taken again: then puts are skipped and counted. The file has its full length
    from the start, but takes up on disk only what was written; a shorter one is damaged.

    Commits are not flushed to disk: a process that is killed at any moment leaves the file whole, and only a crash of
    the machine could tear it. So the file is of one boot, and is begun anew after another; the entries are worth less
    than a flush for each put. (Without a boot id, outside Linux, commits are flushed.) A file that is found damaged,
    foreign or of another limit is dropped with a line, and the other processes follow within ten seconds. LMDB has no
    checksums: someone who writes into the middle of the file can still crash its readers, so only this user may.

    Writers take turns by a lock of the kernel's (`users.lock`), not by LMDB's mutex alone: who is killed just as it is
    woken to take that leaves the next in line asleep, for as long as the others do not meet at it.

    Entries of a removed user stay until they are evicted, or the server, which made the folder, ends and removes it.
    Local disks only. A process that is stopped, not killed, inside a put holds up the puts of the others.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file of at most `max_bytes`; `folder` is made for this user alone. One per process.

        Raises: `ConfigError` for a limit below 4 MiB or a folder that others can write to, `MachineError` where the
        file cannot be opened.
        """
        super().__init__()
        if max_bytes < MIN_BYTES:
            raise ConfigError(f"a cache of {max_bytes} bytes is too small: give it at least {MIN_BYTES}")
        self._folder = folder
        self._num_pages = max_bytes // mmap.PAGESIZE
        self._clock = clock
        self._looked = clock()
        self._lock = threading.Lock()
        self._file: _File | None = _open(folder, self._num_pages)

    def get(self, key: bytes, *, max_age_seconds: float) -> bytes | None:
        with self._lock:
            try:
                value = self._require().read(key)
            except lmdb.Error as error:
                value = None
                self._failed(error)
            return self.judge(value, max_age_seconds, self._clock())

    def put(self, key: bytes, value: bytes) -> None:
        """A value above a 64th of the limit is not kept, and counted as an error.

        Raises: `ValueError` for a value that `pack` did not make.
        """
        written = written_at(value)
        if written is None:
            raise ValueError(f"{len(value)} bytes that `pack` did not make cannot be kept")
        with self._lock:
            self._look_after()
            if len(value) > self._num_pages * mmap.PAGESIZE // 64:
                self.errors += 1
                return
            try:
                self._put(key, _ORDER.pack(written), value)
            except lmdb.Error as error:
                self._failed(error)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _put(self, key: bytes, order: bytes, value: bytes) -> None:
        """Puts, evicting as needed. Where the reserve is used up, what killed readers hold is freed and more is
        evicted; `MapFullError` is what is left to be counted then."""
        file = self._require()
        try:
            self.evicted += file.write(key, order, value)
        except lmdb.MapFullError:
            file.env.reader_check()
            self.evicted += file.evict_oldest()
            self.evicted += file.write(key, order, value)

    def _require(self) -> _File:
        if self._file is None:
            raise lmdb.Error("the cache has no file")
        return self._file

    def _failed(self, error: lmdb.Error) -> None:
        self.errors += 1
        if self._file is None:
            return
        if isinstance(error, lmdb.ReadersFullError):
            self._file.env.reader_check()
        elif isinstance(error, _DAMAGED):
            self._reopen(str(error))

    def _look_after(self) -> None:
        """Every ten seconds: frees what killed readers hold; goes over to the file that another process began."""
        now = self._clock()
        if abs(now - self._looked) < _LOOK_SECONDS:
            return
        self._looked = now
        if self._file is None or self._file.inode != _inode(_path(self._folder)):
            self._reopen()
        else:
            self._file.env.reader_check()

    def _reopen(self, damage: str = "") -> None:
        """Opens the file that is there now, after dropping it where it is still the one that is damaged."""
        damaged = self._file
        if damaged is not None:
            damaged.close()
        self._file = None
        try:
            self._file = _open(self._folder, self._num_pages, damaged.inode if damaged and damage else 0, damage)
        except (ConfigError, MachineError, OSError) as error:
            say(f"no user vectors are kept for now: {error}")


@dataclass(frozen=True, kw_only=True)
class _File:
    """An open file and its two tables."""

    env: lmdb.Environment
    values: lmdb._Database  # order + key -> value
    orders: lmdb._Database  # key -> order
    inode: int
    max_used_pages: int
    lock: int  # descriptor

    def read(self, key: bytes) -> bytes | None:
        with self.env.begin() as txn:
            order = txn.get(key, db=self.orders)
            return None if order is None else txn.get(order + key, db=self.values)

    def write(self, key: bytes, order: bytes, value: bytes) -> int:
        """Puts one value, and removes some of the oldest where too much is in use; how many it removed."""
        with self._turn(), self.env.begin(write=True) as txn:
            before = txn.get(key, db=self.orders)
            if before is not None:
                txn.delete(before + key, db=self.values)
            txn.put(key, order, db=self.orders)
            newest = txn.cursor(self.values)
            last = not newest.last() or newest.key() < order + key
            newest.put(order + key, value, append=last)  # appending fills pages, inserting leaves them half empty
            return self._evict(txn, max_used_pages=self.max_used_pages)

    def evict_oldest(self) -> int:
        """Removes a few, whatever is in use; how many."""
        with self._turn(), self.env.begin(write=True) as txn:
            return self._evict(txn, max_used_pages=0)

    def close(self) -> None:
        self.env.close()
        os.close(self.lock)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Of one writer among all processes."""
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)

    def _evict(self, txn: lmdb.Transaction, *, max_used_pages: int) -> int:
        num_evicted = 0
        oldest = txn.cursor(self.values)
        while num_evicted < _MOST_EVICTED and self._num_used(txn) > max_used_pages and oldest.first():
            txn.delete(oldest.key()[_ORDER.size :], db=self.orders)
            oldest.delete()
            num_evicted += 1
        return num_evicted

    def _num_used(self, txn: lmdb.Transaction) -> int:
        stats = (txn.stat(self.values), txn.stat(self.orders))
        return sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)


def _open(folder: Path, num_pages: int, damaged_inode: int = 0, damage: str = "") -> _File:
    """The cache's file; one that is no use is dropped, with a line, and begun anew. One process at a time."""
    path = _path(folder)
    try:
        _make_private(folder)
        with _alone(folder):
            for other in folder.glob("users-*.lmdb"):
                if other != path:
                    _drop(other, "it is from before the last start of this machine")
            if damaged_inode and _inode(path) == damaged_inode:
                _drop(path, damage)
            if path.exists() and path.stat().st_size != num_pages * mmap.PAGESIZE:
                _drop(path, f"it has {path.stat().st_size} bytes in place of {num_pages * mmap.PAGESIZE}")
            try:
                return _open_file(path, num_pages)
            except _DAMAGED as error:
                _drop(path, str(error))
                return _open_file(path, num_pages)
    except (lmdb.Error, OSError) as error:
        raise MachineError(f"the cache {path} cannot be opened ({error}): choose another folder") from error


def _open_file(path: Path, num_pages: int) -> _File:
    env = lmdb.open(
        str(path),
        map_size=num_pages * mmap.PAGESIZE,
        subdir=False,
        sync=not _boot(),
        metasync=not _boot(),
        readahead=False,
        mode=0o600,
        max_dbs=2,
        max_spare_txns=1,
    )
    try:
        os.truncate(path, num_pages * mmap.PAGESIZE)
        for file in (path, _lock_of(path)):
            file.chmod(0o600)
        return _File(
            env=env,
            values=env.open_db(b"values"),
            orders=env.open_db(b"orders"),
            inode=_inode(path),
            max_used_pages=num_pages * 3 // 4,
            lock=_lock_file(path.parent),
        )
    except BaseException:
        env.close()
        raise


def _make_private(folder: Path) -> None:
    """Raises: `ConfigError` where the folder is there and others can write to it, or own it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_mode & 0o022 or status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"the cache folder {folder} can be written by others (mode {status.st_mode & 0o7777:04o}, owner "
            f"{status.st_uid}): chmod 700 {folder}, or name a new one"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process opens or drops the file, and keeps them from it; a killed one lets go."""
    descriptor = _lock_file(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock_file(folder: Path) -> int:
    return os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _drop(path: Path, why: str) -> None:
    say(f"the cache {path} is begun anew: {why}")
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


def _path(folder: Path) -> Path:
    return folder / f"users-v1-{_boot() or 'any'}.lmdb"


def _boot() -> str:
    """Eight digits that name this start of the machine; empty where the system has none."""
    return _BOOT_ID.read_text()[:8] if _BOOT_ID.exists() else ""


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
