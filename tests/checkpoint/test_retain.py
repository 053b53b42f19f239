"""Retention: what policies keep, that nothing reachable is deleted, and what a sweep finds."""

from __future__ import annotations

import itertools
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import Lease, reading, write_lease
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import data_folder
from stack.checkpoint.nodes import Node
from stack.checkpoint.posix_store import PosixStore
from stack.checkpoint.retain import Retention, by_policy, plan_prune, prune
from tests.checkpoint.chains import DELTAS, Toy, check, random_chain

KEEP = CheckpointConfig(keep_last=1, keep_days=1)
ALL_WHOLE = replace(DELTAS, max_deltas=0)


def nodes(complete: str, parents: dict[int, int] | None = None) -> dict[int, Node]:
    """Versions from 1, 'c' for those that are complete; each builds on the one before, or as `parents` says."""
    return {
        number: Node(
            version=number, parent=(parents or {}).get(number, number - 1) or None, complete=kind == "c",
            data=f"folder-{number}", num_bytes=1, tables=frozenset({"item"}), whole=frozenset(),
        )
        for number, kind in enumerate(complete, start=1)
    }  # fmt: skip


def folders(chain: Chain) -> set[str]:
    return {name.split("/")[1] for name in chain.store.list("data")}


def data_of(chain: Chain, *numbers: int) -> set[str]:
    return {chain.manifest(number).data for number in numbers}


def whole_chain(folder: Path, kinds: str) -> tuple[Chain, Toy]:
    """A chain of bases, 'c' for those that are complete."""
    chain = chain_of(folder, for_writing=True)
    toy = Toy(tables={"item": (5, 2)})
    for number, kind in enumerate(kinds, start=1):
        toy.train()
        toy.save(chain, options=ALL_WHOLE, complete=kind == "c", day=f"2017-11-{number:02d}")
    return chain, toy


@pytest.mark.parametrize(
    ("kinds", "options", "kept"),
    [
        ("m", {}, {1}),
        ("mmmmm", {"keep_last": 2}, {4, 5}),
        ("mmcmmc", {"keep_last": 1}, {3, 5, 6}),
        ("mmcmmc", {"keep_last": 9}, {3, 4, 5, 6}),
        ("mmcmmcm", {"keep_last": 9}, {3, 6, 7}),
        ("mmccc", {"keep_last": 9, "keep_days": 1}, {5}),
        ("cccc", {}, {1, 2, 3, 4}),
        ("cccc", {"keep_days": 2}, {3, 4}),
        ("ccccm", {"keep_days": 1, "keep_last": 1}, {4, 5}),
        ("c" * 30, {"keep_days": 2, "keep_weekly": 2}, {29, 30, 28, 21}),
        ("c" * 30, {"keep_days": 3, "keep_weekly": 9}, {28, 29, 30, 21, 14, 7}),
        ("c" * 31, {"keep_days": 2, "keep_weekly": 2}, {30, 31, 28, 21}),
    ],
)
def test_policies_keep_the_newest_of_each_kind_and_each_seventh(
    kinds: str, options: dict[str, int], kept: set[int]
) -> None:
    assert set(by_policy(nodes(kinds), CheckpointConfig(**options))) == kept


