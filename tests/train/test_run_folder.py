"""A run's folder: a record of every start, options that a run may still change, and folders that cannot be used."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stack.base.errors import CheckpointError, ConfigError
from stack.train.verb import train
from tests.train.worker import Run, setup_of, versions


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Run:
    return Run(dataset=str(prepared), runs=str(tmp_path), name="r", train={"max_steps": 2})


def test_every_start_leaves_its_versions(run: Run) -> None:
    for _ in range(2):
        train(setup_of(run))
    starts = msgspec.json.decode((run.folder / "versions.json").read_bytes())
    assert [start["after_step"] for start in starts] == [0, 2]
    for start in starts:
        assert (start["seed"], start["processes"], start["threads"], start["device"]) == (0, 1, 1, "cpu")
        assert start["code"]
        assert start["torch"].startswith("2.")


def test_versions_that_cannot_be_read_are_refused_by_name_and_kept(run: Run) -> None:
    train(setup_of(run))
    path = run.folder / "versions.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"r/versions\.json is damaged \(.*\): move it away to go on without it"):
        train(setup_of(run))
    assert path.read_text() == "{"


def test_a_run_that_has_saved_nothing_begins_anew_with_other_options(run: Run) -> None:
    mistaken = msgspec.structs.replace(run, train={"max_steps": 2, "from_day": "2030-01-01"})
    with pytest.raises(ValueError, match="no day from 2030-01-01"):
        train(setup_of(mistaken))
    assert (run.folder / "config.yaml").is_file()
    assert versions(run) == {}
    train(setup_of(run))
    assert "2030" not in (run.folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"was started with train\.from_day=None, now it is 2030-01-01"):
        train(setup_of(mistaken))


def test_a_run_folder_that_cannot_be_made_is_refused_by_its_options(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    inside = msgspec.structs.replace(run, runs=str(tmp_path / "file"))
    with pytest.raises(
        ConfigError, match=r"run\.dir/run\.name=.*file/r cannot be written \(Not a directory\): choose another folder"
    ):
        train(setup_of(inside))
