"""Tensors in safetensors files: written in one pass to any stream and hashed on the way, read by ranges of rows.

Our own writer, because the library's takes no stream and gives no digest: a file would be read again to be hashed, or
held whole as bytes. Readers need no library either: a range of rows is a slice of mapped memory, or a ranged read.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, BinaryIO, TypeVar

import msgspec
import torch
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.manifest import FileEntry
from stack.checkpoint.store import Store

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types that files may hold, by their names in the header; widest first: so every tensor begins aligned."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = list(DTYPES.values())
_METADATA = "__metadata__"

_BLOCK_BYTES = 4 << 20
_FETCH_BYTES = 16 << 20
_FETCH_THREADS = 8
_GAP_BYTES = 64 << 10
"""Rows of an object this close to each other are read at once: a request costs more than the bytes between."""
_FIRST_READ_BYTES = 64 << 10
_MAX_HEADER_BYTES = 16 << 20
_MAX_DIMS = 8
_MAX_BYTES = 2**62
_MAX_TOLD = 60

T = TypeVar("T")
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_BYTES)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes a safetensors file from where `file` stands; no tensor is copied whole.

    Tensors may lie on any device and in any strides; what is not contiguous on the CPU is brought there some rows at a
    time. One thread hashes while another writes.
    """
    assert _METADATA not in tensors
    ordered = sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype), name))
    entries: dict[str, _Entry] = {}
    end = 0
    for name in ordered:
        first, end = end, end + tensors[name].nbytes
        entries[name] = _Entry(_NAMES[tensors[name].dtype], tuple(tensors[name].shape), (first, end))
    header = msgspec.json.encode(entries)
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as pool:
        for block in _blocks(header, [tensors[name] for name in ordered]):
            hashed = pool.submit(digest.update, block)
            file.write(block)
            hashed.result()
    return FileEntry(num_bytes=8 + len(header) + end, sha256=digest.hexdigest())


