"""The POSIX store: names are given once, what is said to be durable was flushed, what a place lacks is said at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from stack.base.errors import CheckpointError
from stack.checkpoint.posix_store import PosixStore
from stack.checkpoint.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run" / "checkpoints", for_writing=True)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that fsync was called for, in order."""
    paths: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def put(store: Store, name: str, data: bytes = b"x") -> None:
    with store.create(name) as file:
        file.write(data)


def test_bytes_come_back_whole_by_ranges_and_mapped(store: Store) -> None:
    data = bytes(range(256))
    put(store, "data/a/file", data)
    assert store.read("data/a/file") == data
    assert store.read("data/a/file", first=10, size=20) == data[10:30]
    assert store.read("data/a/file", first=250, size=100) == store.read("data/a/file", first=250) == data[250:]
    assert store.read("data/a/file", first=256) == store.read("data/a/file", first=300, size=5) == b""
    assert store.size("data/a/file") == 256
    mapped = store.map("data/a/file")
    assert mapped is not None
    assert mapped == data
    mapped[0] = 9  # a private view
    assert store.read("data/a/file") == data
    put(store, "empty", b"")
    assert store.map("empty") == store.read("empty") == b""
    for ask in (store.read, store.size, store.map):
        with pytest.raises(FileNotFoundError):
            ask("data/a/none")


def test_list_tells_all_files_below_a_folder_and_no_other(store: Store) -> None:
    assert store.list() == store.list("data") == []
    for name in ("data/a/tables/item/1", "data/ab/2", "data/a/0", "manifests/00000001.json"):
        put(store, name)
    (Path(store.url) / "data/a/link").symlink_to("/nowhere")
    assert store.list("data/a") == ["data/a/0", "data/a/link", "data/a/tables/item/1"]
    assert store.list() == ["data/a/0", "data/a/link", "data/a/tables/item/1", "data/ab/2", "manifests/00000001.json"]
    assert store.list("data/a/0") == store.list("none") == []


def test_a_file_is_made_once_and_is_gone_if_its_block_raises(store: Store) -> None:
    put(store, "file", b"first")
    with pytest.raises(FileExistsError), store.create("file"):
        pass
    assert store.read("file") == b"first"
    with pytest.raises(ZeroDivisionError), store.create("other"):
        raise ZeroDivisionError
    assert store.list() == ["file"]


def test_a_file_that_cannot_be_flushed_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put(store, "file")
    assert store.list() == []


def test_writes_that_the_system_takes_in_pieces_are_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    put(store, "file", bytes(range(256)) * 100)
    assert store.read("file") == bytes(range(256)) * 100


def test_an_error_of_a_flush_in_the_middle_is_not_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(OSError, match="Input/output error"):
        put(store, "file", bytes(40 << 20))
    assert not failures
    assert store.list() == []
    put(store, "file", bytes(40 << 20))
    assert store.size("file") == 40 << 20


def test_a_file_is_flushed_when_it_is_made(store: Store, flushed: list[str]) -> None:
    put(store, "data/a/file")
    assert flushed == [f"{store.url}/data/a/file"]


def test_sealing_flushes_every_folder_below_and_all_above_up_to_the_root(store: Store, flushed: list[str]) -> None:
    put(store, "data/a/tables/item/part")
    put(store, "data/a/ids/item/part")
    put(store, "data/b/part")
    flushed.clear()
    store.seal("data/a")
    below = ("data/a", "data/a/tables", "data/a/tables/item", "data/a/ids", "data/a/ids/item")
    assert Counter(flushed) == Counter([store.url, *(f"{store.url}/{name}" for name in ("data", *below))])
    with pytest.raises(FileNotFoundError):
        store.seal("data/none")


def test_publishing_flushes_the_file_first_and_then_every_folder_above_the_name(
    store: Store, flushed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "data/a/manifest.json")
    link = os.link

    def note(source: Path, name: Path) -> None:
        flushed.append("link")
        link(source, name)

    monkeypatch.setattr(os, "link", note)
    flushed.clear()
    store.publish("data/a/manifest.json", "manifests/1")
    assert flushed == [f"{store.url}/data/a/manifest.json", "link", f"{store.url}/manifests", store.url]


def test_publishing_again_what_already_stands_is_done_and_another_is_refused(store: Store) -> None:
    for name in "ab":
        put(store, f"data/{name}/manifest.json", b"the same bytes")
    store.publish("data/a/manifest.json", "manifests/1")
    store.publish("data/a/manifest.json", "manifests/1")
    with pytest.raises(FileExistsError):
        store.publish("data/b/manifest.json", "manifests/1")
    with pytest.raises(FileNotFoundError):
        store.publish("data/c/manifest.json", "manifests/2")
    assert store.list("manifests") == ["manifests/1"]


