"""One stable 64-bit hash of ids, the same in NumPy, torch and Arrow, and the rows that hashed tables give to keys.

Whole numbers: the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators"),
z = key + (salt + 1) 0x9E3779B97F4A7C15; z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
z ^= z >> 31, modulo 2^64. It is a bijection: distinct keys have distinct hashes. Texts: XXH64 with seed 0 of the UTF-8
bytes (Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md). Both are fixed for ever: checkpoints depend on them.

Legend: N keys, K rows of a key (1 or 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

UNKNOWN_KEY = 0
"""The key of an unknown or missing id; always row 0, which no other key of a hashed table gets."""
SALT_ROW, SALT_SECOND_ROW, SALT_OWNER, SALT_INDEX, SALT_WAITING = range(5)
"""One for each use of the hash, so that who owns a key says nothing of its place there."""

Keys = TypeVar("Keys", NDArray[np.int64], Tensor)

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


def hash_texts(texts: pa.Array | Sequence[str | None]) -> NDArray[np.int64]:
    """XXH64 of each text's UTF-8 bytes as an int64 key; nulls are `UNKNOWN_KEY`, and a hash of 0 becomes 1."""
    array = (texts if isinstance(texts, pa.Array) else pa.array(texts, type=pa.string())).cast(pa.large_string())
    null_N = array.is_null().to_numpy(zero_copy_only=False)
    _, offset_buffer, data = array.buffers()
    offset_N = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data_bytes = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    hash_N: NDArray[np.int64] = _xxh64(data_bytes, offset_N[:-1], np.diff(offset_N)).view(np.int64)
    hash_N[hash_N == UNKNOWN_KEY] = 1
    hash_N[null_N] = UNKNOWN_KEY
    return hash_N


def keys_of(raw: pa.Array) -> NDArray[np.int64]:
    """Keys of raw ids: whole numbers as they are, texts by their hash, nulls as `UNKNOWN_KEY`.

    Raises: `TypeError` for ids of any other type.
    """
    if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type):
        return hash_texts(raw)
    if not pa.types.is_integer(raw.type) or pa.types.is_uint64(raw.type):
        raise TypeError(f"raw ids must be text or whole numbers of at most 64 bits with sign, not {raw.type}")
    filled = raw.cast(pa.int64()).fill_null(UNKNOWN_KEY)
    return cast("NDArray[np.int64]", filled.to_numpy(zero_copy_only=False))


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
    if isinstance(first_N, Tensor):
        import torch

        return torch.stack([first_N, second_N], dim=1)
    return np.stack([first_N, second_N], axis=1)


def _signed(value: int) -> int:
    """The same 64 bits as a number with sign."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value > _MAX else value


_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)
_STRIPE_BYTES = 32


def _xxh64(data: NDArray[np.uint8], start_N: NDArray[np.int64], length_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """XXH64, seed 0, of N pieces of `data`; loops over places in the longest text, never over texts."""
    words = _words(data)
    hash_N = np.full(len(start_N), _P5)
    long_L = np.flatnonzero(length_N >= _STRIPE_BYTES)
    if long_L.size:
        hash_N[long_L] = _stripes(words, start_N[long_L], length_N[long_L] // _STRIPE_BYTES)
    hash_N += length_N.astype(np.uint64)
    at_N = start_N + length_N // _STRIPE_BYTES * _STRIPE_BYTES
    left_N = length_N % _STRIPE_BYTES
    for size, num_most in ((8, 3), (4, 1), (1, 3)):
        for _ in range(num_most):
            has = np.flatnonzero(left_N >= size)
            if not has.size:
                break
            hash_N[has] = _tail(hash_N[has], words[at_N[has]], size)
            at_N[has] += size
            left_N[has] -= size
    hash_N ^= hash_N >> np.uint64(33)
    hash_N *= _P2
    hash_N ^= hash_N >> np.uint64(29)
    hash_N *= _P3
    hash_N ^= hash_N >> np.uint64(32)
    return hash_N


def _words(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The eight bytes (little-endian) that begin at each byte of `data`, as a view that is not aligned."""
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    return cast("NDArray[np.uint64]", np.ndarray(len(data) + 1, dtype="<u8", buffer=padded, strides=(1,)))


def _stripes(words: NDArray[np.uint64], start_L: NDArray[np.int64], count_L: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The four accumulators over all whole stripes of 32 bytes, merged."""
    zero_L = np.zeros(len(start_L), dtype=np.uint64)
    lanes = [zero_L + _P1 + _P2, zero_L + _P2, zero_L.copy(), zero_L - _P1]
    for stripe in range(int(count_L.max())):
        has = np.flatnonzero(count_L > stripe)
        for number, lane_L in enumerate(lanes):
            lane_L[has] = _round(lane_L[has], words[start_L[has] + stripe * _STRIPE_BYTES + number * 8])
    merged_L = sum((_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)), start=zero_L)
    for lane_L in lanes:
        merged_L = (merged_L ^ _round(zero_L, lane_L)) * _P1 + _P4
    return merged_L


def _tail(hash_N: NDArray[np.uint64], word_N: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Takes in the next 8, 4 or 1 bytes, which are the low ones of `word_N`."""
    if size == 8:
        return _rotate(hash_N ^ _round(np.zeros_like(word_N), word_N), 27) * _P1 + _P4
    if size == 4:
        return _rotate(hash_N ^ ((word_N & np.uint64(0xFFFFFFFF)) * _P1), 23) * _P2 + _P3
    return _rotate(hash_N ^ ((word_N & np.uint64(0xFF)) * _P5), 11) * _P1


def _round(lane_N: NDArray[np.uint64], word_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _rotate(lane_N + word_N * _P2, 31) * _P1


def _rotate(value_N: NDArray[np.uint64], by: int) -> NDArray[np.uint64]:
    return (value_N << np.uint64(by)) | (value_N >> np.uint64(64 - by))
