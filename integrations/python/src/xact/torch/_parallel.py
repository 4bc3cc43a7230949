"""Cross-entropy of logits whose columns are spread over the ranks of a process group."""

from __future__ import annotations

import weakref
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _library as native
from ._cross_entropy import Rows, refuse_bad_labels
from ._device import Call, address
from ._memory import contiguous_like

# The columns of each rank by rows, columns and vocab of this one, for each group that is still there.
_agreed: "weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], list[int]]]" = weakref.WeakKeyDictionary()


def columns_of_ranks(logits: Tensor, rows: int, vocab: Optional[int], group: Any) -> list[int]:
    """The number of columns of each rank. A collective on the first call of a shape only, in which all ranks compare rows.

    Raises:
        ValueError: The ranks disagree in their number of rows or in vocab, or have no column.
    """
    own = (rows, logits.shape[-1], -1 if vocab is None else vocab)
    agreed = _agreed.setdefault(group, {})
    if own not in agreed:
        mine = torch.tensor(own, dtype=torch.int64, device=logits.device)
        every_rows, columns, every_vocab = gathered(mine, group).T.tolist()
        for what, values in (("rows", every_rows), ("vocab", every_vocab)):
            if len(set(values)) > 1:
                raise ValueError(
                    f"the ranks of the group have {what} {values}; give every rank the same rows and labels"
                )
        if not 1 <= (sum(columns) if vocab is None else vocab) <= sum(columns):
            raise ValueError(f"vocab is {vocab}, and the ranks have {columns} columns; it must be from 1 to their sum")
        agreed[own] = columns
    return agreed[own]


def gathered(mine: Tensor, group: Any) -> Tensor:
    """The tensors ``[n]`` of all ranks, ``[ranks, n]``."""
    every = mine.new_empty(dist.get_world_size(group) * mine.numel())
    # Backends differ in whether they gather nothing; all ranks have the same n.
    if every.numel():
        dist.all_gather_into_tensor(every, mine, group=group)
    return every.view(dist.get_world_size(group), mine.numel())


def rank_of(group: Any) -> tuple[Any, int]:
    """The group, or the default one for None, and the rank of this process in it."""
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed has no process group; call torch.distributed.init_process_group first")
    group = dist.group.WORLD if group is None else group
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError("this process is not in the group; pass the group whose ranks share the tensor")
    return group, rank


class Shard:
    """The classes of this rank, and the ranks that have any."""

    def __init__(self, columns: list[int], vocab: Optional[int], rank: int) -> None:
        self.total = sum(columns) if vocab is None else vocab
        begins = [sum(columns[:i]) for i in range(len(columns))]
        counts = [min(max(self.total - begin, 0), count) for begin, count in zip(begins, columns)]
        self.first, self.classes = begins[rank], counts[rank]
        # Only these have statistics.
        self.ranks = [i for i, count in enumerate(counts) if count > 0]

    def op(self, options: tuple) -> Any:
        """The ``xact_cross_entropy`` of this rank."""
        ignore_index, label_smoothing, z_loss, softcap, normalizer = options
        return native.cross_entropy(ignore_index, label_smoothing, z_loss, softcap, self.classes or None, normalizer)

    def call(self, rows: Rows) -> Any:
        """The arguments of a call with these rows."""
        call = native.struct("xact_cross_entropy_args")
        rows.set(call)
        # Columns after the last class begin at no class.
        call.first_class, call.classes = min(self.first, self.total), self.total
        return call


def partial(logits: Tensor, labels: Tensor, tokens: list, options: tuple, shard: Shard) -> Tensor:
    """The statistics of this rank's columns, uint8 ``[n]``; of a rank without classes, zeros of the same length."""
    op, rows = shard.op(options), Rows(logits, labels, *tokens)
    saved = logits.new_zeros(native.query("xact_cross_entropy_saved_bytes", op, rows.rows), dtype=torch.uint8)
    if shard.classes and rows.rows:
        call = shard.call(rows)
        call.saved = saved.data_ptr()
        run = Call(logits, "xact_cross_entropy_partial_stats")
        run.workspace(call, "xact_cross_entropy_workspace_bytes", rows.rows)
        run(op, call)
    return saved


def finish(
    stats: Tensor,
    logits: Tensor,
    labels: Tensor,
    tokens: list,
    options: tuple,
    divisor: Optional[Tensor],
    shard: Shard,
    per_row: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, f32 ``[]`` or ``[N]``, and the summary, from the statistics of the ranks that have classes."""
    op, rows = shard.op(options), Rows(logits, labels, *tokens)
    summary = logits.new_empty(native.SUMMARY_BYTES, dtype=torch.uint8)
    losses = logits.new_empty(rows.rows if per_row else 0, dtype=torch.float32)
    call = shard.call(rows)
    call.gathered, call.ranks = address(stats), len(shard.ranks)
    call.summary, call.loss, call.normalizer = summary.data_ptr(), address(losses), address(divisor)
    run = Call(logits, "xact_cross_entropy_finish")
    run.workspace(call, "xact_cross_entropy_workspace_bytes", rows.rows)
    run(op, call)
    if not logits.is_cuda:
        refuse_bad_labels(summary, labels, shard.total)
    field = "loss" if options[-1] == "none" else "mean"
    return losses if per_row else native.summary_field(summary, field).clone(), summary


class _VocabParallel(torch.autograd.Function):
    """The loss of all ranks; the gradient of this rank's logits."""

    @staticmethod
    def forward(ctx, logits, labels, tokens, options, divisor, shard, per_row, group):
        stats = gathered(partial(logits, labels, tokens, options, shard), group)
        if len(shard.ranks) < len(stats):
            stats = stats[shard.ranks]
        loss, summary = finish(stats, logits, labels, tokens, options, divisor, shard, per_row)
        ctx.save_for_backward(logits, labels, stats, summary)
        ctx.arguments = (tokens, options, shard)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        logits, labels, stats, summary = ctx.saved_tensors
        tokens, options, shard = ctx.arguments
        rows = Rows(logits, labels, *tokens)
        others = (None,) * 7
        if not (shard.classes and rows.rows):
            return torch.zeros_like(logits), *others
        dlogits, dloss = contiguous_like(logits), dloss.float().contiguous()
        call = shard.call(rows)
        call.gathered, call.ranks = stats.data_ptr(), len(shard.ranks)
        call.dlogits = rows.matrix(dlogits)
        call.normalizer = native.summary_address(summary, "normalizer")
        call.dloss, call.dloss_stride = dloss.data_ptr(), dloss.stride(0) if dloss.dim() else 0
        Call(logits, "xact_cross_entropy_backward")(shard.op(options), call)
        return dlogits, *others


@torch.compiler.disable
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    tokens: list,
    options: tuple,
    divisor: Optional[Tensor],
    vocab: Optional[int],
    per_row: bool,
    group: Any,
) -> Tensor:
    """See :func:`xact.torch.vocab_parallel_cross_entropy`. Checks that need no other rank have been made."""
    group, rank = rank_of(group)
    shard = Shard(columns_of_ranks(logits, labels.numel(), vocab, group), vocab, rank)
    loss = _VocabParallel.apply(logits, labels, tokens, options, divisor, shard, per_row, group)
    return loss.reshape(labels.shape) if per_row else loss
