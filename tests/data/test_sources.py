"""Every source on files written by hand: what its canonical tables hold, and the whole way through ingest."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from ibis.backends import BaseBackend

from stack.base.errors import DataError
from stack.data.canonical import DataConfig
from stack.data.engine import EngineName, open_engine
from stack.data.ingest import ingest
from stack.data.ingest_config import IngestConfig
from stack.data.ingest_report import IngestReport
from stack.data.marketplace import Marketplace
from stack.data.sources import SOURCES
from stack.data.sources.events import (
    EventColumns,
    EventsConfig,
    ImpressionColumns,
    ItemColumns,
    UserColumns,
)
from stack.data.sources.movielens_1m import Movielens1mConfig
from stack.data.sources.synthetic import SyntheticConfig
from stack.data.sources.tabular import TimeFormat
from stack.data.sources.user_behavior import UserBehaviorConfig

START = 1_700_006_400  # 2023-11-15 00:00
DAY = 86_400
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def backend() -> BaseBackend:
    return ibis.duckdb.connect(threads=1)


def rows_of(backend: BaseBackend, options: DataConfig, table: str = "events") -> Rows:
    """A canonical table of the source, nulls left out."""
    found = getattr(SOURCES[options.source].read(backend, options), table).to_pyarrow().to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def events(path: Path, **options: Any) -> EventsConfig:
    return EventsConfig(source="events", out="", path=str(path), **options)


def prepare(options: DataConfig, out: Path, engine: EngineName = EngineName.duckdb, **config: Any) -> IngestReport:
    options.out = str(out)
    return ingest(options, IngestConfig(engine=engine, memory_limit_gib=1.0, num_threads=1, num_buckets=2, **config))


RATINGS = [f"1::20::5::{START}", f"1::10::3::{START + 60}", f"2::10::4::{START + DAY}"]
MOVIES = ['10::Café "Noir" (1990)::Crime|Drama', "20::Plain (1991)::Comedy"]
USERS = ["1::F::1::10::48067", "2::M::56::16::70072"]


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    for name, lines in (("ratings", RATINGS), ("movies", MOVIES), ("users", USERS)):
        (tmp_path / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    return tmp_path


def test_movielens_as_shipped_and_as_parquet_are_the_same_log(
    backend: BaseBackend, shipped: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    ratings = pa.table({"user_id": [1, 1, 2], "movie_id": [20, 10, 10], "rating": pa.array([5, 3, 4], pa.int8()),
                        "timestamp": [START, START + 60, START + DAY]})  # fmt: skip
    movies = pa.table({"movie_id": [10, 20], "title": ["Café", "Plain"], "genres": ["Crime|Drama", "Comedy"]})
    users = pa.table({"user_id": [1, 2], "gender": ["F", "M"], "age": [1, 56], "occupation": [10, 16],
                      "zip": ["48067", "70072"]})  # fmt: skip
    for name, table in (("ratings", ratings), ("movies", movies), ("users", users)):
        pq.write_table(table, folder / f"{name}.parquet")
    one, two = (Movielens1mConfig(source="movielens_1m", out="", path=str(path)) for path in (shipped, folder))
    for table in ("events", "items", "users"):
        assert rows_of(backend, one, table) == rows_of(backend, two, table)
    assert rows_of(backend, one)[1] == {
        "user": 1, "item": 10, "time": START + 60, "type": "3", "quantity": 1.0, "row_id": 1,
    }  # fmt: skip
    assert rows_of(backend, one, "items")[0] == {"item": 10, "category": "Crime", "tags": ["Crime", "Drama"]}
    assert rows_of(backend, one, "users")[1] == {
        "user": 2, "gender": "M", "age": "56", "occupation": "16", "zip": "70072",
    }  # fmt: skip


def test_movielens_goes_through_ingest_with_liked_films_as_moments(shipped: Path, tmp_path: Path) -> None:
    report = prepare(Movielens1mConfig(source="movielens_1m", out="", path=str(shipped)), tmp_path / "out")
    assert (report.num_events, report.num_moments, report.days) == (3, 2, ["2023-11-15", "2023-11-16"])


def test_user_behavior_is_read_without_header_in_the_time_of_beijing(backend: BaseBackend, tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv"
    path.write_text(f"1,20,7,pv,{START + 57_599}\n1,20,7,buy,{START + 57_600}\n2,30,8,pv,1e9x\n")
    options = UserBehaviorConfig(source="user_behavior", out="", path=str(path))
    found = sorted(rows_of(backend, options), key=lambda row: row["row_id"])
    assert [(row["user"], row["item"], row["type"], row.get("time")) for row in found] == [
        (1, 20, "pv", START + DAY - 1),
        (1, 20, "buy", START + DAY),
        (2, 30, "pv", None),
    ]
    assert found[2]["unread"] == "time=1e9x"
    assert rows_of(backend, options, "items") == [{"item": 20, "category": 7, "since": START + DAY - 1}]
    report = prepare(options, tmp_path / "out", max_bad_share=0.5)
    assert (report.days, report.dropped) == (["2023-11-15", "2023-11-16"], {"bad_time": 1})


def test_synthetic_goes_through_ingest_with_real_impressions(tmp_path: Path) -> None:
    market = Marketplace(num_users=30, num_items=50, num_days=2, sessions_per_day=1.0)
    log = tmp_path / "log"
    report = prepare(SyntheticConfig(source="synthetic", out="", path=str(log), market=market), tmp_path / "out")
    shown = pq.read_table(log / "impressions")
    assert report.num_examples["impression"] == shown.num_rows
    files = sorted((tmp_path / "out").glob("days/*/bucket-*.parquet"))
    clicked = [one for file in files for row in pq.read_table(file)["impression_clicked"].to_pylist() for one in row]
    assert sum(clicked) == sum(shown["clicked"].to_pylist())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1", "2", "03"], [1, 2, 3]),
        (["1"] * 60 + ["x", "1.5", "1e3", " 7", "9" * 30], [1] * 60 + [None] * 5),
        (["a1", "2", "3"], ["a1", "2", "3"]),
        ([1.0, 2.0, float("nan")] * 9 + [None], [1, 2, None] * 9 + [None]),
        ([1, 2, None], [1, 2, None]),
    ],
)
def test_ids_are_whole_numbers_where_nine_in_ten_are_and_else_text(
    backend: BaseBackend, tmp_path: Path, written: list[Any], read: list[Any]
) -> None:
    pq.write_table(pa.table({"user": written, "item": written, "time": range(len(written))}), tmp_path / "log.parquet")
    found = sorted(rows_of(backend, events(tmp_path / "log.parquet")), key=lambda row: row["time"])
    assert [row.get("user") for row in found] == read
    assert [row.get("item") for row in found] == read


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ([str(START), "inf", "nan", "", "1e300", "soon"], TimeFormat.auto),
        ([f"{START}000", "1e300"], TimeFormat.auto),
        ([f"{START}000"], TimeFormat.milliseconds),
        (["2023-11-15 00:00:00", "2023-11-15T00:00:00Z", "2023-11-15T00:00:00+08:00", "2023-11-15", "x"],
         TimeFormat.auto),
        ([START, -(2**62), None], TimeFormat.auto),
        ([START + 0.9, float("nan")], TimeFormat.seconds),
    ],
)  # fmt: skip
def test_times_are_seconds_of_what_is_written_or_null(
    backend: BaseBackend, tmp_path: Path, written: list[Any], form: TimeFormat
) -> None:
    table = pa.table({"user": range(len(written)), "item": range(len(written)), "time": written})
    pq.write_table(table, tmp_path / "log.parquet")
    found = sorted(rows_of(backend, events(tmp_path / "log.parquet", time_format=form)), key=lambda row: row["user"])
    assert {row.get("time") for row in found} <= {START, None, -(2**62)}
    assert found[0]["time"] == START


LOG: Rows = [
    {"who": k % 3, "what": f"p{k % 5}", "when": START + k * 9_000, "did": "buy" if k % 2 else "view",
     "paid": 1.5 + k % 4, "maker": f"m{k % 2}", "kind": f"k{k // 12}", "labels": f"a{k % 2}|b"}
    for k in range(30)
]  # fmt: skip
COLUMNS: dict[str, str | None] = {"user": "who", "item": "what", "time": "when", "type": "did"}


def write_log(folder: Path) -> Path:
    pa.csv.write_csv(pa.Table.from_pylist(LOG), folder / "log.csv")
    return folder / "log.csv"


def test_side_information_in_the_events_holds_from_the_event_that_shows_it(
    backend: BaseBackend, tmp_path: Path
) -> None:
    columns = EventColumns(**COLUMNS, category="kind", brand="maker", tags="labels", price="paid")
    items = rows_of(backend, events(write_log(tmp_path), columns=columns), "items")
    found = sorted((row["since"], row["category"]) for row in items if row["item"] == "p0")
    changes = [(LOG[k]["when"], LOG[k]["kind"]) for k in range(0, 30, 5)]
    expected = {"k0": changes[0], "k1": changes[3], "k2": changes[5]}
    assert {category: (since, category) for since, category in reversed(found)} == expected
    assert all(row["tags"] in (["a0", "b"], ["a1", "b"]) for row in items)


def test_files_of_items_users_and_impressions_are_joined_as_of_their_time(tmp_path: Path) -> None:
    path = write_log(tmp_path)
    (tmp_path / "items.csv").write_text(
        "id,maker,from\n" + "".join(f"p{k},old,2023-01-01\np{k},new,2023-11-16\n" for k in range(5))
    )
    (tmp_path / "users.csv").write_text("id,town\n0,Rome\n1,\n")
    shown = ["who,what,when,took", *(f"{r['who']},{r['what']},{r['when']},{r['did'] == 'buy':d}" for r in LOG)]
    (tmp_path / "shown.csv").write_text("\n".join(shown) + "\n")
    out = tmp_path / "out"
    report = prepare(
        events(
            path, columns=EventColumns(**COLUMNS),
            items_path=str(tmp_path / "items.csv"), items=ItemColumns(item="id", brand="maker", since="from"),
            users_path=str(tmp_path / "users.csv"), users=UserColumns(user="id", profile=["town"]),
            impressions_path=str(tmp_path / "shown.csv"),
            impressions=ImpressionColumns(user="who", item="what", time="when", clicked="took"),
        ),
        out,
    )  # fmt: skip
    assert report.num_examples == {"impression": 30}
    brands, towns = ({row["raw"]: row["row"] for f in sorted((out / "vocab" / name).glob("*.parquet"))
                      for row in pq.read_table(f).to_pylist()} for name in ("brand", "profile_town"))  # fmt: skip
    clicks = 0.0
    for day in ("2023-11-15", "2023-11-16"):
        for row in (row for f in (out / "days" / day).glob("*.parquet") for row in pq.read_table(f).to_pylist()):
            assert row["profile_town"] in (0, towns["Rome"])
            expected = [brands["old" if time < START + DAY else "new"] for time in row["event_time"]]
            assert row["event_brand"] == expected
            clicks += sum(row["impression_clicked"])
    assert clicks == sum(r["did"] == "buy" for r in LOG if r["when"] < START + 2 * DAY)


def test_rows_of_items_and_users_that_cannot_be_read_are_counted_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{k % 2},{k % 3},{START + k}\n" for k in range(30)))
    (tmp_path / "items.csv").write_text(
        "item,brand,from\n0,old,2023-01-01\n1,old,2023-01-01\n2,old,2023-01-01\n0,old,2023-01-01\n"
        "x7,odd,2023-01-01\n,odd,2023-01-01\n1,new,soon\n2,new,\n"
    )
    (tmp_path / "users.csv").write_text("user,town\n0,Rome\n1,Bari\nnobody,Pisa\n1,Bari\n")
    report = prepare(
        events(
            tmp_path / "log.csv",
            items_path=str(tmp_path / "items.csv"), items=ItemColumns(brand="brand", since="from"),
            users_path=str(tmp_path / "users.csv"), users=UserColumns(profile=["town"]),
        ),
        tmp_path / "out",
    )  # fmt: skip
    assert report.num_side_rows == {"items": 8, "users": 4}
    assert report.dropped == {
        "items_without_item": 2, "items_without_since": 2, "items_repeated": 1, "users_without_user": 1,
        "users_repeated": 1,
    }  # fmt: skip
    (row,) = pq.read_table(tmp_path / "out" / "vocab" / "brand").to_pylist()
    assert (row["raw"], report.num_events) == ("old", 30)


def test_impressions_that_cannot_be_read_are_refused(backend: BaseBackend, tmp_path: Path) -> None:
    log, shown = write_log(tmp_path), tmp_path / "shown.csv"
    options = {"columns": EventColumns(**COLUMNS), "impressions_path": str(shown)}
    shown.write_text(f"user,item,time,clicked\n1,p1,{START},1\n1,,{START},0\n")
    with pytest.raises(DataError, match=r"^1 of 2 rows of .*shown.csv cannot be used: column 'item' \(data.impr"):
        rows_of(backend, events(log, **options), "impressions")
    shown.write_text(f"user,item,time,clicked\n1,p1,{START},1\n1,p2,{START},7\n")
    with pytest.raises(DataError, match=r"column 'clicked' \(data.impressions.clicked\) is neither 0 nor 1 there"):
        rows_of(backend, events(log, **options), "impressions")


def test_ids_of_one_kind_take_the_type_of_the_events(tmp_path: Path) -> None:
    """Whole numbers in the log and text in the files beside it, as exports of different tools have them."""
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"1,{k % 3},{START + k}\n" for k in range(9)))
    items = pa.table({"item": ["0", "1", "2"], "shop": [7, 8, 9]})
    pq.write_table(items, tmp_path / "items.parquet")
    side = {"items_path": str(tmp_path / "items.parquet"), "items": ItemColumns(shop="shop")}
    report = prepare(events(tmp_path / "log.csv", **side), tmp_path / "out")
    assert (report.num_events, report.dropped, report.num_rows["shop"]) == (9, {}, 4)


def test_tabs_quotes_gzip_and_parts_read_as_one_plain_file_does(backend: BaseBackend, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.tsv").write_text(f'user\titem\ttime\n1\t"a ""b""\tc"\t{START}\n')
    (parts / "b.csv.gz").write_bytes(gzip.compress(f"user\titem\ttime\n2\t\t{START}\n".encode()))
    found = rows_of(backend, events(parts, delimiter="\\t"))
    assert [(row["user"], row.get("item")) for row in found] == [(1, 'a "b"\tc'), (2, None)]


@pytest.mark.spark
@pytest.mark.timeout(900)  # two minutes of processor time, and longer where others share it
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine, and Spark needs it")
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_spark_reads_of_a_mapped_csv_what_duckdb_reads(tmp_path: Path) -> None:
    path = write_log(tmp_path)
    with path.open("a") as file:
        file.write(f'x1,"p1",{START},"view",1,"m1","k0","b"\n0,"p1",soon,"buy",nan,"m1","k0",\n0,"p1"\n')
    columns = EventColumns(**COLUMNS, category="kind", brand="maker", tags="labels", price="paid")
    options = events(path, columns=columns, positive_types=["buy"])
    read: dict[str, list[Rows]] = {"events": [], "items": []}
    for name in EngineName:
        with open_engine(name=name, memory_limit_gib=1.0, num_threads=1, temp_folder=None) as engine:
            canonical = SOURCES["events"].read(engine.backend, options)
            for table, found in read.items():
                found.append(sorted(engine.fetch(getattr(canonical, table)).to_pylist(), key=str))
    for duckdb, spark in read.values():
        assert spark == duckdb
    assert [row["unread"] for row in read["events"][0] if row["unread"]] == ["when=soon", "who=x1"]
