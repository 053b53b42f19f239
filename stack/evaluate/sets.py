"""The sets on which a task is scored, and the correction that makes a model's log-odds right on each.

Where f(x) is the log-odds of a candidate where nothing was sampled, those among observed examples and negatives drawn
at an expected `rate` for each candidate are f(x) - log rate: negatives are `rate` times as frequent. A score g(x)
counts negatives at a rate c that training chose (`stack.tasks.sampling`): f(x) = g(x) + log c.

    set           examples            logit
    uniform       draw in {0, 1}      f - log rate_uniform        what a user would see
    popularity    draw in {0, 2}      f - log rate_popularity     popularity taken out: what is left is taste
    shown         all                 the score itself            real impressions, nothing was sampled
    all           all                 the score itself            groups that are not impressions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stack.evaluate.rows import Rows
from stack.tasks.metrics import Array, Floats, Ints
from stack.tasks.sampling import Sampling, score_rate

OBSERVED = 0
DRAWS = {"uniform": (1, "rate_uniform"), "popularity": (2, "rate_popularity")}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The positions of a set's examples, what to add to the score there, and how many positives had to be left out
    because their rate is zero: they could not have been drawn, so no negative answers them."""

    index_S: Ints
    offset_S: Floats
    num_left_out: int = 0

    def logits(self, score_E: Array) -> Floats:
        """The calibrated logits of the set, from the scores of all examples."""
        return np.asarray(score_E[self.index_S] + self.offset_S, dtype=np.float64)


def evaluation_sets(rows: Rows, sampling: Sampling = Sampling.none) -> dict[str, Selection]:
    """The sets of these rows by name, those of the table above that have examples. `sampling`: the rate at which the
    score counts negatives."""
    everything = np.arange(len(rows))
    whole = Selection(index_S=everything, offset_S=np.zeros(len(rows)))
    if "draw" not in rows.labels:
        return {"all": whole}
    draw_E = rows.labels["draw"].astype(np.int64)
    if not (draw_E != OBSERVED).any():
        return {"shown": whole}
    rates = {rate: torch.from_numpy(rows.labels[rate].astype(np.float64)) for _, rate in DRAWS.values()}
    counted_at_E = score_rate(rates, sampling).numpy()
    return {
        name: _sampled(draw_E, draw, rows.labels[rate], counted_at_E)
        for name, (draw, rate) in DRAWS.items()
        if (draw_E == draw).any()
    }


def _sampled(draw_E: Ints, draw: int, rate_E: Array, counted_at_E: Floats) -> Selection:
    """`counted_at_E`: the rate at which the score counts negatives like this one."""
    wanted_E = (draw_E == OBSERVED) | (draw_E == draw)
    possible_E = wanted_E & (rate_E > 0)
    index_S = np.flatnonzero(possible_E)
    return Selection(
        index_S=index_S,
        offset_S=np.log(counted_at_E[index_S]) - np.log(rate_E[index_S].astype(np.float64)),
        num_left_out=int(wanted_E.sum() - possible_E.sum()),
    )
