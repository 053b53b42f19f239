"""All tensors of a structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor


def tensors_in(thing: object) -> Iterator[Tensor]:
    """The tensors in dataclasses, mappings, lists and tuples, in order; other objects are not looked into."""
    if isinstance(thing, Tensor):
        yield thing
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from tensors_in(getattr(thing, field.name))
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_in(value)
