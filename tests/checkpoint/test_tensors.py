"""Safetensors files of ours: what the library reads too, in one pass, by rows; damage is named, whatever it is."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint import tensors as module
from stack.checkpoint.object_store import ObjectStore
from stack.checkpoint.store import Store, open_store
from stack.checkpoint.tensors import DTYPES, TensorFile, write_tensors


@pytest.fixture(params=["posix", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "posix":
        return open_store(tmp_path, for_writing=True)
    found = open_store("memory://tensors", for_writing=True)
    found.delete_folder("")
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that small tensors have many."""
    for name, size in (("_BLOCK_BYTES", 64), ("_FETCH_BYTES", 100), ("_GAP_BYTES", 40), ("_FIRST_READ_BYTES", 16)):
        monkeypatch.setattr(module, name, size)


def one_of_each() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    whole = torch.randint(-100, 100, (30, 5), generator=generator)
    return {
        **{f"of {name}": whole.to(dtype) for name, dtype in DTYPES.items()},
        "scalar": torch.tensor(2.5),
        "no rows": torch.empty(0, 4),
        "no columns": torch.empty(4, 0),
        "odd": torch.tensor([True, False, True]),
        "cube": torch.randn(6, 3, 2, generator=generator),
        "transposed": torch.randn(5, 30, generator=generator).t(),
        "every other": torch.arange(60)[::2],
        "same row": torch.randn(1, 4, generator=generator).expand(10, 4),
        "parameter": torch.nn.Parameter(torch.ones(3, 2)),
    }


def write(store: Store, name: str, tensors: dict[str, Tensor]) -> None:
    with store.create(name) as file:
        write_tensors(file, tensors)


def put(store: Store, name: str, data: bytes) -> None:
    store.delete(name)
    with store.create(name) as file:
        file.write(data)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_the_library_reads_what_we_write_and_the_digest_is_that_of_the_file(small_blocks: None) -> None:
    tensors = one_of_each()
    file = io.BytesIO()
    entry = write_tensors(file, tensors)
    data = file.getvalue()
    assert entry.num_bytes == len(data)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    read = load(data)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(read[name], tensor)


def test_what_is_written_comes_back(store: Store, small_blocks: None) -> None:
    tensors = one_of_each()
    write(store, "file", tensors)
    opened = TensorFile(store, "file")
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert opened.dtypes == {name: tensor.dtype for name, tensor in tensors.items()}
    for name, found in opened.all().items():
        assert_same(found, tensors[name])


def test_any_rows_and_columns_come_back(store: Store, small_blocks: None) -> None:
    tensors = one_of_each()
    write(store, "file", tensors)
    opened = TensorFile(store, "file")
    rng = random.Random(0)
    for name, tensor in tensors.items():
        for _ in range(10 if tensor.dim() else 0):
            first, last = sorted(rng.randint(0, len(tensor)) for _ in range(2))
            assert_same(opened.rows(name, first, last), tensor[first:last])
            picked = torch.tensor(sorted(rng.choices(range(len(tensor)), k=7)) if len(tensor) else [], dtype=torch.long)
            assert_same(opened.take(name, picked), tensor[picked])
            if tensor.dim() == 2:
                columns = slice(*sorted(rng.randint(0, tensor.shape[1]) for _ in range(2)))
                assert_same(opened.rows(name, first, last, columns=columns), tensor[first:last, columns])


def test_rows_of_a_mapped_file_are_its_memory_and_writing_to_them_leaves_the_file(tmp_path: Path) -> None:
    store = open_store(tmp_path, for_writing=True)
    write(store, "file", {"weight": torch.zeros(10, 4)})
    opened = TensorFile(store, "file")
    rows = opened.rows("weight", 2, 8)
    assert rows.untyped_storage().data_ptr() == opened.rows("weight", 2, 3).untyped_storage().data_ptr()
    rows += 1
    assert torch.equal(TensorFile(store, "file").rows("weight", 0, 10), torch.zeros(10, 4))


def test_files_of_the_library_are_read_whatever_their_order_and_alignment(store: Store) -> None:
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(4, 2)}
    put(store, "library", save(tensors, metadata={"who": "somebody"}))
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F32", "shape": [4, 2], "data_offsets": [3, 35]},
        }
    ).encode()
    numbers = tensors["a"].numpy().tobytes() + tensors["b"].numpy().tobytes()
    put(store, "unaligned", len(header).to_bytes(8, "little") + header + numbers)
    for name in ("library", "unaligned"):
        opened = TensorFile(store, name)
        for key, found in opened.all().items():
            assert_same(found, tensors[key])
        assert_same(opened.take("b", torch.tensor([0, 3])), tensors["b"][[0, 3]])


def test_only_the_rows_asked_for_are_read_of_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://ranges", for_writing=True)
    weight = torch.arange(1_000_000).view(-1, 10)
    store.delete("file")
    write(store, "file", {"weight": weight})
    opened = TensorFile(store, "file")
    asked: list[int] = []
    read = ObjectStore.read

    def note(self: ObjectStore, name: str, *, first: int = 0, size: int | None = None) -> bytes:
        assert size is not None
        asked.append(size)
        return read(self, name, first=first, size=size)

    monkeypatch.setattr(ObjectStore, "read", note)
    opened.rows("weight", 5, 8)
    assert asked == [3 * 80]
    asked.clear()
    assert_same(opened.take("weight", torch.tensor([7, 9, 50_000])), weight[[7, 9, 50_000]])
    assert sorted(asked) == [80, 3 * 80]  # two of them at once


def test_writing_takes_no_memory_for_the_whole_tensor() -> None:
    class Nowhere(io.RawIOBase):
        def write(self, data: object) -> int:
            return memoryview(data).nbytes  # type: ignore[call-overload]

    tracemalloc.start()
    write_tensors(Nowhere(), {"large": torch.zeros(16 << 20)})  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