def test_a_day_trained_anew_counts_once_and_what_it_replaced_is_no_older_for_it() -> None:
    """Days 1, 2, 3, then 2 and 3 anew."""
    known = nodes("ccccc", {4: 1})
    assert set(by_policy(known, CheckpointConfig(keep_days=3))) == {1, 3, 4, 5}
    assert by_policy(known, CheckpointConfig(keep_days=3))[5] == "the newest"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    compacted=st.sets(st.integers(1, 6), max_size=2),
    keep_last=st.integers(1, 3),
    keep_days=st.none() | st.integers(1, 3),
    read=st.none() | st.integers(1, 6),
)
def test_what_is_kept_reads_as_before_and_nothing_else_stays(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    compacted: set[int],
    keep_last: int,
    keep_days: int | None,
    read: int | None,
) -> None:
    chain, said = random_chain(tmp_path_factory.mktemp("chain"), seed=seed)
    opened = None if read is None else open_version(chain, chain.manifest(read))
    for number in compacted:
        compact(chain, chain.manifest(number))
    lease = Lease(version=read, seconds=60)
    if read is not None:
        write_lease(chain.store, lease)
    options = CheckpointConfig(keep_last=keep_last, keep_days=keep_days)
    planned = plan_prune(chain, options)
    assert prune(chain, options, dry_run=True) == planned
    before = sum(chain.store.size(name) for name in chain.store.list("data"))
    done = prune(chain, options)
    assert done == planned
    assert chain.numbers() == tuple(said)
    assert chain.pruned() == done.goes
    assert set(done.kept) | set(done.goes) == set(said)
    assert 6 in done.kept
    for number in said:
        if number in done.kept:
            check(chain, chain.manifest(number), said[number])
            open_version(chain, chain.manifest(number)).verify()
        else:
            with pytest.raises(CheckpointError, match="files were pruned"):
                open_version(chain, chain.manifest(number))
    if opened is not None:
        opened.verify()  # also where a compaction came after it was opened
    left = data_of(chain, *done.kept) | {
        base.data for n in chain.compacted() if (base := chain.base(chain.manifest(n)))
    }
    assert folders(chain) == left
    manifests = (len(done.folders) + len(done.abandoned)) * 100_000  # sizes of manifests are not in the figure
    freed = before - sum(chain.store.size(name) for name in chain.store.list("data"))
    assert done.num_bytes <= freed <= done.num_bytes + manifests
    again = prune(chain, options)
    assert (again.goes, again.folders, again.num_bytes) == ((), {}, 0)
    lease.release(chain.store)
    prune(chain, options)
    assert 6 not in chain.pruned()


def test_a_compaction_lets_the_versions_below_it_go(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (20, 2)}, managed={"user": (9, 2)})
    for _ in range(5):
        toy.train()
        head = toy.save(chain)
    assert prune(chain, KEEP).goes == ()
    assert prune(chain, KEEP).kept == {
        5: "the newest", **dict.fromkeys((1, 2, 3, 4), "version 5 builds on it"),
    }  # fmt: skip
    compact(chain, chain.manifest(4))
    assert prune(chain, KEEP).goes == (1, 2, 3, 4)
    check(chain, head, toy)
    toy.train()
    head = toy.save(chain)
    check(chain, head, toy)
    compact(chain, head)
    done = prune(chain, KEEP)
    assert (done.goes, done.compactions) == ((5,), (4,))
    assert chain.compacted() == (6,)
    check(chain, head, toy)


def test_the_newest_is_never_pruned_and_dry_run_changes_nothing(tmp_path: Path) -> None:
    chain, toy = whole_chain(tmp_path, "cmcm")
    before = chain.store.list()
    planned = prune(chain, KEEP, dry_run=True)
    assert planned.goes == (1, 2)
    assert chain.store.list() == before
    prune(chain, KEEP)
    assert folders(chain) == data_of(chain, 3, 4)
    check(chain, chain.manifest(4), toy)


def test_a_reader_keeps_its_version_until_its_lease_ends(tmp_path: Path) -> None:
    chain, _ = whole_chain(tmp_path, "ccc")
    with reading(chain.store, 1, seconds=60):
        done = prune(chain, KEEP)
        assert done.kept == {1: "somebody reads it", 3: "the newest"}
        open_version(chain, chain.manifest(1)).verify()
    assert prune(chain, KEEP).goes == (1,)


def test_a_lease_that_ended_protects_nobody_and_is_removed(tmp_path: Path) -> None:
    chain, _ = whole_chain(tmp_path, "ccc")
    write_lease(chain.store, Lease(version=1, seconds=60), clock=lambda: 0.0)
    assert prune(chain, KEEP).goes == (1, 2)
    assert chain.store.list("leases") == []


