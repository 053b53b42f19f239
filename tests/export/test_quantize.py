"""Stored rows are FBGEMM's, byte for byte, and come back as near as their types allow."""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  registers the operators
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stack.export.quantize import RowType, decode, encode, row_dtype

FBGEMM = torch.ops.fbgemm
QUANTISED = [RowType.int8, RowType.int4]


def numbers(most: float) -> st.SearchStrategy[np.ndarray]:
    """(N, D) tables, subnormal numbers and rows of one number among them."""
    shapes = array_shapes(min_dims=2, max_dims=2, max_side=40)
    anything = st.floats(-most, most, width=32, allow_subnormal=True)
    return arrays(np.float32, shapes, elements=anything) | arrays(
        np.float32, shapes, elements=st.floats(-1, 1, width=32)
    )


def by_fbgemm(weight_ND: np.ndarray, row_type: RowType) -> np.ndarray:
    weight = torch.from_numpy(weight_ND)
    if row_type is RowType.int8:
        return FBGEMM.FloatToFused8BitRowwiseQuantized(weight).numpy()
    return FBGEMM.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, 4).numpy()


def back_by_fbgemm(stored: np.ndarray, row_type: RowType) -> np.ndarray:
    if row_type is RowType.int8:
        return FBGEMM.Fused8BitRowwiseQuantizedToFloat(torch.from_numpy(stored)).numpy()
    return FBGEMM.FusedNBitRowwiseQuantizedSBHalfToFloat(torch.from_numpy(stored), 4).numpy()


def half_of_float16(number: np.ndarray) -> np.ndarray:
    """Half the distance of float16 numbers at a number below 65,520: they have 11 bits, the least is 2^-24."""
    return np.exp2(np.maximum(np.frexp(number)[1] - 11, -24)) / 2.0


def many_rows(dim: int) -> np.ndarray:
    """Of all sizes, near and far from zero, on a grid where many lie half-way between two codes, and constant."""
    draw = np.random.default_rng(dim)
    size_N1 = np.exp(draw.uniform(-40, 8, size=(500, 1)))
    shifted = (
        draw.normal(size=(500, dim)) * np.exp(draw.uniform(-20, 0, size=(500, 1))) + draw.normal(size=(500, 1)) * 100
    )
    grid = draw.integers(-8, 8, size=(500, dim)) * np.exp2(draw.integers(-26, 8, size=(500, 1)))
    constant = np.repeat(draw.normal(size=(500, 1)) * size_N1, dim, axis=1)
    rows = np.concatenate([draw.normal(size=(500, dim)) * size_N1, shifted, grid, constant, np.zeros((1, dim))])
    return np.clip(rows, -65504, 65504).astype(np.float32)


@pytest.mark.parametrize("row_type", QUANTISED)
@pytest.mark.parametrize("dim", [4, 8, 20, 32, 100])
def test_rows_are_fbgemm_s_bytes_and_come_back_as_its_numbers(row_type: RowType, dim: int) -> None:
    weight_ND = many_rows(dim)
    stored = encode(weight_ND, row_type)
    np.testing.assert_array_equal(stored, by_fbgemm(weight_ND, row_type))
    np.testing.assert_array_equal(decode(stored, row_type, dim), back_by_fbgemm(stored, row_type))


