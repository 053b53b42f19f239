"""All maps together: one mapping in training, evaluation and exported form, over one process and two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stack.export.lookup import ListLookup, write_list
from stack.ids.blocks import even_blocks
from stack.ids.config import IdMode, IdSpec, Implementation, ManagedConfig, Policy
from stack.ids.frozen import FrozenMap
from stack.ids.hashing import HashVariant
from stack.ids.managed import MapState, join_states
from stack.ids.maps import IdMaps, frozen
from tests.distributed.launch import run_ranks
from tests.ids import worker

NUM_IDS = 1_000_000


def spec(name: str, mode: IdMode, num_rows: int, variant: HashVariant = HashVariant.modulo) -> IdSpec:
    return IdSpec(name=name, mode=mode, num_rows=num_rows, hash=variant, managed=ManagedConfig(admit_after=1))


def test_a_million_random_ids_have_the_same_rows_in_training_evaluation_and_exported_form(tmp_path: Path) -> None:
    maps = IdMaps(
        [
            spec("direct", IdMode.direct, 700_000),
            spec("hashed", IdMode.hashed, 50_000),
            spec("double", IdMode.hashed, 50_000, HashVariant.double),
            spec("quotient", IdMode.hashed, 50_000, HashVariant.quotient_remainder),
            spec("managed", IdMode.managed, 400_000),
        ]
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-(2**63), 2**63 - 1, (NUM_IDS,), generator=generator)
    ids[:2] = torch.tensor([0, 2**63 - 1])
    ids[2 : NUM_IDS // 2] = torch.randint(-100, 800_000, (NUM_IDS // 2 - 2,), generator=generator)
    ids = torch.unique(ids)
    trained = {name: maps(name, ids) for name in maps.specs}
    assert int((trained["managed"] > 0).sum()) == 399_999

    maps.eval()
    whole = maps.state()
    exported = maps.exported(whole)
    for name, rows in trained.items():
        assert torch.equal(maps(name, ids), rows), name
        np.testing.assert_array_equal(exported[name](ids.numpy()), rows.numpy(), err_msg=name)

    arrays = frozen(whole["managed"])
    write_list(tmp_path, arrays.key_N, arrays.row_N)
    opened = FrozenMap(
        key_N=np.load(tmp_path / "keys.npy", mmap_mode="r"), row_N=np.load(tmp_path / "rows.npy", mmap_mode="r")
    )
    np.testing.assert_array_equal(opened.rows(ids.numpy()), trained["managed"].numpy())
    served = ListLookup(tmp_path, text=False).rows(ids[::1000].tolist())
    np.testing.assert_array_equal(served, trained["managed"][::1000].numpy())


def test_direct_keys_outside_the_table_are_unknown() -> None:
    maps = IdMaps([spec("item", IdMode.direct, 10)])
    assert maps("item", torch.tensor([-1, 0, 9, 10])).tolist() == [0, 0, 9, 0]


def test_maps_have_nothing_that_data_parallelism_or_a_state_dict_would_touch() -> None:
    maps = IdMaps([spec("item", IdMode.managed, 100), spec("shop", IdMode.hashed, 100)])
    assert not maps.state_dict()
    assert not list(maps.buffers())
    assert not list(maps.parameters())


def test_an_empty_map_has_no_rows_in_any_form() -> None:
    maps = IdMaps([spec("item", IdMode.managed, 4)]).eval()
    keys = torch.tensor([-3, 0, 5])
    assert maps("item", keys).tolist() == [0, 0, 0]
    assert maps.exported(maps.state())["item"](keys.numpy()).tolist() == [0, 0, 0]
    assert maps("item", keys[:0]).tolist() == []


def test_resets_are_by_table_and_drained_once() -> None:
    maps = IdMaps([spec("item", IdMode.managed, 4), spec("user", IdMode.managed, 4)])
    maps("item", torch.tensor([1, 2, 3]))
    maps("item", torch.tensor([7, 8]))
    assert {name: rows.tolist() for name, rows in maps.drain_resets().items()} == {"item": [1, 2]}
    assert maps.drain_resets() == {}


Found = dict[str, dict[str, Any]]
BOTH = ["bounded", "torchrec"]


@pytest.fixture(scope="module")
def one() -> Found:
    """What one process saw, by implementation and rows."""
    outputs = run_ranks("tests.ids.worker", "bounded:2000", "torchrec:2000", world_size=1)
    return dict(json.loads(outputs[0]))


@pytest.fixture(scope="module")
def two() -> list[Found]:
    """What each of two processes saw."""
    outputs = run_ranks("tests.ids.worker", "bounded:2000", "torchrec:2000", "bounded:40", world_size=2)
    return [dict(json.loads(output)) for output in outputs]


@pytest.mark.parametrize("name", BOTH)
def test_two_processes_map_as_one_where_there_is_room(name: str, one: Found, two: list[Found]) -> None:
    alone, parts = one[f"{name}:2000"], [found[f"{name}:2000"] for found in two]
    for table in ("direct", "hashed"):
        rows = {key: row for key, row, _ in alone["seen"][table]}
        assert all(rows[key] == row for part in parts for key, row, _ in part["seen"][table])
    has_row = {(key, step): row > 0 for key, row, step in alone["seen"]["managed"]}
    for part in parts:
        assert all(has_row[key, step] == (row > 0) for key, row, step in part["seen"]["managed"])
    final = parts[0]["final"]
    assert final == parts[1]["final"], "both processes see one map"
    assert len({row for row in final if row}) == sum(row > 0 for row in final) > 50
    assert alone["admitted"] >= sum(part["admitted"] for part in parts) > 50
    assert alone["evicted"] == parts[0]["evicted"] == parts[1]["evicted"] == 0


@pytest.mark.parametrize("name", BOTH)
def test_each_process_manages_the_rows_of_its_block_alone(name: str, two: list[Found]) -> None:
    bounds = even_blocks(2000, num_blocks=2).bounds
    for rank, found in enumerate(two):
        rows = found[f"{name}:2000"]["state"]["row_N"]
        assert rows
        assert all(bounds[rank] <= row < bounds[rank + 1] for row in rows)


@pytest.mark.parametrize("name", BOTH)
def test_the_state_of_two_processes_loads_into_one(name: str, two: list[Found]) -> None:
    small = ("count_N", "last_N", "waiting_count_W")
    parts = [
        MapState.of_tensors(
            {
                key: torch.tensor(value, dtype=torch.int32 if key in small else torch.int64)
                for key, value in found[f"{name}:2000"]["state"].items()
            }
        )
        for found in two
    ]
    maps = IdMaps(worker.specs(2000, Implementation(name))).eval()
    moved = maps.load({"managed": join_states(parts)})["managed"]
    assert torch.equal(moved.from_row_N, moved.to_row_N), "one block holds the rows of both"
    assert maps("managed", torch.arange(-50, 500)).tolist() == two[0][f"{name}:2000"]["final"]


def test_two_processes_that_have_to_evict_report_rows_of_their_own_block(two: list[Found]) -> None:
    parts = [found["bounded:40"] for found in two]
    bounds = even_blocks(40, num_blocks=2).bounds
    for rank, part in enumerate(parts):
        rows = [row for step in part["resets"] for row in step]
        assert len(rows) == part["evicted"] > 0
        assert all(max(bounds[rank], 1) <= row < bounds[rank + 1] for row in rows)
    assert parts[0]["final"] == parts[1]["final"]


@pytest.mark.parametrize("policy", Policy)
def test_an_evicted_row_that_is_re_initialised_starts_fresh(policy: Policy) -> None:
    """The contract with tables, played with a plain array: learn, evict, reset, look up."""
    managed = ManagedConfig(admit_after=1, policy=policy)
    maps = IdMaps([IdSpec(name="i", mode=IdMode.managed, num_rows=4, hash=HashVariant.modulo, managed=managed)])
    weights = np.zeros(4)

    def train(*keys: int) -> np.ndarray:
        rows = maps("i", torch.tensor(keys)).numpy()
        for reset in maps.drain_resets().values():
            weights[reset.numpy()] = 0.0
        found = weights[rows].copy()
        weights[rows[rows > 0]] += 1.0
        return found

    train(1, 2, 3)
    assert train(1, 2, 3).tolist() == [1.0, 1.0, 1.0]
    for _ in range(9):
        found = train(4, 5)
    assert found.tolist() == [weights[row] - 1.0 for row in maps("i", torch.tensor([4, 5])).tolist()]
    gone = [key for key in (1, 2, 3) if not maps.eval()("i", torch.tensor([key]))[0]]
    maps.train()
    assert len(gone) == 2
    first = [train(*gone) for _ in range(9)][-1]
    assert first.max() < 9.0, "what it had learnt before is gone"