class Interrupting(PosixStore):
    """Lets something happen right after the first mark is published."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.then = lambda: None

    def publish(self, source: str, name: str) -> None:
        super().publish(source, name)
        if name.startswith("pruned/"):
            self.then()


def test_who_took_a_version_just_before_it_was_marked_keeps_its_files(tmp_path: Path) -> None:
    """The reader's lease comes after pruning looked, before the mark: the mark stays, the files wait for the reader."""
    whole_chain(tmp_path, "ccc")
    store = Interrupting(tmp_path)
    chain = Chain(store)
    opened = open_version(chain, chain.manifest(1))
    lease = Lease(version=1, seconds=60)
    store.then = lambda: None if lease.written else write_lease(store, lease)
    prune(chain, KEEP)
    assert chain.pruned() == (1, 2)
    assert folders(chain) == data_of(chain, 1, 3)
    opened.verify()
    with pytest.raises(CheckpointError, match="version 1, whose files were pruned"):
        open_version(chain, chain.manifest(1))
    assert prune(chain, KEEP).waiting == (1,)
    lease.release(store)
    prune(chain, KEEP)
    assert folders(chain) == data_of(chain, 3)


def test_a_version_published_on_a_marked_one_can_be_read(tmp_path: Path) -> None:
    """The mark came between the lease of who built on it, and what he published."""
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (5, 2)})
    toy.save(chain)
    early = toy.copy()
    for _ in range(2):
        toy.train()
        toy.save(chain, options=ALL_WHOLE)
    early.train()
    with reading(chain.store, 1, seconds=60):
        saved = early.save(chain, options=DELTAS)
        chain.store.publish("manifests/00000001.json", "pruned/00000001.json")
    done = prune(chain, KEEP)
    assert done.waiting == (1,)
    assert saved.parent is not None
    open_version(chain, saved).verify()
    check(chain, saved, early)


def test_folders_of_dead_writers_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    chain, _ = whole_chain(tmp_path, "cc")
    for name in ("dead", "alive"):
        with chain.store.create(f"data/{name}/tables/item/part-00000-0.safetensors") as file:
            file.write(b"1" * 100)
    write_lease(chain.store, Lease(data="alive", seconds=60))
    done = prune(chain, CheckpointConfig())
    assert (done.abandoned, done.num_bytes) == (("dead",), 100)
    assert folders(chain) == data_of(chain, 1, 2) | {"alive"}


class Late(PosixStore):
    """A writer whose lease has ended publishes just before its folder is set aside, or just after."""

    def __init__(self, root: Path, *, before: bool) -> None:
        super().__init__(root)
        self.before = before
        self.refused = False

    def set_aside(self, folder: str) -> str:
        if self.before:
            super().publish(f"{folder}/manifest.json", "manifests/00000003.json")
            return super().set_aside(folder)
        aside = super().set_aside(folder)
        with pytest.raises(FileNotFoundError):
            super().publish(f"{folder}/manifest.json", "manifests/00000003.json")
        self.refused = True
        return aside


@pytest.mark.parametrize("before", [True, False])
def test_a_late_writer_is_out_whole_or_refused(tmp_path: Path, before: bool) -> None:
    chain, toy = whole_chain(tmp_path, "ccc")
    third = chain.manifest(3)
    (tmp_path / "manifests/00000003.json").unlink()  # as it was just before it was published
    store = Late(tmp_path, before=before)
    done = prune(Chain(store), CheckpointConfig())
    assert done.abandoned == (third.data,)
    assert store.refused is not before
    if before:
        assert chain.numbers() == (1, 2, 3)
        check(chain, third, toy)
        open_version(chain, third).verify()
    assert folders(chain) == data_of(chain, *chain.numbers())
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".aside")]


