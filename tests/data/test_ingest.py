"""Ingest end to end on small logs: against a slow oracle, any chunking, killed, repeated, leakage, refusals."""

from __future__ import annotations

import fcntl
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.base.errors import DataError
from stack.data.days import day_name
from stack.data.engine import EngineName
from stack.data.ingest import ingest
from stack.data.ingest_config import IngestConfig
from stack.data.ingest_report import IngestReport
from tests.data.tiny_log import Rows, TinyConfig, write_log
from tests.data.tiny_oracle import DAY, timelines, vocabularies

FIRST = 17_000
HISTORY = 6


def items_of(num_items: int) -> Rows:
    rows: Rows = [
        {"item": f"i{k}", "since": 0, "brand": f"b{k % 4}", "category": f"c{k % 3}", "tags": [f"t{k % 4}", f"t{k % 5}"]}
        for k in range(num_items)
    ]
    rows.append({"item": "i1", "since": (FIRST + 1) * DAY + 500, "brand": "fresh", "category": "c0", "tags": ["z"]})
    return rows


def events_of(seed: int, num_days: int = 4, per_day: int = 25) -> Rows:
    rng = random.Random(seed)
    return [
        {
            "user": rng.randrange(10, 16), "item": f"i{rng.randrange(12)}", "time": day * DAY + rng.randrange(12) * 250,
            "shop": rng.choice(["s1", "s2", None]), "type": rng.choice(["buy", "view"]),
            "scenario": rng.choice(["plain", None]), "price": round(rng.uniform(1, 5), 2), "quantity": place + 1.0,
        }
        for day in range(FIRST, FIRST + num_days) for place in range(per_day)
    ]  # fmt: skip


ITEMS = items_of(12)
USERS: Rows = [{"user": 10, "since": 0, "age": "old"}, {"user": 11, "since": 0, "age": "young"}]


def run(log: Path, out: Path, *, engine: EngineName = EngineName.duckdb, **options: Any) -> IngestReport:
    days = {key: options.pop(key) for key in ("from_day", "to_day") if key in options}
    options = {"chunk_days": 31, "max_history": HISTORY, "num_buckets": 2, "num_threads": 1} | options
    config = IngestConfig(engine=engine, memory_limit_gib=1.0, **options)
    return ingest(TinyConfig(path=str(log), out=str(out), **days), config, now=(FIRST + 100) * DAY)


def read_day(out: Path, day: int) -> list[dict[str, Any]]:
    files = sorted((out / "days" / day_name(day)).glob("bucket-*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return sorted(rows, key=lambda row: row["user"])


def tree(out: Path) -> dict[str, bytes]:
    """Every file of the timelines and vocabularies but manifests (which know the code's version)."""
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.glob("days/*/*.parquet"))}


def words(out: Path, table: str) -> dict[object, int]:
    parts = [pq.read_table(file) for file in sorted((out / "vocab" / table).glob("*.parquet"))]
    return {row["raw"]: row["row"] for part in parts for row in part.to_pylist()}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    follow: Rows = [
        {"user": e["user"], "time": e["time"], "icon": "k", "responded": 1.0} for e in events_of(0)[::9]
        if e["type"] == "buy"
    ]  # fmt: skip
    return write_log(tmp_path_factory.mktemp("log"), events=events_of(0), items=ITEMS, users=USERS, follow=follow)


