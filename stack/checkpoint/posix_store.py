"""A store in a folder of a POSIX file system, local or shared."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from stack.base.errors import CheckpointError, DataError
from stack.base.files import ASIDE, safe_join, sync

_SYNC_THREADS = 8
_EARLY_BYTES = 32 << 20
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python 3.11 does not name it


class PosixStore:
    """What `Store` says. Publishing is link(2), which refuses a name that is taken, also over NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def read(self, name: str, *, first: int = 0, size: int | None = None) -> bytes:
        with self._path(name).open("rb", buffering=0) as file:
            left = max(os.fstat(file.fileno()).st_size - first, 0)
            left = left if size is None else min(left, size)
            file.seek(first)
            blocks = []
            while left and (block := file.read(left)):  # one read gives 2 GiB at most
                blocks.append(block)
                left -= len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def read_into(self, name: str, into: memoryview, *, first: int) -> int:
        num_bytes = 0
        with self._path(name).open("rb", buffering=0) as file:
            while num_bytes < len(into) and (size := os.preadv(file.fileno(), [into[num_bytes:]], first + num_bytes)):
                num_bytes += size
        return num_bytes

    def map(self, name: str) -> memoryview | None:
        with self._path(name).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            # Writable and private, because torch warns of memory that is not writable; without a reserve, because the
            # kernel would else refuse a file larger than the memory.
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
            return memoryview(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def list(self, folder: str = "") -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in _files(self._folder(folder)))

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return _create(self._path(name))

    def publish(self, source: str, name: str) -> None:
        old, new = self._path(source), self._path(name)
        sync(old)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except FileExistsError:
            if not os.path.samefile(old, new):
                raise
        # all of them: another writer may have made one and not flushed it yet
        for folder in _up(new.parent, self.root):
            sync(folder)

    def seal(self, folder: str) -> None:
        top = self._folder(folder)
        below = [Path(parent) for parent, _, _ in os.walk(top, onerror=_raise)]
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:  # many at once: a disk's journal takes those that wait together
            list(pool.map(sync, [*below, *_up(top, self.root)[1:]]))

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def set_aside(self, folder: str) -> str:
        aside = f"{ASIDE}{uuid.uuid4().hex}/{folder}"
        self._move(folder, aside)
        return aside

    def put_back(self, aside: str, folder: str) -> None:
        self._move(aside, folder)
        self._drop_empty(self._folder(aside).parent)

    def delete_folder(self, folder: str) -> None:
        path = self._path(folder)
        shutil.rmtree(path, onerror=_raise_unless_gone)
        self._drop_empty(path.parent)

    def probe(self) -> None:
        """Makes the root and tries in it what a chain needs. Raises: `CheckpointError` naming what the place lacks."""
        trial = self.root / f"{ASIDE}trial-{uuid.uuid4().hex}"
        one, two, moved = trial / "one", trial / "two", trial / "moved"
        step = "make this folder"
        try:
            for folder in _make_folders(self.root):
                sync(folder)
            step = "make a folder in it"
            trial.mkdir()
            step = "write and flush a file"
            with _create(one) as file:
                file.write(b"1")
            step = "give a file a second name (link)"
            os.link(one, two)
            with _create(moved / "file") as file:
                file.write(b"2")
            with suppress(FileExistsError):
                os.link(moved / "file", two)
                raise OSError(None, "a name that exists was given away again")
            step = "rename a folder and flush its name"
            moved.rename(trial / "again")
            sync(trial)
            step = "delete a folder"
            shutil.rmtree(trial)
        except OSError as error:
            shutil.rmtree(trial, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint store {self.url} cannot {step} ({error.strerror}): choose a folder that can be written, "
                "on a file system with hard links"
            ) from error

    def _path(self, name: str) -> Path:
        try:
            return safe_join(self.root, name)
        except DataError as error:
            raise CheckpointError(str(error)) from error

    def _folder(self, name: str) -> Path:
        return self._path(name) if name else self.root

    def _move(self, folder: str, to: str) -> None:
        old, new = self._path(folder), self._path(to)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            old.rename(new)
        except OSError:
            self._drop_empty(new.parent)
            raise
        for parent in (old.parent, *_up(new.parent, self.root)):
            sync(parent)

    def _drop_empty(self, folder: Path) -> None:
        """Removes the empty folders that `set_aside` made."""
        while folder != self.root and folder.relative_to(self.root).parts[0].startswith(ASIDE):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # not empty
                return
            folder = folder.parent


@contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _FlushedFile(path) as file, file.flusher:
        try:
            yield cast(BinaryIO, file)
            file.flush_all()
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


class _FlushedFile(io.FileIO):
    """A new file whose bytes go on their way to the disk while more are written: one flush at the end would find the
    disk idle until then. A disk tells an error once, to whichever flush comes first, so each one is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "xb")
        self.flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._waiting_bytes = 0

    def write(self, data: Any) -> int:
        """Writes all of it: the system may take less at a time."""
        view = memoryview(data).cast("B")
        left = view
        while left:
            left = left[os.write(self.fileno(), left) :]
        self._waiting_bytes += len(view)
        if self._waiting_bytes >= _EARLY_BYTES and (self._flushing is None or self._flushing.done()):
            self._settle()
            self._flushing, self._waiting_bytes = self.flusher.submit(os.fdatasync, self.fileno()), 0
        return len(view)

    def flush_all(self) -> None:
        self._settle()
        os.fsync(self.fileno())

    def _settle(self) -> None:
        if self._flushing is not None:
            self._flushing.result()


def _up(folder: Path, root: Path) -> list[Path]:
    """A folder and those above it up to the root."""
    return [path for path in (folder, *folder.parents) if path.is_relative_to(root)]


def _make_folders(path: Path) -> list[Path]:
    """Makes a folder and those above it; returns the folders that have got a new name to flush."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in missing]


def _files(folder: Path) -> Iterator[Path]:
    """Everything below that is no folder; a folder that vanishes meanwhile has nothing in it."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


def _raise(error: OSError) -> None:
    raise error


def _raise_unless_gone(
    function: object, path: str, error: tuple[type[BaseException], BaseException, TracebackType]
) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
