"""What is wrong with a log, a file or an option is answered by the command in one line, and with status 2."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.__main__ import main

START = 1_700_006_400  # 2023-11-15 00:00
NUM_GOOD = 40
GOOD = [f"{1 + k % 4},i{k % 7},{START + k * 4_000},{'view' if k % 3 else 'buy'}" for k in range(NUM_GOOD)]
ITEMS = ["item,brand", *(f"i{k},b{k % 2}" for k in range(7))]
BAD = {
    "bad_time": ("5,i1,soon,view", "column 'time' is missing, unparsable or before 1970", "time=soon"),
    "future_time": ("5,i1,99000000000,view", "column 'time' is later than now", "99000000000"),
    "bad_user": ("x5,i1,1700006401,view", "column 'user' is missing or malformed", "user=x5"),
    "bad_item": ("5,,1700006402,view", "column 'item' is missing or malformed", None),
    "unknown_type": ("5,i1,1700006403,hum", "column 'type' is not a behaviour that the source knows", "hum"),
    "no_side_information": ("5,i9,1700006404,view", "column 'item' is without a row in the side information", "i9"),
    "duplicate": (GOOD[3], "column 'row' is a copy of an earlier one", None),
}
MAPPED = ("data=events", "data.path=log.csv", "data.out=out", "data.columns.type=type", "data.known_types=[view,buy]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a good log."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "log.csv", GOOD)
    (tmp_path / "items.csv").write_text("\n".join(ITEMS) + "\n")
    return tmp_path


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["user,item,time,type", *lines]) + "\n")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `stack <words>` answers."""
    capsys.readouterr()
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("stack: ")
    assert shown.err.count("\n") == 1
    return shown.err.strip()


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_above_the_limit_are_refused_with_column_count_and_value(
    folder: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    row, text, example = BAD[reason]
    write(folder / "log.csv", [*GOOD, row])
    line = refusal(capsys, "ingest", *MAPPED, "data.items_path=items.csv", "data.items.brand=brand")
    shown = reason if example is None else f"{reason}, e.g. '{example}'"
    assert line.startswith("stack: 1 of 41 rows (2.44%) are bad, the limit is ingest.max_bad_share=1.00%: " + text)
    assert f"in 1 of them ({shown}); mend the log, or raise ingest.max_bad_share to drop them" in line
    assert not (folder / "out" / "days").exists()


def test_bad_rows_below_the_limit_are_counted_in_the_manifests_and_kept_as_written(folder: Path) -> None:
    write(folder / "log.csv", [*GOOD, *(row for row, _, _ in BAD.values())])
    side = ("data.items_path=items.csv", "data.items.brand=brand")
    assert main(["ingest", *MAPPED, *side, "ingest.max_bad_share=0.2", "ingest.num_threads=1"]) == 0
    day = folder / "out" / "days" / "2023-11-15"
    dropped = json.loads((day / "manifest.json").read_text())["dropped"]
    assert dropped == {reason: 1 for reason in sorted(BAD) if reason not in ("bad_time", "future_time")}
    sample = pq.read_table(day / "bad_rows.parquet").to_pylist()
    assert {row["reason"]: row["unread"] for row in sample} == dict.fromkeys(dropped) | {"bad_user": "user=x5"}
    dayless = pq.read_table(folder / "out" / "bad_rows.parquet").to_pylist()
    assert {(row["reason"], row["unread"], row["time"]) for row in dayless} == {
        ("bad_time", "time=soon", None),
        ("future_time", None, "99000000000"),
    }


def broken_files(folder: Path) -> None:
    whole = pa.table({"user": [1, 2] * 5_000, "item": list(range(10_000)), "time": [START] * 10_000})
    pq.write_table(whole, folder / "whole.parquet")
    data = (folder / "whole.parquet").read_bytes()
    (folder / "half.parquet").write_bytes(data[: len(data) // 2])
    (folder / "rotten.parquet").write_bytes(data[:500] + bytes(2_000) + data[2_500:])
    (folder / "nothing.parquet").write_bytes(b"")
    (folder / "nothing.csv").write_bytes(b"")
    (folder / "header.csv").write_text("user,item,time\n")
    (folder / "semicolons.csv").write_text("user;item;time\n1;2;3\n")
    (folder / "long.csv").write_text("user,item,time\n1,2,3\n1,2,3,4\n")
    (folder / "quote.csv").write_text('user,item,time\n1,"2,3\n')
    (folder / "latin.csv").write_bytes(b"user,item,time\n" + b"1,2,3\n" * 20_000 + b"1,\xe9,3\n")
    (folder / "twice.csv").write_text("user,item,user\n1,2,3\n")
    (folder / "parts").mkdir()
    (folder / "parts" / "a.csv").write_text("user,item,time\n1,2,3\n")
    (folder / "parts" / "b.csv").write_text("user,time,item\n1,2,3\n")
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("none.csv", "data.path=none.csv: there is no such file or folder; it is looked up from "),
        ("half.parquet", "data.path: half.parquet is not a whole Parquet file (Parquet magic bytes not found"),
        ("rotten.parquet", "rotten.parquet is damaged ("),
        ("nothing.parquet", "data.path: nothing.parquet is not a whole Parquet file (Parquet file size is 0 bytes)"),
        ("nothing.csv", "data.path: nothing.csv is empty: its first line must name the columns"),
        ("header.csv", "the log of data.source=events (data.path=header.csv) has no usable row"),
        ("semicolons.csv", "has no such column; it has: user;item;time; is data.delimiter the right one?"),
        ("long.csv", "long.csv, line 3: Expected Number of Columns: 3 Found: 4; mend the line, or delete it"),
        ("quote.csv", "quote.csv, line 2: Value with unterminated quote found; mend the line, or delete it"),
        ("latin.csv", "latin.csv, line 20002: Invalid unicode (byte sequence mismatch) detected."),
        ("twice.csv", "data.path: twice.csv has two columns named 'user': rename one"),
        ("parts", "parts/b.csv has the columns user, time, item, and a.csv beside it has user, item, time: name one"),
        ("empty", "data.path=empty: the folder holds no .parquet, .csv, .csv.gz, .tsv or .dat file"),
        (".", "data.path=.: the folder mixes .csv, .parquet; name one file, or one kind a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], path: str, text: str
) -> None:
    broken_files(folder)
    assert text in refusal(capsys, "ingest", "data=events", f"data.path={path}", "data.out=out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["data.path=null"], "data.path is not set: give the file or folder of the log, e.g. data.path=log.csv"),
        (
            ["data.columns.user=who"],
            "data.columns.user=who: log.csv has no such column; it has: user, item, time, type",
        ),
        (["data.columns.type=time"], "mend the log"),
        (["data.known_types=[view]", "data.positive_types=[buy]"], "data.positive_types has ['buy'], which data.known"),
        (["data.known_types=[]", "data.positive_types=[sell]"], "data.positive_types has ['sell']; log.csv holds the"),
        (["data.columns.type=null", "data.positive_types=[buy]"], "data.positive_types needs data.columns.type"),
        (["data.columns.colour=c"], "unknown option 'data.columns.colour'; 'data.columns' knows: "),
        (["+data.colour=c"], "unknown option 'data.colour'; 'data' knows: "),
        (["data.items.brand=brand"], "data.items.brand needs data.items_path: give the file that holds it"),
        (["data.users.profile=[age]"], "data.users.profile needs data.users_path: give the file that holds it"),
        (["data.items_path=items.csv", "data.columns.shop=s"], "data.columns.shop is of no use beside data.items_path"),
        (["data.items_path=none.csv"], "data.items_path=none.csv: there is no such file or folder"),
        (["data.items_path=items.csv", "data.items.brand=b"], "data.items.brand=b: items.csv has no such column"),
        (["data.delimiter=ab"], "data.delimiter='ab' must be one character, or \\t for the tabulator"),
        (["data.time_format=hours"], "data.time_format: Invalid value 'hours', expected one of [auto,"),
        (["data.from_day=1.2.2023"], "data.from_day='1.2.2023' is not a day: write it as YYYY-MM-DD"),
        (["data.to_day='2023-02-30'"], "data.to_day='2023-02-30' is not a day of the calendar"),
        (["data.from_day='2023-11-16'", "data.to_day='2023-11-15'"], "is after data.to_day=2023-11-15: swap them"),
        (["data.to_day='2023-12-24'"], "data.to_day=2023-12-24 is an empty day: of the days asked for, the log has"),
        (["data.from_day='2023-12-24'"], "has no usable row from 2023-12-24 to its end: choose other days"),
        (["data.out=log.csv"], "data.out=log.csv cannot be written (File exists): choose another folder"),
        (["data.out=log.csv/out"], "data.out=log.csv/out cannot be written (Not a directory): choose another folder"),
        (["ingest.max_bad_share=2"], "ingest.max_bad_share=2.0 must be from 0 to 1"),
        (["ingest.num_bukets=2"], "unknown option 'ingest.num_bukets'; 'ingest' knows: "),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    given = {option.partition("=")[0] for option in options}
    kept = [option for option in MAPPED if option.partition("=")[0] not in given]
    assert text in refusal(capsys, "ingest", *kept, *options)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("movielens_1m", "data.path=.: neither ratings.dat nor ratings.parquet is there; unpack ml-1m.zip"),
        ("complete_journey", "transactions.parquet is not there; leave data.path unset to read the installed package"),
    ],
)
def test_the_folder_of_another_log_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str, text: str
) -> None:
    assert text in refusal(capsys, "ingest", f"data={source}", "data.path=.", "data.out=out")


def test_verbs_without_what_the_verb_before_makes_say_which_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = refusal(capsys, "train", "data=events", "data.out=out")
    assert train == "stack: there is no prepared dataset at out (no dataset.json): run `stack ingest` first"
    assert "'2023-13-01' is not a day of the calendar" in refusal(capsys, "train", "train.to_day='2023-13-01'")
    assert "'1.2.2023' is not a day" in refusal(capsys, "evaluate", "evaluate.first_day=1.2.2023")
    assert "runs/mine is not a run" in refusal(capsys, "evaluate", "run.name=mine")
    serve = refusal(capsys, "serve", "serve.package=runs/mine/package")
    assert f"no package at {folder}/runs/mine/package: write one with: stack export" in serve


def test_ids_of_another_type_than_the_datasets_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", *MAPPED, "ingest.num_threads=1"]) == 0
    write(folder / "log.csv", [f"u{line}" for line in GOOD])
    line = refusal(capsys, "ingest", *MAPPED)
    assert "the prepared dataset holds ids of 'user' as int64, the log now has them as string" in line


def test_the_process_itself_ends_with_status_2_and_one_line_where_two_ingests_meet(folder: Path) -> None:
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-m", "stack", "ingest", *MAPPED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("stack: another ingest is writing out: wait for its end, or choose another data.out\n")
