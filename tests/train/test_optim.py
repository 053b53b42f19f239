"""Learning rates at each step, and the optimizer's state by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.base.errors import CheckpointError, ConfigError
from stack.train.optim import (
    Decay,
    DenseOptimizer,
    OptimConfig,
    build_dense_optimizer,
    build_schedule,
    optimizer_state,
    restore_optimizer_state,
)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (Decay.constant, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (Decay.linear, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        (Decay.cosine, [0.5, 1.0, 1.0, 0.8828427, 0.6, 0.3171573, 0.2]),
    ],
)
def test_rates_warm_up_then_decay_to_the_final_share_at_the_last_step(decay: Decay, expected: list[float]) -> None:
    schedule = build_schedule(OptimConfig(warmup_steps=2, decay=decay, final_share=0.2), num_steps=7)
    assert [schedule(step) for step in range(7)] == pytest.approx(expected)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert build_schedule(OptimConfig(decay=Decay.cosine), num_steps=1)(0) == 1.0


@pytest.mark.parametrize("kind", list(DenseOptimizer))
def test_restored_state_steps_on_bit_for_bit(kind: DenseOptimizer) -> None:
    config = OptimConfig(dense=kind, dense_weight_decay=0.01)
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    names = [dict(model.named_parameters()) for model in models]
    optimizers = [build_dense_optimizer(parameters, config) for parameters in names]
    x_ND = torch.arange(12.0).view(4, 3)

    def step(which: int) -> None:
        optimizers[which].zero_grad()
        models[which](x_ND).square().sum().backward()
        optimizers[which].step()

    step(0)
    step(0)
    saved = {name: value.clone() for name, value in optimizer_state(optimizers[0], names[0]).items()}
    assert {name.partition("/")[0] for name in saved} == {"weight", "bias"}
    models[1].load_state_dict(models[0].state_dict())
    restore_optimizer_state(optimizers[1], names[1], saved)
    step(0)
    step(1)
    assert all(torch.equal(names[0][name], names[1][name]) for name in names[0])


def test_state_of_an_unknown_parameter_is_refused() -> None:
    names = dict(nn.Linear(3, 2).named_parameters())
    with pytest.raises(CheckpointError, match=r"optimizer state for 'head\.weight', which the model has not"):
        restore_optimizer_state(
            build_dense_optimizer(names, OptimConfig()), names, {"head.weight/exp_avg": torch.ones(1)}
        )


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("dense_learning_rate", 0.0, r"optim\.dense_learning_rate=0\.0 must be above 0"),
        ("tables_learning_rate", float("nan"), r"optim\.tables_learning_rate=nan must be above 0"),
        ("clip_norm", -1.0, r"optim\.clip_norm=-1\.0 must be above 0"),
        ("dense_weight_decay", -0.1, r"optim\.dense_weight_decay=-0\.1 must be 0 or more"),
        ("warmup_steps", -1, r"optim\.warmup_steps=-1 must be 0 or more"),
        ("final_share", 1.5, r"optim\.final_share=1\.5 must be from 0 to 1"),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        OptimConfig(**{option: value})
