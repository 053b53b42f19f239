"""Figures of tables read in blocks, against NumPy on the whole of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.audits.findings import Level
from stack.audits.lookups import LookupCount, count_lookups
from stack.audits.tables import (
    AuditedTable,
    TableReport,
    TablesReport,
    audit_tables,
    audited_tables,
    growth_of,
    tables_report,
)
from stack.audits.tables_config import TablesAuditConfig
from stack.audits.tables_show import findings, html, tables
from stack.base.errors import ConfigError
from stack.checkpoint.chain import chain_of
from stack.checkpoint.load import open_version
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.ids.config import IdMode, IdsConfig, id_specs
from stack.ids.hashing import HashedRows, HashVariant, measured_collisions
from stack.ids.maps import IdMaps
from stack.tables.rows import TableShard
from stack.telemetry.console import show
from tests.audits.test_page import read
from tests.batches import small_model
from tests.checkpoint.chains import ROWWISE, Toy
from tests.prepared import NUM_ROWS, write_prepared

CONFIG = TablesAuditConfig()
NUM, DIM = 1000, 8


def parts_of(
    weight_ND: torch.Tensor, state: Mapping[str, torch.Tensor], *, block: int = 300
) -> Callable[[str], Iterator[TableShard]]:
    """The table in blocks."""

    def parts(name: str) -> Iterator[TableShard]:
        for first in range(0, len(weight_ND), block):
            rows = slice(first, first + block)
            yield TableShard(
                name=name, num_rows=len(weight_ND), dim=int(weight_ND.shape[1]), first_row=first,
                weight_ND=weight_ND[rows], state={key: value[rows] for key, value in state.items()},
            )  # fmt: skip

    return parts


def table(**changed: object) -> AuditedTable:
    plain = AuditedTable(
        name="item", num_rows=NUM, mode=IdMode.direct, num_ids=NUM - 1, hashed=None, held_N=None, growth={}
    )
    return replace(plain, **changed)


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and one number of state for each row: a fifth never learnt."""
    generator = torch.Generator().manual_seed(seed)
    weight_ND = torch.randn(NUM, DIM, generator=generator) * 0.1
    state_N = torch.rand(NUM, generator=generator) + 0.1
    state_N[torch.randperm(NUM, generator=generator)[: NUM // 5]] = 0.0
    return weight_ND, state_N


def audited(
    weight_ND: torch.Tensor,
    state: Mapping[str, torch.Tensor],
    *,
    config: TablesAuditConfig = CONFIG,
    of: AuditedTable | None = None,
) -> TableReport:
    report = audit_tables([of or table()], parts_of(weight_ND, state), {}, days=[], config=config)
    return report.tables[0]


def test_rows_learnt_and_their_norms_are_those_of_the_whole_table() -> None:
    weight_ND, state_N = rows()
    found = audited(weight_ND, {"momentum1": state_N})
    norm_N = np.linalg.norm(weight_ND.double().numpy(), axis=1)[state_N.numpy() > 0]
    assert (found.num_rows, found.dim, found.num_learnt, found.learnt_share) == (NUM, DIM, 800, 0.8)
    for ours, share in ((found.norm_p50, 0.5), (found.norm_p99, 0.99), (found.norm_max, 1.0)):
        assert ours == pytest.approx(np.quantile(norm_N, share, method="inverted_cdf"), rel=0.011)
    assert sum(part.num_learnt for part in found.norms) == 800
    assert sum(part.num_never for part in found.norms) == 200
    assert found.norms[0].low <= norm_N.min()
    assert found.norms[-1].high >= norm_N.max()


@pytest.mark.parametrize("limit", [2.0, 3.5, 10.0])
def test_outliers_are_those_of_the_robust_z_of_all_log_norms(limit: float) -> None:
    weight_ND, state_N = rows(1)
    learnt = np.flatnonzero(state_N.numpy() > 0)
    weight_ND[learnt[:3]] *= 1e4
    weight_ND[learnt[3:5]] *= 1e-4
    weight_ND[np.flatnonzero(state_N.numpy() == 0)[:7]] *= 1e6  # never learnt: not judged
    found = audited(weight_ND, {"momentum1": state_N}, config=replace(CONFIG, outlier_z=limit))
    log_N = np.log2(np.linalg.norm(weight_ND.double().numpy()[learnt], axis=1))
    z_N = 0.6745 * (log_N - np.median(log_N)) / np.median(np.abs(log_N - np.median(log_N)))
    near = 0.05 * limit  # bins are 1.1% wide
    assert (z_N > limit + near).sum() <= found.num_high <= (z_N > limit - near).sum()
    assert (z_N < -limit - near).sum() <= found.num_low <= (z_N < -limit + near).sum()
    if limit == 10.0:
        assert (found.num_high, found.num_low) == (3, 2)


def test_what_is_learnt_shows_in_any_state_and_without_state_it_is_not_known() -> None:
    weight_ND, _ = rows(2)
    first_ND, second_ND = torch.zeros(NUM, DIM), torch.zeros(NUM, DIM)
    first_ND[5, 3], second_ND[9, 0] = -1e-6, 1e-12
    found = audited(weight_ND, {"momentum1": first_ND, "momentum2": second_ND})
    assert found.num_learnt == 2
    plain = audited(weight_ND, {})
    assert (plain.num_learnt, plain.learnt_share) == (None, None)
    assert plain.norm_p50 == pytest.approx(float(weight_ND.norm(dim=1).median()), rel=0.011)


def test_rows_that_are_not_finite_are_counted_wherever_the_number_is() -> None:
    weight_ND, state_N = rows(3)
    weight_ND[1, 2], weight_ND[700, 0], state_N[999] = float("nan"), float("inf"), float("nan")
    weight_ND[np.flatnonzero(state_N.numpy() > 0)[50]] = 0.0
    found = audited(weight_ND, {"momentum1": state_N})
    assert (found.num_not_finite, found.num_zero) == (3, 1)
    (critical,) = (one for one in findings(TablesReport(days=(), tables=(found,)), CONFIG))
    assert critical.level is Level.critical
    assert critical.line.startswith(
        "table item holds what is not finite: 3 of 1,000 rows, allowed is none: go back to a version before it"
    )


def test_of_a_managed_table_only_rows_that_an_id_has_count() -> None:
    weight_ND, state_N = rows(4)
    held_N = np.random.default_rng(0).permutation(np.arange(1, NUM))[:970]
    free = np.setdiff1d(np.arange(NUM), held_N)
    weight_ND[free[1]] = float("nan")
    found = audited(weight_ND, {"momentum1": state_N}, of=table(mode=IdMode.managed, num_ids=None, held_N=held_N))
    assert (found.num_held, found.num_not_finite) == (970, 0)
    assert found.num_learnt == int((state_N.numpy()[held_N] > 0).sum())
    assert found.full_share == pytest.approx(970 / 999)
    (full,) = findings(TablesReport(days=(), tables=(found,)), CONFIG)
    assert full.level is Level.warning
    assert full.line == (
        "table item is nearly full: 970 of 999 rows have an id, allowed is audit.tables.max_full_share=0.95: raise "
        "ids.rows.item, or have ids go with ids.managed.max_age_steps"
    )


def test_collisions_are_counted_over_the_vocabulary_or_else_expected_of_the_ids_seen() -> None:
    weight_ND, state_N = rows(5)
    hashed = HashedRows(num_rows=NUM, variant=HashVariant.modulo)
    of = table(mode=IdMode.hashed, hashed=hashed, num_ids=400)
    found = audited(weight_ND, {"momentum1": state_N}, of=of)
    assert found.collision_share == measured_collisions(hashed.rows(np.arange(1, 401)))
    assert found.collision_measured
    (shared,) = findings(TablesReport(days=(), tables=(found,)), CONFIG)
    assert shared.name == "ids of table item share their vectors"
    assert shared.remedy == "raise ids.rows.item, set ids.hash=double or ids.modes.item=managed, and train anew"
    count = LookupCount(num_kept=1000)
    count.add(np.arange(2**40, 2**40 + 300))
    report = audit_tables(
        [replace(of, num_ids=None)], parts_of(weight_ND, {"momentum1": state_N}), {"item": count}, days=["d"],
        config=CONFIG,
    )  # fmt: skip
    assert report.tables[0].collision_share == pytest.approx(hashed.expected_collisions(300))
    assert not report.tables[0].collision_measured
    assert audited(weight_ND, {}, of=replace(of, num_ids=None)).collision_share is None
    assert audited(weight_ND, {}).collision_share == 0.0


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=8))
def test_lookups_are_counted_exactly_while_ids_fit(calls: list[list[int]]) -> None:
    count = LookupCount(num_kept=100, limit=35)
    for call in calls:
        count.add(np.array(call, dtype=np.int64))
    flat = [key for call in calls for key in call]
    known = sorted((flat.count(key) for key in set(flat) - {0}), reverse=True)
    assert (count.total, count.missing, count.new) == (len(flat), flat.count(0), sum(key >= 35 for key in flat))
    assert (count.num_distinct, count.error) == (len(known), 0)
    assert count.shares() == tuple(sum(known[:number]) / max(sum(known), 1) for number in (1, 10, 100))


