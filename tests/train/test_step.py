"""The step's loss against its definition, refused batches, and what is left behind by them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stack.base.dist import process_group
from stack.base.errors import DataError
from stack.data.batch import Batch
from stack.layers.norm import refused_batches
from stack.tables.shard import dense_tensors, table_shards
from stack.train.build import build_loop
from stack.train.loop import Loop
from stack.train.periodic import RefusalLimit
from tests.train.worker import Poisoned, Run, losses, poisoned, setup_of


@pytest.fixture
def loop(prepared: Path, tmp_path: Path) -> Iterator[Loop]:
    run = Run(dataset=str(prepared), runs=str(tmp_path), name="r", norm="batch")
    (tmp_path / "r").mkdir()
    with process_group(device=torch.device("cpu")):
        made = build_loop(setup_of(run), device=torch.device("cpu"), checkpoint=None)
        yield made
        for periodic in made.periodics:
            periodic.close()


def _first_batch(loop: Loop) -> Batch:
    return next(iter(loop.loader))


def _state(loop: Loop) -> dict[str, torch.Tensor]:
    """All that learning moves: dense parameters, rows and their optimizer state."""
    parameters = dict(loop.stepper.model.module.named_parameters())
    state = {name: value.clone() for name, value in dense_tensors(loop.stepper.model).items() if name in parameters}
    for rows in table_shards(loop.stepper.model):
        state |= {rows.name: rows.weight_ND.clone()}
        state |= {f"{rows.name}/{name}": value.clone() for name, value in rows.state.items()}
    return state


def test_loss_is_the_weighted_sum_of_each_task_s_mean_over_its_example_weights(loop: Loop) -> None:
    batch = _first_batch(loop)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = loop.stepper.model(batch)
    expected = {
        name: float(output.loss_E.double().sum() / output.weight_E.double().sum()) for name, output in outputs.items()
    }
    result = replace(loop.stepper(batch, step=0, asked_to_stop=True), gradient_norm=0.0)
    assert result.losses.keys() == {"ctr", "rank", "power", "follow"}
    for name, loss in result.losses.items():
        assert math.isclose(loss, expected[name], rel_tol=1e-5)
    assert math.isclose(result.loss, math.fsum(expected.values()), rel_tol=1e-5)
    assert result.num_examples == sum(group.num_examples for group in batch.groups.values())
    assert result.stop


def test_a_batch_without_examples_of_a_task_teaches_the_others(loop: Loop) -> None:
    batch = _first_batch(loop)
    none = batch.groups["follow"]
    empty = replace(
        none,
        moment_E=none.moment_E[:0],
        ids={name: ids[:0] for name, ids in none.ids.items()},
        dense_EF=none.dense_EF[:0],
        labels={name: label[:0] for name, label in none.labels.items()},
    )
    result = loop.stepper(replace(batch, groups=batch.groups | {"follow": empty}), step=0, asked_to_stop=False)
    assert result.losses.keys() == {"ctr", "rank", "power"}
    assert not result.refused
    assert math.isfinite(result.loss)


def test_a_nan_label_moves_nothing_and_the_next_batch_learns(loop: Loop) -> None:
    batch, before = _first_batch(loop), _state(loop)
    result = loop.stepper(poisoned(batch), step=0, asked_to_stop=False)
    assert result.refused
    assert math.isnan(result.loss)
    assert all(torch.equal(value, before[name]) for name, value in _state(loop).items())
    assert not loop.stepper(batch, step=1, asked_to_stop=False).refused
    moved = {name for name, value in _state(loop).items() if not torch.equal(value, before[name])}
    assert {"item", "item/momentum1", "dense.tasks.ctr.item.encode.weight"} <= moved


def test_an_infinite_ranking_feature_is_refused_and_never_reaches_running_statistics(loop: Loop) -> None:
    batch = _first_batch(loop)
    examples = batch.groups["impression"]
    dense_EF = examples.dense_EF.clone()
    dense_EF[0, 0] = torch.inf
    bad = replace(batch, groups=batch.groups | {"impression": replace(examples, dense_EF=dense_EF)})
    result = loop.stepper(bad, step=0, asked_to_stop=False)
    assert (result.refused, result.not_finite) == (True, ("impression.item_count",))
    assert all(bool(torch.isfinite(value).all()) for value in dense_tensors(loop.stepper.model).values())
    assert sum(refused_batches(loop.stepper.model).values()) >= 1
    assert not loop.stepper(batch, step=1, asked_to_stop=False).refused


def test_refused_batches_are_logged_and_training_goes_on(loop: Loop, tmp_path: Path) -> None:
    replace(loop, loader=Poisoned(loop.loader, 2)).run()
    records = losses(tmp_path / "r")
    assert [record["refused"] for record in records] == [step == 2 for step in range(16)]
    assert records[2]["loss"] is None


def test_above_the_limit_training_ends_in_one_line_that_names_it(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = replace(loop, loader=Poisoned(loop.loader, 1), periodics=[RefusalLimit(limit=0)])
    with pytest.raises(
        DataError, match=r"1 batches had numbers that are not finite, above train\.max_refused_batches=0"
    ):
        limited.run()
    assert "step 2: refused a batch of 2016-07-18: not finite: impression.clicked (ctr nan" in capsys.readouterr().out


def test_draws_depend_on_seed_and_step_alone(loop: Loop) -> None:
    batch = _first_batch(loop)
    drawn = []
    for step in (0, 1, 0):
        torch.manual_seed(step + 123)  # whatever happened before
        loop.stepper(batch, step=step, asked_to_stop=False)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_gradients_are_clipped_to_the_norm(loop: Loop) -> None:
    loop.stepper._clip_norm = 1e-3
    norm = loop.stepper(_first_batch(loop), step=0, asked_to_stop=False).gradient_norm
    clipped = torch.stack([weight.grad.norm() for weight in loop.stepper._parameters if weight.grad is not None]).norm()
    assert norm > 1e-3
    assert math.isclose(float(clipped), 1e-3, rel_tol=1e-3)
