"""What rows cost, against figures worked out one pair and one moment at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stack.data.batch import Batch
from stack.export.package import USER_VECTOR
from stack.export.parity import Answers
from stack.export.quality import Judge, TaskQuality
from stack.tasks import TasksConfig
from tests.batches import random_batch, small_model

NUM_OUTPUTS = 5


def slow_auc(scores: list[float], labels: list[float]) -> float | None:
    """The share of pairs of a positive and a negative that are in order; equal scores are half in order."""
    pairs = [
        (ours > theirs) + (ours == theirs) / 2
        for ours, ours_is in zip(scores, labels, strict=True)
        for theirs, theirs_is in zip(scores, labels, strict=True)
        if ours_is > 0 and theirs_is == 0
    ]
    return sum(pairs) / len(pairs) if pairs else None


def slow_gauc(users: list[int], scores: list[float], labels: list[float]) -> float | None:
    total = weight = 0.0
    for user in set(users):
        mine = [index for index, other in enumerate(users) if other == user]
        found = slow_auc([scores[index] for index in mine], [labels[index] for index in mine])
        if found is not None:
            total, weight = total + len(mine) * found, weight + len(mine)
    return total / weight if weight else None


def days(seed: int) -> Iterator[tuple[Batch, Answers, Answers, Answers]]:
    """Batches with exact answers, the same with errors (and ties), and labels; `follow` has positives alone."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    for _ in range(3):
        batch = random_batch(generator, num_examples={"impression": 17, "follow": 4, "price": 2})
        sizes = {"ctr": 17, "rank": 17, "follow": 4}
        exact = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
        rounded = {name: np.round(value + rng.standard_normal(len(value)) / 4, 1) for name, value in exact.items()}
        labels = {name: rng.integers(0, 2, size).astype(np.float32) for name, size in sizes.items()}
        labels["follow"][:] = 1
        exact[USER_VECTOR] = rng.standard_normal((batch.num_moments, NUM_OUTPUTS)).astype(np.float32)
        rounded[USER_VECTOR] = exact[USER_VECTOR] + rng.standard_normal(exact[USER_VECTOR].shape).astype(np.float32) / 9
        exact[USER_VECTOR][0] = 0  # a vector without a length
        yield batch, exact, rounded, labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_losses_and_errors_are_those_worked_out_one_by_one(seed: int) -> None:
    model = small_model(tasks=TasksConfig())
    best, judge = Judge(model), Judge(model)
    told: dict[str, list[list[float]]] = {name: [[], [], [], []] for name in ("ctr", "rank", "follow")}
    largest, shares = 0.0, []
    for batch, exact, rounded, labels in days(seed):
        best.add(batch, exact, labels)
        judge.add(batch, rounded, labels)
        for name, (users, ours, theirs, is_) in told.items():
            moments = batch.groups[model.task(name).group].moment_E.tolist()
            users += [int(batch.user_B[batch.moment_row_M[moment]]) for moment in moments]
            ours += rounded[name].tolist()
            theirs += exact[name].tolist()
            is_ += labels[name].tolist()
        for mine, wanted in zip(rounded[USER_VECTOR].tolist(), exact[USER_VECTOR].tolist(), strict=True):
            differences = [one - other for one, other in zip(mine, wanted, strict=True)]
            largest = max(largest, *map(abs, differences))
            length = sum(one**2 for one in wanted) ** 0.5
            shares.append(sum(one**2 for one in differences) ** 0.5 / (length or 1))
    found = judge.result(best, row_bytes=77)
    assert found.row_bytes == 77
    assert found.vector_error_max == pytest.approx(largest, rel=1e-6)
    assert found.vector_error_mean == pytest.approx(sum(shares) / len(shares), rel=1e-6)
    for name, (users, ours, theirs, is_) in told.items():
        auc, gauc = slow_auc(ours, is_), slow_gauc(users, ours, is_)  # type: ignore[arg-type]
        exact_auc, exact_gauc = slow_auc(theirs, is_), slow_gauc(users, theirs, is_)  # type: ignore[arg-type]
        if name == "follow":
            assert found.tasks[name] == TaskQuality(num_examples=12, auc=None, gauc=None, auc_loss=None, gauc_loss=None)
            continue
        assert auc is not None
        assert gauc is not None
        assert exact_auc is not None
        assert exact_gauc is not None
        assert found.tasks[name].num_examples == 51
        assert found.tasks[name].auc == pytest.approx(auc, abs=1e-12)
        assert found.tasks[name].gauc == pytest.approx(gauc, abs=1e-12)
        assert found.tasks[name].auc_loss == pytest.approx(exact_auc - auc, abs=1e-12)
        assert found.tasks[name].gauc_loss == pytest.approx(exact_gauc - gauc, abs=1e-12)


def test_exact_rows_lose_nothing() -> None:
    model = small_model(tasks=TasksConfig())
    best = Judge(model)
    for batch, exact, _, labels in days(5):
        best.add(batch, exact, labels)
    found = best.result(best, row_bytes=1)
    assert (found.vector_error_max, found.vector_error_mean) == (0.0, 0.0)
    assert {one.auc_loss for name, one in found.tasks.items() if name != "follow"} == {0.0}
