"""Every sharding with every optimizer and type of rows, on 1, 2 and 4 processes, against plain matrices; checkpoints
from any of them into any other."""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
import pytest

from stack.tables.config import Communication, RowType, Sharding, TableOptimizer
from tests.distributed.launch import run_ranks
from tests.tables.oracle import assembled, blocks_of, expected, first_weights
from tests.tables.worker import CUTS, INIT_RANGE, RESET_ROWS, SHAPES, Case, Done, Held, Order

OPTIMIZERS = (TableOptimizer.rowwise_adagrad, TableOptimizer.adagrad, TableOptimizer.sgd)
TYPES = (RowType.fp32, RowType.fp16)
MIXED = Case(sharding=Sharding.row_wise, others={"type": Sharding.table_wise, "tags": Sharding.data_parallel})
CASES = [
    *(Case(sharding=s, optimizer=o, dtype=t) for s, o, t in product(Sharding, OPTIMIZERS, TYPES)),
    MIXED,
]
QUANTISED = [
    *(Case(sharding=sharding, communication=Communication.fp16) for sharding in Sharding),
    *(
        Case(sharding=sharding, communication=Communication.int8)
        for sharding in (Sharding.table_wise, Sharding.column_wise, Sharding.data_parallel)
    ),
]
WORLDS = {1: 1, 2: 1, 4: 2}
"""Processes: hosts."""

