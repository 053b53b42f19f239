"""Time as categories: hour of the day, day of the week, and the gap between two times.

Legend: T times of any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SECONDS_PER_HOUR = 3_600
SECONDS_PER_DAY = 86_400
HOURS_PER_BUCKET = 3
NUM_GAPS = 28
"""0: no earlier event; g = 1..27: gaps of [2^(g-1) - 1, 2^g - 1) seconds, the last one open (over two years)."""


def hour_bucket(seconds_T: Tensor) -> Tensor:
    """0..7: three-hour buckets of the day, from epoch seconds in the log's local time."""
    return seconds_T.remainder(SECONDS_PER_DAY).div(HOURS_PER_BUCKET * SECONDS_PER_HOUR, rounding_mode="floor")


def is_weekend(seconds_T: Tensor) -> Tensor:
    """1 on Saturdays and Sundays, else 0 (1970-01-01 was a Thursday).

    By remainders alone: exported graphs divide in float32, where seconds of our days are a minute apart.
    """
    return ((seconds_T + 3 * SECONDS_PER_DAY).remainder(7 * SECONDS_PER_DAY) >= 5 * SECONDS_PER_DAY).long()


def gap_bucket(gap_seconds_T: Tensor) -> Tensor:
    """1..NUM_GAPS - 1: powers of two of the gap. Negative gaps count as 0 seconds."""
    # A shift, not 2 ** ...: AOTInductor takes powers of whole numbers wrong (torch 2.13).
    edges = torch.bitwise_left_shift(1, torch.arange(1, NUM_GAPS - 1, device=gap_seconds_T.device)) - 1
    return torch.bucketize(gap_seconds_T, edges, right=True) + 1


def gap_to_previous(seconds_BL: Tensor) -> Tensor:
    """(B, L) gap buckets from each event to the one before it in its row; 0 for the first."""
    place_L = torch.arange(seconds_BL.shape[1], device=seconds_BL.device)
    previous_BL = seconds_BL.index_select(1, (place_L - 1).clamp(min=0))
    return gap_bucket(seconds_BL - previous_BL) * (place_L > 0)


class CalendarEmbedding(nn.Module):
    """(T,) epoch seconds -> (T, D): embedding of the hour bucket plus one of weekday or weekend."""

    def __init__(self, *, num_outputs: int) -> None:
        super().__init__()
        self.hour = nn.Embedding(24 // HOURS_PER_BUCKET, num_outputs)
        self.weekend = nn.Embedding(2, num_outputs)

    def forward(self, seconds_T: Tensor) -> Tensor:
        calendar_TD: Tensor = self.hour(hour_bucket(seconds_T)) + self.weekend(is_weekend(seconds_T))
        return calendar_TD
