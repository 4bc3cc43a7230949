"""How a tensor's memory becomes what the library takes: rows of equal length at a pitch."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Sequence

from torch import Tensor


class Rows(NamedTuple):
    """Where the rows of a tensor begin, in elements from its first one.

    Row ``i`` begins at ``(i // per_group) * group_pitch + (i % per_group) * pitch``.
    """

    pitch: int
    per_group: int
    group_pitch: int


def rows_of(tensor: Tensor) -> Optional[Rows]:
    """The rows of a tensor, which are its last dimension; None where no pitches describe them.

    A tensor of 0 dimensions is a row of one element. Tensors whose rows lie in each other, such as expanded ones, are
    described by no pitch.
    """
    if tensor.dim() == 0:
        return Rows(1, 1, 1)
    cols = tensor.shape[-1]
    if cols > 1 and tensor.stride(-1) != 1:
        return None
    # The dimensions before the last, from the innermost; those of size 1 have no stride that matters.
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
    """The tensor itself where its rows lie at one pitch, else a contiguous copy."""
    rows = rows_of(tensor)
    if rows is not None and rows.per_group == row_count(tensor):
        return tensor
    return tensor.contiguous()


def grouped(tensor: Tensor) -> Tensor:
    """The tensor itself where its rows lie at one pitch or two, else a contiguous copy."""
    return tensor if rows_of(tensor) is not None else tensor.contiguous()


def row_count(tensor: Tensor) -> int:
    """How many rows a tensor has."""
    return math.prod(tensor.shape[:-1])


def common_shape(tensors: Sequence[Tensor]) -> tuple[int, int]:
    """Rows and columns of tensors of one shape: a single row where all are contiguous."""
    first = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        return 1, first.numel()
    return row_count(first), first.shape[-1]
