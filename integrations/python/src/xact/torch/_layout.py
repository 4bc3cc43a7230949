"""Describes a tensor's memory as the library takes it: rows of equal length at a pitch."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Sequence

from torch import Tensor


class Rows(NamedTuple):
    """The offsets at which the rows of a tensor begin, in elements from its first one.

    Row ``i`` begins at ``(i // per_group) * group_pitch + (i % per_group) * pitch``.
    """

    pitch: int
    per_group: int
    group_pitch: int


def rows_of(tensor: Tensor) -> Optional[Rows]:
    """The rows of a tensor, which are the slices along its last dimension; None if pitches cannot describe them.

    A tensor of 0 dimensions is one row of one element. Pitches cannot describe rows that overlap, as in expanded tensors.
    """
    if tensor.dim() == 0:
        return Rows(1, 1, 1)
    cols = tensor.shape[-1]
    if cols > 1 and tensor.stride(-1) != 1:
        return None
    # The dimensions before the last, from the innermost. The stride of a dimension of size 1 does not matter.
    outer = [(size, stride) for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1]) if size != 1][::-1]
    runs: list[list[int]] = []
    for size, stride in outer:
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1][0] *= size
        else:
            runs.append([size, stride])
    if len(runs) > 2:
        return None
    count, pitch = runs[0] if runs else (1, cols)
    length = (count - 1) * pitch + cols
    group_pitch = runs[1][1] if len(runs) == 2 else length
    if pitch < cols or group_pitch < length:
        return None
    return Rows(pitch, count, group_pitch)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows have a single pitch, else a contiguous copy."""
    rows = rows_of(tensor)
    if rows is not None and rows.per_group == row_count(tensor):
        return tensor
    return tensor.contiguous()


def grouped(tensor: Tensor) -> Tensor:
    """The tensor itself if one or two pitches describe its rows, else a contiguous copy."""
    return tensor if rows_of(tensor) is not None else tensor.contiguous()


def row_count(tensor: Tensor) -> int:
    """The number of rows of a tensor."""
    return math.prod(tensor.shape[:-1])


def common_shape(tensors: Sequence[Tensor]) -> tuple[int, int]:
    """The number of rows and columns of tensors of one shape; contiguous tensors count as a single row."""
    first = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        return 1, first.numel()
    return row_count(first), first.shape[-1]
