"""The 64-bit key of a raw id: what stands for it wherever it has no vocabulary row, from ingest to serving.

Whole numbers are their own keys; the key of a text is XXH64, seed 0, of its UTF-8 bytes (Collet,
github.com/Cyan4973/xxHash, doc/xxhash_spec.md). Both are fixed for ever: prepared data, checkpoints and packages hold
keys. Two texts of n share a key with a chance of about n^2 / 2^65: one in 37 that any two of 1e9 do.

Legend: N ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UNKNOWN_KEY = 0
"""The key of an unknown or missing id, and so of the whole number 0; always row 0, which no other key gets."""


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


def arrow_keys_of(raw: pa.Array) -> pa.Array:
    """`keys_of` as engines call it: DuckDB with chunked arrays, Spark (which reads the annotations) with plain ones."""
    return pa.array(keys_of(raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw))


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