def test_counts_of_more_ids_than_are_kept_are_too_low_by_no_more_than_is_said() -> None:
    rng = np.random.default_rng(0)
    key_N = np.minimum(rng.zipf(1.3, 60_000), 10**6)
    count = LookupCount(num_kept=400)
    for call in np.split(key_N, 60):
        count.add(call)
    true_K = np.sort(np.unique(key_N, return_counts=True)[1])[::-1]
    assert count.num_distinct is None
    assert 0 < count.error <= len(key_N) / 401
    for ours, number in zip(count.shares(), (1, 10, 100), strict=True):
        exact = true_K[:number].sum() / len(key_N)
        assert exact - number * count.error / len(key_N) <= ours <= exact
    assert count.shares()[0] == pytest.approx(true_K[0] / len(key_N), rel=0.01)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_prepared(tmp_path_factory.mktemp("tables") / "prepared", num_days=3, num_users=20))


def test_lookups_are_those_of_the_features_that_the_model_reads(dataset: Dataset) -> None:
    places = small_model().places
    day = dataset.days()[0]
    batches = list(Loader(dataset, days=[day], global_batch_size=8, num_prefetch=0))
    found = count_lookups(batches, places, num_kept=1000, limits={"shop": 3})
    shops = [
        *(batch.event["shop"] for batch in batches),
        *(batch.query["shop"] for batch in batches if places.query),
        *(batch.groups[group].ids["shop"] for batch in batches for group in places.candidate
          if "shop" in batch.groups[group].ids),
    ]  # fmt: skip
    assert found["shop"].total == sum(len(one) for one in shops)
    assert found["shop"].new == sum(int((one >= 3).sum()) for one in shops)
    assert found["age"].total == sum(batch.num_timelines for batch in batches)
    assert set(found) == set(places.tables())


