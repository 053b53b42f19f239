"""Writers that meet, sleep or are overtaken; readers beside pruning; clocks that jump."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from stack.base.errors import CheckpointError
from stack.checkpoint import leases, save
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import Lease, drop_expired, held, reading, write_lease
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.posix_store import PosixStore
from stack.checkpoint.retain import prune
from stack.checkpoint.save import ChainWriter
from stack.checkpoint.tensors import TensorFile
from stack.checkpoint.verify import verify
from tests.checkpoint.chains import DELTAS, Meeting, Toy, check, together
from tests.checkpoint.fault_worker import KEEP, LATER_SECONDS, facts_of, save_day, toy_before

NUM_ROUNDS = 20
DAY_SECONDS = 86_400.0


class Meets(PosixStore):
    """Whoever publishes a version waits until all are about to."""

    def __init__(self, root: Path, barrier: threading.Barrier) -> None:
        super().__init__(root)
        self._barrier = barrier

    def publish(self, source: str, name: str) -> None:
        if name.startswith("manifests/"):
            self._barrier.wait()
        super().publish(source, name)


@pytest.mark.parametrize("num_writers", [2, 6])
def test_of_writers_of_the_same_version_exactly_one_commits(tmp_path: Path, num_writers: int) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    toy = Toy(seed=3, tables={"item": (8, 2)})
    toy.save(chain)
    for number in range(2, NUM_ROUNDS + 2):
        barrier = threading.Barrier(num_writers, timeout=60)
        toys = [toy.copy() for _ in range(num_writers)]
        for writer, own in enumerate(toys):
            own.touch("item", [writer])
        results = together(
            num_writers, lambda writer, toys=toys, barrier=barrier: toys[writer].save(Chain(Meets(tmp_path, barrier)))
        )  # fmt: skip
        won = [writer for writer, result in enumerate(results) if not isinstance(result, Exception)]
        assert len(won) == 1, results
        for writer in set(range(num_writers)) - set(won):
            assert isinstance(results[writer], CheckpointError)
            assert f"another job has committed version {number} meanwhile" in str(results[writer])
        toy = toys[won[0]]
        assert chain.numbers() == tuple(range(1, number + 1))
        check(chain, chain.manifest(number), toy)
    assert not verify(chain).findings  # who lost has taken its files away


def _writer(chain: Chain, day: int, **options: float) -> Callable[[], object]:
    """A job that has read which version is the newest, and saves when it is called."""
    toy = toy_before(chain, day)
    writer = ChainWriter(
        chain, options=replace(DELTAS, **options), parent=toy.parent, clocks=dict.fromkeys(toy.keys, toy.saved_clock)
    )  # fmt: skip

    def write() -> object:
        writer.save(toy._state(0, 1, {}), facts_of(toy, day))
        return writer.wait()

    return write


def test_a_writer_that_slept_while_others_committed_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    stale = _writer(chain, 2)
    for day in (2, 3):
        save_day(chain, day)
    before = chain.store.list()
    with pytest.raises(
        CheckpointError, match="another job has committed version 2 meanwhile: only one can train a run"
    ):
        stale()
    assert chain.store.list() == before
    check(chain, chain.manifest(3), toy_before(chain, 3))


@pytest.mark.parametrize("late", [0, 1])
def test_a_version_that_came_while_the_parent_was_read_is_noticed_by_all_processes(tmp_path: Path, late: int) -> None:
    """The number was counted when the writer was made: one more version would have forked the chain, unseen."""
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    toy = toy_before(chain, 2)
    save_day(chain, 2)
    meeting = Meeting(2)
    results = together(
        2,
        lambda rank: ChainWriter(
            chain, options=DELTAS, crew=meeting.crew(rank), parent=toy.parent, newest=1 if rank == late else 2
        ),
    )
    for result in results:
        assert isinstance(result, CheckpointError)
        assert "another job has committed version 2 while this one read what it builds on" in str(result)


class Sleeps(PosixStore):
    """Falls asleep before something is made or published; meanwhile something happens."""

    def __init__(self, root: Path, *, at: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self._at = at
        self._meanwhile = meanwhile

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        self._sleep(name)
        return super().create(name)

    def publish(self, source: str, name: str) -> None:
        self._sleep(name)
        super().publish(source, name)

    def _sleep(self, name: str) -> None:
        if self._at in name:
            self._at = "\0"
            self._meanwhile()


@pytest.mark.parametrize("at", ["dense", "loop.json", "said/rank-00000.json.part", "/manifest.json", "manifests/"])
@pytest.mark.parametrize("overtaken", [True, False])
def test_a_writer_whose_files_were_swept_while_it_slept_is_refused(tmp_path: Path, at: str, overtaken: bool) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    of_first = set(chain.store.list("data"))

    def meanwhile() -> None:
        deadline = time.monotonic() + 60.0
        while set(chain.store.list("data")) <= of_first:  # what "dense" is written beside may not have begun
            assert time.monotonic() < deadline
        swept = prune(chain, CheckpointConfig(), clock=lambda: time.time() + LATER_SECONDS)
        assert len(swept.abandoned) == 1
        if overtaken:
            save_day(chain, 2)

    stale = _writer(Chain(Sleeps(tmp_path, at=at, meanwhile=meanwhile)), 2)
    with pytest.raises(CheckpointError, match="the version of step 2 was not written"):
        stale()
    assert chain.numbers() == ((1, 2) if overtaken else (1,))
    save_day(chain, 2)
    check(chain, chain.manifest(2), toy_before(chain, 2))
    prune(chain, CheckpointConfig(), clock=lambda: time.time() + LATER_SECONDS)
    assert not verify(chain).findings


class CannotRenew(Sleeps):
    """Takes the lease that begins a save and that which begins its writing, and no other."""

    num_leases = 0

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        if name.startswith("leases/"):
            self.num_leases += 1
            if self.num_leases > 2:
                raise OSError(errno.EIO, "no")
        return super().create(name)


def test_a_writer_whose_lease_ran_out_does_not_publish(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    store = CannotRenew(tmp_path, at="/manifest.json", meanwhile=lambda: time.sleep(0.5))
    with pytest.raises(CheckpointError, match=r"a lease of 0\.2 s ran out"):
        _writer(Chain(store), 2, lease_seconds=0.2)()
    assert chain.numbers() == (1,)


def test_a_writer_that_takes_longer_than_its_lease_renews_it(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    store = Sleeps(tmp_path, at="/manifest.json", meanwhile=lambda: time.sleep(2.0))
    _writer(Chain(store), 2, lease_seconds=1.0)()
    assert chain.numbers() == (1, 2)
    assert not list((tmp_path / "leases").iterdir())


def _read_all(chain: Chain, number: int) -> str:
    return open_version(chain, chain.manifest(number)).digest()


def test_a_reader_with_a_lease_reads_on_while_its_version_is_pruned(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    for day in range(1, 6):
        save_day(chain, day, options=replace(DELTAS, max_deltas=1, asynchronous=False))
    wanted = _read_all(chain, 2)
    with reading(chain.store, 2, seconds=60):
        opened = open_version(chain, chain.manifest(2))
        prune(chain, KEEP)
        assert opened.digest() == wanted
        opened.verify()
    prune(chain, KEEP)
    with pytest.raises(CheckpointError, match="version 2, whose files were pruned"):
        open_version(chain, chain.manifest(2))


def open_version_without_looking(chain: Chain, opened: Checkpoint) -> Checkpoint:
    """Knows what it would read, and has read nothing."""
    return Checkpoint(store=chain.store, manifest=opened.manifest, layers=opened.layers)


def test_what_a_reader_without_a_lease_has_open_survives_and_what_it_has_not_is_named(tmp_path: Path) -> None:
    """Open maps live as long as who has them."""
    chain = chain_of(tmp_path, for_writing=True)
    for day in range(1, 4):
        save_day(chain, day, options=replace(DELTAS, max_deltas=0, asynchronous=False))
    opened = open_version(chain, chain.manifest(1))
    before = opened.table_rows("item", 0, 12)
    (part,) = opened.manifest.tables["item"].parts
    file = TensorFile(chain.store, f"data/{opened.manifest.data}/{part.file}")
    prune(chain, KEEP)
    assert before.weight_ND.equal(file.take("weight", torch.arange(12)))
    assert before.weight_ND.equal(file.all()["weight"])
    for read in (opened.verify, opened.dense, opened.optimizer, opened.loop):
        with pytest.raises(CheckpointError, match=f"{opened.manifest.data}/.* is missing"):
            read()
    with pytest.raises(CheckpointError, match=f"{opened.manifest.data}/.* is missing: its version was pruned while"):
        open_version_without_looking(chain, opened).table_rows("item", 0, 12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how many seconds the clock of this machine is wrong; it can be set."""
    wrong = [0.0]
    right = time.time

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=wrong[0])

    monkeypatch.setattr(save, "datetime", Wrong)
    for function in (write_lease, held, drop_expired, prune):
        monkeypatch.setitem(function.__kwdefaults__, "clock", lambda: right() + wrong[0])
    return wrong


