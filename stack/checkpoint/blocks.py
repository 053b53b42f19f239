"""Parts of a run, its blocks of columns, and what becomes of them when other rows or columns are asked for.

Shape legend: K rows of a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Layer
from stack.checkpoint.manifest import KEY, WEIGHT, Part
from stack.checkpoint.tensors import TensorFile


def merged_blocks(blocks: Sequence[dict[str, Tensor]], widths: Sequence[int]) -> dict[str, Tensor]:
    """Adjacent blocks of columns as one: weights and state of each weight side by side, and the mean of row-wise state,
    each block counting by its width.

    Row-wise state is a mean of squared gradients over the columns of its block (row-wise Adagrad, partial row-wise
    Adam), so this mean is what whole rows would have had for the same gradients. The other way round a narrower block
    begins with the state of the wider one it was cut from: the row's learning rate goes on as it was.
    """
    if len(blocks) == 1:
        return dict(blocks[0])
    share = [width / sum(widths) for width in widths]
    same = {key for key, value in blocks[0].items() if not value.is_floating_point()}  # of a row, whatever its columns
    return {
        key: blocks[0][key]
        if key in same
        else torch.cat([block[key] for block in blocks], dim=1)
        if blocks[0][key].dim() == 2
        else torch.stack([block[key] * part for block, part in zip(blocks, share, strict=True)]).sum(0)
        for key in blocks[0]
    }


def overlaps(layer: Layer, columns: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The run's blocks of columns that have some of those asked for, each with what they have in common."""
    return [(block, common) for block in layer.entry.blocks if (common := _common(block, columns))[1]]


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """What two blocks, each (first column, columns), have in common."""
    first = max(one[0], other[0])
    return first, max(min(sum(one), sum(other)) - first, 0)


def parts_of(layer: Layer, block: tuple[int, int]) -> list[Part]:
    return [part for part in layer.entry.parts if (part.first_column, part.num_columns) == block]


def line_range(file: TensorFile, part: Part, first: int, last: int) -> tuple[int, int]:
    """The lines of a part with keys from `first` to before `last`."""
    if has_all_keys(part):
        return max(first - part.first_key, 0), min(last - part.first_key, part.num_rows)
    key_K = file.rows(KEY, 0, part.num_rows)
    begin, end = torch.searchsorted(key_K, torch.tensor([first, last])).tolist()
    return begin, end


def piece_of(file: TensorFile, begin: int, end: int, columns: slice, states: Sequence[str]) -> dict[str, Tensor]:
    return {KEY: file.rows(KEY, begin, end)} | {
        name: columns_of(file.rows(name, begin, end), columns) for name in (WEIGHT, *states)
    }


def has_all_keys(part: Part) -> bool:
    """From its first to its last: then a key tells its line."""
    return part.last_key - part.first_key == part.num_rows - 1


def lies_the_same(file: TensorFile, part: Part, name: str, out: Tensor, columns: slice) -> bool:
    """Whether rows of the file are the bytes that belong into `out`."""
    shape = file.shapes[name]
    whole = len(shape) == 1 or (columns.start, columns.stop) == (0, shape[1])
    same = out.device.type == "cpu" and out.is_contiguous() and out.dtype == file.dtypes[name]
    return has_all_keys(part) and whole and same


def put(out: Tensor, row_K: Tensor, value: Tensor) -> None:
    """Rows into a tensor on any device: in memory as strings of bytes, which takes half as long as number by number."""
    if out.device.type != "cpu" or out.dtype != value.dtype or not (out.is_contiguous() and value.is_contiguous()):
        out.index_copy_(0, row_K.to(out.device), value.to(out).view(-1, *out.shape[1:]))
    elif value.numel():
        assert int(row_K.min()) >= 0  # NumPy would count from the end
        _as_bytes(out)[row_K.numpy()] = _as_bytes(value)


def _as_bytes(value: Tensor) -> NDArray[np.void]:
    """An element for each row."""
    rows = value.detach().view(value.shape[0], -1).view(torch.uint8).numpy()
    return rows.view(f"V{rows.shape[1]}")[:, 0]


def columns_of(value: Tensor, columns: slice) -> Tensor:
    return value[:, columns] if value.dim() == 2 else value


def join(
    found: list[tuple[Tensor, list[dict[str, Tensor]], list[int]]], pieces: list[dict[str, Tensor]], width: int
) -> None:
    """Adds a block of columns to what was found: the blocks of a run have the same keys."""
    if not pieces:
        return
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    key = joined.pop(KEY)
    if not found:
        found.append((key, [joined], [width]))
        return
    if not torch.equal(found[0][0], key):
        raise CheckpointError("the blocks of columns of a run have different rows: one of its files is damaged")
    found[0][1].append(joined)
    found[0][2].append(width)
