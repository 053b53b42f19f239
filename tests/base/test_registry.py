"""Registries: readable, no duplicates, unknown names answered with the known ones."""

from __future__ import annotations

import pytest

from stack.base.errors import UnknownNameError, UserError
from stack.base.registry import Registry


def test_a_registered_class_is_found_by_its_name_and_unchanged() -> None:
    registry: Registry[type] = Registry("task")

    @registry.register("ctr")
    class Ctr:
        pass

    assert dict(registry) == {"ctr": Ctr}
    assert registry["ctr"] is Ctr


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    registry: Registry[int] = Registry("task")
    with pytest.raises(UnknownNameError, match="^unknown task 'clr'; known: none$"):
        registry["clr"]
    registry.update(rank=2, ctr=1)
    with pytest.raises(UserError, match="^unknown task 'clr'; known: ctr, rank$"):
        registry["clr"]
    assert registry.get("clr") is None


@pytest.mark.parametrize("name", ["ctr", "Ctr"])
def test_a_second_entry_or_an_upper_case_name_is_our_mistake(name: str) -> None:
    registry: Registry[object] = Registry("task")
    registry.register("ctr")(object())
    with pytest.raises(AssertionError, match="is registered twice|must be lower case"):
        registry.register(name)(object())
