"""Calendar and gap buckets against Python's own calendar and a loop over edges."""

from datetime import UTC, datetime

import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.towers.time import NUM_GAPS, gap_bucket, gap_to_previous, hour_bucket, is_weekend

SECONDS = st.integers(0, 4_000_000_000)


@given(SECONDS)
def test_hour_and_weekend_are_those_of_the_calendar(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    assert hour_bucket(torch.tensor([seconds])).item() == moment.hour // 3
    assert is_weekend(torch.tensor([seconds])).item() == int(moment.weekday() >= 5)


@given(st.integers(-10, 2**40))
def test_gap_buckets_double(gap: int) -> None:
    expected = next((g for g in range(1, NUM_GAPS - 1) if gap < 2**g - 1), NUM_GAPS - 1)
    assert gap_bucket(torch.tensor([gap])).item() == expected


def test_the_first_event_has_no_gap() -> None:
    assert gap_to_previous(torch.tensor([[5, 5, 8, 1000]])).tolist() == [[0, 1, 3, 10]]
