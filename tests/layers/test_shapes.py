"""Padding, windows, blocks and the joined MLP against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.layers.blocks import blocks_of
from stack.layers.mlp import MLP, JoinedMLP
from stack.layers.norm import Norm
from stack.layers.padding import events_before_moments
from stack.layers.window import masked_softmax, max_over, mean_over, window_before

ROWS = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_padded_rows_hold_the_events_before_the_last_moment(rows: list[tuple[int, list[int]]]) -> None:
    num_events = [n for n, _ in rows]
    moments = [(row, min(p, n)) for row, (n, positions) in enumerate(rows) for p in positions]
    layout = events_before_moments(
        torch.tensor(num_events),
        torch.tensor([row for row, _ in moments], dtype=torch.int64),
        torch.tensor([position for _, position in moments], dtype=torch.int64),
    )
    values = torch.arange(1.0, sum(num_events) + 1).unsqueeze(1)
    padded = layout.pad(values[layout.keep_T]).squeeze(2)
    start = 0
    for row, n in enumerate(num_events):
        last = max((p for r, p in moments if r == row), default=0)
        expected = [*(start + 1.0 + i for i in range(last)), *[0.0] * (layout.num_positions - last)]
        assert padded[row].tolist() == expected
        assert layout.lengths_B[row] == last
        start += n


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=5), st.integers(1, 7))
def test_plain_pooling_is_over_the_last_events_before_the_moment(moments: list[tuple[int, int]], history: int) -> None:
    states = torch.randn(3, 6, 4)
    window = window_before(
        torch.tensor([p for _, p in moments]),
        num_positions=6,
        max_history=history,
        row_M=torch.tensor([r for r, _ in moments]),
    )
    for m, (row, position) in enumerate(moments):
        seen = states[row, max(0, position - history) : position]
        mean = seen.mean(0) if len(seen) else torch.zeros(4)
        most = seen.amax(0) if len(seen) else torch.zeros(4)
        torch.testing.assert_close(mean_over(window, states)[m], mean)
        assert torch.equal(max_over(window, states)[m], most)


def test_masked_softmax_leaves_nothing_outside_and_survives_an_empty_mask() -> None:
    logits = torch.tensor([[1.0, 2.0, 1e9], [5.0, 6.0, 7.0]])
    weights = masked_softmax(logits, torch.tensor([[True, True, False], [False, False, False]]))
    torch.testing.assert_close(weights[0, :2], torch.softmax(logits[0, :2], 0))
    assert torch.equal(weights[0, 2:], torch.zeros(1))
    assert torch.equal(weights[1], torch.zeros(3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 5))
def test_blocks_keep_every_example_with_its_moment(moments: list[int], size: int) -> None:
    moment_E = torch.tensor(moments, dtype=torch.int64)
    blocks = blocks_of(moment_E, num_moments=5, size=size)
    values = torch.arange(1.0, len(moments) + 1).unsqueeze(1)
    split = blocks.split(values)
    assert torch.equal(blocks.join(split), values)
    assert split.shape == (sum(-(-moments.count(m) // size) for m in range(5)), size, 1)
    for block, moment in zip(split.squeeze(2).tolist(), blocks.moment_G.tolist(), strict=True):
        assert {moments[int(value) - 1] for value in block if value} == {moment}


def test_joined_mlp_is_the_mlp_on_the_concatenation() -> None:
    torch.manual_seed(0)
    joined = JoinedMLP(num_user=4, num_candidate=3, widths=(6, 5), num_outputs=2, norm=Norm.batch).eval()
    plain = MLP(num_inputs=7, widths=(6, 5), num_outputs=2, norm=Norm.batch).eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), joined.state_dict().values(), strict=True)))
    user, candidate, moment = torch.randn(3, 4), torch.randn(5, 3), torch.tensor([0, 2, 2, 1, 0])
    torch.testing.assert_close(joined(user, candidate, moment), plain(torch.cat([user[moment], candidate], dim=1)))
    torch.testing.assert_close(joined(user[:1], candidate, None), joined(user, candidate, torch.zeros(5).long()))