def test_tables_are_described_by_their_maps_and_vocabularies(dataset: Dataset) -> None:
    names = ["item", "shop", "tags"]
    config = IdsConfig(modes={"item": IdMode.managed, "tags": IdMode.hashed}, rows={"item": 50, "tags": 16})
    maps = IdMaps(id_specs(config, names=names, num_rows=NUM_ROWS))
    maps.train()("item", torch.tensor([3, 4]))
    maps("item", torch.tensor([3, 9]))
    found = audited_tables(
        {"item": 50, "shop": 9, "tags": 16}, dataset=dataset, maps=maps, last_day=dataset.days()[-1], growth_days=2
    )
    item, shop, tags = found
    assert [one.mode for one in found] == [IdMode.managed, IdMode.direct, IdMode.hashed]
    assert item.held_N is not None
    assert len(item.held_N) == 1
    assert (shop.num_ids, shop.held_N, shop.hashed) == (NUM_ROWS["shop"] - 1, None, None)
    assert tags.hashed == HashedRows(num_rows=16)
    assert shop.growth == {dataset.days()[1]: 0, dataset.days()[2]: 0}
    assert growth_of(dataset, "shop", dataset.days()[0], 5) == {dataset.days()[0]: NUM_ROWS["shop"] - 1}


def test_all_of_it_together_is_the_same_in_one_call(dataset: Dataset) -> None:
    weight_ND, state_N = rows(10)
    parts, days = parts_of(weight_ND[:9], {"m": state_N[:9]}), dataset.days()[:1]
    places = small_model().places
    batches = list(Loader(dataset, days=days, global_batch_size=8, num_prefetch=0))
    report = tables_report(
        {"shop": 9}, parts, dataset=dataset, places=places, maps=None, last_day=days[0], batches=batches, days=days,
        config=CONFIG,
    )  # fmt: skip
    counts = count_lookups(batches, places, num_kept=1000, limits={"shop": 9})
    (shop,) = report.tables
    assert (shop.num_lookups, shop.hottest) == (counts["shop"].total, counts["shop"].shares())
    assert shop.num_learnt == int((state_N[:9] > 0).sum())
    assert (report.days, shop.mode, shop.num_ids) == (days, IdMode.direct, 8)


