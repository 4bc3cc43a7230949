"""Goldfish for text that is spread over the ranks of a process group, in contiguous or zig-zag order."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from .._goldfish import Goldfish
from . import _check, _mask
from ._parallel import gathered, rank_of

ORDERS = {"contiguous": 1, "zigzag": 2}


def context_parallel_chunks(
    ids: Tensor,
    goldfish: Goldfish,
    *,
    group: Optional["dist.ProcessGroup"] = None,
    order: str = "contiguous",
    cu_seqlens: Optional[Tensor] = None,
) -> dict[str, Tensor]:
    """See :func:`xact.torch.context_parallel_chunks`."""
    _check.integers("ids", _check.tensor("ids", ids), _check.IDS)
    if not isinstance(goldfish, Goldfish):
        raise TypeError(f"goldfish is a {type(goldfish).__name__}; it must be an xact.Goldfish")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    pieces = ORDERS[order]
    length = ids.shape[-1] if ids.dim() else 0
    if length == 0 or length % pieces:
        raise ValueError(f"ids is {list(ids.shape)}; the last dimension must be a multiple of {pieces}, above 0")
    text = ids.reshape(-1, length)
    rows, each = len(text), length // pieces
    if cu_seqlens is not None:
        cu_seqlens = _mask.numbers("cu_seqlens", cu_seqlens, torch.int32, ids, "ids")
        if rows != 1:
            raise ValueError(f"cu_seqlens cuts one row into documents, but ids is {list(ids.shape)}; flatten the ids")
    group, rank = rank_of(group)
    ranks = dist.get_world_size(group)
    # A halo is the ids of the pieces before, as many as a window has without its last.
    halo_len = max(goldfish.window - 1, 0)
    tail = min(each, halo_len)
    # Collectives differ in the types that they take; i64 has all ids.
    own = text.view(rows, pieces, each)[..., each - tail :].to(torch.int64)
    shape = torch.tensor([rows, length, pieces], device=ids.device)
    shapes = gathered(shape, group)
    if (shapes != shape).any():
        raise ValueError(
            f"the ranks have [rows, T, pieces] {shapes.tolist()}; give every rank the same shape and order"
        )
    tails = gathered(own.reshape(-1), group).view(ranks, rows, pieces, tail)
    # In the order of the text, [rows, pieces of all ranks, tail].
    if pieces == 2:
        tails = torch.cat([tails[:, :, 0], tails[:, :, 1].flip(0)])
    else:
        tails = tails[:, :, 0]
    before = torch.nn.functional.pad(tails.transpose(0, 1).reshape(rows, ranks * pieces * tail), (halo_len, 0))
    indices = [rank, 2 * ranks - 1 - rank][:pieces]
    documents = [0] if cu_seqlens is None else sorted({0, *cu_seqlens.tolist()})
    offsets, preceding, halos = [], [], []
    for row in range(rows):
        for place, piece in enumerate(indices):
            first = piece * each
            begins = [first, *(b for b in documents if first < b < first + each)]
            for begin in begins:
                offsets.append(row * length + place * each + begin - first)
                preceding.append(begin - max(b for b in documents if b <= begin))
                # A document that begins in the piece has no ids before it, so its halo is not used.
                halos.append(before[row, piece * tail : piece * tail + halo_len])
    offsets.append(text.numel())
    made: dict[str, Any] = {
        "cu_seqlens": torch.tensor(offsets, dtype=torch.int32, device=ids.device),
        "preceding": torch.tensor(preceding, dtype=torch.int64, device=ids.device),
    }
    if halo_len:
        made["halo"] = torch.stack(halos).to(ids.dtype)
    return made
