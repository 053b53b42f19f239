"""Which inputs make a layer drift, against the difference of the channels' means."""

from __future__ import annotations

import numpy as np
import pytest

from stack.audits.config import Traffic
from stack.audits.drivers import CANDIDATE, USER, _first, drivers
from stack.audits.norm_stats import drift, norm_layers, seen_by
from stack.audits.traffic import weight_of
from tests.audits.test_norm_stats import batches
from tests.audits.test_rebuild import learnt
from tests.prepared import SCHEMA

LIVE, SAMPLED = weight_of(Traffic.live), weight_of(Traffic.sampled)


def test_what_inputs_add_is_the_difference_between_live_and_sampled_means(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown = learnt(), batches(range(12))
    kept: list[dict[str, np.ndarray]] = []

    def keep(shifts):  # type: ignore[no-untyped-def]
        found = dict(shifts)
        kept.append(found)
        return _first(found.items())

    monkeypatch.setattr("stack.audits.drivers._first", keep)
    drifts = drift(model, shown, LIVE)
    found = drivers(model, shown, LIVE, schema=SCHEMA, drifts=drifts)
    live, sample = (seen_by(model, shown, weigh) for weigh in (LIVE, SAMPLED))
    joins = [name for name in norm_layers(model) if name.endswith("activate.0")]
    assert set(joins) == {"ctr.head.activate.0", "follow.head.join.activate.0"}
    for name, parts in zip(joins, kept, strict=False):
        expected_D = live[name].sums.moments().shift_D - sample[name].sums.moments().shift_D
        np.testing.assert_allclose(sum(parts.values()), expected_D, atol=1e-5)
        assert {USER, CANDIDATE} <= parts.keys()
    dense = SCHEMA.group("impression").dense
    assert {one.name for one in found["ctr.standardize"]} <= set(dense)
    assert [one.shift for one in found["ctr.standardize"]] == sorted(
        (one.shift for one in found["ctr.standardize"]), reverse=True
    )