@pytest.mark.parametrize("named", [True, False])
def test_a_sweep_that_was_killed_is_finished(tmp_path: Path, named: bool) -> None:
    chain, toy = whole_chain(tmp_path, "ccc")
    chain.store.set_aside(data_folder(chain.manifest(3).data))
    if not named:
        (tmp_path / "manifests/00000003.json").unlink()
    prune(chain, CheckpointConfig())
    if named:
        check(chain, chain.manifest(3), toy)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".aside")]


def test_pruning_that_fails_anywhere_is_finished_by_the_next_one(tmp_path: Path) -> None:
    chain, toy = whole_chain(tmp_path / "chain", "mcmcm")
    toy.train()
    compact(chain, toy.save(chain, complete=False))
    (tmp_path / "chain/data/dead").mkdir()
    (tmp_path / "chain/data/dead/file").write_bytes(b"1")
    for call in itertools.count(1):
        folder = tmp_path / str(call)
        shutil.copytree(tmp_path / "chain", folder)
        store = Failing(folder, at=call)
        chain = chain_of(folder)
        try:
            prune(Chain(store), KEEP)
        except OSError:
            assert store.failed
        for number in chain.numbers():
            if number not in chain.pruned():
                open_version(chain, chain.manifest(number)).verify()
        prune(chain, KEEP)
        assert folders(chain) == data_of(chain, 4, 6) | {chain.base(chain.manifest(6)).data}  # type: ignore[union-attr]
        check(chain, chain.manifest(6), toy)
        shutil.rmtree(folder)
        if not store.failed:
            break
    assert call > 20


class Failing(PosixStore):
    """Its `at`-th change fails, before it is made or after, by turns."""

    def __init__(self, root: Path, *, at: int) -> None:
        super().__init__(root)
        self._left = at // 2 + 1
        self._after = at % 2
        self.failed = False

    def _fails(self, after: int) -> None:
        self._left -= after == self._after
        if self._left == 0 and after == self._after and not self.failed:
            self.failed = True
            raise OSError(5, "Input/output error")

    def publish(self, source: str, name: str) -> None:
        self._fails(0)
        super().publish(source, name)
        self._fails(1)

    def delete(self, name: str) -> None:
        self._fails(0)
        super().delete(name)
        self._fails(1)

    def delete_folder(self, folder: str) -> None:
        self._fails(0)
        super().delete_folder(folder)
        self._fails(1)


def test_a_damaged_manifest_stops_pruning_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, toy = whole_chain(tmp_path, "ccc")
    path = tmp_path / "manifests/00000002.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="00000002.json is damaged"):
        prune(chain, KEEP)
    toy.train()
    toy.save(chain, after=Retention(chain, KEEP))
    assert "version 4 is out, but what comes after it failed: " in capsys.readouterr().out
    assert chain.pruned() == ()
    assert len(folders(chain)) == 4


def test_after_each_save_manifests_are_read_once_and_files_are_listed_only_where_something_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(tables={"item": (50, 2)})
    after = Retention(chain, replace(KEEP, keep_days=None, keep_last=2))
    listed: list[str] = []
    own = PosixStore.list
    monkeypatch.setattr(PosixStore, "list", lambda self, folder="": listed.append(folder) or own(self, folder))
    everywhere = []
    for number in range(6):
        toy.train()
        toy.save(chain, complete=False, options=ALL_WHOLE if number == 3 else DELTAS)
        listed.clear()
        after()
        everywhere.append("" in listed)
    assert everywhere == [True, False, False, False, True, False]
    assert chain.pruned() == (1, 2, 3)


def test_two_that_prune_at_once_do_not_meet(tmp_path: Path) -> None:
    chain, toy = whole_chain(tmp_path, "ccccccc")
    results: list[object] = []

    def one() -> None:
        try:
            results.append(prune(chain_of(tmp_path), KEEP))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [result for result in results if isinstance(result, Exception)]
    assert folders(chain) == data_of(chain, 7)
    check(chain, chain.manifest(7), toy)
