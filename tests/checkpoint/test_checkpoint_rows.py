"""What was saved comes back, whoever held the rows."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.load import open_checkpoint
from stack.checkpoint.manifest import CheckpointManifest, LoopState, part_name
from stack.checkpoint.save import save_checkpoint
from stack.data.loader import Cursor
from stack.tables.rows import TableShard
from tests.checkpoint.saving import CONTEXT, NUM_ROWS, dense, equal, loop, optimizer, save, save_on_ranks, split, tables


def cuts(num_rows: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, num_rows), max_size=3)


@settings(max_examples=25, deadline=None)
@given(written=st.tuples(cuts(11), cuts(3)), read=st.tuples(cuts(11), cuts(3)))
def test_any_split_of_rows_loads_into_any_other(
    written: tuple[list[int], list[int]], read: tuple[list[int], list[int]]
) -> None:
    whole = tables(7)
    pieces = {name: split(whole[name], at) for name, at in zip(NUM_ROWS, written, strict=True)}
    world_size = max(len(parts) for parts in pieces.values())
    shards = [[parts[rank] for parts in pieces.values() if rank < len(parts)] for rank in range(world_size)]
    with TemporaryDirectory() as folder:
        paths = save_on_ranks(Path(folder), 7, shards)
        assert paths == [Path(folder) / "00000007"] * world_size
        checkpoint = open_checkpoint(Path(folder) / "00000007")
        checkpoint.verify()
        for name, at in zip(NUM_ROWS, read, strict=True):
            for wanted in split(whole[name], at):
                num_rows = int(wanted.weight_ND.shape[0])
                assert equal(checkpoint.table_rows(name, wanted.first_row, num_rows), wanted)
                empty = zeros_like(wanted)
                checkpoint.restore([empty])
                assert equal(empty, wanted)


def zeros_like(shard: TableShard) -> TableShard:
    return TableShard(
        name=shard.name,
        num_rows=shard.num_rows,
        dim=shard.dim,
        first_row=shard.first_row,
        weight_ND=torch.zeros_like(shard.weight_ND),
        state={key: torch.zeros_like(value) for key, value in shard.state.items()},
    )


def test_one_rank_writes_what_two_ranks_write(tmp_path: Path) -> None:
    whole = tables(1)
    save(tmp_path / "one", 1)
    save_on_ranks(tmp_path / "two", 1, list(zip(*(split(table, [2]) for table in whole.values()), strict=True)))
    one, two = (open_checkpoint(tmp_path / name / "00000001") for name in ("one", "two"))
    assert [len(one.manifest.tables[name].parts) for name in NUM_ROWS] == [1, 1]
    assert [len(two.manifest.tables[name].parts) for name in NUM_ROWS] == [2, 2]
    for name, num_rows in NUM_ROWS.items():
        assert equal(one.table_rows(name, 0, num_rows), two.table_rows(name, 0, num_rows))


def test_dense_tensors_optimizer_and_loop_come_back_exactly(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 3))
    for found, expected in ((checkpoint.dense(), dense(3)), (checkpoint.optimizer(), optimizer(3))):
        assert found.keys() == expected.keys()
        assert all(
            found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
        )
    assert checkpoint.loop() == loop(3)
    assert checkpoint.manifest.context == CONTEXT
    assert (checkpoint.manifest.step, checkpoint.manifest.world_size) == (3, 1)


def test_views_ties_empty_and_strided_tensors_are_saved_as_what_they_show(tmp_path: Path) -> None:
    memory = torch.arange(2_000_000, dtype=torch.float32).view(-1, 4)
    shard = TableShard(
        name="item", num_rows=5, dim=4, first_row=0, weight_ND=memory[2:7], state={"momentum": memory[7:12, 1]}
    )
    tied = torch.ones(2, 3)
    given_tensors: dict[str, Tensor] = {
        "a": tied,
        "b": tied,
        "c": tied.T,
        "none": torch.zeros(0, 2),
        "half": tied.bfloat16(),
    }
    path = save_checkpoint(
        tmp_path,
        step=1,
        shards=[shard],
        dense=given_tensors,
        optimizer={},
        loop=LoopState(step=1, epoch=0, cursor=Cursor(), numbers={"lost": float("nan")}),
        context=CONTEXT,
    )
    assert (path / part_name("item", 0)).stat().st_size < 1000
    checkpoint = open_checkpoint(path)
    assert equal(checkpoint.table_rows("item", 0, 5), shard)
    found = checkpoint.dense()
    assert all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in given_tensors.items()
    )
    assert checkpoint.optimizer() == {}
    assert checkpoint.loop().numbers == {"lost": None}


def test_parts_come_in_order_of_rows_and_without_state_if_not_wanted(tmp_path: Path) -> None:
    first, second = split(tables(1)["item"], [4])
    save_on_ranks(tmp_path, 1, [[second], [first]])  # the later rows are on the first rank
    parts = list(open_checkpoint(tmp_path / "00000001").table_parts("item", with_state=False))
    assert [(part.first_row, part.weight_ND.shape[0], part.state) for part in parts] == [(0, 4, {}), (4, 7, {})]
    assert torch.equal(torch.cat([part.weight_ND for part in parts]), tables(1)["item"].weight_ND)


def test_rows_that_do_not_cover_a_table_once_are_refused(tmp_path: Path) -> None:
    first, second = split(tables(1)["item"], [4])
    _, overlapping = split(tables(1)["item"], [3])
    for shards, text in (
        ([[first], []], "its parts end at row 4, but it has 11 rows"),
        ([[second], []], "begins at row 4, not at 0"),
        ([[first], [overlapping]], "begins at row 3, not at 4"),
    ):
        results = save_on_ranks(tmp_path, 1, shards)
        assert all(isinstance(result, CheckpointError) for result in results)
        assert text in str(results[0])
        assert list(tmp_path.iterdir()) == []


def test_ranks_that_disagree_about_a_table_are_refused(tmp_path: Path) -> None:
    first, second = split(tables(1)["item"], [4])
    stateless = TableShard(name="item", num_rows=11, dim=4, first_row=4, weight_ND=second.weight_ND, state={})
    results = save_on_ranks(tmp_path, 1, [[first], [stateless]])
    assert "table 'item': ranks disagree on rows, width, type or optimizer state" in str(results[0])


@pytest.mark.parametrize(
    ("name", "first_row", "num_rows", "text"),
    [
        ("item", 5, 7, "has rows 0 to 10 of table 'item', asked for 5 to 11"),
        ("item", -1, 2, "has rows 0 to 10 of table 'item', asked for -1 to 0"),
        ("brand", 0, 1, "has no table 'brand'; it has: item, shop"),
    ],
)
def test_rows_that_do_not_exist_are_refused(
    tmp_path: Path, name: str, first_row: int, num_rows: int, text: str
) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match=text):
        checkpoint.table_rows(name, first_row, num_rows)


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 1))
    shard = TableShard(name="item", num_rows=12, dim=4, first_row=0, weight_ND=torch.zeros(12, 4), state={})
    with pytest.raises(
        CheckpointError, match=r"has 11 rows of 4 in fp32, state \['momentum', 'second'\]; the model's has 12 rows"
    ):
        checkpoint.restore([shard])


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert files == [
        "dense.safetensors",
        "loop.json",
        "manifest.json",
        "optimizer.safetensors",
        "tables/item/part-00000-0.safetensors",
        "tables/shop/part-00000-0.safetensors",
    ]
    msgspec.json.decode((path / "manifest.json").read_bytes(), type=CheckpointManifest)
