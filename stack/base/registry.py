"""A registry is a dictionary you can read: lower-case name to class or function.

    TASKS: Registry[type[Task]] = Registry("task")

    @TASKS.register("ctr")
    class Ctr(Task): ...

The package's `__init__` imports the modules that register; there is no scanning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from stack.base.errors import UnknownNameError

T = TypeVar("T")
Entry = TypeVar("Entry")


class Registry(dict[str, T]):
    """A dictionary that refuses duplicates and answers an unknown name with the known ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that enters a class or function under `name` and returns it unchanged.

        Raises: `AssertionError` where `name` is taken or not lower case (both are mistakes in the code).
        """

        def enter(entry: Entry) -> Entry:
            assert name == name.lower(), f"{self.kind} {name!r} must be lower case"
            assert name not in self, f"{self.kind} {name!r} is registered twice: {self.get(name)!r} and {entry!r}"
            self[name] = entry  # type: ignore[assignment]  # the decorator keeps the exact type of what it decorates
            return entry

        return enter

    def __missing__(self, name: str) -> T:
        raise UnknownNameError(self.kind, name, self)
