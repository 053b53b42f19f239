"""One call of the tables for all features of a step, and the vectors handed back by place.

Legend: N owners (events, moments, candidates ...), D width of all features of a place together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from stack.data.batch import Ids, Jagged
from stack.data.schema import Feature


class AnyTables(Protocol):
    """Tables as dense code knows them. What `ask` returns is the tables' own affair."""

    def ask(self, requests: Mapping[str, Sequence[Ids]]) -> object:
        """Takes requests by table, before or while others are looked up."""
        ...

    def __call__(self, asked: object) -> dict[str, list[Tensor]]:
        """(N, D) for each request of a table, in the order asked."""
        ...


class Lookup:
    """Collects `requests`, one call's worth; `join` puts the answer back in its places. Places without features give
    (N, 0)."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Ids]] = {}
        self._places: dict[str, list[tuple[str, int]]] = {}
        self._num_owners: dict[str, int] = {}

    def add(self, place: str, features: Sequence[Feature], ids: Mapping[str, Ids], num_owners: int) -> None:
        """Asks for `features` of the owners at `place`; their vectors will be concatenated in this order."""
        assert place not in self._places, f"place {place!r} is asked for twice"
        self._num_owners[place] = num_owners
        self._places[place] = []
        for feature in features:
            asked = self.requests.setdefault(feature.table, [])
            self._places[place].append((feature.table, len(asked)))
            asked.append(ids[feature.name])

    def join(self, found: Mapping[str, Sequence[Tensor]], *, like: Tensor) -> dict[str, Tensor]:
        """(N, D) by place, from the tables' answer to `requests`. `like` gives device of the empty ones."""
        return {
            place: torch.cat([found[table][index] for table, index in asked], dim=1)
            if asked
            else torch.zeros(self._num_owners[place], 0, device=like.device)
            for place, asked in self._places.items()
        }


def select_owners(ids: Ids, keep_N: Tensor) -> Ids:
    """The ids of the owners that the mask keeps."""
    if isinstance(ids, Jagged):
        keep_ids = keep_N.repeat_interleave(ids.lengths)
        return Jagged(values_N=ids.values_N[keep_ids], lengths=ids.lengths[keep_N])
    return ids[keep_N]