def _publish_all(root: str, number: int, num_versions: int, start: Barrier, results: str) -> None:
    store = open_store(root, for_writing=False)
    won = []
    for version in range(num_versions):
        start.wait()
        try:
            store.publish(f"data/{number}/manifest.json", f"manifests/{version:08d}.json")
            won.append(version)
        except FileExistsError:
            pass
    Path(results).write_text(" ".join(map(str, won)))


def test_of_racing_processes_exactly_one_publishes_each_version(store: Store, tmp_path: Path) -> None:
    num_processes, num_versions = 3, 40
    for number in range(num_processes):
        put(store, f"data/{number}/manifest.json", b"%d" % number)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(num_processes)
    results = [tmp_path / f"won-{number}" for number in range(num_processes)]
    processes = [
        context.Process(target=_publish_all, args=(store.url, number, num_versions, start, str(results[number])))
        for number in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    won = {number: [int(version) for version in results[number].read_text().split()] for number in range(num_processes)}
    assert sorted(version for versions in won.values() for version in versions) == list(range(num_versions))
    for number, versions in won.items():
        assert all(store.read(f"manifests/{version:08d}.json") == b"%d" % number for version in versions)


def test_a_folder_set_aside_takes_its_manifest_with_it(store: Store) -> None:
    for name in ("data/a/manifest.json", "data/a/tables/1", "data/b/1"):
        put(store, name)
    aside = store.set_aside("data/a")
    assert aside.startswith(".aside-")
    assert aside.endswith("/data/a")
    assert store.list("data") == ["data/b/1"]
    assert store.list(aside) == [f"{aside}/manifest.json", f"{aside}/tables/1"]
    with pytest.raises(FileNotFoundError):
        store.publish("data/a/manifest.json", "manifests/1")
    store.put_back(aside, "data/a")
    store.publish("data/a/manifest.json", "manifests/1")
    assert store.list("data/a") == ["data/a/manifest.json", "data/a/tables/1"]
    store.delete_folder(store.set_aside("data/a"))
    assert store.list() == ["data/b/1", "manifests/1"]
    with pytest.raises(FileNotFoundError):
        store.set_aside("data/a")
    assert sorted(os.listdir(store.url)) == ["data", "manifests"]  # nothing aside is left


def test_what_is_missing_can_be_deleted(store: Store) -> None:
    put(store, "data/a/1")
    store.delete("data/a/none")
    store.delete("data/a/1")
    store.delete_folder("data/none")
    store.delete_folder("data/a")
    assert store.list() == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "a\\b", "a\0b"])
def test_names_that_leave_the_root_are_refused(store: Store, name: str) -> None:
    for ask in (store.read, store.size, store.map, store.delete, store.delete_folder, lambda name: put(store, name)):
        with pytest.raises(CheckpointError, match="does not stay inside"):
            ask(name)


def test_links_that_lead_out_of_the_root_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    put(store, "data/a/1")
    (Path(store.url) / "data/b").symlink_to(tmp_path / "outside")
    for ask in (store.read, store.map, store.delete, store.list, store.seal, lambda name: put(store, f"{name}2")):
        with pytest.raises(CheckpointError, match="leads out of .* through a link"):
            ask("data/b/file")
    with pytest.raises(CheckpointError, match="through a link"):
        store.publish("data/a/1", "data/b/new")
    store.delete_folder("data")
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_urls_and_paths_name_the_same_folder(tmp_path: Path) -> None:
    put(open_store(f"file://{tmp_path}/a%20b", for_writing=True), "file")
    assert open_store(str(tmp_path / "a b"), for_writing=False).list() == ["file"]
    with pytest.raises(CheckpointError, match="three slashes: file:///host"):
        open_store("file://host/x", for_writing=True)


def test_a_probe_leaves_nothing_and_readers_make_nothing(tmp_path: Path) -> None:
    open_store(tmp_path / "a", for_writing=True)
    assert os.listdir(tmp_path / "a") == []
    assert open_store(tmp_path / "b", for_writing=False).list() == []
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError) as raised:
        open_store(tmp_path / "file" / "x", for_writing=True)
    assert str(raised.value) == (
        f"checkpoint store {tmp_path}/file/x cannot make this folder (Not a directory): choose a folder that can be "
        "written, on a file system with hard links"
    )
    with pytest.raises(CheckpointError, match="cannot make a folder in it"):
        open_store("/proc/self", for_writing=True)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("link", "cannot give a file a second name (link) (Operation not permitted)"),
        ("fsync", "cannot write and flush a file (Operation not permitted)"),
        ("rename", "cannot rename a folder and flush its name (Operation not permitted)"),
        ("rmdir", "cannot delete a folder (Operation not permitted)"),
    ],
)
def test_a_file_system_that_lacks_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, told: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(CheckpointError) as raised:
        open_store(tmp_path, for_writing=True)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_system_that_gives_a_name_away_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(source: Path, name: Path) -> None:
        Path(name).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(os, "link", overwrite)
    with pytest.raises(CheckpointError, match="a name that exists was given away again"):
        PosixStore(tmp_path).probe()
    assert os.listdir(tmp_path) == []
