"""A run that was killed, and then asked to stop, ends as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.base.errors import CheckpointError, ConfigError
from stack.checkpoint.chain import chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.tensors import TensorFile
from stack.data.dataset import Dataset
from stack.data.keys import keys_of
from stack.train.verb import STOPPED_STATUS, train
from tests.distributed.launch import ROOT
from tests.train.worker import Run, losses, setup_of, versions

TIMEOUT_SECONDS = 60
NUM_STEPS = 32


def _run(prepared: Path, runs: Path, name: str) -> Run:
    """With dropout and batch norm, so that random draws and running statistics must be restored as well."""
    return Run(dataset=str(prepared), runs=str(runs), name=name, norm="batch", dropout=0.2, train={"num_epochs": 4})


def _interrupt(run: Run, number: signal.Signals, *, after_step: int) -> int:
    """Starts the run as a process of its own, signals it once `after_step` steps are in its log; its exit status."""
    command = [sys.executable, "-m", "tests.train.worker", msgspec.json.encode(run).decode()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while _num_logged(run.folder) < after_step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in errors, errors
    return process.returncode


def _num_logged(folder: Path) -> int:
    log = folder / "steps.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def test_killed_then_stopped_then_finished_equals_uninterrupted_in_every_loss_and_every_byte(
    prepared: Path, tmp_path: Path
) -> None:
    whole, broken = _run(prepared, tmp_path, "whole"), _run(prepared, tmp_path, "broken")
    train(setup_of(whole))
    expected = losses(whole.folder)
    assert len(expected) == NUM_STEPS
    killed_after = random.SystemRandom().randint(1, 15)
    stopped_after = random.SystemRandom().randint(16, 26)
    where = f"killed after step {killed_after}, stopped after {stopped_after}"
    assert _interrupt(broken, signal.SIGKILL, after_step=killed_after) == -signal.SIGKILL, where
    assert _interrupt(broken, signal.SIGTERM, after_step=stopped_after) == STOPPED_STATUS, where
    last = max(versions(broken))
    assert last == _num_logged(broken.folder) < NUM_STEPS, f"{where}: a stop saves the step it stops at"
    train(setup_of(broken))
    assert losses(broken.folder) == expected, where
    ends = [versions(run)[NUM_STEPS] for run in (whole, broken)]
    assert ends[0].digest() == ends[1].digest(), where  # tables, dense tensors, optimizer and loop state


def test_a_finished_run_is_left_as_it_is(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(dataset=str(prepared), runs=str(tmp_path), name="short", train={"max_steps": 2})
    train(setup_of(run))
    before = losses(run.folder)
    train(setup_of(run))
    assert losses(run.folder) == before
    assert len(before) == 2
    assert "going on after step 2" in capsys.readouterr().out


@pytest.mark.parametrize("managed_rows", [0, 60])
def test_runs_tell_which_id_of_the_vocabulary_each_row_is_of_also_compacted(
    prepared: Path, tmp_path: Path, managed_rows: int
) -> None:
    run = Run(
        dataset=str(prepared), runs=str(tmp_path), name="r", managed_rows=managed_rows, train={"max_steps": 9},
        checkpoint={"whole_share": 1.0},
    )  # fmt: skip
    train(setup_of(run))
    chain = chain_of(run.folder / "checkpoints")
    head = chain.find(None)
    dataset = Dataset(prepared)
    compacted = compact(chain, head, part_mib=1)
    runs = [(one.data, entry.parts) for one in (chain.manifest(1), head) for entry in (one.tables["item"],)]
    assert compacted is not None
    runs += [(compacted.data, entry.parts) for entry in compacted.tables["item"]]
    num_rows = 0
    for data, parts in runs:
        for part in parts:
            found = TensorFile(chain.store, f"data/{data}/{part.file}").all()
            np.testing.assert_array_equal(found["raw"], dataset.keys("item")[found["key"]])
            num_rows += part.num_rows
    assert num_rows > 100
    assert dataset.keys("item")[:3].tolist() == [0, *keys_of(dataset.vocabulary("item").raw[:2])]


def test_resuming_with_other_options_is_refused_by_the_option_s_name(prepared: Path, tmp_path: Path) -> None:
    train(setup_of(Run(dataset=str(prepared), runs=str(tmp_path), name="r", train={"max_steps": 1})))
    with pytest.raises(
        ConfigError, match=r"was started with model\.dropout=0\.0, now it is 0\.3: resume with the same"
    ):
        train(setup_of(Run(dataset=str(prepared), runs=str(tmp_path), name="r", dropout=0.3, train={"max_steps": 1})))
    with pytest.raises(CheckpointError, match=r"r is not empty: go on from it with train\.resume=true, or choose"):
        train(
            setup_of(Run(dataset=str(prepared), runs=str(tmp_path), name="r", train={"max_steps": 1, "resume": False}))
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"other is not empty and not a run \(no config\.yaml\)"):
        train(setup_of(Run(dataset=str(prepared), runs=str(tmp_path), name="other")))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_checkpoint_of_other_vocabularies_is_refused(prepared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    run = Run(dataset=str(data), runs=str(tmp_path), name="r", train={"max_steps": 2})
    train(setup_of(run))
    for table, text in (
        ("brand", r"'brand' is not the one that version 1 of .* was trained with"),
        ("type", r"'type' is not the one that version 1 of .*, and the user tower holds its rows, which stay where"),
    ):
        (file,) = (data / "vocab" / table).glob("*.parquet")
        before, ids = file.read_bytes(), pq.read_table(file)
        swapped = pa.array([2, 1, *range(3, len(ids) + 1)], ids.schema.field("row").type)
        pq.write_table(ids.set_column(ids.schema.get_field_index("row"), "row", swapped), file)
        with pytest.raises(CheckpointError, match=text):
            train(setup_of(run))
        file.write_bytes(before)
