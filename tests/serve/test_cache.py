"""The user-vector cache in LMDB: what it gives back, what it forgets, and that nothing done to its file or to the other
processes fails a request."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import ConfigError, MachineError
from stack.serve import lmdb_cache as module
from stack.serve.cache import (
    CacheKind,
    NoCache,
    cache_key,
    open_cache,
    pack,
    unpack,
    written_at,
)
from stack.serve.lmdb_cache import MIN_BYTES, LmdbCache
from tests.clocks import Clock

YEAR = 1e9
DAY = 86_400.0
FLOATS = st.lists(st.floats(width=32), max_size=40)


@pytest.fixture
def clock() -> Clock:
    return Clock(YEAR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path, clock: Clock) -> Iterator[LmdbCache]:
    cache = LmdbCache(folder, MIN_BYTES, clock)
    yield cache
    cache.close()


def value_of(user: int, now: float = YEAR, num_floats: int = 256) -> bytes:
    return pack(np.full(num_floats, user, dtype=np.float32), b"%d" % user, now)


def counts(cache: LmdbCache | NoCache) -> tuple[int, int, int, int, int]:
    return cache.hits, cache.misses, cache.expired, cache.errors, cache.evicted


def data_file(folder: Path) -> Path:
    (file,) = folder.glob("*.lmdb")
    return file


@given(values=FLOATS, tasks=st.binary(max_size=50), now=st.floats(0, 1e12))
def test_a_packed_value_is_unpacked_bit_by_bit(values: list[float], tasks: bytes, now: float) -> None:
    vector_R = np.array(values, dtype=np.float32)
    value = pack(vector_R, tasks, now)
    entry = unpack(value)
    assert entry.vector_R.tobytes() == vector_R.tobytes()
    assert (entry.tasks, entry.written, entry.vector_R.dtype) == (tasks, now, np.float32)
    assert entry.vector_R.flags.writeable
    assert written_at(value) == now


@given(values=FLOATS, tasks=st.binary(max_size=50), position=st.integers(0), bit=st.integers(0, 7), cut=st.integers(1))
def test_a_value_with_a_changed_bit_or_a_missing_end_is_not_whole(
    values: list[float], tasks: bytes, position: int, bit: int, cut: int
) -> None:
    value = bytearray(pack(np.array(values, dtype=np.float32), tasks, YEAR))
    assert written_at(bytes(value[: -min(cut, len(value))])) is None
    value[position % len(value)] ^= 1 << bit
    assert written_at(bytes(value)) is None


@pytest.mark.parametrize("now", [-1.0, float("nan"), float("inf")])
def test_a_value_cannot_be_written_at_no_time(now: float) -> None:
    with pytest.raises(ValueError, match="epoch seconds are finite and not negative"):
        pack(np.zeros(1, dtype=np.float32), b"", now)


PARTS = st.tuples(st.text(max_size=8), st.text(max_size=8) | st.integers(), st.binary(max_size=8))


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_exactly_if_all_parts_are(one: tuple[str, str | int, bytes], other: tuple) -> None:
    assert (cache_key(*one) == cache_key(*other)) == (one == other)
    assert len(cache_key(*one)) == 16


def test_the_number_and_the_text_of_a_user_and_shifted_parts_have_keys_of_their_own() -> None:
    parts = [("g", 1, b""), ("g", "1", b""), ("g", "i1", b""), ("g", "", b"1"), ("g1", "", b""), ("", "g1", b"")]
    assert len({cache_key(*part) for part in parts}) == len(parts)
    assert cache_key("g" * 500, 1) != cache_key("g" * 501, 1)


def test_no_user_id_is_in_the_file(cache: LmdbCache, folder: Path) -> None:
    cache.put(cache_key("package-of-today", "anna@example.org", b"query-of-anna"), value_of(7))
    stored = data_file(folder).read_bytes()
    assert value_of(7)[-20:] in stored
    for text in (b"anna", b"query-of", b"package-of"):
        assert text not in stored


def test_a_value_is_a_hit_until_it_is_too_old(cache: LmdbCache, clock: Clock) -> None:
    key = cache_key("g", 1)
    assert cache.get(key, max_age_seconds=DAY) is None
    cache.put(key, value_of(1))
    clock.now += DAY
    assert cache.get(key, max_age_seconds=DAY) == value_of(1)
    assert counts(cache) == (1, 1, 0, 0, 0)
    clock.now += 1
    assert cache.get(key, max_age_seconds=DAY) is None
    assert cache.get(key, max_age_seconds=2 * DAY) == value_of(1)
    assert counts(cache) == (2, 2, 1, 0, 0)
    clock.now = YEAR - DAY - 1
    assert cache.get(key, max_age_seconds=DAY) is None
    assert counts(cache) == (2, 3, 2, 0, 0)


def test_another_generation_reaches_no_old_entry(cache: LmdbCache) -> None:
    cache.put(cache_key("package/3", 1), value_of(1))
    assert cache.get(cache_key("package/4", 1), max_age_seconds=DAY) is None


@settings(max_examples=30, deadline=None)
@given(puts=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9), st.integers(0, 700)), max_size=40))
def test_the_cache_is_a_dictionary_while_all_fits(
    puts: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = LmdbCache(tmp_path_factory.mktemp("c") / "cache", MIN_BYTES, Clock(YEAR))
    expected = {}
    for user, moment, num_floats in puts:
        expected[user] = value_of(user, YEAR + moment, num_floats)
        cache.put(cache_key("g", user), expected[user])
    for user in range(9):
        assert cache.get(cache_key("g", user), max_age_seconds=DAY) == expected.get(user)
    assert num_entries(cache) == (len(expected), len(expected))
    assert (cache.errors, cache.evicted) == (0, 0)
    cache.close()


def num_entries(cache: LmdbCache) -> tuple[int, int]:
    file = cache._file
    assert file is not None
    with file.env.begin() as txn:
        return txn.stat(file.values)["entries"], txn.stat(file.orders)["entries"]


@pytest.mark.parametrize("num_floats", [4, 256, 3_000])
def test_a_full_cache_forgets_the_oldest_and_takes_all_that_is_new(
    cache: LmdbCache, folder: Path, num_floats: int
) -> None:
    num_users = min(40_000, 4 * MIN_BYTES // (4 * num_floats))
    for user in range(num_users):
        cache.put(cache_key("g", user), value_of(user, YEAR + user / 1000, num_floats))
    assert cache.errors == 0
    assert cache.evicted > 0
    kept = num_users - cache.evicted
    assert num_entries(cache) == (kept, kept)
    num_bytes_of_keys = 70
    assert kept * (len(value_of(0, num_floats=num_floats)) + num_bytes_of_keys) > MIN_BYTES * 0.5
    present = [cache.get(cache_key("g", user), max_age_seconds=DAY) is not None for user in range(num_users)]
    assert present == [False] * cache.evicted + [True] * kept
    assert data_file(folder).stat().st_size == MIN_BYTES


def test_a_user_that_is_written_again_is_no_longer_the_oldest(cache: LmdbCache) -> None:
    cache.put(cache_key("g", "often"), value_of(1, YEAR))
    for user in range(3_000):
        cache.put(cache_key("g", user), value_of(user, YEAR + user))
        cache.put(cache_key("g", "often"), value_of(user, YEAR + user))
    assert cache.get(cache_key("g", "often"), max_age_seconds=DAY) == value_of(2_999, YEAR + 2_999)
    assert num_entries(cache)[0] == 3_001 - cache.evicted


def test_a_value_too_large_for_the_cache_is_skipped_and_counted(cache: LmdbCache) -> None:
    cache.put(b"k", value_of(1, num_floats=MIN_BYTES // 4))
    assert counts(cache) == (0, 0, 0, 1, 0)
    with pytest.raises(ValueError, match="3 bytes that `pack` did not make cannot be kept"):
        cache.put(b"k", b"abc")


def test_only_this_user_can_read_the_files(cache: LmdbCache, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 3


def test_what_was_put_is_there_after_a_restart_with_the_modes_mended(folder: Path, clock: Clock) -> None:
    first = LmdbCache(folder, MIN_BYTES, clock)
    first.put(b"k", value_of(1))
    first.close()
    data_file(folder).chmod(0o644)
    second = LmdbCache(folder, MIN_BYTES, clock)
    assert second.get(b"k", max_age_seconds=DAY) == value_of(1)
    assert stat.S_IMODE(data_file(folder).stat().st_mode) == 0o600
    second.close()


def test_a_cache_that_cannot_be_is_refused(folder: Path, cache: LmdbCache, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a cache of 4194303 bytes is too small: give it at least 4194304"):
        LmdbCache(folder, MIN_BYTES - 1)
    with pytest.raises(MachineError, match=r"cannot be opened \(.*already open in this process.*\): choose another"):
        LmdbCache(folder, MIN_BYTES)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    with pytest.raises(ConfigError, match=r"can be written by others \(mode 0770, owner .*\): chmod 700 .*/open, or"):
        LmdbCache(tmp_path / "open", MIN_BYTES)
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot be opened \(.*File exists"):
        LmdbCache(tmp_path / "file", MIN_BYTES)


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(MIN_BYTES))


def text(file: Path) -> None:
    file.write_bytes(b"not a cache")


def zeros(file: Path) -> None:
    file.write_bytes(b"\0" * MIN_BYTES)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    """Leaves the two first pages, which say where the others are."""
    with file.open("r+b") as opened:
        opened.seek(2 * 4096)
        opened.write(bytes(MIN_BYTES - 2 * 4096))


@pytest.mark.parametrize("harm", [garbage, text, zeros, cut, scribble])
def test_a_damaged_or_foreign_file_is_begun_anew_with_one_line(
    folder: Path, clock: Clock, capsys: pytest.CaptureFixture[str], harm: object
) -> None:
    first = LmdbCache(folder, MIN_BYTES, clock)
    first.put(b"k", value_of(1))
    first.close()
    assert callable(harm)
    harm(data_file(folder))
    second = LmdbCache(folder, MIN_BYTES, clock)
    said = capsys.readouterr().out
    assert re.fullmatch(rf"the cache {folder}/users-v1-\w+\.lmdb is begun anew: .*\n", said)
    assert second.get(b"k", max_age_seconds=DAY) is None
    second.put(b"k", value_of(2))
    assert second.get(b"k", max_age_seconds=DAY) == value_of(2)
    assert second.errors == 0
    second.close()


def test_a_file_of_another_limit_or_boot_is_begun_anew(
    folder: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for max_bytes in (MIN_BYTES, 2 * MIN_BYTES):
        LmdbCache(folder, max_bytes, clock).close()
    assert "it has 4194304 bytes in place of 8388608\n" in capsys.readouterr().out
    (tmp_path / "boot").write_text("0badb007-0000\n")
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "boot")
    LmdbCache(folder, MIN_BYTES, clock).close()
    assert "is begun anew: it is from before the last start of this machine\n" in capsys.readouterr().out
    assert data_file(folder).name == "users-v1-0badb007.lmdb"
    assert len(list(folder.iterdir())) == 3


def test_without_a_boot_id_commits_are_flushed(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flushed() -> bool:
        cache = LmdbCache(folder, MIN_BYTES)
        assert cache._file is not None
        flags = cache._file.env.flags()
        cache.close()
        assert flags["sync"] == flags["metasync"]
        return flags["sync"]

    assert not flushed()
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "none")
    assert flushed()


def test_a_file_damaged_under_a_running_server_is_begun_anew(
    cache: LmdbCache, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.put(b"k", value_of(1))
    scribble(data_file(folder))
    assert cache.get(b"k", max_age_seconds=DAY) is None
    assert "is begun anew: " in capsys.readouterr().out
    cache.put(b"k", value_of(2))
    assert cache.get(b"k", max_age_seconds=DAY) == value_of(2)
    assert counts(cache) == (1, 1, 0, 1, 0)


def test_a_damaged_value_is_a_miss_and_an_error(cache: LmdbCache) -> None:
    file = cache._file
    assert file is not None
    with file.env.begin(write=True) as txn:
        txn.put(b"k", b"01234567", db=file.orders)
        txn.put(b"01234567k", value_of(1)[:-1], db=file.values)
    assert cache.get(b"k", max_age_seconds=DAY) is None
    assert counts(cache) == (0, 1, 0, 1, 0)


def test_a_folder_that_was_deleted_is_made_again_within_ten_seconds(
    cache: LmdbCache, folder: Path, clock: Clock
) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    cache.put(b"k", value_of(1))
    clock.now += 10
    cache.put(b"k", value_of(2))
    assert cache.get(b"k", max_age_seconds=DAY) == value_of(2)
    assert data_file(folder).exists()
    assert cache.errors == 0


def test_a_folder_that_cannot_be_made_again_costs_the_cache_not_the_request(
    cache: LmdbCache, folder: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.rename(folder.with_name("away"))
    folder.touch()
    for _ in range(2):
        clock.now += 10
        cache.put(b"k", value_of(1))
        assert cache.get(b"k", max_age_seconds=DAY) is None
        assert "no user vectors are kept for now: the cache" in capsys.readouterr().out
    assert counts(cache) == (0, 2, 0, 4, 0)
    folder.unlink()
    clock.now += 10
    cache.put(b"k", value_of(1, clock.now))
    assert cache.get(b"k", max_age_seconds=DAY) == value_of(1, clock.now)


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from stack.serve.cache import cache_key, pack, unpack
from stack.serve.lmdb_cache import LmdbCache, MIN_BYTES
cache = LmdbCache(Path(sys.argv[1]), MIN_BYTES)
random = np.random.default_rng(int(sys.argv[2]))
def once(user):
    key = cache_key("g", user)
    value = cache.get(key, max_age_seconds=3600)
    if value is None:
        cache.put(key, pack(np.full(256, user, dtype=np.float32), b"%d" % user, time.time()))
    else:
        entry = unpack(value)
        assert (entry.vector_R == user).all() and entry.tasks == b"%d" % user, user
"""
BUSY = """
for step in range(int(sys.argv[3])):
    if step == 100:
        print("ready", flush=True)
    once(int(random.integers(0, 5_000)))
print(cache.hits, cache.misses, cache.expired, cache.errors, cache.evicted)
"""
READS_LONG = """
once(0)
with cache._file.env.begin() as txn:
    txn.get(b"k")
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def worker(folder: Path, what: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process with the cache open."""
    command = [sys.executable, "-c", WORKER + what, str(folder), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != "ready\n":
                raise AssertionError(process.stderr.read())
            yield process
        finally:
            process.kill()


def test_processes_share_the_cache_and_go_on_when_one_is_killed(folder: Path) -> None:
    with worker(folder, BUSY, 1, 15_000) as one, worker(folder, BUSY, 2, 15_000) as other:
        for seed in (3, 4, 5):
            with worker(folder, BUSY, seed, 10**9) as victim:
                time.sleep(0.1)
                assert victim.poll() is None
        for process in (one, other):
            out, errors = process.communicate(timeout=120)
            assert errors == ""
            hits, misses, expired, failed, evicted = map(int, out.split())
            assert hits + misses == 15_000
            assert expired == 0
            assert failed < misses / 2  # puts while a process is held up inside a get
            assert hits > 2_000
            assert evicted > 1_000
    with worker(folder, BUSY, 4, 3_000) as later:
        out, errors = later.communicate(timeout=120)
        assert errors == ""
        hits, misses, expired, failed, evicted = map(int, out.split())
        assert (hits + misses, expired, failed) == (3_000, 0, 0)
        assert hits > 0
        assert evicted > 0


def test_a_reader_that_was_killed_does_not_hold_pages_for_ever(cache: LmdbCache, folder: Path) -> None:
    with worker(folder, READS_LONG, 1) as reader:
        reader.kill()
        reader.wait()
    for user in range(3_000):
        cache.put(cache_key("g", user), value_of(user, YEAR + user / 1000))
    assert cache.errors == 0
    assert cache.get(cache_key("g", 2_999), max_age_seconds=DAY) is not None
    file = cache._file
    assert file is not None
    assert file.env.reader_check() == 0


def test_killed_readers_are_looked_for_every_ten_seconds(cache: LmdbCache, folder: Path, clock: Clock) -> None:
    file = cache._file
    assert file is not None
    with worker(folder, READS_LONG, 1) as reader:
        reader.kill()
        reader.wait()
        killed = str(reader.pid)
    assert killed in file.env.readers()
    cache.put(b"k", value_of(1))
    assert killed in file.env.readers()
    clock.now += 10
    cache.put(b"k", value_of(1))
    assert killed not in file.env.readers()


def test_puts_are_skipped_while_a_living_reader_holds_the_pages_and_work_afterwards(
    cache: LmdbCache, folder: Path
) -> None:
    with worker(folder, READS_LONG, 1) as reader:
        reader.send_signal(signal.SIGSTOP)
        for user in range(3_000):
            cache.put(cache_key("g", user), value_of(user, YEAR + user / 1000))
        assert cache.errors > 0
        cache.get(cache_key("g", 0), max_age_seconds=DAY)
        reader.kill()
        reader.wait()
    skipped = cache.errors
    for user in range(3_000, 6_000):
        cache.put(cache_key("g", user), value_of(user, YEAR + user / 1000))
    assert cache.errors == skipped
    assert cache.get(cache_key("g", 5_999), max_age_seconds=DAY) is not None


def test_processes_that_open_a_damaged_file_at_once_agree_on_one_new_one(folder: Path) -> None:
    LmdbCache(folder, MIN_BYTES).close()
    garbage(data_file(folder))
    command = [sys.executable, "-c", WORKER + "print(cache._file.inode, flush=True)", str(folder), "1"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(process.communicate(timeout=60)[0] for process in workers)
    assert said.count("is begun anew") == 1
    assert len(set(re.findall(r"^\d+$", said, re.MULTILINE))) == 1


def test_a_process_follows_to_the_file_that_another_began(cache: LmdbCache, folder: Path, clock: Clock) -> None:
    cache.put(b"k", value_of(1))
    for file in (data_file(folder), data_file(folder).with_suffix(".lmdb-lock")):
        file.unlink()
    with worker(folder, READS_LONG, 1):
        pass
    clock.now += 10
    cache.put(cache_key("g", 1), value_of(1))
    assert cache.get(b"k", max_age_seconds=DAY) is None
    assert num_entries(cache)[0] == 2
    assert cache.errors == 0


def test_each_kind_of_cache_is_opened_or_tells_what_it_needs(folder: Path) -> None:
    nothing = open_cache(CacheKind.none)
    nothing.put(b"k", value_of(1))
    assert nothing.get(b"k", max_age_seconds=DAY) is None
    assert isinstance(nothing, NoCache)
    assert counts(nothing) == (0, 0, 0, 0, 0)
    nothing.close()
    lmdb = open_cache(CacheKind.lmdb, folder=folder, max_bytes=MIN_BYTES)
    assert isinstance(lmdb, LmdbCache)
    lmdb.put(b"k", value_of(1, time.time()))
    assert lmdb.get(b"k", max_age_seconds=DAY) is not None
    lmdb.close()
    with pytest.raises(ConfigError, match="the cache 'lmdb' needs a folder of its own: name one, or choose"):
        open_cache(CacheKind.lmdb)
    with pytest.raises(ConfigError, match="the URL of the cache 'redis' is not one: write redis://"):
        open_cache(CacheKind.redis)


def test_the_modules_of_the_caches_load_neither_torch_nor_redis_nor_cryptography() -> None:
    loaded = (
        "import sys, stack.serve.lmdb_cache, stack.serve.redis_cache, stack.serve.tokens, stack.export.sign; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'redis', 'cryptography'}))"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"
