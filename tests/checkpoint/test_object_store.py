"""The object store against a real S3 server: what is published stands, what is not complete is not seen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import boto3
import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from stack.base.errors import CheckpointError
from stack.checkpoint.object_store import ObjectStore
from stack.checkpoint.store import Store, open_store
from stack.checkpoint.tensors import TensorFile, write_tensors
from tests.checkpoint.object_server import SECRET, new_bucket, object_server

LARGE = 12 << 20  # goes up in parts


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as address:
        yield address


@pytest.fixture
def store(server: str) -> Store:
    return open_store(f"{new_bucket()}/run/checkpoints", for_writing=True)


def put(store: Store, name: str, data: bytes) -> None:
    with store.create(name) as file:
        file.write(data)


def parts_left(store: Store) -> int:
    """Uploads that were begun and neither completed nor given up."""
    client = boto3.client("s3")
    found = client.list_multipart_uploads(Bucket=urlsplit(store.url).netloc).get("Uploads", [])
    client.close()
    return len(found)


def test_bytes_come_back_whole_and_by_ranges(store: Store) -> None:
    data = bytes(range(256))
    put(store, "data/a/file", data)
    assert store.read("data/a/file") == data
    assert store.read("data/a/file", first=10, size=20) == data[10:30]
    assert store.read("data/a/file", first=250) == data[250:]
    assert store.read("data/a/file", first=250, size=100) == data[250:]
    assert store.read("data/a/file", first=256) == store.read("data/a/file", first=300, size=5) == b""
    assert store.size("data/a/file") == 256
    assert store.map("data/a/file") is None
    put(store, "empty", b"")
    assert (store.size("empty"), store.read("empty"), store.read("empty", first=0, size=4)) == (0, b"", b"")
    for ask in (store.read, store.size):
        with pytest.raises(FileNotFoundError):
            ask("data/a")  # what would be a folder
        with pytest.raises(FileNotFoundError):
            ask("data/a/none")


def test_a_large_file_goes_up_in_parts_and_is_the_same(store: Store) -> None:
    data = torch.arange(LARGE // 8).numpy().tobytes()
    with store.create("large") as file:
        for first in range(0, LARGE, 5 << 20):
            assert file.write(memoryview(data)[first : first + (5 << 20)]) == len(data[first : first + (5 << 20)])
    assert store.size("large") == LARGE
    assert store.read("large") == data


def test_list_tells_all_files_below_a_folder_and_no_other(store: Store) -> None:
    assert store.list() == store.list("data") == []
    for name in ("data/a/tables/item/1", "data/ab/2", "data/a/0", "manifests/00000001.json"):
        put(store, name, b"x")
    assert store.list("data/a") == ["data/a/0", "data/a/tables/item/1"]
    assert store.list("data") == ["data/a/0", "data/a/tables/item/1", "data/ab/2"]
    assert store.list() == [*store.list("data"), "manifests/00000001.json"]
    assert store.list("data/a/0") == store.list("none") == []
    put(open_store(store.url, for_writing=False), "data/a/9", b"x")
    assert store.list("data/a") == ["data/a/0", "data/a/9", "data/a/tables/item/1"]  # no listing is remembered


@pytest.mark.parametrize("num_bytes", [10, LARGE])
def test_a_file_whose_block_raises_is_never_seen_and_leaves_no_parts(store: Store, num_bytes: int) -> None:
    seen: list[list[str]] = []

    def fail() -> None:
        with store.create("data/a/file") as file:
            file.write(bytes(num_bytes))
            seen.append(store.list())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [[]]
    assert store.list() == []
    assert parts_left(store) == 0
    put(store, "data/a/file", b"again")
    assert store.read("data/a/file") == b"again"


@pytest.mark.parametrize("num_bytes", [10, LARGE])
def test_a_name_is_given_once(store: Store, num_bytes: int) -> None:
    put(store, "file", b"first")
    with pytest.raises(FileExistsError), store.create("file") as file:
        file.write(bytes(num_bytes))
    assert store.read("file") == b"first"
    assert parts_left(store) == 0


def test_of_racing_publishers_exactly_one_wins(store: Store) -> None:
    stores = [open_store(store.url, for_writing=True) for _ in range(4)]
    for number, one in enumerate(stores):
        put(one, f"data/{number}/manifest.json", b"version of %d" % number)
    for version in range(20):
        start = threading.Barrier(len(stores))
        won: list[int] = []
        lost: list[int] = []

        def publish(
            number: int,
            name: str = f"manifests/{version:08d}.json",
            start: threading.Barrier = start,
            won: list[int] = won,
            lost: list[int] = lost,
        ) -> None:
            start.wait()
            try:
                stores[number].publish(f"data/{number}/manifest.json", name)
                won.append(number)
            except FileExistsError:
                lost.append(number)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(len(stores))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, len(stores) - 1)
        assert store.read(f"manifests/{version:08d}.json") == b"version of %d" % won[0]


def test_publishing_again_what_already_stands_is_done_and_another_is_refused(store: Store) -> None:
    put(store, "data/a/manifest.json", b"a")
    put(store, "data/b/manifest.json", b"b")
    store.publish("data/a/manifest.json", "manifests/1")
    store.publish("data/a/manifest.json", "manifests/1")
    with pytest.raises(FileExistsError):
        store.publish("data/b/manifest.json", "manifests/1")
    with pytest.raises(FileNotFoundError):
        store.publish("data/c/manifest.json", "manifests/2")
    assert store.read("manifests/1") == b"a"
    assert store.list("manifests") == ["manifests/1"]


def test_deleting(store: Store) -> None:
    for name in ("data/a/1", "data/a/t/2", "data/ab/3"):
        put(store, name, b"x")
    store.seal("data/a")
    store.delete("data/ab/none")
    assert store.set_aside("data/a") == "data/a"
    store.put_back("data/a", "data/a")
    with pytest.raises(FileNotFoundError):
        store.set_aside("data/none")
    store.delete_folder("data/a")
    store.delete_folder("data/a")
    assert store.list() == ["data/ab/3"]
    store.delete("data/ab/3")
    assert store.list() == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "a\\b", "a\0b"])
def test_names_that_leave_the_root_are_refused(store: Store, name: str) -> None:
    for ask in (store.read, store.size, store.delete, lambda name: put(store, name, b"")):
        with pytest.raises(CheckpointError, match="does not stay inside s3://"):
            ask(name)


def test_rows_come_by_ranges_and_only_they(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40_000, 64)
    with store.create("part") as file:
        write_tensors(file, {"key": torch.arange(40_000), "weight": weight})
    read = 0
    ask = ObjectStore.read

    def count(self: ObjectStore, name: str, *, first: int = 0, size: int | None = None) -> bytes:
        nonlocal read
        data = ask(self, name, first=first, size=size)
        read += len(data)
        return data

    monkeypatch.setattr(ObjectStore, "read", count)
    opened = TensorFile(store, "part")
    assert torch.equal(opened.rows("weight", 100, 140, columns=slice(3, 9)), weight[100:140, 3:9])
    rows = torch.tensor([0, 1, 5, 20_000, 39_998, 39_999])
    assert torch.equal(opened.take("weight", rows), weight[rows])
    assert read < 200_000
    assert torch.equal(opened.take("weight", torch.arange(40_000)), weight)
    assert torch.equal(opened.take("weight", torch.tensor([], dtype=torch.int64)), weight[:0])
    assert torch.equal(opened.all()["weight"], weight)


def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(
        CheckpointError, match="s3://no-such-bucket/x cannot be written .*bucket does not exist.*"
    ) as raised:
        open_store("s3://no-such-bucket/x", for_writing=True)
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={"retries": {"max_attempts": 0}})
    filesystem.retries = 1
    with pytest.raises(CheckpointError, match="s3://b/x cannot be written .*Could not connect.*") as raised:
        ObjectStore(filesystem, "b/x", url="s3://b/x").probe()
    assert SECRET not in str(raised.value) + caplog.text


class Overwrites(MemoryFileSystem):
    """Takes `mode` and passes it over, as stores without conditional put do."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        super().pipe_file(path, value)


