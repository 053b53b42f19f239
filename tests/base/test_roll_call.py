"""Who is named as missing when processes wait for each other in vain."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in the stubs' __all__

from stack.base.roll_call import failed_in_collective, missing_error, missing_ranks

PATIENCE_SECONDS = 0.2


def test_those_that_did_not_answer_are_missing() -> None:
    store = HashStore()
    assert missing_ranks(store, rank=2, world_size=4, patience_seconds=PATIENCE_SECONDS) == [0, 1, 3]
    assert missing_ranks(store, rank=1, world_size=4, patience_seconds=PATIENCE_SECONDS) == [0, 3]


def test_nobody_is_missing_where_the_collective_failed_for_all() -> None:
    store = HashStore()
    missing_ranks(store, rank=1, world_size=2, patience_seconds=PATIENCE_SECONDS)
    assert missing_ranks(store, rank=0, world_size=2, patience_seconds=60.0) == []


def test_a_store_that_is_gone_means_that_rank_0_is() -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("Broken pipe")

    assert missing_ranks(Gone(), rank=1, world_size=2) == [0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_errors_of_communication_call_the_roll(error: RuntimeError, expected: bool) -> None:
    assert failed_in_collective(error) == expected


def test_the_error_names_rank_and_way_out() -> None:
    assert str(missing_error([1, 3], world_size=4, timeout_seconds=60.0)).startswith(
        "rank 1, 3 of 4 is missing: it ended, or took no part for 60 s while the others waited for it;"
    )
