"""Files that grow on a disk that is full: counted, survived, and no record is ever cut."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stack.telemetry.logs import Board, LineLog
from stack.telemetry.metrics import TrainMetrics
from stack.telemetry.mishaps import Mishaps


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def mishaps(registry: CollectorRegistry) -> Mishaps:
    return Mishaps(TrainMetrics(registry).errors)


def _count(registry: CollectorRegistry, part: str) -> float | None:
    return registry.get_sample_value("stack_telemetry_errors_total", {"part": part})


def _all(line: bytes) -> bool:
    return True


@contextmanager
def _no_file_above(size: int) -> Iterator[None]:
    """Writing beyond fails, after as much as there is room for, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_counted_at_every_line_and_said_once(
    tmp_path: Path, registry: CollectorRegistry, mishaps: Mishaps, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    log = LineLog(tmp_path / "steps.jsonl", keep=_all, part="steps", mishaps=mishaps)
    for step in range(1_000):
        log.add({"step": step, "loss": 0.5})
    assert _count(registry, "steps") == 1_000
    log.close()
    assert _count(registry, "steps") == 1_001
    assert capsys.readouterr().err == "telemetry, steps: No space left on device: going on without\n"


def test_after_a_full_disk_a_log_has_whole_lines_of_before_and_after(
    tmp_path: Path, registry: CollectorRegistry, mishaps: Mishaps
) -> None:
    path = tmp_path / "steps.jsonl"
    log = LineLog(path, keep=_all, part="steps", mishaps=mishaps)
    log.add({"step": 0})
    with _no_file_above(path.stat().st_size + 5):  # in the middle of a line
        for step in range(1, 2_000):
            log.add({"step": step})
    for step in (2_000, 2_001):
        log.add({"step": step})
    log.close()
    steps = [json.loads(line)["step"] for line in path.read_bytes().splitlines()]
    assert steps == sorted(steps)
    assert steps[:2] == [0, 1]
    assert steps[-2:] == [2_000, 2_001]
    assert 2 < len(steps) < 1_900  # what a buffer took, and no more
    assert _count(registry, "steps") == 1_999


def test_after_a_full_disk_curves_can_still_be_read(
    tmp_path: Path, registry: CollectorRegistry, mishaps: Mishaps
) -> None:
    board = Board(tmp_path, first_step=0, part="curves", mishaps=mishaps)
    board.add({"loss": 1.0}, step=1)
    (file,) = tmp_path.iterdir()
    with _no_file_above(file.stat().st_size + 7):
        for step in range(2, 1_000):
            board.add({"loss": float(step)}, step=step)
    board.add({"loss": 0.5}, step=1_000)
    board.close()
    points = [(point.step, point.value) for point in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")]
    assert points[:2] == [(1, 1.0), (2, 2.0)]
    assert points[-1] == (1_000, 0.5)
    assert _count(registry, "curves") == 998


def test_a_run_that_goes_on_shows_no_point_that_a_killed_one_wrote_too_far(tmp_path: Path, mishaps: Mishaps) -> None:
    for first_step, steps in ((0, (1, 2, 3, 4)), (2, (3,))):
        board = Board(tmp_path, first_step=first_step, part="curves", mishaps=mishaps)
        for step in steps:
            board.add({"loss": 10.0 * first_step + step}, step=step)
        board.close()
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 2.0), (3, 23.0)]


def test_a_folder_that_cannot_be_made_is_survived(
    tmp_path: Path, registry: CollectorRegistry, mishaps: Mishaps
) -> None:
    (tmp_path / "curves").write_text("a file")
    board = Board(tmp_path / "curves", first_step=0, part="curves", mishaps=mishaps)
    board.add({"loss": 1.0}, step=1)
    board.close()
    assert _count(registry, "curves") == 2  # the folder, and the file in it