def test_a_store_without_conditional_put_is_refused() -> None:
    store = ObjectStore(Overwrites(), "/somewhere", url="overwrites://somewhere")
    with pytest.raises(CheckpointError, match="overwrites://somewhere overwrote an object .*conditional put"):
        store.probe()
    assert store.list() == []


def test_a_store_in_memory_does_what_a_store_does() -> None:
    store = open_store("memory://trial", for_writing=True)
    put(store, "data/a", b"a")
    store.publish("data/a", "manifests/1")
    put(store, "data/b", b"b")
    with pytest.raises(FileExistsError):
        store.publish("data/b", "manifests/1")
    assert store.list() == ["data/a", "data/b", "manifests/1"]
    store.delete("data/none")
    store.delete_folder("")
    assert store.list() == []


def test_urls_that_are_no_store_are_refused_without_their_secrets() -> None:
    with pytest.raises(CheckpointError, match="before 'bucket/x': keep credentials in the environment") as raised:
        open_store(f"s3://someone:{SECRET}@bucket/x", for_writing=True)
    assert SECRET not in str(raised.value)
    with pytest.raises(CheckpointError, match="nosuch://x: Protocol not known: nosuch"):
        open_store("nosuch://x", for_writing=False)
    with pytest.raises(CheckpointError, match="name it alone"):
        open_store("simplecache::s3://bucket/x", for_writing=False)
