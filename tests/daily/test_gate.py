"""What a day is refused for, and what not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stack.daily.config import DailyConfig
from stack.daily.gate import MIN_HISTORY, QuarantinedError, flipped_labels, high_losses, refuse, volume
from stack.data.dataset import Dataset
from tests.daily.days import change_day, empty, tiny
from tests.daily.worker import DAYS
from tests.prepared import write_prepared

CONFIG = DailyConfig(max_loss_ratio=1.5, max_volume_ratio=3.0)


def _names(metrics: dict[str, float | None], *, days: int, usual: float = 0.5) -> list[str]:
    history = [dict.fromkeys(metrics, usual + number / 100) for number in range(days)]
    return [finding.name for finding in high_losses(metrics, history, CONFIG)]


def test_losses_are_held_against_the_median_of_earlier_days() -> None:
    high: dict[str, float | None] = {"loss/ctr": 0.8, "before/ctr/all/log_loss": 0.8, "before/ctr/all/auc": 9.0}
    assert _names(high, days=MIN_HISTORY) == ["loss/ctr", "before/ctr/all/log_loss"]
    assert _names(high, days=MIN_HISTORY - 1) == []
    assert _names({"loss/ctr": 0.7, "loss/rank": None}, days=5) == []
    assert _names({"loss/ctr": math.inf}, days=5) == ["loss/ctr"]


def test_a_finding_says_what_was_measured_and_what_is_allowed() -> None:
    (finding,) = high_losses({"loss/ctr": 0.9}, [{"loss/ctr": 0.5}] * 3, CONFIG)
    assert finding.line.startswith(
        "loss/ctr: loss in training is 0.9, 1.8 times the 0.5 of the median of 3 days, allowed is up to 1.5 times "
        "(daily.max_loss_ratio): look at the day's labels"
    )
    with pytest.raises(QuarantinedError, match="loss/ctr: loss in training is 0.9"):
        refuse([finding])
    refuse([finding], overridden=["loss/ctr"])


def test_an_auc_on_the_other_side_of_one_half_tells_a_flip() -> None:
    name = "before/ctr/all/auc"

    def found(value: float, *usual: float) -> list[str]:
        history = [{name: one} for one in usual]
        return [finding.name for finding in flipped_labels({name: value}, history, flipped=-0.5)]

    assert found(0.3, 0.7, 0.72, 0.69) == [f"label flip by {name}"]
    assert found(0.45, 0.7, 0.72, 0.69) == [], "worse, but not turned round"
    assert found(0.3, 0.7, 0.72) == [], "too few days"
    assert found(0.3, 0.55, 0.58, 0.56) == [], "usually near one half"
    assert found(0.3, 0.7, 0.72, 0.4, 0.69) == [], "on some day it was below one half"


def test_volume_is_held_against_the_median_of_earlier_days(tmp_path: Path) -> None:
    path = write_prepared(tmp_path / "data", num_days=5)
    groups = ["impression", "price"]

    def found(day: str) -> list[str]:
        return [finding.name for finding in volume(Dataset(path), day, groups=groups, config=CONFIG)]

    assert [found(day) for day in DAYS[:5]] == [[]] * 5
    change_day(path, DAYS[3], tiny)
    change_day(path, DAYS[4], empty)
    assert (found(DAYS[3]), found(DAYS[4]), found("2016-08-01")) == (["volume"], ["empty day"], ["empty day"])
