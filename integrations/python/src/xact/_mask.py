"""Goldfish masks of NumPy arrays."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy

from . import _library as native

if TYPE_CHECKING:
    from ._goldfish import Goldfish


def of_array(goldfish: "Goldfish", ids: Any, cu_seqlens: Any, halo: Any, exempt: Any) -> numpy.ndarray:
    """See :meth:`xact.Goldfish.mask`."""
    if not isinstance(ids, numpy.ndarray):
        raise TypeError(f"ids is a {type(ids).__name__}; it must be a NumPy array or a torch.Tensor")
    ids = _ids("ids", ids)
    if isinstance(halo, numpy.ndarray):
        halo = _ids("halo", halo)
        if halo.dtype != ids.dtype:
            raise TypeError(f"halo is {halo.dtype}, but ids is {ids.dtype}; convert one of them")
        check_halo(halo.shape, ids.shape)
    else:
        ids, halo = split_halo(ids, halo)
    ids = numpy.ascontiguousarray(ids)
    keep = numpy.empty(ids.shape, dtype=numpy.bool_)
    if ids.size == 0:
        return keep
    tokens = native.struct("xact_decision")
    tokens.goldfish = goldfish._handle
    tokens.hash_ids, tokens.id_type = ids.ctypes.data, native.ID_TYPES[ids.dtype.name]
    if cu_seqlens is None:
        tokens.row_len = ids.shape[-1] if ids.ndim else 1
    else:
        check_one_row(ids.shape)
        cu_seqlens = _exactly("cu_seqlens", cu_seqlens, numpy.int32)
        tokens.layout = native.DOCUMENTS
        tokens.cu_seqlens, tokens.cu_seqlens_len = cu_seqlens.ctypes.data, cu_seqlens.size
    if halo is not None:
        halo = numpy.ascontiguousarray(halo)
        tokens.halo, tokens.halo_len = halo.ctypes.data if halo.size else None, halo.size
    if exempt is not None:
        if not isinstance(exempt, numpy.ndarray):
            exempt = whole_numbers(exempt)
        exempt = _exactly("exempt", exempt, numpy.int64)
        tokens.exempt, tokens.exempt_len = exempt.ctypes.data if exempt.size else None, exempt.size
    call = native.struct("xact_goldfish_args")
    call.decision = native.pointer(tokens)
    call.labels, call.keep = ids.size, keep.ctypes.data
    native.run_on_host("xact_goldfish_mask", 0, call)
    return keep


def split_halo(ids: Any, halo: object) -> tuple[Any, Any]:
    """Splits ids ``[..., T]`` into those with labels ``[..., T - halo]`` and the halo ``[..., halo]``, or None for halo 0."""
    try:
        count = halo if isinstance(halo, int) else operator.index(halo)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"halo is a {type(halo).__name__}; it must be a number, or ids as the ids are") from None
    if count == 0:
        return ids, None
    length = ids.shape[-1] if len(ids.shape) else 0
    if not 0 < count <= length:
        raise ValueError(f"halo is {count}; it must be from 0 to {length}, the ids of a row")
    return ids[..., count:], ids[..., :count]


def check_halo(shape: Any, of: Any) -> None:
    """Raises ValueError unless a halo of this shape has as many rows as ids of the shape ``of``."""
    rows = math.prod(of[:-1])
    if len(shape) == 0 or math.prod(shape[:-1]) != rows:
        raise ValueError(f"halo is {list(shape)}, but ids has {rows} rows; it must be [rows, n]")


def whole_numbers(exempt: Any) -> list[int]:
    """Ids that are not in an array, such as a list, as numbers of i64."""
    try:
        ids = [operator.index(each) for each in exempt]
    except TypeError:
        raise TypeError(
            f"exempt is a {type(exempt).__name__}; it must be whole numbers, in a list or in int64"
        ) from None
    if any(not -(1 << 63) <= each < 1 << 63 for each in ids):
        raise ValueError("exempt has an id that is no int64")
    return ids


def check_one_row(shape: Any) -> None:
    """Raises ValueError unless ids of this shape, which come with ``cu_seqlens``, are one row."""
    if len(shape) == 0 or any(size != 1 for size in shape[:-1]):
        raise ValueError(
            f"cu_seqlens cuts one row into documents, but ids is {list(shape)}; pass them as [T] or [1, T]"
        )


def _ids(what: str, array: numpy.ndarray) -> numpy.ndarray:
    if array.dtype.name not in native.ID_TYPES or not array.dtype.isnative:
        names = ", ".join(native.ID_TYPES)
        raise TypeError(f"{what} is {array.dtype}; it must be one of {names}: convert it with .astype")
    return array


def _exactly(what: str, value: Any, dtype: Any) -> numpy.ndarray:
    """The value as a contiguous array ``[n]`` of this type. A list is converted; an array must already have the type."""
    if isinstance(value, numpy.ndarray) and value.dtype != dtype:
        raise TypeError(f"{what} is {value.dtype}; it must be {numpy.dtype(dtype).name}")
    array = numpy.ascontiguousarray(value, dtype=dtype)
    if array.ndim != 1:
        raise ValueError(f"{what} is {list(array.shape)}; it must have one dimension")
    return array
