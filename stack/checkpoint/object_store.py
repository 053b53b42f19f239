"""A store in an object store: any file system of fsspec that can put an object only if its name is free.

Credentials and endpoints come from the environment and fsspec's own configuration; they are in no URL, message or file.
There are no folders and no renames: `seal` has nothing to do, and `set_aside` fences nobody.
"""

from __future__ import annotations

import errno
import io
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractBufferedFile

from stack.base.errors import CheckpointError
from stack.base.files import ASIDE

_ONE_PUT_BYTES = 8 << 20
_DELETE_THREADS = 8
_T = TypeVar("_T")
_CONFLICT_WAITS_SECONDS = (0.1, 0.3, 1.0, 3.0)


def open_object_store(url: str, *, for_writing: bool) -> ObjectStore:
    """Raises: `CheckpointError` where fsspec does not know the URL, or the place cannot do what a chain needs."""
    if "@" in urlsplit(url).netloc:
        raise CheckpointError(
            f"the checkpoint store's URL has a name or password before '{url.rpartition('@')[2]}': keep credentials in "
            "the environment or in fsspec's configuration"
        )
    if "::" in url:
        raise CheckpointError(f"checkpoint store {url}: a store behind another one would be read late: name it alone")
    try:
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"checkpoint store {url}: {error}; s3:// needs the extra 's3' of this package") from error
    store = ObjectStore(filesystem, root, url=url)
    if for_writing:
        store.probe()
    return store


class ObjectStore:
    """What `Store` says, over `filesystem` (fsspec's). A file that is not complete has no name yet: nobody sees it.

    A writer that is killed leaves parts without a name, which cost money: give the bucket a rule that deletes them.
    """

    def __init__(self, filesystem: Any, root: str, *, url: str) -> None:
        self.filesystem = filesystem
        self._root = root.rstrip("/")
        self.url = url.rstrip("/")

    def read(self, name: str, *, first: int = 0, size: int | None = None) -> bytes:
        end = None if size is None else first + size
        if end == first:
            return b""
        try:
            return self.ask(name, lambda path: cast(bytes, self.filesystem.cat_file(path, start=first, end=end)))
        except OSError as error:
            if _code(error) in ("InvalidRange", "416"):  # the file ends before `first`
                return b""
            raise

    def read_into(self, name: str, into: memoryview, *, first: int) -> int:
        data = self.read(name, first=first, size=len(into))
        into[: len(data)] = data
        return len(data)

    def map(self, name: str) -> memoryview | None:
        return None

    def size(self, name: str) -> int:
        info = self.ask(name, self.filesystem.info)
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.url}/{name}")
        return int(info["size"])

    def list(self, folder: str = "") -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            found = self.ask(folder or ".", self.filesystem.find)
        except FileNotFoundError:
            return []
        above = "/".join((self._root, *PurePosixPath(folder).parts, ""))
        return sorted(path.removeprefix(f"{self._root}/") for path in found if path.startswith(above))

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._create(name)

    @contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        upload = _Upload(self, name)
        try:
            yield cast(BinaryIO, upload)
            upload.commit()
        except BaseException:
            upload.discard()
            raise

    def publish(self, source: str, name: str) -> None:
        data = self.read(source)
        try:
            self.put(name, data)
        except FileExistsError:
            if self.read(name) != data:
                raise

    def put(self, name: str, data: bytes) -> None:
        """A new object, whole. Raises: `FileExistsError`."""
        self.ask(name, lambda path: self.filesystem.pipe_file(path, data, mode="create"))

    def seal(self, folder: str) -> None:
        """Nothing to do: what an object store has answered for is durable."""

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.ask(name, self.filesystem.rm_file)

    def set_aside(self, folder: str) -> str:
        if not self.list(folder):
            raise FileNotFoundError(errno.ENOENT, "no such folder", f"{self.url}/{folder}")
        return folder

    def put_back(self, aside: str, folder: str) -> None:
        assert aside == folder

    def delete_folder(self, folder: str) -> None:
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            list(pool.map(self.delete, self.list(folder)))

    def probe(self) -> None:
        """Puts an object twice: the second must be refused. Raises: `CheckpointError` saying what the place lacks."""
        name = f"{ASIDE}trial-{uuid.uuid4().hex}"
        try:
            self.put(name, b"1")
            try:
                self.put(name, b"2")
                refused = False
            except FileExistsError:
                refused = True
            self.delete(name)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint store {self.url} cannot be written ({error.strerror or error}): check that it exists, and "
                "the credentials and endpoint in the environment or in fsspec's configuration"
            ) from error
        if not refused:
            raise CheckpointError(
                f"checkpoint store {self.url} overwrote an object that was put only if absent, so two writers could "
                "overwrite each other's versions: choose a store with conditional put"
            )

    def ask(self, name: str, what: Callable[[str], _T]) -> _T:
        """The answer of the file system about a name; what goes wrong comes out as `OSError`, whatever said it."""
        parts = PurePosixPath(name).parts
        if not name or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts:
            raise CheckpointError(
                f"the name {name!r} does not stay inside {self.url}: it must be relative and have no '..'"
            )
        for wait_seconds in (*_CONFLICT_WAITS_SECONDS, None):
            try:
                return what("/".join((self._root, *parts)))
            except OSError as error:
                code = _code(error)
                if code in ("PreconditionFailed", "412"):
                    raise FileExistsError(errno.EEXIST, "object exists", f"{self.url}/{name}") from error
                if code not in ("ConditionalRequestConflict", "409") or wait_seconds is None:
                    raise
                time.sleep(wait_seconds)  # another put of this name is under way: it may fail yet
            except Exception as error:  # each file system has its own tree of errors, and callers know one
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}", f"{self.url}/{name}") from error
        raise AssertionError


class _Upload(io.RawIOBase):
    """A new object: one put if it is small, else in parts as they come."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self._small = bytearray()
        self._file: Any = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._file is None and len(self._small) + len(view) > _ONE_PUT_BYTES:
            self._file = self._store.ask(self._name, lambda path: self._store.filesystem.open(path, "xb"))
            self._ask(lambda file: file.write(self._small))
            self._small.clear()
        if self._file is None:
            self._small += view
        else:
            self._ask(lambda file: file.write(view))
        return len(view)

    def commit(self) -> None:
        if self._file is None:
            self._store.put(self._name, bytes(self._small))
        else:
            self._ask(lambda file: file.close())

    def discard(self) -> None:
        """Lets the parts go, and keeps the file from completing itself when it is collected."""
        if self._file is not None:
            with suppress(OSError):
                self._ask(lambda file: file.discard())
            if isinstance(self._file, AbstractBufferedFile):
                self._file.closed = True

    def _ask(self, what: Callable[[Any], object]) -> None:
        self._store.ask(self._name, lambda _: what(self._file))


def _code(error: OSError) -> str:
    """What an S3 server called it; empty where the error is another's."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
