"""Goldfish masks of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor

from .. import _mask
from . import _check
from ._cross_entropy import goldfish_mask

if TYPE_CHECKING:
    from .._goldfish import Goldfish


def of_tensor(
    goldfish: "Goldfish", ids: Tensor, cu_seqlens: Any, halo: Any, exempt: Any, preceding: Any, seq_dim: Any
) -> Tensor:
    """See :meth:`xact.Goldfish.mask`."""
    _check.integers("ids", _check.tensor("ids", ids), _check.IDS)
    seq_first = _mask.is_seq_first(seq_dim, ids.shape)
    _mask.check_layout(ids.shape, cu_seqlens, preceding, seq_first)
    if cu_seqlens is not None:
        cu_seqlens = numbers("cu_seqlens", cu_seqlens, torch.int32, ids, "ids")
    if preceding is not None:
        preceding = numbers("preceding", preceding, torch.int64, ids, "ids")
    if isinstance(halo, Tensor):
        halo = of_segments(halo, ids, preceding, seq_first)
    else:
        ids, halo = _mask.split_halo(ids, halo, preceding, seq_first)
    if exempt is not None:
        if not isinstance(exempt, Tensor):
            exempt = torch.as_tensor(_mask.whole_numbers(exempt), dtype=torch.int64, device=ids.device)
        _check.integers("exempt", _check.tensor("exempt", exempt), (torch.int64,))
        _check.device("exempt", exempt, ids, "ids")
        if exempt.dim() != 1:
            raise ValueError(f"exempt is {list(exempt.shape)}; it must have one dimension")
    return goldfish_mask(ids, cu_seqlens, preceding, halo, exempt, goldfish._key, seq_first)


def of_segments(halo: object, ids: Tensor, preceding: Optional[Tensor], seq_first: bool) -> Tensor:
    """Returns the halo of these ids as ``[segments, n]``."""
    halo = _check.tensor("halo", halo)
    _check.device("halo", halo, ids, "ids")
    if halo.dtype != ids.dtype:
        raise TypeError(f"halo is {halo.dtype}, but ids is {ids.dtype}; convert one of them")
    return _mask.halo_of_segments(halo, ids.shape, preceding, seq_first)


def numbers(what: str, values: object, dtype: torch.dtype, first: Tensor, first_name: str) -> Tensor:
    """Returns the values, which must be ``[n]`` of this type on the device of the first tensor."""
    values = _check.tensor(what, values)
    _check.integers(what, values, (dtype,))
    _check.device(what, values, first, first_name)
    if values.dim() != 1:
        raise ValueError(f"{what} is {list(values.shape)}; it must have one dimension")
    return values
