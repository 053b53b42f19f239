"""The bench of the pipeline takes the training job's own steps, either way."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.prepared import write_prepared
from tools.bench import pipeline


def test_it_measures_both_ways_and_what_could_be_hidden(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data")
    work = pipeline.Work(
        overrides=["data=synthetic", f"data.out={data}", "train.batch_size=16", "train.num_threads=1"],
        num_steps=8, num_rounds=2, out=str(tmp_path / "out.json"),
    )  # fmt: skip
    (tmp_path / "work.json").write_bytes(msgspec.json.encode(work))
    pipeline.main(tmp_path / "work.json")
    found = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=dict[str, tuple[float, ...]])
    assert list(found) == ["none", "sparse_dist", "asking the tables", "asking the tables, sending ids"]
    assert {len(values) for values in found.values()} == {2}


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(SystemExit, match="--steps 6 must be above 6, which are left out"):
        pipeline.measure([], num_steps=6, num_rounds=1)
