"""Cadences, the step log's lines after a kill, and the line for people."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stack.base.errors import ConfigError, DataError
from stack.data.dataset import Dataset
from stack.data.loader import Cursor
from stack.telemetry.mishaps import uncounted
from stack.train.build import training_days
from stack.train.config import TrainConfig
from stack.train.periodic import Curves, Line, Moment, Save, StepLog
from stack.train.step import Own, StepResult


def moment(step: int, **losses: float) -> Moment:
    result = StepResult(
        losses=losses, loss=sum(losses.values()), num_examples=100, refused=False, stop=False, gradient_norm=1.0,
        rate_share=1.0,
    )  # fmt: skip
    return Moment(
        step=step, num_steps=2_000, cursor=Cursor(step=step), day="2017-03-04", num_refused=1, result=result,
        own=Own(outputs={}, num_ids={}, num_distinct_ids={}), seconds=0.5, wait_seconds=0.1,
    )  # fmt: skip


def test_the_line_for_people_has_means_since_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line(every_steps=2)
    for step, loss in [(1_001, 1.0), (1_002, 2.0), (1_003, 5.0)]:
        line.after_step(moment(step, ctr=loss))
    line.at_end(None)
    assert capsys.readouterr().out.splitlines() == [
        "step 1,002/2,000  2017-03-04  ctr 1.5000  200 examples/s  loader wait 20%  refused 1",
        "step 1,003/2,000  2017-03-04  ctr 5.0000  200 examples/s  loader wait 20%  refused 1",
    ]


class Written:
    """Takes versions and tells of it."""

    def __init__(self) -> None:
        self.told: list[int | str] = []

    def save(self, moment: Moment) -> None:
        self.told.append(moment.step)

    def finish(self) -> None:
        self.told.append("waited")

    def close(self) -> None:
        self.told.append("closed")


def test_saves_come_by_their_own_cadence_and_once_at_the_end_which_waits_for_them() -> None:
    written = Written()
    for last in (7, 6):
        save = Save(written, every_steps=3)
        for step in range(1, last + 1):
            save.after_step(moment(step))
        save.at_end(moment(last))
        save.close()
    assert written.told == [3, 6, 7, "waited", "closed", 3, 6, "waited", "closed"]


def test_nothing_is_saved_where_there_was_nothing_to_do() -> None:
    written = Written()
    Save(written, every_steps=1).at_end(None)
    assert written.told == ["waited"]


def test_the_step_log_forgets_what_a_killed_run_did_after_its_checkpoint(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", first_step=0, mishaps=uncounted())
    for step in (1, 2, 3):
        log.after_step(moment(step, ctr=0.5))
    log.close()
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b'{"step":4,"day"')  # half a line
    log = StepLog(tmp_path / "steps.jsonl", first_step=2, mishaps=uncounted())
    log.after_step(moment(3, ctr=0.25))
    log.close()
    lines = [msgspec.json.decode(line) for line in (tmp_path / "steps.jsonl").read_bytes().splitlines()]
    assert [(line["step"], line["losses"]["ctr"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_curves_are_written_at_their_cadence(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = Curves(tmp_path, every_steps=2, first_step=0, mishaps=uncounted())
    for step in range(1, 6):
        curves.after_step(moment(step, ctr=float(step)))
    curves.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss/ctr")] == [(2, 2.0), (4, 4.0)]
    assert {"speed/examples_per_second", "data/refused_batches"} <= set(read.Tags()["scalars"])


def test_days_are_those_asked_for_and_none_is_an_error(prepared: Path) -> None:
    dataset = Dataset(prepared)
    days = dataset.days()
    assert training_days(dataset, TrainConfig()) == days
    assert training_days(dataset, TrainConfig(from_day=days[1], to_day=days[2])) == days[1:3]
    with pytest.raises(DataError, match=r"no day from 2030-01-01 to .*which has 2016-07-18 to 2016-07-21"):
        training_days(dataset, TrainConfig(from_day="2030-01-01"))
    with pytest.raises(ConfigError, match=r"train\.from_day=2017-01-02 must not be after train\.to_day=2017-01-01"):
        TrainConfig(from_day="2017-01-02", to_day="2017-01-01")
    with pytest.raises(ConfigError, match=r"train\.batch_size=0 must be at least 1"):
        TrainConfig(batch_size=0)
    with pytest.raises(ConfigError, match=r"train\.max_steps=0 must be at least 1, or null"):
        TrainConfig(max_steps=0)