HEADERS = {
    "an offset outside the file": ({"a": ["F32", [2], [0, 8_000]]}, "has 8000 bytes for the shape [2]"),
    "a larger file": ({"a": ["F32", [2000], [0, 8000]]}, "its header says"),
    "a smaller file": ({"a": ["F32", [1], [0, 4]]}, "its header says"),
    "a hole": ({"a": ["F32", [1], [0, 4]], "b": ["U8", [3], [5, 8]]}, "'b' begins at byte 5 of the numbers, not at 4"),
    "an overlap": ({"a": ["F32", [1], [0, 4]], "b": ["U8", [5], [3, 8]]}, "'b' begins at byte 3"),
    "offsets that go back": ({"a": ["F32", [2], [8, 0]]}, "begins at byte 8"),
    "a wrong shape": ({"a": ["F32", [3], [0, 8]]}, "'a' has 8 bytes for the shape [3]"),
    "a wrong type": ({"a": ["F64", [2], [0, 8]]}, "'a' has 8 bytes for the shape [2]"),
    "a type of another world": ({"a": ["F8_E4M3", [8], [0, 8]]}, "is of type 'F8_E4M3'; known: F64"),
    "a negative dimension": ({"a": ["F32", [-2], [0, 8]]}, "cannot be read"),
    "a huge dimension": ({"a": ["F32", [2**62, 0], [0, 0]]}, "has the shape"),
    "too many dimensions": ({"a": ["F32", [1] * 9 + [2], [0, 8]]}, "has the shape"),
    "huge numbers": ({"a": ["F32", [10**400], [0, 8]]}, "cannot be read"),
    "a missing offset": ({"a": ["F32", [2], [0]]}, "cannot be read"),
    "one more field": ({"a": ["F32", [2], [0, 8]], "b": 3}, "cannot be read"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_does_not_fit_its_file_is_refused(store: Store, what: str) -> None:
    said, told = HEADERS[what]
    fields = {
        name: dict(zip(("dtype", "shape", "data_offsets"), value, strict=True)) if isinstance(value, list) else value
        for name, value in said.items()
    }
    header = json.dumps(fields).encode()
    put(store, "file", len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError) as raised:
        TensorFile(store, "file")
    assert str(raised.value).startswith(f"{store.url}/file is damaged: ")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"{}x"])
def test_a_header_that_is_no_json_of_ours_is_refused(store: Store, header: bytes) -> None:
    put(store, "file", len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="file is damaged: "):
        TensorFile(store, "file")


def test_every_truncation_is_refused(store: Store) -> None:
    file = io.BytesIO()
    write_tensors(file, {"weight": torch.randn(5, 3), "key": torch.arange(5)})
    data = file.getvalue()
    for size in range(len(data)):
        put(store, "file", data[:size])
        with pytest.raises(CheckpointError, match="file is damaged: "):
            TensorFile(store, "file")
    put(store, "file", data + b" ")
    with pytest.raises(CheckpointError, match="file is damaged: "):
        TensorFile(store, "file")


def test_a_header_that_claims_the_world_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    store = open_store(tmp_path, for_writing=True)
    for size in (2**24 + 8, 2**40, 2**64 - 1):
        with (tmp_path / "file").open("wb") as file:
            file.write(size.to_bytes(8, "little"))
            file.truncate(2**41)  # takes no room on the disk
        tracemalloc.start()
        with pytest.raises(CheckpointError, match="file is damaged: "):
            TensorFile(store, "file")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_changed_headers_are_refused_or_read_and_raise_nothing_else(store: Store) -> None:
    file = io.BytesIO()
    write_tensors(file, {"weight": torch.randn(5, 3), "key": torch.arange(5), "flag": torch.tensor([True])})
    data = file.getvalue()
    end = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(1)
    refused = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(end)] = rng.choice((rng.randrange(256), *b'0189,:"[]{}'))
        put(store, "file", bytes(changed))
        try:
            for name, found in TensorFile(store, "file").all().items():
                assert found.nbytes <= len(data), name
        except CheckpointError as error:
            assert "file is damaged: " in str(error)  # noqa: PT017
            refused += 1
    assert 500 < refused < 1500  # what only renames a tensor is for the digest to find


@settings(max_examples=300, deadline=None)
@given(header=st.binary(max_size=300), rest=st.binary(max_size=30), size=st.integers(0, 2**64 - 1) | st.none())
def test_random_bytes_are_refused(header: bytes, rest: bytes, size: int | None) -> None:
    store = open_store("memory://random", for_writing=False)
    put(store, "file", (len(header) if size is None else size).to_bytes(8, "little") + header + rest)
    try:
        assert not TensorFile(store, "file").shapes  # nothing but "{}" is a header by chance
    except CheckpointError as error:
        assert "file is damaged: " in str(error)  # noqa: PT017


def test_a_name_of_a_damaged_header_does_not_fill_the_screen(store: Store) -> None:
    header = json.dumps({"a\n" * 1000: {"dtype": "x" * 1000, "shape": [], "data_offsets": [0, 0]}}).encode()
    put(store, "file", len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError) as raised:
        TensorFile(store, "file")
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_an_object_that_ends_early_is_told_when_its_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://early", for_writing=True)
    store.delete("file")
    write(store, "file", {"weight": torch.randn(5, 3)})
    opened = TensorFile(store, "file")
    read = ObjectStore.read
    monkeypatch.setattr(ObjectStore, "read", lambda *args, **asked: read(*args, **asked)[:-1])
    with pytest.raises(CheckpointError, match="memory://early/file is damaged: it ends at byte"):
        opened.all()
