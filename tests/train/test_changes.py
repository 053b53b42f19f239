"""A version goes on in a model that differs: by the policies that are allowed by name, and not otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stack.base.errors import CheckpointError
from stack.checkpoint.config import Change
from stack.checkpoint.load import Checkpoint
from stack.train.build import Setup
from stack.train.verb import train
from tests.train.worker import Run, setup_of, versions


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(
        dataset=str(prepared), runs=str(tmp_path_factory.mktemp("runs")), name="first", hashed_rows=8,
        train={"num_epochs": 1},
    )  # fmt: skip
    train(setup_of(run))
    return run


def begun(trained: Run, runs: Path, allow: list[Change], change: Callable[[Setup], Setup] = lambda setup: setup) -> Run:
    """A run that begins with the numbers of the trained one, and learns nothing: its rates are next to nothing."""
    run = msgspec.structs.replace(
        trained, runs=str(runs), name="next", train={"max_steps": 1}, dense_learning_rate=1e-30,
        tables_learning_rate=1e-30,
    )  # fmt: skip
    setup = setup_of(run)
    setup.checkpoint.start_from, setup.checkpoint.allow = f"{trained.folder}/checkpoints@2016-07-21", allow
    train(change(setup))
    return run


def head(run: Run) -> Checkpoint:
    saved = versions(run)
    return saved[max(saved)]


def rows_of(checkpoint: Checkpoint, table: str) -> torch.Tensor:
    return checkpoint.table_rows(table, 0, checkpoint.manifest.tables[table].num_rows).weight_ND


def test_a_run_begins_with_the_numbers_of_another_chain_and_says_so(trained: Run, tmp_path: Path) -> None:
    old, new = head(trained), head(begun(trained, tmp_path, []))
    for table in old.manifest.tables:
        assert torch.equal(rows_of(old, table), rows_of(new, table)), table
    learnt = {key.rpartition("/")[0] for key in old.optimizer()}  # not the running statistics
    for name in learnt:
        torch.testing.assert_close(new.dense()[name], old.dense()[name], rtol=0, atol=1e-6)
    assert new.manifest.lineage.origin == f"version 2 of {trained.folder}/checkpoints {old.manifest.digest[:12]}"
    assert new.manifest.parent is None
    assert new.manifest.whole


def test_rows_follow_their_ids_into_a_vocabulary_that_numbers_them_anew(trained: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.dataset, data)
    (file,) = (data / "vocab" / "item").glob("*.parquet")
    words = pq.read_table(file)
    raw = words["raw"].to_pylist()
    others = [*raw[5:50], "quite-new", *raw[:5], *raw[51:]]  # numbered anew; one is new, one is gone
    pq.write_table(words.set_column(words.column_names.index("raw"), "raw", pa.array(others)), file)
    elsewhere = msgspec.structs.replace(trained, dataset=str(data))
    with pytest.raises(CheckpointError, match=r"vocabulary 'item' is not the one .*checkpoint\.allow=\[vocabulary\]"):
        begun(elsewhere, tmp_path, [])
    old, new = rows_of(head(trained), "item"), rows_of(head(begun(elsewhere, tmp_path, [Change.vocabulary])), "item")
    before = {text: row for row, text in enumerate(raw, start=1)}
    assert torch.equal(new[0], old[0])
    for row, text in enumerate(others, start=1):
        if text in before:
            assert torch.equal(new[row], old[before[text]]), text
    assert not any(torch.equal(new[46], row) for row in old), "the new id begins with its first values"


def test_hashed_rows_of_another_number_begin_anew_or_are_refused(trained: Run, tmp_path: Path) -> None:
    def more(setup: Setup) -> Setup:
        setup.ids.rows["brand"] = 9
        return setup

    with pytest.raises(
        CheckpointError, match=r"'brand' is hashed into 9 rows, in version 2 .* into 8: .*\[new_table\]"
    ):
        begun(trained, tmp_path, [], more)
    new = head(begun(trained, tmp_path, [Change.new_table], more))
    assert torch.equal(rows_of(new, "item"), rows_of(head(trained), "item"))
    assert new.manifest.tables["brand"].num_rows == 9


def test_a_table_with_fewer_rows_leaves_those_beyond_behind(trained: Run, tmp_path: Path) -> None:
    """As where a later version begins a run that learns to an earlier day."""
    data = tmp_path / "data"
    shutil.copytree(trained.dataset, data)
    last = data / "days" / "2016-07-21" / "manifest.json"
    manifest = msgspec.json.decode(last.read_bytes())
    row = manifest["num_rows"]["item"]
    manifest["num_rows"]["item"] += 1
    last.write_bytes(msgspec.json.encode(manifest))
    (file,) = (data / "vocab" / "item").glob("*.parquet")
    late = pa.table({"raw": ["late"], "row": pa.array([row], pa.int32()), "first_day": ["2016-07-21"]})
    pq.write_table(late, file.with_name("2016-07-21.parquet"))
    larger = msgspec.structs.replace(trained, dataset=str(data), runs=str(tmp_path))
    train(setup_of(larger))
    assert head(larger).manifest.tables["item"].num_rows == row + 1

    def to_the_day_before(setup: Setup) -> Setup:
        setup.train.to_day = "2016-07-20"
        return setup

    with pytest.raises(CheckpointError, match=rf"table 'item' has {row} rows, in version 2 .* {row + 1}: use the"):
        begun(larger, tmp_path, [], to_the_day_before)
    new = head(begun(larger, tmp_path, [Change.fewer_rows], to_the_day_before))
    assert torch.equal(rows_of(new, "item"), rows_of(head(larger), "item")[:row])


def test_a_model_with_other_tables_and_shapes_takes_over_what_is_shared(trained: Run, tmp_path: Path) -> None:
    def with_users(setup: Setup) -> Setup:
        dims = {**setup.tables.dims, "user": 8}
        return replace(setup, model=replace(setup.model, user_id=True), tables=replace(setup.tables, dims=dims))

    with pytest.raises(
        CheckpointError, match=r"version 2 .* has no table 'user': use .* or checkpoint\.allow=\[new_table\]"
    ):
        begun(trained, tmp_path, [], with_users)
    with pytest.raises(CheckpointError, match=r"has shape .* in the model: use .*checkpoint\.allow=\[dense\]"):
        begun(trained, tmp_path, [Change.new_table], with_users)
    new = head(begun(trained, tmp_path, [Change.new_table, Change.dense], with_users))
    assert torch.equal(rows_of(new, "item"), rows_of(head(trained), "item"))
    assert new.manifest.tables["user"].num_rows > 1
    same = [name for name, value in head(trained).dense().items() if new.dense()[name].shape == value.shape]
    assert len(same) > 5
    run = begun_from(new, trained, tmp_path)
    assert "user" not in head(run).manifest.tables


def begun_from(users: Checkpoint, trained: Run, runs: Path) -> Run:
    """Back to a model without the table: lost only where that is allowed."""
    run = msgspec.structs.replace(trained, runs=str(runs), name="back", train={"max_steps": 1})
    setup = setup_of(run)
    setup.checkpoint.start_from = users.store.url
    setup.checkpoint.allow = [Change.dense]
    with pytest.raises(CheckpointError, match=r"the model has no table 'user', version 1 .* has: use .*\[lost_table"):
        train(setup)
    setup.checkpoint.allow = [Change.dense, Change.lost_table]
    train(setup)
    return run


def test_the_version_to_begin_with_is_read_through_first(trained: Run, tmp_path: Path) -> None:
    copied = msgspec.structs.replace(trained, runs=str(tmp_path))
    shutil.copytree(trained.folder, copied.folder)
    file = next((copied.folder / "checkpoints" / "data").glob("*/dense.safetensors"))
    data = np.frombuffer(file.read_bytes(), dtype=np.uint8).copy()
    data[-9] ^= 1
    for one in (copied.folder / "checkpoints" / "data").glob("*/dense.safetensors"):
        if one.stat().st_size == len(data):
            one.write_bytes(data.tobytes())
    with pytest.raises(CheckpointError, match=r"version 2 cannot be gone on from: .*dense\.safetensors is damaged"):
        begun(copied, tmp_path, [])
