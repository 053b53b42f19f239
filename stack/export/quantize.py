"""Rows of a table as they are stored: fp32, fp16, and FBGEMM's row-wise 8 and 4 bits, without FBGEMM or torch.

int8 is FBGEMM's `Fused8BitRowwiseQuantized`, int4 its `FusedNBitRowwiseQuantizedSBHalf` of 4 bits; a stored row is

    int8   D bytes: codes                                       float32 scale, float32 bias
    int4   ceil(D / 2) bytes: two codes each, the lower first   float16 scale, float16 bias

in little-endian order without padding, and a number is code x scale + bias. FBGEMM itself takes int4 rows of D a
multiple of 4 only. `encode` gives FBGEMM's bytes but for the sign of a bias of zero, where a row's least numbers are
both 0.0 and -0.0 (they decode alike). `decode` of encoded rows gives FBGEMM's numbers (its AVX2 kernels' fused
multiply-add, rounded once) but for the last bit of int8 numbers with 0 < |bias| < 2^-29 x code x scale.

Shape legend: N rows, D columns, C bytes of codes in a row.
"""

from __future__ import annotations

import enum
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Stored: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]
"""(N, elements), as `row_dtype` says."""

_FP16_MAX = 65504.0
_EPSILON = np.float32(1e-8)
"""What FBGEMM adds to a row's range before it divides: in rows of a range near it, int8 loses up to it."""
_CODE_PAIRS = np.array([[byte & 15, byte >> 4] for byte in range(256)], dtype=np.float32)


