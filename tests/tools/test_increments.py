"""The study of a month: what its figures are made of, on ways that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.base.errors import UserError
from tests.prepared import write_prepared
from tools.bench import increments
from tools.bench.increments import Month, Way

DAYS = ["2017-11-01", "2017-11-02", "2017-11-03"]


def way(name: str, *, gauc: float) -> Way:
    days = {day: {"gauc": gauc + number / 100, "auc": gauc, "log_loss": 0.4} for number, day in enumerate(DAYS)}
    return Way(name=name, days=days, seconds=1.0)


def test_differences_are_means_over_days_with_the_spread_of_days() -> None:
    mean, low, high = increments._differences(way("daily", gauc=0.83), way("frozen", gauc=0.82))["gauc"]
    assert mean == pytest.approx(0.01)
    assert (low, high) == (pytest.approx(0.01), pytest.approx(0.01)), "every day differs by the same"


def test_the_table_and_the_picture_have_every_way(tmp_path: Path) -> None:
    frozen = way("frozen", gauc=0.8)
    ways = [
        Way(name=one.name, days=one.days, seconds=1.0, less_frozen=increments._differences(one, frozen))
        for one in (frozen, way("daily", gauc=0.82))
    ]
    assert increments.as_table(ways).row_count == 2
    increments.draw(ways, tmp_path / "month.png")
    assert (tmp_path / "month.png").stat().st_size > 10_000


def test_a_month_that_is_not_prepared_is_refused(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data")
    month = Month(overrides=(f"data.out={data}", "run.name=inc"), first="2030-01-01", last="2030-01-31")
    with pytest.raises(UserError, match="has no day from 2030-01-01 to 2030-01-31, or none before: ingest them"):
        increments.study(month)