def _blocks(header: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors:
        for part in _parts(tensor.detach()):
            data = part.reshape(-1).view(torch.uint8).numpy().data
            for first in range(0, len(data), _BLOCK_BYTES):
                yield data[first : first + _BLOCK_BYTES]


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as contiguous pieces on the CPU: itself, or copies of blocks of its rows."""
    if not tensor.numel():
        return
    if tensor.dim() == 0 or (tensor.device.type == "cpu" and tensor.is_contiguous()):
        yield tensor.cpu()
        return
    num_rows = max(1, _BLOCK_BYTES // (tensor.nbytes // tensor.shape[0]))
    for first in range(0, tensor.shape[0], num_rows):
        yield tensor[first : first + num_rows].cpu().contiguous()


def side_by_side(tasks: Sequence[Callable[[], T]], *, num_threads: int) -> list[T]:
    """What each task gives, done a few at once. Once one has failed no more are begun; the failure is raised."""
    failed = threading.Event()

    def run(task: Callable[[], T]) -> T | None:
        if failed.is_set():
            return None  # never seen: the failure of an earlier task is raised
        try:
            return task()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(run, task) for task in tasks]
    return [future.result() for future in futures]  # type: ignore[misc]


class TensorFile:
    """A safetensors file in a store. Opening reads and checks its header; numbers are read when asked for.

    Tensors out of a mapped file share its memory: copy what is to be changed or kept for long.
    Raises: `CheckpointError` naming the file and what is wrong with it, or that it is missing.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        with self._there():
            self._mapped = store.map(name)
            self._num_bytes = store.size(name) if self._mapped is None else len(self._mapped)
            self._first_byte, entries = self._header()
        self.shapes = {key: entry.shape for key, entry in entries.items()}
        self.dtypes = {key: DTYPES[entry.dtype] for key, entry in entries.items()}
        self._offsets = {key: entry.data_offsets[0] for key, entry in entries.items()}

    def rows(self, tensor: str, first: int, last: int, *, columns: slice | None = None) -> Tensor:
        """Rows `first ... last - 1`, of them the `columns`."""
        assert 0 <= first <= last <= self.shapes[tensor][0]
        value = self._read(tensor, first, last)
        return value if columns is None else value[:, columns]

    def fill(self, tensor: str, first: int, last: int, out: Tensor) -> None:
        """Copies rows `first ... last - 1` into `out`, of the same type and as many numbers: without a mapping, whose
        pages would be faulted in one by one."""
        assert 0 <= first <= last <= self.shapes[tensor][0]
        assert (out.dtype, out.numel()) == (self.dtypes[tensor], (last - first) * math.prod(self.shapes[tensor][1:]))
        assert out.device.type == "cpu"
        assert out.is_contiguous()
        if out.numel():
            row_bytes = out.nbytes // (last - first)
            start = self._first_byte + self._offsets[tensor] + first * row_bytes
            self._fetch(out.detach().reshape(-1).view(torch.uint8).numpy().data, start)

    def take(self, tensor: str, index_N: Tensor) -> Tensor:
        """The rows at ascending positions, copied."""
        if self._mapped is not None:
            return self._read(tensor, 0, self.shapes[tensor][0]).index_select(0, index_N)
        num_rows, *row = self.shapes[tensor]
        taken = torch.empty((len(index_N), *row), dtype=self.dtypes[tensor])
        if not taken.numel():
            return taken
        assert 0 <= int(index_N[0]) <= int(index_N[-1]) < num_rows
        row_bytes = math.prod(row) * taken.itemsize
        apart = index_N.diff() > 1 + _GAP_BYTES // row_bytes
        full = index_N.div(max(1, _FETCH_BYTES // row_bytes), rounding_mode="floor").diff() > 0
        cuts = [0, *((apart | full).nonzero().squeeze(1) + 1).tolist(), len(index_N)]

        def fetch(start: int, stop: int) -> None:
            wanted_N = index_N[start:stop]
            first = int(wanted_N[0])
            taken[start:stop] = self._read(tensor, first, int(wanted_N[-1]) + 1)[wanted_N - first]

        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            list(pool.map(fetch, cuts[:-1], cuts[1:]))
        return taken

    def all(self) -> dict[str, Tensor]:
        """Every tensor."""
        return {name: self._read(name, 0, shape[0] if shape else 1) for name, shape in self.shapes.items()}

    def _read(self, tensor: str, first: int, last: int) -> Tensor:
        shape, dtype = self.shapes[tensor], self.dtypes[tensor]
        wanted = (last - first, *shape[1:]) if shape else ()
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        start, num_bytes = self._first_byte + self._offsets[tensor] + first * row_bytes, (last - first) * row_bytes
        if not num_bytes:
            return torch.empty(wanted, dtype=dtype)
        if self._mapped is not None and start % dtype.itemsize == 0:
            return torch.frombuffer(self._mapped, dtype=dtype, count=num_bytes // dtype.itemsize, offset=start).view(
                wanted
            )
        value = torch.empty(wanted, dtype=dtype)
        self._fetch(value.reshape(-1).view(torch.uint8).numpy().data, start)
        return value

    def _fetch(self, into: memoryview, start: int) -> None:
        """Fills `into` with the bytes of the file that begin at `start`: long ranges in pieces, many at once."""

        def piece(first: int) -> None:
            size = min(_FETCH_BYTES, len(into) - first)
            num_bytes = self._store.read_into(self._name, into[first : first + size], first=start + first)
            if num_bytes != size:
                raise self._damaged(f"it ends at byte {start + first + num_bytes}, its header says more")

        firsts = range(0, len(into), _FETCH_BYTES)
        with self._there():
            if len(firsts) == 1:
                piece(0)
                return
            with ThreadPoolExecutor(_FETCH_THREADS) as pool:
                list(pool.map(piece, firsts))

    def _bytes(self, first: int, size: int) -> bytes | memoryview:
        if self._mapped is not None:
            return self._mapped[first : first + size]
        return self._store.read(self._name, first=first, size=size)

    def _header(self) -> tuple[int, dict[str, _Entry]]:
        """Where the numbers begin, and what lies where; everything that a damaged header could say is refused."""
        start = bytes(self._bytes(0, min(_FIRST_READ_BYTES, self._num_bytes)))
        size = int.from_bytes(start[:8], "little")
        if len(start) < 8 or size > min(_MAX_HEADER_BYTES, self._num_bytes - 8):
            raise self._damaged(f"it has {self._num_bytes} bytes, too few for a header, or for one of {size} bytes")
        header = start[8 : 8 + size]
        if len(header) < size:
            header += bytes(self._bytes(8 + len(header), size - len(header)))
        try:
            fields = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            fields.pop(_METADATA, None)
            entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in fields.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(f"its header cannot be read: {error}") from error
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            what, begin, end = repr(name[:_MAX_TOLD]), end, entry.data_offsets[1]
            first = entry.data_offsets[0]
            if entry.dtype not in DTYPES:
                raise self._damaged(f"{what} is of type {entry.dtype[:_MAX_TOLD]!r}; known: {', '.join(DTYPES)}")
            if len(entry.shape) > _MAX_DIMS or math.prod(max(size, 1) for size in entry.shape) * 8 > _MAX_BYTES:
                raise self._damaged(f"{what} has the shape {list(entry.shape[:_MAX_DIMS])}")
            if first != begin:
                raise self._damaged(f"{what} begins at byte {first} of the numbers, not at {begin}")
            if end - first != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
                raise self._damaged(f"{what} has {end - first} bytes for the shape {list(entry.shape)}")
        if 8 + size + end != self._num_bytes:
            raise self._damaged(f"it has {self._num_bytes} bytes, its header says {8 + size + end}")
        return 8 + size, entries

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self._store.url}/{self._name} is missing: its version was pruned while it was read, or has lost it; "
                "`stack checkpoint list` and `verify` tell which"
            ) from error

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._store.url}/{self._name} is damaged: {reason}")
