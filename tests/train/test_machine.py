"""What training asks of the machine, and what it says of the code."""

from __future__ import annotations

import os
import platform
import re

import pytest

from stack.base.dist import World, share_cores
from stack.base.memory import keep_freed_memory
from stack.base.version import code_version
from stack.train.verb import own_share_of_cores


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_a_process_takes_its_share_of_the_cores_of_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert own_share_of_cores(World()) == 64
    assert own_share_of_cores(World(size=64, local_size=8)) == 8
    assert own_share_of_cores(World(size=128, local_size=128)) == 1


def test_glibc_keeps_freed_memory() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_code_version_names_the_release_and_in_a_checkout_the_commit() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-f]{7,40}(-dirty)?)?", code_version())
