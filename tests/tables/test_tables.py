"""What lookups answer, on one process; `test_sharding` has the numbers of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.dist import World, process_group
from stack.base.errors import ConfigError, DataError
from stack.data.batch import Jagged
from stack.tables import collection
from stack.tables.config import RowType, Sharding, TablesConfig, TableSpec, table_specs
from stack.tables.first_values import FirstValues
from stack.tables.optim import set_table_learning_rate
from stack.tables.shard import dense_parameters, table_shards
from tests.tables import worker


@pytest.mark.parametrize("sharding", Sharding)
def test_jagged_ids_give_means_and_zeros_for_owners_without_ids(sharding: Sharding) -> None:
    with process_group(device=torch.device("cpu")):
        model = _sharded(sharding)
        rows_ND = _rows(model, "item")
        answer = model.module.tables(
            {"item": [Jagged(values_N=torch.tensor([2, 5, 99]), lengths=torch.tensor([2, 0, 1]))]}
        )
        expected = torch.stack([(rows_ND[2] + rows_ND[5]) / 2, torch.zeros(12), rows_ND[0]])
        torch.testing.assert_close(answer["item"][0], expected)


@pytest.mark.parametrize("sharding", Sharding)
def test_unknown_and_negative_ids_share_row_zero_and_unasked_tables_stay_as_they_were(sharding: Sharding) -> None:
    with process_group(device=torch.device("cpu")):
        model = _sharded(sharding)
        before = {name: _rows(model, name) for name in ("item", "tags")}
        answer = model.module.tables({"item": [torch.tensor([0, -1, 23, 10**12])]})["item"][0]
        torch.testing.assert_close(answer, before["item"][0].expand(4, 12))
        answer.sum().backward()
        moved = (_rows(model, "item") != before["item"]).any(1)
        assert moved.tolist() == [True] + [False] * 22
        assert torch.equal(_rows(model, "tags"), before["tags"])


@pytest.mark.parametrize("sharding", Sharding)
def test_no_ids_at_all_is_an_answer_too(sharding: Sharding) -> None:
    with process_group(device=torch.device("cpu")):
        answer = _sharded(sharding).module.tables({"item": [torch.empty(0, dtype=torch.int64)], "type": []})
        assert answer["item"][0].shape == (0, 12)
        assert answer["type"] == []


@given(
    ids=st.lists(st.integers(0, 40), max_size=30),
    num_rows=st.sampled_from([41, 100, 1000]),
)
def test_distinct_ids_are_the_same_by_marking_and_by_sorting(ids: list[int], num_rows: int) -> None:
    ids_N = torch.tensor(ids, dtype=torch.int64)
    distinct_U, position_N = collection._distinct(ids_N, num_rows)
    assert distinct_U.tolist() == sorted(set(ids))
    assert distinct_U[position_N].tolist() == ids


@pytest.mark.parametrize("sharding", Sharding)
def test_a_new_learning_rate_holds_from_the_next_backward_pass(sharding: Sharding) -> None:
    with process_group(device=torch.device("cpu")):
        model = _sharded(sharding)
        set_table_learning_rate(model, 0.0)
        before = _rows(model, "item")
        model.module.tables({"item": [torch.tensor([3])]})["item"][0].sum().backward()
        assert torch.equal(_rows(model, "item"), before)
        set_table_learning_rate(model, 0.5)
        model.module.tables({"item": [torch.tensor([3])]})["item"][0].sum().backward()
        # the second gradient of ones: s = 1 + 1
        torch.testing.assert_close(_rows(model, "item")[3], before[3] - 0.5 / np.sqrt(2.0))


def test_dense_parameters_are_those_outside_the_tables() -> None:
    with process_group(device=torch.device("cpu")):
        assert list(dense_parameters(_sharded())) == ["scale"]


def test_first_values_depend_on_the_row_and_not_on_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.tables.first_values._BLOCK_ROWS", 8)
    whole_ND = torch.empty(30, 8)
    first_values = FirstValues(seed=1, init_range=0.5)
    first_values.fill(whole_ND, table="item", dim=8, first_row=0)
    for first, last in [(0, 3), (3, 8), (8, 16), (5, 29), (29, 30), (30, 30)]:
        part_ND = torch.empty(last - first, 4)
        first_values.fill(part_ND, table="item", dim=8, first_row=first, first_column=4)
        assert torch.equal(part_ND, whole_ND[first:last, 4:])
    assert whole_ND.abs().max() <= 0.5
    assert whole_ND.unique().numel() == whole_ND.numel()


def test_specs_take_dims_headroom_shardings_and_types_from_the_configuration() -> None:
    config = TablesConfig(
        dims={"item": 32}, headroom=0.1, shardings={"shop": Sharding.table_wise}, row_types={"item": RowType.fp16}
    )
    item, shop = table_specs(config, names=["item", "shop"], num_rows={"item": 101, "shop": 5, "user": 9})
    assert item == TableSpec(name="item", num_rows=112, dim=32, sharding=Sharding.row_wise, dtype=RowType.fp16)
    assert shop == TableSpec(name="shop", num_rows=6, dim=16, sharding=Sharding.table_wise, dtype=RowType.fp32)


def test_bad_table_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tables\.dims: item=30 must be a positive multiple of 4"):
        TablesConfig(dims={"item": 30})
    with pytest.raises(ConfigError, match=r"tables\.headroom=-0\.1 must be"):
        TablesConfig(headroom=-0.1)
    with pytest.raises(ConfigError, match=r"tables\.init_range=0 must be above 0 and finite: "):
        TablesConfig(init_range=0)
    with pytest.raises(ConfigError, match=r"tables\.shardings names 'itm'; the tables are: item"):
        table_specs(TablesConfig(shardings={"itm": Sharding.row_wise}), names=["item"], num_rows={"item": 3})
    with pytest.raises(ConfigError, match=r"tables\.row_types names 'itm'; the tables are: item"):
        table_specs(TablesConfig(row_types={"itm": RowType.fp16}), names=["item"], num_rows={"item": 3})
    with pytest.raises(DataError, match=r"table 'item' would have 0 rows: a table needs at least row 0"):
        table_specs(TablesConfig(), names=["item"], num_rows={"item": 0})
    with pytest.raises(DataError, match=r"no vocabulary for shop; it has: item"):
        table_specs(TablesConfig(), names=["item", "shop"], num_rows={"item": 3})


def _sharded(sharding: Sharding = Sharding.row_wise) -> DistributedModelParallel:
    """On this one process."""
    return worker.build(worker.Case(sharding=sharding), World(), seed=1)


def _rows(model: DistributedModelParallel, name: str) -> torch.Tensor:
    (rows,) = (rows for rows in table_shards(model) if rows.name == name)
    return rows.weight_ND.clone()
