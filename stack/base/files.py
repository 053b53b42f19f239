"""Files and folders that exist only when complete: written aside, flushed to disk, renamed into place."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from stack.base.errors import ConfigError, DataError

ASIDE = ".aside-"
"""Names that begin so are unfinished work: readers ignore them, `remove_leftovers` deletes them."""
_BLOCK_BYTES = 1 << 20
_SYNC_THREADS = 8


def safe_join(root: Path, name: str) -> Path:
    """`root / name` for a relative name out of a manifest.

    Raises: `DataError` where the name is absolute, has a `..`, or leads out of `root` through a link.
    """
    relative = PurePosixPath(name)
    path = root / relative
    if not name or "\\" in name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"the name {name!r} does not stay inside {root}: it must be relative and have no '..'")
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"the name {name!r} leads out of {root} through a link")
    return path


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; an existing one is replaced."""
    aside = _aside(path)
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all; an existing one is replaced."""
    write_bytes(path, text.encode())


def cut_lines(path: Path, *, keep: Callable[[bytes], bool]) -> None:
    """Cuts lines off the end of a log until one is to be kept, and half a line that a kill left in any case. Of the
    file only what goes is read: it may have grown for years. A missing file is left missing."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = data.rfind(b"\n") + 1
            while end:
                start = data.rfind(b"\n", 0, end - 1) + 1
                if keep(data[start:end]):
                    break
                end = start
        file.truncate(end)


def make_folder(path: Path, *, option: str) -> None:
    """Makes a folder to write into, with all above it, where it is not there yet.

    Raises: `ConfigError` naming the `option` that chose it where that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"{option}={path} cannot be written ({error.strerror}): choose another folder, or make it writable"
        ) from error


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`; at the end of a block that did not raise it becomes `path`.

    Everything in it is flushed first. An existing `path` is replaced whole: it is renamed away, the new folder
    renamed in, the old one deleted; a reader sees the old, for an instant none, then the new, never a mixture.
    A block that raises leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    aside.mkdir()
    try:
        yield aside
        sync_tree(aside)
        replace_folder(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def replace_folder(aside: Path, path: Path, *, flush: bool = True) -> None:
    """Renames the complete folder `aside` to `path` on the same disk, replacing a folder that is there.

    Without `flush` the caller flushes the parent folder, once for many renames.
    """
    old = _aside(path)
    if path.exists():
        path.rename(old)
    try:
        aside.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    if flush:
        sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def remove_leftovers(folder: Path) -> list[str]:
    """Deletes unfinished work right below `folder` and returns its names, sorted.

    Only for a folder with one writer: the work of one that still runs would be deleted under it.
    """
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(ASIDE))
    for name in names:
        leftover = folder / name
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return names


def _aside(path: Path) -> Path:
    return path.parent / f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}"


def sync_tree(folder: Path) -> None:
    """Flushes everything in a folder. Many files at once: a disk's journal takes those that wait together."""
    folders = [Path(parent) for parent, _, _ in os.walk(folder)]
    files = [entry for parent in folders for entry in parent.iterdir() if not entry.is_dir()]
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(sync, files))
        list(pool.map(sync, folders))
