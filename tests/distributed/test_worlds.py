"""One run over 1, 2, 4 and 1 processes, its tables sharded otherwise each time: nothing changes on the way."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stack.checkpoint.chain import chain_of
from stack.checkpoint.verify import verify
from tests.distributed.launch import run_ranks
from tests.prepared import write_prepared
from tests.train.worker import Run, setup_of

pytestmark = pytest.mark.long
WORLDS = (1, 2, 4, 1)
STEPS = 3
SHARDINGS = {
    "direct": ("table_wise", "column_wise", "row_wise", "row_wise"),
    "managed": ("row_wise", "row_wise", "row_wise", "row_wise"),
}
"""The second has few rows for items, so that keys lose theirs between the deltas."""


@pytest.mark.timeout(600)
def test_a_run_goes_on_bit_for_bit_over_any_number_of_processes(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_buckets=4)
    checkpoint: dict[str, int | bool | float] = {"whole_share": 1.0}
    runs = {
        name: Run(
            dataset=str(data), runs=str(tmp_path), name=name, managed_rows=60 if name == "managed" else 0,
            checkpoint=checkpoint,
        )
        for name in SHARDINGS
    }  # fmt: skip
    for number, world_size in enumerate(WORLDS):
        train = {"max_steps": (number + 1) * STEPS, "save_every_steps": 2}
        arguments = [
            text
            for name, run in runs.items()
            for text in (
                msgspec.json.encode(msgspec.structs.replace(run, train=train)).decode(),
                SHARDINGS[name][number],
            )
        ]
        run_ranks("tests.distributed.worlds_worker", *arguments, world_size=world_size)
    for name, run in runs.items():
        chain = chain_of(setup_of(run).chain_place)
        versions = [chain.manifest(number) for number in chain.numbers()]
        ends = [version for version in versions if version.complete]
        assert [version.world_size for version in ends] == list(WORLDS)
        assert [version.step for version in ends] == [3, 6, 9, 12]
        assert any(not table.whole for version in versions for table in version.tables.values()), name
        assert not verify(chain, deep=True).findings
