"""Goldfish masks of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _mask
from . import _check
from ._cross_entropy import goldfish_mask

if TYPE_CHECKING:
    from .._goldfish import Goldfish


def of_tensor(goldfish: "Goldfish", ids: Tensor, cu_seqlens: Any, halo: Any, exempt: Any) -> Tensor:
    """See :meth:`xact.Goldfish.mask`."""
    _check.integers("ids", _check.tensor("ids", ids), _check.IDS)
    if isinstance(halo, Tensor):
        _check.device("halo", _check.tensor("halo", halo), ids, "ids")
        _mask.check_halo(halo.shape, ids.shape)
        if halo.dtype != ids.dtype:
            raise TypeError(f"halo is {halo.dtype}, but ids is {ids.dtype}; convert one of them")
    else:
        ids, halo = _mask.split_halo(ids, halo)
    if cu_seqlens is not None:
        _mask.check_one_row(ids.shape)
        cu_seqlens = offsets(cu_seqlens, ids, "ids")
    if exempt is not None:
        if not isinstance(exempt, Tensor):
            exempt = torch.as_tensor(_mask.whole_numbers(exempt), dtype=torch.int64, device=ids.device)
        _check.integers("exempt", _check.tensor("exempt", exempt), (torch.int64,))
        _check.device("exempt", exempt, ids, "ids")
        if exempt.dim() != 1:
            raise ValueError(f"exempt is {list(exempt.shape)}; it must have one dimension")
    return goldfish_mask(ids, cu_seqlens, halo, exempt, goldfish._key)


def offsets(cu_seqlens: object, first: Tensor, first_name: str) -> Tensor:
    """Returns ``cu_seqlens``, which must be ``[documents + 1]`` i32 on the device of the first tensor."""
    cu_seqlens = _check.tensor("cu_seqlens", cu_seqlens)
    _check.integers("cu_seqlens", cu_seqlens, (torch.int32,))
    _check.device("cu_seqlens", cu_seqlens, first, first_name)
    if cu_seqlens.dim() != 1:
        raise ValueError(f"cu_seqlens is {list(cu_seqlens.shape)}; it must have one dimension")
    return cu_seqlens
