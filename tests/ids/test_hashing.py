"""The hash is a published one, the same everywhere; shares of collisions are as the formula says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.data.keys import UNKNOWN_KEY, hash_texts, keys_of
from stack.ids.hashing import (
    HashedRows,
    HashVariant,
    hash63,
    hash64,
    measured_collisions,
)

LIMITS = np.array([-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1])
_MASK = (1 << 64) - 1


def slow_splitmix(key: int, salt: int) -> int:
    z = (key + (salt + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def slow_xxh64(data: bytes) -> int:
    """XXH64 with seed 0, byte by byte, after the specification."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

    def rotate(value: int, by: int) -> int:
        return ((value << by) | (value >> (64 - by))) & _MASK

    def around(lane: int, word: int) -> int:
        return rotate((lane + word * p2) & _MASK, 31) * p1 & _MASK

    def read(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    at, length = 0, len(data)
    h = p5
    if length >= 32:
        lanes = [(p1 + p2) & _MASK, p2, 0, -p1 & _MASK]
        while length - at >= 32:
            lanes = [around(lane, read(at + 8 * number, 8)) for number, lane in enumerate(lanes)]
            at += 32
        h = sum(rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            h = ((h ^ around(0, lane)) * p1 + p4) & _MASK
    h = (h + length) & _MASK
    while length - at >= 8:
        h = (rotate(h ^ around(0, read(at, 8)), 27) * p1 + p4) & _MASK
        at += 8
    if length - at >= 4:
        h = (rotate(h ^ (read(at, 4) * p1 & _MASK), 23) * p2 + p3) & _MASK
        at += 4
    while at < length:
        h = rotate(h ^ (read(at, 1) * p5 & _MASK), 11) * p1 & _MASK
        at += 1
    h = (h ^ (h >> 33)) * p2 & _MASK
    h = (h ^ (h >> 29)) * p3 & _MASK
    return h ^ (h >> 32)


def unsigned(value: int) -> int:
    return int(value) & _MASK


def test_ints_hash_to_the_published_outputs_of_splitmix64() -> None:
    assert unsigned(hash64(np.array([0]))[0]) == 0xE220A8397B1DCDAF
    assert unsigned(hash64(np.array([1234567]))[0]) == 6457827717110365317
    assert unsigned(hash64(np.array([1234567]), salt=1)[0]) == 3203168211198807973


@pytest.mark.parametrize("salt", range(5))
def test_ints_hash_alike_in_numpy_torch_and_plain_python(salt: int) -> None:
    keys = np.concatenate([LIMITS, np.random.default_rng(salt).integers(-(2**63), 2**63 - 1, 100_000)])
    hashed = hash64(keys, salt=salt)
    np.testing.assert_array_equal(hashed, hash64(torch.from_numpy(keys), salt=salt).numpy())
    assert [unsigned(value) for value in hashed[:500]] == [slow_splitmix(int(key), salt) for key in keys[:500]]


def test_hashing_leaves_its_keys_as_they_were() -> None:
    keys = LIMITS.copy()
    hash64(keys)
    np.testing.assert_array_equal(keys, LIMITS)


def test_the_63_bit_hash_is_the_upper_bits_and_never_negative() -> None:
    assert [int(value) for value in hash63(LIMITS)] == [slow_splitmix(int(key), 0) >> 1 for key in LIMITS]


def test_texts_hash_to_the_published_outputs_of_xxh64() -> None:
    known = {
        "": 0xEF46DB3751D8E999,
        "a": 0xD24EC4F1A98C6E5B,
        "abc": 0x44BC2CF5AD770999,
        "Nobody inspects the spammish repetition": 0xFBCEA83C8A378BF1,
    }
    assert [unsigned(value) for value in hash_texts(list(known))] == list(known.values())


@given(st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=90)), max_size=20))
def test_texts_of_any_length_hash_as_byte_by_byte_in_lists_and_in_arrow(texts: list[str | None]) -> None:
    expected = [0 if text is None else slow_xxh64(text.encode()) for text in texts]
    assert [unsigned(value) for value in hash_texts(texts)] == expected
    shifted = pa.array(["skipped", *texts], type=pa.string()).slice(1)
    assert [unsigned(value) for value in hash_texts(shifted)] == expected


def test_keys_of_raw_ids_are_whole_numbers_as_they_are_and_hashes_of_texts() -> None:
    np.testing.assert_array_equal(keys_of(pa.array([-5, None, 7], type=pa.int32())), [-5, UNKNOWN_KEY, 7])
    np.testing.assert_array_equal(keys_of(pa.array(["x", None])), hash_texts(["x", None]))
    with pytest.raises(TypeError, match="raw ids must be text or whole numbers of at most 64 bits with sign, not dou"):
        keys_of(pa.array([1.5]))
    with pytest.raises(TypeError, match="not uint64"):
        keys_of(pa.array([1], type=pa.uint64()))


@pytest.mark.parametrize("variant", HashVariant)
@pytest.mark.parametrize("num_rows", [4, 5, 1000])
def test_rows_are_inside_the_table_alike_in_numpy_and_torch_and_0_is_for_unknown_keys(
    variant: HashVariant, num_rows: int
) -> None:
    keys = np.concatenate([LIMITS, np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 50_000)])
    hashed = HashedRows(num_rows=num_rows, variant=variant)
    rows = hashed.rows(keys)
    np.testing.assert_array_equal(rows, hashed.rows(torch.from_numpy(keys)).numpy())
    assert rows.shape == ((len(keys),) if variant is HashVariant.modulo else (len(keys), 2))
    known = keys != UNKNOWN_KEY
    assert rows[~known].max() == 0
    assert sorted(np.unique(rows[known])) == list(range(1, num_rows))


def test_quotients_and_remainders_have_halves_of_their_own() -> None:
    rows = HashedRows(num_rows=101, variant=HashVariant.quotient_remainder).rows(np.arange(1, 10_000))
    assert rows[:, 0].max() == 50
    assert rows[:, 1].min() == 51


@pytest.mark.parametrize(("variant", "num_keys"), [("modulo", 300), ("double", 20_000), ("quotient_remainder", 20_000)])
def test_the_measured_share_of_collisions_is_as_expected(variant: str, num_keys: int) -> None:
    hashed = HashedRows(num_rows=1000, variant=HashVariant(variant))
    measured = [measured_collisions(hashed.rows(np.arange(1, num_keys + 1) + start * 1_000_003)) for start in range(20)]
    assert np.mean(measured) == pytest.approx(hashed.expected_collisions(num_keys), rel=0.1)


def test_expected_collisions_worked_by_hand() -> None:
    # Three buckets, two keys: the other meets with 1/3.
    assert HashedRows(num_rows=4).expected_collisions(2) == pytest.approx(1 / 3)
    # Three rows, ordered pairs: {a, a} has 1/9 each, {a, b} 2/9 each: sum of squares 3/81 + 3 * 4/81 = 15/81.
    assert HashedRows(num_rows=4, variant=HashVariant.double).expected_collisions(2) == pytest.approx(15 / 81)
    # Two remainders and one quotient: two codes.
    assert HashedRows(num_rows=4, variant=HashVariant.quotient_remainder).expected_collisions(2) == pytest.approx(0.5)


def test_measured_collisions_worked_by_hand() -> None:
    assert measured_collisions(np.array([1, 2, 2, 3])) == 0.5
    assert measured_collisions(np.array([[1, 2], [2, 1], [1, 1], [2, 2]])) == 0.5  # sums do not know an order
    assert measured_collisions(np.empty(0, dtype=np.int64)) == 0.0
