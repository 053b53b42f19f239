"""From a log to versions: days are ingested when they are asked for, and bring ids and properties that were unknown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace as with_fields

from stack.base.dist import process_group
from stack.base.errors import DataError
from stack.checkpoint.load import open_version
from stack.daily.config import DailyConfig
from stack.daily.verb import daily
from stack.data.days import day_name
from stack.data.ingest import ingest
from stack.data.ingest_config import IngestConfig
from stack.train.trained import open_run
from stack.train.verb import train
from tests.daily.conftest import copy_of
from tests.daily.worker import chain, digests, finished
from tests.data.test_ingest import FIRST, ITEMS, USERS
from tests.data.tiny_log import Rows, TinyConfig, registered, write_log
from tests.data.tiny_oracle import DAY
from tests.train.worker import Run, setup_of

NAMES = [day_name(FIRST + number) for number in range(6)]
OPTIONS = IngestConfig(memory_limit_gib=1.0, max_history=6, num_buckets=2, num_threads=1)


def _events() -> Rows:
    """Each day has users, items, shops and a scenario that no day had before."""
    return [
        {
            "user": 10 + place % (4 + day), "item": f"i{(place * 7 + day) % (5 + day)}",
            "time": (FIRST + day) * DAY + place * 300, "shop": f"s{place % (1 + day)}",
            "type": "buy" if place % 3 else "view", "scenario": f"new on {day}" if place % 2 else None,
            "price": 1.0 + place % 4,
        }
        for day in range(6) for place in range(24)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyConfig]:
    folder = tmp_path_factory.mktemp("log")
    follow: Rows = [{"user": 10, "time": FIRST * DAY + 300, "icon": "a", "responded": 1.0}]
    log = write_log(folder / "log", events=_events(), items=ITEMS, users=USERS, follow=follow)
    with registered():
        yield TinyConfig(path=str(log), out=str(folder / "prepared"))


@pytest.fixture(scope="module")
def begun(source: TinyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two days ingested and learnt."""
    ingest(replace(source, to_day=NAMES[1]), OPTIONS)
    run = Run(
        dataset=source.out, runs=str(tmp_path_factory.mktemp("runs")), name="grown", norm="batch",
        train={"batch_size": 4, "save_every_steps": 2},
    )  # fmt: skip
    train(setup_of(run))
    return run


def _learn(run: Run, source: TinyConfig, first: str, last: str) -> None:
    daily(
        setup_of(run),
        data=replace(source, out=run.dataset),
        ingest=OPTIONS,
        config=DailyConfig(from_day=first, to_day=last, max_loss_ratio=100.0),
        timelines_per_batch=8,
        today="2030-01-01",
    )


@pytest.mark.slow
def test_days_ingested_each_night_or_all_at_once_give_the_same_versions(
    begun: Run, source: TinyConfig, tmp_path: Path
) -> None:
    nightly = copy_of(begun, tmp_path / "nightly", dataset=tmp_path / "nightly-data")
    at_once = copy_of(begun, tmp_path / "once", dataset=tmp_path / "once-data")
    for name in NAMES[2:4]:
        _learn(nightly, source, name, name)
    _learn(at_once, source, NAMES[2], NAMES[3])
    versions = finished(nightly)
    assert [version.lineage.day for version in versions] == [None, *NAMES[2:4]]
    assert digests(versions) == digests(finished(at_once))
    for table in ("item", "shop"):
        rows = [version.tables[table].num_rows for version in versions]
        assert rows == sorted(rows), table
        assert rows[0] < rows[-1], table


def test_rows_and_properties_that_a_day_brings_come_on_top_of_what_was_learnt(
    begun: Run, source: TinyConfig, tmp_path: Path
) -> None:
    run = copy_of(begun, tmp_path, dataset=tmp_path / "data")
    _learn(run, source, NAMES[2], NAMES[2])
    before, after = (open_version(chain(run), version) for version in finished(run))
    growing = [name for name, value in before.dense().items() if value.shape != after.dense()[name].shape]
    assert growing
    for name in growing:
        assert "properties.columns" in name
        assert after.dense()[name].shape[0] == before.dense()[name].shape[0] + 1
        state = after.optimizer()[f"{name}/exp_avg"]
        assert state.shape == after.dense()[name].shape
    setup = setup_of(run)
    with process_group(device=torch.device("cpu")):
        opened = open_run(setup, version=NAMES[2], device=torch.device("cpu"))
    assert opened.days == tuple(NAMES[:3])


def test_a_day_that_the_log_does_not_have_yet_is_one_line(begun: Run, source: TinyConfig, tmp_path: Path) -> None:
    run = copy_of(begun, tmp_path, dataset=tmp_path / "data")
    late = day_name(FIRST + 6)
    with pytest.raises(DataError, match=rf"{late} is an empty day: of the days asked for, the log has rows from"):
        _learn(run, source, NAMES[2], late)
    with pytest.raises(DataError, match=rf"has no usable row from {day_name(FIRST + 7)}"):
        _learn(with_fields(run), source, day_name(FIRST + 7), day_name(FIRST + 8))
    assert len(finished(run)) == 1