def test_the_order_of_versions_is_their_count_wherever_the_clock_stands(tmp_path: Path, clock: list[float]) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    for day, hours in enumerate((0, -24, 24, -48, 0), start=1):
        clock[0] = hours * 3600.0
        save_day(chain, day)
        head = chain.head()
        assert head is not None
        assert head.version == day
        assert abs(datetime.fromisoformat(head.created) - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(0, 60)
        check(chain, head, toy_before(chain, day))
        prune(chain, CheckpointConfig())
    created = [chain.manifest(number).created for number in chain.numbers()]
    assert created != sorted(created)
    assert chain.find("2017-11-03").version == 3
    assert chain.pruned() == ()
    assert not verify(chain).findings


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_jumps_decides_how_long_files_stay_and_never_what_is_published(
    tmp_path: Path, clock: list[float], hours: int
) -> None:
    """Forward, leases of the living end early: who is swept is refused, and who reads is told. Back, those of the dead
    end late."""
    chain = chain_of(tmp_path, for_writing=True)
    for day in (1, 2):
        save_day(chain, day, options=replace(DELTAS, max_deltas=0, asynchronous=False))
    write_lease(chain.store, Lease(version=1, seconds=60))  # of a reader
    swept: list[str] = []

    def meanwhile() -> None:
        clock[0] = hours * 3600.0
        swept.extend(prune(chain, KEEP).abandoned)

    writer = _writer(Chain(Sleeps(tmp_path, at="loop.json", meanwhile=meanwhile)), 3)
    if hours > 0:
        with pytest.raises(CheckpointError, match="was not written"):
            writer()
        assert len(swept) == 1
        assert chain.pruned() == (1,)
    else:
        writer()
        assert swept == []
        assert chain.pruned() == ()
        assert chain.numbers() == (1, 2, 3)
    clock[0] = 0.0
    save_day(chain, 3)
    check(chain, chain.manifest(3), toy_before(chain, 3))
    prune(chain, KEEP, clock=lambda: time.time() + 3 * DAY_SECONDS)
    assert not verify(chain).findings


def test_a_lease_that_was_not_written_to_its_end_goes_when_it_would_have_ended(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, for_writing=True)
    save_day(chain, 1)
    lease = Lease(version=1, seconds=60)
    write_lease(chain.store, lease)
    (path,) = (tmp_path / name for name in lease.written)
    path.write_bytes(path.read_bytes()[:5])
    assert held(chain.store) == []
    drop_expired(chain.store)
    assert path.exists()
    drop_expired(chain.store, clock=lambda: time.time() + 70)
    assert not path.exists()


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    with leases.holding(store, Lease(version=4, seconds=0.3)) as lease:
        for _ in range(10):
            time.sleep(0.1)
            assert {one.version for one in held(store)} == {4}
            lease.check()
        assert len(store.list("leases")) <= 2
    assert store.list("leases") == []
