"""Goldfish masks of NumPy arrays."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy

from . import _library as native

if TYPE_CHECKING:
    from ._goldfish import Goldfish


def of_array(
    goldfish: "Goldfish", ids: Any, cu_seqlens: Any, halo: Any, exempt: Any, preceding: Any, seq_dim: Any
) -> numpy.ndarray:
    """See :meth:`xact.Goldfish.mask`."""
    if not isinstance(ids, numpy.ndarray):
        raise TypeError(f"ids is a {type(ids).__name__}; it must be a NumPy array or a torch.Tensor")
    ids = _ids("ids", ids)
    seq_first = is_seq_first(seq_dim, ids.shape)
    check_layout(ids.shape, cu_seqlens, preceding, seq_first)
    if preceding is not None:
        preceding = _exactly("preceding", preceding, numpy.int64)
    if isinstance(halo, numpy.ndarray):
        halo = _ids("halo", halo)
        if halo.dtype != ids.dtype:
            raise TypeError(f"halo is {halo.dtype}, but ids is {ids.dtype}; convert one of them")
        halo = halo_of_segments(halo, ids.shape, preceding, seq_first)
    else:
        ids, halo = split_halo(ids, halo, preceding, seq_first)
    ids = numpy.ascontiguousarray(ids)
    keep = numpy.empty(ids.shape, dtype=numpy.bool_)
    if ids.size == 0:
        return keep
    tokens = native.struct("xact_decision")
    tokens.goldfish = goldfish._handle
    tokens.hash_ids, tokens.id_type = ids.ctypes.data, native.ID_TYPES[ids.dtype.name]
    tokens.interleaved = ids.size // ids.shape[0] if seq_first else 1
    if cu_seqlens is None:
        tokens.row_len = row_len(ids.shape, seq_first)
    else:
        cu_seqlens = _exactly("cu_seqlens", cu_seqlens, numpy.int32)
        tokens.layout = native.DOCUMENTS
        tokens.cu_seqlens, tokens.cu_seqlens_len = cu_seqlens.ctypes.data, cu_seqlens.size
    if preceding is not None:
        tokens.layout = native.CHUNKS
        tokens.preceding, tokens.preceding_len = preceding.ctypes.data, preceding.size
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


def is_seq_first(seq_dim: object, shape: Any) -> bool:
    """Whether the text runs along the first of several dimensions."""
    if type(seq_dim) is not int or seq_dim not in (0, -1):
        raise ValueError(f"seq_dim is {seq_dim!r}; it must be 0 or -1")
    return seq_dim == 0 and len(shape) > 1


def row_len(shape: Any, seq_first: bool) -> int:
    """The number of labels of a row of text."""
    if len(shape) == 0:
        return 1
    return shape[0] if seq_first else shape[-1]


def is_one_row(shape: Any, seq_first: bool) -> bool:
    """Whether ids of this shape are one row of text."""
    return len(shape) > 0 and all(size == 1 for size in (shape[1:] if seq_first else shape[:-1]))


def check_layout(shape: Any, cu_seqlens: Any, preceding: Any, seq_first: bool) -> None:
    """Raises TypeError or ValueError unless ids of this shape can have these documents or chunks."""
    if preceding is None:
        if cu_seqlens is not None and not is_one_row(shape, seq_first):
            raise ValueError(
                f"cu_seqlens cuts one row into documents, but ids is {list(shape)}; pass them as [T] or [1, T]"
            )
    elif cu_seqlens is None:
        raise TypeError("preceding is given without cu_seqlens, which says where the chunks begin")


def split_halo(ids: Any, halo: object, preceding: Any, seq_first: bool) -> tuple[Any, Any]:
    """The other ids, and the first ``halo`` ids of each row, ``[rows, n]``, or None for halo 0."""
    try:
        count = halo if isinstance(halo, int) else operator.index(halo)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"halo is a {type(halo).__name__}; it must be a number, or ids as the ids are") from None
    if count == 0:
        return ids, None
    if preceding is not None:
        raise TypeError("halo is a number, but each chunk has its own halo; give the ids, [chunks, n]")
    length = row_len(ids.shape, seq_first) if len(ids.shape) else 0
    if not 0 < count <= length:
        raise ValueError(f"halo is {count}; it must be from 0 to {length}, the ids of a row")
    if seq_first:
        return ids[count:], ids[:count].reshape(count, -1).T
    return ids[..., count:], ids[..., :count]


def halo_of_segments(halo: Any, of: Any, preceding: Any, seq_first: bool) -> Any:
    """The halo as ``[segments, n]``. Raises ValueError unless ids of the shape ``of`` have so many rows or chunks."""
    shape = halo.shape
    if preceding is not None:
        chunks = preceding.shape[0]
        if len(shape) != 2 or shape[0] != chunks:
            raise ValueError(f"halo is {list(shape)}, but preceding has {chunks} chunks; it must be [chunks, n]")
        return halo
    rows = math.prod(of[1:] if seq_first else of[:-1])
    if len(shape) == 0 or math.prod(shape[1:] if seq_first else shape[:-1]) != rows:
        form = "[n, rows]" if seq_first else "[rows, n]"
        raise ValueError(f"halo is {list(shape)}, but ids has {rows} rows; it must be {form}")
    return halo.reshape(shape[0], rows).T if seq_first else halo


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
