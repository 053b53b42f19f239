"""Where a chain of checkpoints lies: a folder of a POSIX file system, or a prefix of an object store.

Names are relative and '/'-separated. What a chain rests on: a file is made once and never changed; `publish` gives a
complete file a name that nobody had (put-if-absent), which is the only way a version comes to be; and what was made
durable survives a power cut.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from stack.base.errors import CheckpointError
from stack.checkpoint.posix_store import PosixStore


class Store(Protocol):
    """Names that would leave the root are refused with `CheckpointError`; what the system refuses is an `OSError`."""

    url: str

    def read(self, name: str, *, first: int = 0, size: int | None = None) -> bytes:
        """Bytes `first ... first + size - 1` (None: to the end), fewer where the file ends before.

        Raises: `FileNotFoundError`.
        """

    def read_into(self, name: str, into: memoryview, *, first: int) -> int:
        """Fills memory with bytes from `first` on; gives how many there were: fewer where the file ends before.

        Raises: `FileNotFoundError`.
        """

    def map(self, name: str) -> memoryview | None:
        """The file mapped into memory; None where there are no local files.

        It is a private mapping: whoever writes into it changes their own view, never the file.
        Raises: `FileNotFoundError`.
        """

    def size(self, name: str) -> int:
        """Bytes of a file. Raises: `FileNotFoundError`."""

    def list(self, folder: str = "") -> list[str]:
        """All files below a folder ("": the root), as names from the root, sorted; none if there is no such folder."""

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A new file to write, and the folders above it. Durable at a good end; gone (best effort) if the block raises.

        Raises: `FileExistsError`.
        """

    def publish(self, source: str, name: str) -> None:
        """The complete file `source` appears as `name` too, if nobody has that name; durable at return.

        Where `name` is already this very file the work counts as done: an answer that the network lost, and asked for
        again, must not look like another writer. An object store tells that by the bytes: two writers must publish
        different ones. After any other `OSError` than `FileExistsError` the outcome is unknown: look.
        Raises: `FileExistsError`, `FileNotFoundError` (no `source`).
        """

    def seal(self, folder: str) -> None:
        """Makes the names in a folder and in those below it durable, and the folder's own name."""

    def delete(self, name: str) -> None:
        """Deletes a file; a missing one is fine."""

    def set_aside(self, folder: str) -> str:
        """Renames a folder to `.aside-<uuid>/<folder>`, so that no late writer publishes out of it; returns that name.

        An object store cannot rename: there it returns the folder itself, and nothing has happened.
        Raises: `FileNotFoundError`.
        """

    def put_back(self, aside: str, folder: str) -> None:
        """Undoes `set_aside`."""

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder and all in it; a missing one is fine."""


def open_store(url: str | Path, *, for_writing: bool) -> Store:
    """A path or `file://...` is a folder; any other `scheme://...` an object store that fsspec knows.

    For writing the place is made and tried: what a chain needs and the place cannot do is refused here.
    Raises: `CheckpointError` naming the place and what it lacks.
    """
    text = str(url)
    parts = urlsplit(text)
    if isinstance(url, Path) or "://" not in text:
        return _posix(Path(url), for_writing=for_writing)
    if parts.scheme in ("file", "local"):
        if parts.netloc not in ("", "localhost"):
            raise CheckpointError(f"checkpoint store {text}: a file URL has three slashes: file:///{parts.netloc}...")
        return _posix(Path(unquote(parts.path)), for_writing=for_writing)
    from stack.checkpoint.object_store import open_object_store  # fsspec is needed only here

    return open_object_store(text, for_writing=for_writing)


def _posix(root: Path, *, for_writing: bool) -> Store:
    store = PosixStore(root)
    if for_writing:
        store.probe()
    return store