class RowType(enum.Enum):
    """How a row of a package's table is stored."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int4 = "int4"


def row_dtype(row_type: RowType, dim: int) -> tuple[np.dtype[np.generic], int]:
    """Type of the elements of a stored row, and how many there are."""
    if row_type is RowType.fp32:
        return np.dtype("<f4"), dim
    if row_type is RowType.fp16:
        return np.dtype("<f2"), dim
    if row_type is RowType.int8:
        return np.dtype(np.uint8), dim + 8
    return np.dtype(np.uint8), _num_code_bytes(dim) + 4


def encode(weight_ND: NDArray[np.float32], row_type: RowType, *, first_row: int = 0) -> Stored:
    """Rows as they are stored; `first_row` is the number of the first one, for messages. fp32 rows are not copied.

    A number comes back with an error of at most

        int8   scale / 2 + 1e-8
        int4   scale / 2 + 1.04 h(bias) + 15.5 h(scale), where h(x) is half the distance of float16 numbers at x

    and float32's own rounding.

    Raises:
        ValueError: naming the first row that has a NaN or an infinity, a number beyond 65,504 where the type is fp16
            or int4, or in int8 numbers that are further apart than float32 can say.
    """
    lowest_N, highest_N = weight_ND.min(axis=1), weight_ND.max(axis=1)  # of a row with a NaN, NaN
    _refuse(~(np.isfinite(lowest_N) & np.isfinite(highest_N)), first_row, row_type, "has a number that is not finite")
    if row_type is RowType.fp32:
        return weight_ND
    if row_type is RowType.int8:
        return _encode_int8(weight_ND, lowest_N, highest_N, first_row)
    beyond_N = np.maximum(-lowest_N, highest_N) > _FP16_MAX
    _refuse(beyond_N, first_row, row_type, "has a number beyond 65,504, the most that float16 holds")
    return weight_ND.astype(np.float16) if row_type is RowType.fp16 else _encode_int4(weight_ND, lowest_N, highest_N)


def decode(stored_N: Stored, row_type: RowType, dim: int) -> NDArray[np.float32]:
    """(N, D) of stored rows, which lie one after another in memory. fp32 rows come back uncopied."""
    if row_type is RowType.fp32:
        return cast("NDArray[np.float32]", stored_N)
    if row_type is RowType.fp16:
        return stored_N.astype(np.float32)
    stored = cast("NDArray[np.uint8]", stored_N)
    return _decode_int8(stored, dim) if row_type is RowType.int8 else _decode_int4(stored, dim)


def _num_code_bytes(dim: int) -> int:
    return (dim + 1) // 2


def _refuse(bad_N: NDArray[np.bool_], first_row: int, row_type: RowType, why: str) -> None:
    if bad_N.any():
        raise ValueError(
            f"row {first_row + int(bad_N.argmax())} {why}: it cannot be stored as {row_type.value} "
            f"({int(bad_N.sum())} of {len(bad_N)} rows)"
        )


def _encode_int8(
    weight_ND: NDArray[np.float32], lowest_N: NDArray[np.float32], highest_N: NDArray[np.float32], first_row: int
) -> NDArray[np.uint8]:
    dim = weight_ND.shape[1]
    with np.errstate(over="ignore"):
        range_N = highest_N - lowest_N
    _refuse(~np.isfinite(range_N), first_row, RowType.int8, "has numbers further apart than float32 can say")
    inverse_N = np.float32(255) / (range_N + _EPSILON)
    stored = np.empty((len(weight_ND), dim + 8), dtype=np.uint8)
    stored[:, :dim] = np.rint((weight_ND - lowest_N[:, None]) * inverse_N[:, None])
    scale_bias_N2 = stored[:, dim:].view("<f4")
    scale_bias_N2[:, 0] = range_N / np.float32(255)
    scale_bias_N2[:, 1] = lowest_N
    return stored


def _encode_int4(
    weight_ND: NDArray[np.float32], lowest_N: NDArray[np.float32], highest_N: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """A bias that float16 rounds up to above the highest number makes a negative scale, as in FBGEMM."""
    num_bytes = _num_code_bytes(weight_ND.shape[1])
    bias_N = lowest_N.astype(np.float16).astype(np.float32)
    scale_N = ((highest_N - bias_N) / np.float32(15)).astype(np.float16).astype(np.float32)
    scale_N[scale_N == 0] = 1
    code_ND = np.rint((weight_ND - bias_N[:, None]) * (np.float32(1) / scale_N)[:, None])
    pair_NC2 = np.zeros((len(weight_ND), num_bytes, 2), dtype=np.uint8)
    pair_NC2.reshape(len(weight_ND), 2 * num_bytes)[:, : weight_ND.shape[1]] = np.clip(code_ND, 0, 15)
    stored = np.empty((len(weight_ND), num_bytes + 4), dtype=np.uint8)
    np.bitwise_or(pair_NC2[:, :, 0], pair_NC2[:, :, 1] << 4, out=stored[:, :num_bytes])
    scale_bias_N2 = stored[:, num_bytes:].view("<f2")
    scale_bias_N2[:, 0] = scale_N
    scale_bias_N2[:, 1] = bias_N
    return stored


def _decode_int8(stored_N: NDArray[np.uint8], dim: int) -> NDArray[np.float32]:
    """In float64, which holds code x scale exactly, as a fused multiply-add does."""
    scale_bias_N2 = stored_N[:, dim:].view("<f4").astype(np.float64)
    number_ND = stored_N[:, :dim].astype(np.float64)
    number_ND *= scale_bias_N2[:, :1]
    number_ND += scale_bias_N2[:, 1:]
    return number_ND.astype(np.float32)


def _decode_int4(stored_N: NDArray[np.uint8], dim: int) -> NDArray[np.float32]:
    """In float32, which holds code x scale exactly: 4 and 11 bits."""
    num_bytes = _num_code_bytes(dim)
    scale_bias_N2 = stored_N[:, num_bytes:].view("<f2").astype(np.float32)
    pair_NC2 = _CODE_PAIRS.take(stored_N[:, :num_bytes], axis=0, mode="clip")
    number_ND = pair_NC2.reshape(len(stored_N), 2 * num_bytes)
    number_ND *= scale_bias_N2[:, :1]
    number_ND += scale_bias_N2[:, 1:]
    return number_ND if dim % 2 == 0 else np.ascontiguousarray(number_ND[:, :dim])