SAVED = [
    Case(sharding=sharding, optimizer=optimizer, dtype=dtype)
    for sharding in Sharding
    for optimizer, dtype in (
        (TableOptimizer.rowwise_adagrad, RowType.fp16),
        (TableOptimizer.adagrad, RowType.fp32),
    )
]
LOADS = [(saved, msgspec.structs.replace(saved, sharding=sharding)) for saved in SAVED for sharding in Sharding]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Done]]:
    """What each rank did, by number of processes. Two processes save what one and four load."""
    folder = tmp_path_factory.mktemp("sharding")
    results: dict[int, list[Done]] = {}
    for size in (2, 1, 4):
        loads = [] if size == 2 else [(str(folder / "2" / saved.name), target) for saved, target in LOADS]
        order = Order(folder=str(folder / str(size)), cases=CASES + QUANTISED, loads=loads)
        file = folder / f"order-{size}.json"
        file.write_bytes(msgspec.json.encode(order))
        outputs = run_ranks("tests.tables.worker", file, world_size=size, local_size=size // WORLDS[size])
        results[size] = [msgspec.json.decode(output, type=Done) for output in outputs]
    return results


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_forward_gradients_weights_and_state_equal_plain_matrices(
    done: dict[int, list[Done]], number: int, size: int
) -> None:
    case, ranks = CASES[number], [rank.trained[number] for rank in done[size]]
    wanted = expected(case, world_size=size, num_hosts=WORLDS[size])
    # fp16: a sum on the other side of a half rounds to the next number, 2^-12 away below 0.5 and 2^-10 below 2
    tolerance = 3e-6 if case.dtype is RowType.fp32 else 2.5e-3
    for step, answers in enumerate(wanted.answers):
        for which, answer in enumerate(answers):
            parts = [np.asarray(rank.answers[step][which]).reshape(-1, answer.shape[1]) for rank in ranks]
            assert [len(part) for part in parts] == np.diff(CUTS[size]).tolist()
            np.testing.assert_allclose(np.concatenate(parts), answer, atol=tolerance)
    for rank in ranks:
        np.testing.assert_allclose(rank.scale_gradient, wanted.scale_gradient, rtol=2e-2, atol=100 * tolerance)
    for name in SHAPES:
        weight, states = assembled([rank.held for rank in ranks], name)
        np.testing.assert_allclose(weight, wanted.weights[name], atol=tolerance)
        assert states.keys() == {block for block, state in wanted.states[name].items() if state is not None}
        for block, state in states.items():
            np.testing.assert_allclose(state, wanted.states[name][block], rtol=2e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("number", range(len(QUANTISED)), ids=[case.name for case in QUANTISED])
def test_quantised_communication_errs_by_half_a_step_and_by_no_more(
    done: dict[int, list[Done]], number: int, size: int
) -> None:
    case, ranks = QUANTISED[number], [rank.trained[len(CASES) + number] for rank in done[size]]
    wanted = expected(case, world_size=size, num_hosts=WORLDS[size])
    # below 0.0625 fp16 numbers are 2^-15 apart; int8 has 255 steps over what 32 numbers span
    step = {Communication.fp16: 2.0**-15, Communication.int8: 2 * INIT_RANGE / 255}[case.communication]
    answer = wanted.answers[0][0]
    found = np.concatenate([np.asarray(rank.answers[0][0]).reshape(-1, answer.shape[1]) for rank in ranks])
    worst = np.abs(found - answer).max()
    if case.sharding is Sharding.data_parallel:
        assert worst < 1e-7  # nothing travels but gradients, and those in fp32
    else:
        assert step / 10 < worst <= step / 2 * 1.01  # of a sum only one part is not zero
    for name in SHAPES:
        weight, _ = assembled([rank.held for rank in ranks], name)
        assert np.abs(weight - wanted.weights[name]).max() < 60 * step


@pytest.mark.parametrize("size", [2, 4])
def test_every_block_is_where_its_sharding_says(done: dict[int, list[Done]], size: int) -> None:
    def where(sharding: Sharding) -> list[list[tuple[int, int, int, int]]]:
        """(first row, rows, first column, columns) of the items of each rank."""
        number = CASES.index(Case(sharding=sharding))
        return [
            [
                (one.first_row, len(one.weight), one.first_column, len(one.weight[0]))
                for one in rank.trained[number].held
                if one.name == "item" and one.weight
            ]
            for rank in done[size]
        ]

    if size == 2:
        assert where(Sharding.row_wise) == [[(0, 12, 0, 12)], [(12, 11, 0, 12)]]
        assert where(Sharding.column_wise) == [[(0, 23, 0, 8)], [(0, 23, 8, 4)]]
        assert where(Sharding.table_row_wise) == where(Sharding.grid) == where(Sharding.row_wise)
        assert where(Sharding.table_wise) == [[(0, 23, 0, 12)], []]
    else:
        assert where(Sharding.row_wise) == [[(r, n, 0, 12)] for r, n in ((0, 6), (6, 6), (12, 6), (18, 5))]
        assert where(Sharding.column_wise) == [[(0, 23, c, 4)] for c in (0, 4, 8)] + [[]]
        assert where(Sharding.table_row_wise) == [[(0, 12, 0, 12)], [(12, 11, 0, 12)], [], []]
        assert where(Sharding.grid) == [[(r, n, c, w)] for c, w in ((0, 8), (8, 4)) for r, n in ((0, 12), (12, 11))]
    assert where(Sharding.data_parallel) == [[(0, 23, 0, 12)]] * size


@pytest.mark.parametrize("sharding", [Sharding.column_wise, Sharding.grid])
def test_row_wise_state_of_column_blocks_gives_other_numbers(done: dict[int, list[Done]], sharding: Sharding) -> None:
    blocks, whole = (
        assembled([rank.trained[CASES.index(Case(sharding=one))].held for rank in done[4]], "item")[0]
        for one in (sharding, Sharding.row_wise)
    )
    assert np.abs(blocks - whole).max() > 0.01
    # with one number for each weight there is nothing to keep by block
    blocks, whole = (
        assembled(
            [rank.trained[CASES.index(Case(sharding=one, optimizer=TableOptimizer.adagrad))].held for rank in done[4]],
            "item",
        )[0]
        for one in (sharding, Sharding.row_wise)
    )
    np.testing.assert_allclose(blocks, whole, atol=3e-6)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("number", range(len(LOADS)), ids=[f"{a.name}-to-{b.sharding.value}" for a, b in LOADS])
def test_what_two_processes_saved_comes_back_in_any_sharding_of_any_number(
    done: dict[int, list[Done]], number: int, size: int
) -> None:
    saved, target = LOADS[number]
    written = [rank.trained[CASES.index(saved)].held for rank in done[2]]
    found = [rank.loaded[number] for rank in done[size]]
    merged_by_rank = [set(merged) for _, merged in found]
    for name in SHAPES:
        weight, states = assembled([blocks for blocks, _ in found], name)
        before, states_before = assembled(written, name)
        np.testing.assert_array_equal(weight, before)
        wanted = blocks_of(target, name, world_size=size, num_hosts=WORLDS[size])
        assert sorted(states) == sorted(wanted)
        if target.optimizer is TableOptimizer.adagrad:
            whole, whole_before = (
                np.concatenate([one[block] for block in sorted(one)], axis=1) for one in (states, states_before)
            )
            np.testing.assert_array_equal(whole, whole_before)
            continue
        for block in wanted:
            np.testing.assert_allclose(states[block], merged_state(states_before, block), rtol=1e-6)
        other = any(block not in states_before for block in wanted)
        assert any(name in merged for merged in merged_by_rank) == other
    for rank, (blocks, _) in enumerate(found):
        assert {block.dtype for block in blocks} <= {f"torch.float{'16' if saved.dtype is RowType.fp16 else '32'}"}
        assert all(block.written for block in blocks) or (target.sharding is Sharding.data_parallel and rank > 0)


def merged_state(saved: dict[tuple[int, int], np.ndarray], block: tuple[int, int]) -> np.ndarray:
    """Column by column: the mean over the block's columns of the state of the block that each column was in."""
    columns = {column: state for (first, width), state in saved.items() for column in range(first, first + width)}
    return np.mean([columns[column] for column in range(block[0], sum(block))], axis=0)


@pytest.mark.parametrize("size", WORLDS)
def test_reset_rows_start_afresh_and_all_others_stay(done: dict[int, list[Done]], size: int) -> None:
    fresh = None
    for number, case in enumerate(CASES):
        if case.dtype is RowType.fp16:
            continue
        ranks = [rank.trained[number] for rank in done[size]]
        (before, _), (after, states) = (
            assembled(part, "item") for part in ([rank.held for rank in ranks], [rank.reset for rank in ranks])
        )
        moved = (before != after).all(1)
        assert np.flatnonzero(moved).tolist() == list(RESET_ROWS)
        rows = after[list(RESET_ROWS)]
        assert np.abs(rows).max() <= INIT_RANGE
        assert fresh is None or np.array_equal(rows, fresh)  # whoever holds them
        fresh = rows
        for state in states.values():
            assert (state[list(RESET_ROWS)] == 0).all()
            assert (np.delete(state, RESET_ROWS, axis=0) > 0).any()
        assert rest_of(ranks, "held") == rest_of(ranks, "reset")
    assert fresh is not None
    assert not np.isclose(fresh, first_weights("item")[list(RESET_ROWS)]).any(1).all()


def rest_of(ranks: list, which: str) -> list[list[Held]]:
    return [[one for one in getattr(rank, which) if one.name != "item"] for rank in ranks]
