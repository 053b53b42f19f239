"""Derived seeds, and the run folder's options."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from stack.base.errors import ConfigError
from stack.base.run import RunConfig
from stack.base.seed import derive, seed_everything


def test_derived_seeds_are_fixed_numbers_that_differ_by_use() -> None:
    assert derive(0, "shuffle", 3) == 2386335075006008887
    seeds = {derive(seed, use, epoch) for seed in range(10) for use in ("shuffle", "init") for epoch in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_same_seed_gives_the_same_draws_of_all_three_generators() -> None:
    def draws() -> tuple[float, float, float]:
        seed_everything(7)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    assert draws() == draws()


def test_the_run_folder_is_dir_and_name() -> None:
    assert RunConfig(dir="runs", name="demo").folder == Path("runs/demo")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name=.* must be letters, digits"):
        RunConfig(name=name)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.seed=-1 must be 0 or more"):
        RunConfig(seed=-1)
