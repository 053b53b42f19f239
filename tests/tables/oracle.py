"""Tables as plain matrices, updated one row and one owner at a time; and blocks of ranks put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stack.tables.config import RowType, Sharding, TableOptimizer
from stack.tables.first_values import FirstValues
from stack.tables.layout import column_blocks
from tests.tables.worker import (
    EPS,
    INIT_RANGE,
    LEARNING_RATE,
    NUM_OWNERS,
    NUM_STEPS,
    SEED,
    SHAPES,
    Case,
    Held,
    requests,
    targets,
)


@dataclass(kw_only=True)
class Expected:
    """Weights (rows, dim) by table; state by table and block of columns: (rows,), (rows, width) or None."""

    weights: dict[str, np.ndarray]
    states: dict[str, dict[tuple[int, int], np.ndarray | None]]
    answers: list[list[np.ndarray]]
    scale_gradient: list[float]


def blocks_of(case: Case, table: str, *, world_size: int, num_hosts: int) -> list[tuple[int, int]]:
    """(first column, columns) of the blocks that have state of their own."""
    sharding = case.others.get(table, case.sharding)
    most = {Sharding.column_wise: world_size, Sharding.grid: num_hosts}.get(sharding, 1)
    return column_blocks(SHAPES[table][1], most)


def first_weights(table: str) -> np.ndarray:
    rows, dim = SHAPES[table]
    weight_ND = torch.empty(rows, dim)
    FirstValues(seed=SEED, init_range=INIT_RANGE).fill(weight_ND, table=table, dim=dim, first_row=0)
    return weight_ND.numpy().astype(np.float64)


def expected(case: Case, *, world_size: int, num_hosts: int = 1) -> Expected:
    """What training comes to; only the blocks of columns depend on the processes."""
    kept = np.float16 if case.dtype is RowType.fp16 else np.float64
    found = Expected(weights={}, states={}, answers=[], scale_gradient=[])
    for name, (rows, _) in SHAPES.items():
        found.weights[name] = first_weights(name).astype(kept).astype(np.float64)
        found.states[name] = {
            (first, width): _no_state(case.optimizer, rows, width)
            for first, width in blocks_of(case, name, world_size=world_size, num_hosts=num_hosts)
        }
    for step in range(NUM_STEPS):
        answers, gradients, of_scale = _gradients(found.weights, step)
        found.answers.append(answers)
        found.scale_gradient.append(of_scale)
        for name, gradient in gradients.items():
            for (first, width), state in found.states[name].items():
                part = slice(first, first + width)
                weight = found.weights[name][:, part]
                _update(weight, state, gradient[:, part], case.optimizer)
                weight[:] = weight.astype(kept)
    return found


def _no_state(optimizer: TableOptimizer, rows: int, width: int) -> np.ndarray | None:
    shape = {TableOptimizer.rowwise_adagrad: (rows,), TableOptimizer.adagrad: (rows, width)}.get(optimizer)
    return None if shape is None else np.zeros(shape)


def _gradients(weights: dict[str, np.ndarray], step: int) -> tuple[list[np.ndarray], dict[str, np.ndarray], float]:
    history, candidate, kind, tags = requests(step)
    gradient = {name: np.zeros_like(weight) for name, weight in weights.items()}
    asked = [
        ("item", [[row] for row in history]),
        ("item", [[row] for row in candidate]),
        ("type", [[row] for row in kind]),
        ("tags", tags),
    ]
    answers, of_scale = [], 0.0
    for which, (name, ids_by_owner) in enumerate(asked):
        weight = weights[name]
        incoming = targets(step, weight.shape[1], which).astype(np.float64)
        answer = np.zeros((NUM_OWNERS, weight.shape[1]))
        for owner, ids in enumerate(ids_by_owner):
            for given in ids:
                row = given if 0 <= given < len(weight) else 0
                answer[owner] += weight[row] / len(ids)
                gradient[name][row] += incoming[owner] / len(ids)
        of_scale += float((answer * incoming).sum())
        answers.append(answer)
    return answers, gradient, of_scale


def _update(weight: np.ndarray, state: np.ndarray | None, gradient: np.ndarray, optimizer: TableOptimizer) -> None:
    for row in range(len(weight)):
        if optimizer is TableOptimizer.rowwise_adagrad:
            state[row] += np.mean(gradient[row] ** 2)
        elif optimizer is TableOptimizer.adagrad:
            state[row] += gradient[row] ** 2
        root = 1.0 if optimizer is TableOptimizer.sgd else np.sqrt(state[row]) + EPS
        weight[row] -= LEARNING_RATE * gradient[row] / root


def assembled(ranks: Sequence[Sequence[Held]], table: str) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """A table from the blocks that ranks write: weights, and the first state by block of columns. Every number must be
    there once."""
    blocks = [one for rank in ranks for one in rank if one.name == table and one.written]
    rows, dim = SHAPES[table]
    weight, times = np.full((rows, dim), np.nan), np.zeros((rows, dim), dtype=int)
    states: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for block in blocks:
        values = np.asarray(block.weight).reshape(len(block.weight), -1)
        if not values.size:
            continue
        part = np.s_[block.first_row :, block.first_column :]
        weight[part][: values.shape[0], : values.shape[1]] = values
        times[part][: values.shape[0], : values.shape[1]] += 1
        if "momentum1" in block.state:
            held = states.setdefault((block.first_column, values.shape[1]), [])
            state = np.asarray(block.state["momentum1"])
            by_row = state if state.size == len(values) else state.reshape(values.shape)
            held.append((block.first_row, by_row))
    assert (times == 1).all()
    ordered = {columns: sorted(parts, key=lambda part: part[0]) for columns, parts in states.items()}
    return weight, {columns: np.concatenate([part for _, part in parts]) for columns, parts in ordered.items()}