@pytest.mark.parametrize("dim", [1, 3, 33])
def test_int8_rows_of_odd_width_are_fbgemm_s_too(dim: int) -> None:
    weight_ND = many_rows(dim)
    stored = encode(weight_ND, RowType.int8)
    np.testing.assert_array_equal(stored, by_fbgemm(weight_ND, RowType.int8))
    np.testing.assert_array_equal(decode(stored, RowType.int8, dim), back_by_fbgemm(stored, RowType.int8))


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 33])
def test_int4_rows_that_fbgemm_refuses_have_the_codes_of_wider_ones(dim: int) -> None:
    """Columns that repeat one of the row change neither scale nor bias."""
    weight_ND = many_rows(dim)
    wider = np.concatenate([weight_ND, np.repeat(weight_ND[:, :1], -dim % 4 or 4, axis=1)], axis=1)
    stored, expected = encode(weight_ND, RowType.int4), by_fbgemm(wider, RowType.int4)
    np.testing.assert_array_equal(stored[:, -4:], expected[:, -4:])
    np.testing.assert_array_equal(decode(stored, RowType.int4, dim), back_by_fbgemm(expected, RowType.int4)[:, :dim])
    if dim % 2:
        assert not (stored[:, dim // 2] >> 4).any(), "the nibble that no column has is 0"


@settings(max_examples=300, deadline=None)
@given(weight_ND=numbers(2.0**126))
def test_any_int8_row_is_fbgemm_s(weight_ND: np.ndarray) -> None:
    weight_ND = weight_ND + np.float32(0)  # no -0.0
    stored = encode(weight_ND, RowType.int8)
    np.testing.assert_array_equal(stored, by_fbgemm(weight_ND, RowType.int8))
    found_ND = decode(stored, RowType.int8, weight_ND.shape[1])
    np.testing.assert_array_max_ulp(found_ND, back_by_fbgemm(stored, RowType.int8), maxulp=1)
    scale_bias = stored[:, weight_ND.shape[1] :].copy().view(np.float32).astype(np.float64)
    added = stored[:, : weight_ND.shape[1]] * scale_bias[:, :1]
    same = (np.abs(scale_bias[:, 1:]) >= 2.0**-29 * added) | (scale_bias[:, 1:] == 0)
    np.testing.assert_array_equal(found_ND[same], back_by_fbgemm(stored, RowType.int8)[same])


@settings(max_examples=300, deadline=None)
@given(weight_ND=numbers(65504.0))
def test_any_int4_row_is_fbgemm_s(weight_ND: np.ndarray) -> None:
    weight_ND = np.repeat(weight_ND + np.float32(0), 4, axis=1)
    stored = encode(weight_ND, RowType.int4)
    np.testing.assert_array_equal(stored, by_fbgemm(weight_ND, RowType.int4))
    np.testing.assert_array_equal(
        decode(stored, RowType.int4, weight_ND.shape[1]), back_by_fbgemm(stored, RowType.int4)
    )


@pytest.mark.parametrize("row_type", QUANTISED)
def test_zeros_of_both_signs_come_back_as_fbgemm_s(row_type: RowType) -> None:
    weight_ND = np.random.default_rng(0).choice(np.array([0.0, -0.0, 1.0], np.float32), size=(200, 8))
    found = decode(encode(weight_ND, row_type), row_type, 8)
    np.testing.assert_array_equal(found, back_by_fbgemm(by_fbgemm(weight_ND, row_type), row_type))


@settings(max_examples=300, deadline=None)
@given(weight_ND=numbers(2.0**126))
def test_int8_errs_by_half_a_step(weight_ND: np.ndarray) -> None:
    found_ND = decode(encode(weight_ND, RowType.int8), RowType.int8, weight_ND.shape[1])
    exact = weight_ND.astype(np.float64)
    half_N1 = (exact.max(axis=1) - exact.min(axis=1))[:, None] / 255 / 2
    rounding_N1 = 4 * np.spacing(np.abs(weight_ND).max(axis=1, keepdims=True))
    assert (np.abs(found_ND - exact) <= half_N1 * (1 + 1e-4) + 1e-8 + rounding_N1).all()


@settings(max_examples=300, deadline=None)
@given(weight_ND=numbers(65504.0))
def test_int4_errs_by_half_a_step_and_the_rounding_of_scale_and_bias(weight_ND: np.ndarray) -> None:
    found_ND = decode(encode(weight_ND, RowType.int4), RowType.int4, weight_ND.shape[1])
    exact = weight_ND.astype(np.float64)
    lowest_N1 = exact.min(axis=1, keepdims=True)
    scale_N1 = (exact.max(axis=1, keepdims=True) - lowest_N1) / 15
    half_bias_N1 = half_of_float16(np.abs(lowest_N1))
    half_scale_N1 = half_of_float16(scale_N1 + half_bias_N1 / 15)
    bound_N1 = scale_N1 / 2 + 1.04 * half_bias_N1 + 15.5 * half_scale_N1
    assert (np.abs(found_ND - exact) <= bound_N1 * (1 + 1e-4)).all()


@settings(max_examples=100, deadline=None)
@given(weight_ND=numbers(65504.0))
def test_plain_types_are_numpy_s(weight_ND: np.ndarray) -> None:
    for row_type, dtype in ((RowType.fp32, np.float32), (RowType.fp16, np.float16)):
        stored = encode(weight_ND, row_type)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(
            decode(stored, row_type, weight_ND.shape[1]), weight_ND.astype(dtype).astype(np.float32)
        )


@pytest.mark.parametrize("row_type", RowType)
@pytest.mark.parametrize("dim", [1, 2, 7, 32])
def test_row_dtype_says_what_encode_gives(row_type: RowType, dim: int) -> None:
    dtype, num_elements = row_dtype(row_type, dim)
    for num_rows in (0, 3):
        stored = encode(np.ones((num_rows, dim), np.float32), row_type)
        assert (stored.dtype, stored.shape) == (dtype, (num_rows, num_elements))
        assert decode(stored, row_type, dim).shape == (num_rows, dim)
    widths = {RowType.fp32: 4 * dim, RowType.fp16: 2 * dim, RowType.int8: dim + 8, RowType.int4: -(-dim // 2) + 4}
    assert dtype.itemsize * num_elements == widths[row_type]


@pytest.mark.parametrize("row_type", RowType)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_its_row(row_type: RowType, bad: float) -> None:
    weight_ND = np.ones((5, 6), np.float32)
    weight_ND[2, 3] = weight_ND[4, 0] = bad
    said = f"row 102 has a number that is not finite: it cannot be stored as {row_type.value} \\(2 of 5 rows\\)"
    with pytest.raises(ValueError, match=said):
        encode(weight_ND, row_type, first_row=100)


@pytest.mark.parametrize("row_type", [RowType.fp16, RowType.int4])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_beyond_float16_is_refused_by_its_row(row_type: RowType, sign: int) -> None:
    weight_ND = np.zeros((3, 4), np.float32)
    weight_ND[0, 0] = sign * 65504.0
    assert np.isfinite(decode(encode(weight_ND, row_type), row_type, 4)).all()
    weight_ND[1, 2] = np.nextafter(np.float32(sign * 65504), np.float32(sign * np.inf))
    with pytest.raises(ValueError, match="row 1 has a number beyond 65,504, the most that float16 holds"):
        encode(weight_ND, row_type)


def test_int8_numbers_too_far_apart_are_refused_by_their_row() -> None:
    weight_ND = np.array([[0, 3e38], [-3e38, 3e38]], np.float32)
    with pytest.raises(ValueError, match="row 1 has numbers further apart than float32 can say.*int8"):
        encode(weight_ND, RowType.int8)
