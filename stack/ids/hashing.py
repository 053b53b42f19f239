"""One stable hash of 64-bit keys, the same in NumPy and torch, and the rows that hashed tables give to keys.

It is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators"),
z = key + (salt + 1) 0x9E3779B97F4A7C15; z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
z ^= z >> 31, modulo 2^64. It is a bijection: distinct keys have distinct hashes; and fixed for ever: checkpoints
and packages depend on it. `stack.data.keys` makes keys of raw ids.

Legend: N keys, K rows of a key (1 or 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from stack.data.keys import UNKNOWN_KEY

if TYPE_CHECKING:  # servers have no torch
    from torch import Tensor

SALT_ROW, SALT_SECOND_ROW, SALT_OWNER, SALT_INDEX, SALT_WAITING = range(5)
"""One for each use of the hash, so that who owns a key says nothing of its place there."""

Keys = TypeVar("Keys", NDArray[np.int64], "Tensor")

_MAX = (1 << 63) - 1


class HashVariant(Enum):
    """How a hashed table turns a key's hash into rows."""

    modulo = "modulo"
    """One row: keys that meet in it share its vector."""
    double = "double"
    """Two rows by two independent hashes; the vector is their sum. Two keys are alike only if both rows meet."""
    quotient_remainder = "quotient_remainder"
    """One row by the remainder of the hash, one by the quotient, from two halves of the table; the vector is their sum
    (Shi et al. 2019, arXiv:1909.02107, section 3, with a sum for the operation and the hash in place of the id)."""


def hash64(keys_N: Keys, *, salt: int = 0) -> Keys:
    """SplitMix64's finaliser of int64 keys, as int64 (the same 64 bits). Any key: negative ones too."""
    mixed = keys_N + _signed((salt + 1) * 0x9E3779B97F4A7C15)
    mixed ^= (mixed >> 30) & (_MAX >> 29)
    mixed *= _signed(0xBF58476D1CE4E5B9)
    mixed ^= (mixed >> 27) & (_MAX >> 26)
    mixed *= _signed(0x94D049BB133111EB)
    mixed ^= (mixed >> 31) & (_MAX >> 30)
    return mixed


def hash63(keys_N: Keys, *, salt: int = 0) -> Keys:
    """The upper 63 bits of `hash64`, from 0 up: what a remainder can be taken of."""
    return (hash64(keys_N, salt=salt) >> 1) & _MAX


@dataclass(frozen=True, kw_only=True)
class HashedRows:
    """The map of a hashed table: no state, so its three fields are all that any process or server needs.

    Rows 1 ... num_rows - 1 are shared by all keys; row 0 is that of `UNKNOWN_KEY`.
    """

    num_rows: int
    variant: HashVariant = HashVariant.modulo

    @property
    def rows_per_key(self) -> int:
        """K: how many rows are summed for a key."""
        return 1 if self.variant is HashVariant.modulo else 2

    @property
    def num_codes(self) -> int:
        """Different vectors that the table can tell apart."""
        usable = self.num_rows - 1
        if self.variant is HashVariant.modulo:
            return usable
        if self.variant is HashVariant.double:
            return usable * (usable + 1) // 2
        return self._num_remainders * (usable - self._num_remainders)

    @property
    def _num_remainders(self) -> int:
        return self.num_rows // 2

    def rows(self, keys_N: Keys) -> Keys:
        """(N,) for one row a key, (N, 2) for two. `UNKNOWN_KEY` has row 0, twice where rows are two."""
        usable = self.num_rows - 1
        known_N = (keys_N != UNKNOWN_KEY) * 1
        hash_N = hash63(keys_N, salt=SALT_ROW)
        if self.variant is HashVariant.modulo:
            row_N: Keys = (hash_N % usable + 1) * known_N
            return row_N
        if self.variant is HashVariant.double:
            first_N, second_N = hash_N % usable, hash63(keys_N, salt=SALT_SECOND_ROW) % usable
        else:
            remainders = self._num_remainders
            first_N = hash_N % remainders
            second_N = hash_N // remainders % (usable - remainders) + remainders
        return _side_by_side((first_N + 1) * known_N, (second_N + 1) * known_N)

    def expected_collisions(self, num_keys: int) -> float:
        """Expected share of `num_keys` distinct keys that have their vector in common with another.

        A key whose code has the probability p meets one of the others with 1 - (1 - p)^(num_keys - 1). Codes are
        alike likely but under double hashing, where a pair of equal rows has half the chance of any other.
        """
        others, usable = num_keys - 1, self.num_rows - 1
        if self.variant is HashVariant.double:
            same = 1.0 / usable
            return same * _meets(1.0 / usable**2, others) + (1.0 - same) * _meets(2.0 / usable**2, others)
        return _meets(1.0 / self.num_codes, others)


def measured_collisions(rows: NDArray[np.int64]) -> float:
    """Share of keys whose rows ((N,) or (N, K), in any order) are those of another key as well."""
    if not rows.shape[0]:
        return 0.0
    codes_NK = np.sort(rows.reshape(rows.shape[0], -1), axis=1)
    _, inverse_N, count = np.unique(codes_NK, axis=0, return_inverse=True, return_counts=True)
    return float((count[inverse_N.reshape(-1)] > 1).mean())


def _meets(probability: float, others: int) -> float:
    return float(-np.expm1(others * np.log1p(-probability))) if probability < 1.0 else float(others > 0)


def _side_by_side(first_N: Keys, second_N: Keys) -> Keys:
    if isinstance(first_N, np.ndarray):
        return np.stack([first_N, second_N], axis=1)
    import torch

    return torch.stack([first_N, second_N], dim=1)


def _signed(value: int) -> int:
    """The same 64 bits as a number with sign."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value > _MAX else value