@pytest.fixture(scope="module")
def whole(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data.tiny_log import registered

    out = tmp_path_factory.mktemp("whole") / "out"
    with registered():
        run(log, out)
    return out


def test_timelines_positions_and_side_information_equal_the_oracle(whole: Path) -> None:
    for day in range(FIRST, FIRST + 4):
        expected = timelines(events_of(0), ITEMS, day, HISTORY)
        found = {row["user"]: row for row in read_day(whole, day)}
        assert found.keys() == expected.keys()
        for user, row in expected.items():
            assert {name: found[user][name] for name in row} == row


def test_vocabularies_number_ids_by_first_day_and_raw_id(whole: Path) -> None:
    for table, rows in vocabularies(events_of(0), ITEMS).items():
        assert words(whole, table) == rows, table


def test_profiles_follow_the_user_and_are_unknown_for_others(whole: Path) -> None:
    users, ages = words(whole, "user"), words(whole, "age")
    for row in read_day(whole, FIRST + 2):
        expected = {users[10]: ages["old"], users[11]: ages["young"]}.get(row["user"], 0)
        assert row["profile_age"] == expected


def test_any_chunking_gives_the_same_bytes(log: Path, whole: Path, tmp_path: Path) -> None:
    """Two days, then one, then the last one from the state that a day in between left."""
    run(log, tmp_path / "out", to_day=day_name(FIRST + 2), chunk_days=2)
    run(log, tmp_path / "out", from_day=day_name(FIRST + 3))
    assert tree(tmp_path / "out") == tree(whole)
    for table in ("item", "brand", "tags", "user"):
        assert words(tmp_path / "out", table) == words(whole, table)


def test_running_a_day_again_gives_the_same_bytes(log: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    report = run(log, out, from_day=day_name(FIRST + 1), to_day=day_name(FIRST + 2))
    assert tree(out) == tree(whole)
    assert report.outdated == []


def test_running_a_changed_day_again_replaces_it_and_names_the_days_built_on_it(whole: Path, tmp_path: Path) -> None:
    out, day = tmp_path / "out", FIRST + 1
    shutil.copytree(whole, out)
    changed = [event for event in events_of(0) if not (event["time"] // DAY == day and event["quantity"] > 10)]
    follow: Rows = []
    other = write_log(tmp_path / "log", events=changed, items=ITEMS, users=USERS, follow=follow)
    report = run(other, out, from_day=day_name(day), to_day=day_name(day))
    assert report.num_events == 10
    assert report.outdated == [day_name(FIRST + 2), day_name(FIRST + 3)]
    assert sum(len(row["event_time"]) - row["num_carried"] for row in read_day(out, day)) == 10


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import stack.base.files as files
    import stack.data.write as write
    from tests.data.test_ingest import run
    from tests.data.tiny_log import registered

    left, whole = [int(sys.argv[3])], files.replace_folder
    def replace(aside, path, **options):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        whole(aside, path, **options)
    files.replace_folder = replace
    with registered():
        run(Path(sys.argv[1]), Path(sys.argv[2]), chunk_days=2)
"""


def test_a_killed_ingest_leaves_whole_days_and_running_again_converges(log: Path, whole: Path, tmp_path: Path) -> None:
    """Killed in the second chunk, between the state and the timelines of its first day."""
    out, num_renames = tmp_path / "out", 5
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(log), str(out), str(num_renames)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    days = sorted(path.name for path in (out / "days").iterdir() if not path.name.startswith("."))
    assert len(days) == num_renames // 2
    assert all(tree(whole)[name] == data for name, data in tree(out).items() if ".aside" not in name)
    run(log, out, chunk_days=2)
    assert tree(out) == tree(whole)
    assert not (out / "ingest.json").exists()
    assert not list(out.rglob(".aside*"))


def test_a_second_ingest_into_one_dataset_is_refused(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another ingest is writing .*out: wait for its end"):
            run(log, out)


def test_other_settings_for_an_existing_dataset_are_refused(log: Path, whole: Path) -> None:
    with pytest.raises(DataError, match="was made with num_buckets=2, and 4 is asked for: choose another data.out"):
        run(log, whole, num_buckets=4)


def test_an_empty_day_is_refused(log: Path, tmp_path: Path) -> None:
    day = day_name(FIRST + 50)
    with pytest.raises(DataError, match=f"data.source=tiny has no usable row from {day} to {day}: choose other days"):
        run(log, tmp_path / "out", from_day=day, to_day=day)
    with pytest.raises(DataError, match=f"data.to_day={day} is an empty day: .* the log has rows from"):
        run(log, tmp_path / "out", to_day=day)


def test_days_that_would_leave_a_gap_are_refused_unless_allowed(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(log, out, to_day=day_name(FIRST))
    text = (
        f"has no days from {day_name(FIRST + 1)} to {day_name(FIRST + 2)}, which lie between its own and those asked "
        f"for .{day_name(FIRST + 3)} to {day_name(FIRST + 3)}.: ingest them first or too, or set ingest.allow_gap=true"
    )
    with pytest.raises(DataError, match=text):
        run(log, out, from_day=day_name(FIRST + 3))
    report = run(log, out, from_day=day_name(FIRST + 3), allow_gap=True)
    assert report.days == [day_name(FIRST + 3)]


GOOD = {"user": 1, "item": "i1", "time": FIRST * DAY, "type": "buy", "price": 1.0}
BAD = {
    "bad_time": ({**GOOD, "time": None}, "column 'time' is missing, unparsable or before 1970 in 1 of them"),
    "future_time": ({**GOOD, "time": 10**11}, "column 'time' is later than now in 1 of them"),
    "bad_user": ({**GOOD, "user": None}, "column 'user' is missing or malformed in 1 of them"),
    "bad_item": ({**GOOD, "item": " "}, "column 'item' is missing or malformed in 1 of them"),
    "unknown_type": ({**GOOD, "type": "hum"}, "column 'type' is not a behaviour that the source knows in 1 of them"),
    "no_side_information": ({**GOOD, "item": "x"}, "column 'item' is without a row in the side information of items"),
    "duplicate": (GOOD, "column 'row' is a copy of an earlier one in 1 of them"),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_refused_above_the_limit(tmp_path: Path, reason: str) -> None:
    bad, text = BAD[reason]
    log = write_log(tmp_path / "log", events=[GOOD, bad, {**GOOD, "item": "i2"}], items=ITEMS)
    with pytest.raises(DataError) as caught:
        run(log, tmp_path / "out")
    message = str(caught.value)
    assert "1 of 3 rows (33.33%) are bad, the limit is ingest.max_bad_share=1.00%" in message
    assert text in message
    assert "or raise ingest.max_bad_share to drop them" in message
    assert not (tmp_path / "out" / "days").exists()


def test_bad_rows_below_the_limit_are_counted_and_sampled(tmp_path: Path) -> None:
    events = [GOOD, *(bad for bad, _ in BAD.values()), {**GOOD, "item": "i2"}]
    log = write_log(tmp_path / "log", events=events, items=ITEMS)
    report = run(log, tmp_path / "out", max_bad_share=0.9)
    assert report.dropped == dict.fromkeys(BAD, 1)
    assert report.num_events == 2
    found = {}
    for place in ("", f"days/{day_name(FIRST)}"):
        rows = pq.read_table(tmp_path / "out" / place / "bad_rows.parquet").to_pylist()
        found |= {row["reason"]: (row["row_id"], bool(place)) for row in rows}
    dayless = ("bad_time", "future_time")
    assert found == {reason: (row, reason not in dayless) for row, reason in enumerate(BAD, start=1)}


@pytest.mark.spark
@pytest.mark.timeout(900)  # two minutes of processor time, and longer where others share it
@pytest.mark.long
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine, and Spark needs it")
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_spark_gives_the_rows_and_keys_that_duckdb_gives(log: Path, tmp_path: Path) -> None:
    """Items and categories have no vocabulary, the others do: tags, brands, shops, users."""
    for engine in EngineName:
        run(log, tmp_path / engine, engine=engine, raw_ids=["item", "category"])
    spark, duckdb = tmp_path / "spark", tmp_path / "duckdb"
    for day in range(FIRST, FIRST + 4):
        assert read_day(spark, day) == read_day(duckdb, day)
    for table in ("brand", "shop", "tags", "user"):
        assert words(spark, table) == words(duckdb, table)
    assert not words(spark, "item")