def test_a_version_of_a_chain_is_read_with_what_its_deltas_changed(tmp_path: Path) -> None:
    toy = Toy(seed=1, tables={"item": (31, 4)}, managed={"user": (9, 2)})
    toy.state["item"] = {name: torch.zeros_like(value) for name, value in toy.state["item"].items()}
    chain = chain_of(tmp_path, for_writing=True)
    toy.train(rows=5)
    toy.save(chain)
    toy.train(rows=4)
    toy.evict("user")
    version = toy.save(chain)
    checkpoint = open_version(chain, version)
    held_N = checkpoint.map_state("user").row_N.numpy()
    of = [table(num_rows=31, num_ids=30), table(name="user", num_rows=9, mode=IdMode.managed, held_N=held_N)]
    item, user = audit_tables(of, checkpoint.table_parts, {}, days=[], config=CONFIG).tables
    learnt = toy.state["item"][ROWWISE] != 0
    assert item.num_learnt == int(learnt.sum()) > 5
    assert item.norm_max == pytest.approx(float(toy.weight["item"][learnt].norm(dim=1).max()), rel=0.011)
    assert user.num_held == len(toy.keys["user"]) > 0
    held = [row for row, _, _ in toy.keys["user"].values()]
    assert user.norm_max == pytest.approx(float(toy.weight["user"][held].norm(dim=1).max()), rel=0.011)


def test_a_hot_id_is_found_in_tables_that_are_large_enough() -> None:
    weight_ND, state_N = rows(6)
    count = LookupCount(num_kept=1000)
    count.add(np.array([7] * 60 + list(range(100, 140))))
    report = audit_tables(
        [table()], parts_of(weight_ND, {"momentum1": state_N}), {"item": count}, days=["2017-11-20"], config=CONFIG
    )
    (hot,) = findings(report, CONFIG)
    assert hot.line.startswith("one id gets most lookups of table item: 60.0% of 100, allowed is audit.tables.max_hot")
    assert findings(report, replace(CONFIG, hottest_from_rows=NUM + 1)) == []


def test_outliers_are_warned_of_beyond_their_share() -> None:
    weight_ND, state_N = rows(7)
    learnt = np.flatnonzero(state_N.numpy() > 0)
    weight_ND[learnt[:2]] *= 1e4
    report = TablesReport(days=(), tables=(audited(weight_ND, {"momentum1": state_N}),))
    (found,) = findings(report, CONFIG)
    assert found.name == "rows of table item are out of line"
    assert found.measured.startswith("2 far longer and 0 far shorter than the median norm of 0.2")
    assert findings(report, replace(CONFIG, max_outlier_share=0.01)) == []


def test_the_report_is_shown_told_and_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    weight_ND, state_N = rows(8)
    of = table(growth={"2017-11-18": 4, "2017-11-19": 0})
    report = audit_tables([of], parts_of(weight_ND, {"m": state_N}), {}, days=["2017-11-20"], config=CONFIG)
    assert msgspec.json.decode(msgspec.json.encode(report), type=TablesReport) == report
    reader = read(html(report))
    assert reader.num["figure"] == 2, "norms and growth"
    assert reader.loaded == []
    assert "800 (80%)" in "".join(reader.text)
    for shown in tables(report):
        show(shown)
    assert "Embedding tables; lookups of 2017-11-20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"max_full_share": 1.5}, "audit.tables.max_full_share=1.5 must be a share, from 0 to 1"),
        ({"outlier_z": 0.0}, "audit.tables.outlier_z=0.0 must be above 0"),
        ({"kept_ids": 10}, "audit.tables.kept_ids=10 must be at least 1,000"),
    ],
)
def test_limits_that_cannot_be_are_refused(changed: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(CONFIG, **changed)


def test_blocks_of_any_size_come_to_the_same(tmp_path: Path) -> None:
    weight_ND, state_N = rows(9)
    found = [
        audit_tables([table()], parts_of(weight_ND, {"m": state_N}, block=block), {}, days=[], config=CONFIG)
        for block in (1, 7, 10_000)
    ]
    assert found[0] == found[1] == found[2]
