"""From a graph's outputs to what is answered, and requests recorded with their answers.

Legend: N users or candidates, K classes.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.export.engines import Array
from stack.export.package import Link


class Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request of `items:score` in raw ids (of `users:embed` where the package scores no candidate), and what must
    come back: the user's vector, and by task a value for each candidate. A server warms with them, and proves itself
    before it answers anybody."""

    body: dict[str, object]
    vector: list[float]
    scores: dict[str, list[float]]


def linked(value: Array, link: Link) -> NDArray[np.float32]:
    """Raw outputs (N,) or (N, K) as they are answered."""
    match link:
        case Link.SIGMOID:
            return np.asarray(0.5 * (np.tanh(0.5 * value) + 1.0), dtype=np.float32)  # no overflow at either end
        case Link.SOFTMAX:
            shifted = np.exp(value - value.max(axis=-1, keepdims=True))
            return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
        case Link.IDENTITY:
            return np.asarray(value, dtype=np.float32)
