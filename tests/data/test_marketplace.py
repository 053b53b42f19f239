"""The marketplace's log is what its truth says, and the same whoever writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.base.errors import ConfigError, DataError
from stack.data.marketplace import Marketplace, write_log


def test_same_truth_writes_the_same_bytes(tmp_path: Path) -> None:
    market = Marketplace(num_users=50, num_items=200, num_days=2)
    one, two = write_log(market, tmp_path / "one"), write_log(market, tmp_path / "two")
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert len(files) == 2 * 3 + 1
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_other_parameters_are_refused_where_a_log_is_already(tmp_path: Path) -> None:
    write_log(Marketplace(num_users=20, num_days=1), tmp_path)
    with pytest.raises(DataError, match="holds a marketplace of other parameters: delete it, or choose another"):
        write_log(Marketplace(num_users=21, num_days=1), tmp_path)


def test_clicks_occur_with_their_true_probability(tmp_path: Path) -> None:
    folder = write_log(Marketplace(num_users=2_000, num_days=4), tmp_path)
    rows = pq.read_table(folder / "impressions")
    clicked, probability = rows["clicked"].to_numpy(), rows["probability"].to_numpy()
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.6), (0.6, 1.0)):
        chosen = (probability >= low) & (probability < high)
        expected, error = probability[chosen].mean(), np.sqrt(0.25 / chosen.sum())
        assert chosen.sum() > 500
        assert abs(clicked[chosen].mean() - expected) < 4 * error


def test_filter_keeps_its_share_and_weights_undo_it(tmp_path: Path) -> None:
    truth = {"num_users": 1_000, "num_days": 3}
    whole = pq.read_table(write_log(Marketplace(**truth), tmp_path / "whole") / "impressions")
    thin = pq.read_table(write_log(Marketplace(**truth, keep_skipped=0.1), tmp_path / "thin") / "impressions")
    skipped, kept = (np.flatnonzero(one["clicked"].to_numpy() == 0) for one in (whole, thin))
    assert abs(len(kept) / len(skipped) - 0.1) < 4 * np.sqrt(0.09 / len(skipped))
    assert np.all(thin["weight"].to_numpy()[kept] == 10.0)
    assert abs(thin["weight"].to_numpy().sum() / whole.num_rows - 1) < 0.05


@settings(max_examples=30, deadline=None)
@given(num_items=st.integers(2, 3_000), day=st.integers(0, 400), drift=st.integers(0, 50))
def test_popularity_ranks_are_a_permutation_of_the_items(num_items: int, day: int, drift: int) -> None:
    market = Marketplace(num_items=num_items, drift_ranks_per_day=drift)
    items = market.item_of_rank(np.arange(num_items), day)
    assert sorted(items.tolist()) == list(range(1, num_items + 1))


def test_a_billion_ids_need_no_table() -> None:
    market = Marketplace(num_items=10**9)
    ranks = market.draw_ranks(np.random.default_rng(0).random(100_000))
    items = market.item_of_rank(ranks, 7)
    assert items.min() >= 1
    assert items.max() <= 10**9
    assert len(np.unique(items)) == len(np.unique(ranks))
    last = np.arange(10**9 - 50_000, 10**9)
    np.testing.assert_allclose(market.latent(last, kind="user").mean(), 0, atol=0.02)
    np.testing.assert_allclose(market.latent(last, kind="user").std(), 1, atol=0.02)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("num_items", 0, "num_items=0: the marketplace needs at least 1"),
        ("keep_skipped", 0.0, "keep_skipped=0.0: a share that is kept lies above 0 and up to 1"),
        ("zipf", 1.0, "zipf=1.0: the exponent must differ from 1"),
    ],
)
def test_impossible_truth_is_refused(field: str, value: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Marketplace(**{field: value})
