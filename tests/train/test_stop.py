"""Signals that ask training to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from stack.train.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_changes_nothing_else(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as request:
        assert not request.asked
        signal.raise_signal(number)
        assert request.asked
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def python_handles_ctrl_c() -> Iterator[None]:
    """A shell starts what is in its background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_sigterm_twice_is_sigterm_and_ctrl_c_after_it_ends_at_once() -> None:
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
