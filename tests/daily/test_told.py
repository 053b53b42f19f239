"""What node_exporter finds after a night, however it ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from stack.base.errors import CheckpointError
from stack.daily.verb import QUARANTINED_STATUS
from stack.train.meter import end_of_day
from tests.daily.conftest import copy_of
from tests.daily.days import change_day, empty
from tests.daily.worker import DAYS, finished, learn_days
from tests.train.worker import Run


def _told(run: Run) -> dict[tuple[str, ...], float]:
    """By name and labels but for the run."""
    text = (Path(run.runs) / "textfile" / f"{run.name}.daily.prom").read_text()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert {one.labels.pop("run") for one in samples} == {run.name}
    return {(one.name.removeprefix("stack_daily_"), *one.labels.values()): one.value for one in samples}


def test_success_is_kept_when_the_next_night_fails_or_is_quarantined(learnt: Run, tmp_path: Path) -> None:
    run = copy_of(learnt, tmp_path, dataset=tmp_path / "data")
    begun = time.time()
    learn_days(run, DAYS[2], DAYS[4])
    good, version = _told(run), finished(run)[-1]
    assert begun <= good["last_success_timestamp_seconds",] <= good["last_end_timestamp_seconds",] <= time.time()
    assert good["last_failed",] == 0
    assert good["version",] == version.version
    assert good["data_timestamp_seconds",] == end_of_day(DAYS[4])
    assert {key[1]: value for key, value in good.items() if key[0] == "findings"} == dict.fromkeys(
        ("ok", "warning", "critical"), 0
    )

    with pytest.raises(CheckpointError):
        learn_days(run, DAYS[6])  # a day is missing between
    failed = _told(run)
    assert failed["last_failed",] == 1
    assert failed["last_end_timestamp_seconds",] > good["last_end_timestamp_seconds",]

    change_day(Path(run.dataset), DAYS[5], empty)
    with pytest.raises(SystemExit) as ended:
        learn_days(run, DAYS[5])
    assert ended.value.code == QUARANTINED_STATUS
    quarantined = _told(run)
    assert quarantined["findings", "critical"] == quarantined["last_failed",] == 1
    for later in (failed, quarantined):
        assert later["last_success_timestamp_seconds",] == good["last_success_timestamp_seconds",]
        assert later["version",] == version.version
    assert list((tmp_path / "targets").glob("*.json")) == []


def test_phases_are_of_all_days_of_the_call(learnt: Run) -> None:
    told = {key[1]: value for key, value in _told(learnt).items() if key[0] == "last_duration_seconds"}
    assert set(told) >= {"restore", "evaluate", "train"}
    assert min(told.values()) > 0


def test_nothing_is_told_of_a_run_that_is_not_there(trained: Run, tmp_path: Path) -> None:
    mistyped = replace(trained, runs=str(tmp_path), name="trainde")
    with pytest.raises(CheckpointError):
        learn_days(mistyped, DAYS[2])
    assert not (tmp_path / "textfile").exists()
