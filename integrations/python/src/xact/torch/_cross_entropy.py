"""Cross-entropy and the Goldfish mask as PyTorch operators."""

from typing import Optional

import torch
from torch import Tensor

from .. import _goldfish, _mask
from .. import _library as native
from . import _layout
from ._check import name_of
from ._device import Call, address, no_second_derivative
from ._memory import contiguous_like

REDUCTIONS = ("mean", "sum", "none")
NORMALIZERS = ("kept", "labels", "weight")


class Rows:
    """The arguments that forward and backward share: logits, labels, weights and the Goldfish decision."""

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Optional[Tensor],
        hash_ids: Optional[Tensor],
        cu_seqlens: Optional[Tensor],
        preceding: Optional[Tensor],
        halo: Optional[Tensor],
        goldfish: Optional[str],
        seq_first: bool,
    ) -> None:
        self.logits = _layout.grouped(logits)
        self.rows, self.cols = _layout.row_count(logits), logits.shape[-1]
        self._labels = labels.contiguous()
        self._weights = None if weights is None else weights.contiguous()
        # The structs have only addresses; this object keeps the tensors and structs behind them alive.
        self.tokens = None
        if goldfish is not None:
            ids = labels if hash_ids is None else hash_ids
            self.tokens = Tokens(goldfish, ids, cu_seqlens, preceding, halo, None, seq_first)

    def set(self, call: object) -> None:
        call.dtype = native.DTYPES[name_of(self.logits.dtype)]
        call.rows, call.cols = self.rows, self.cols
        call.logits = self.matrix(self.logits)
        call.labels = address(self._labels)
        call.label_type = native.ID_TYPES[name_of(self._labels.dtype)]
        call.weights = address(self._weights)
        if self.tokens is not None:
            call.decision = native.pointer(self.tokens.struct)

    def matrix(self, tensor: Tensor) -> object:
        """The ``xact_logits_matrix`` of logits or their gradients."""
        return native.logits_matrix(tensor.data_ptr(), *_layout.rows_of(tensor))


class Tokens:
    """The ``xact_decision`` of a call, and the tensors behind its addresses."""

    def __init__(
        self,
        key: str,
        ids: Tensor,
        cu_seqlens: Optional[Tensor],
        preceding: Optional[Tensor],
        halo: Optional[Tensor],
        exempt: Optional[Tensor],
        seq_first: bool,
    ) -> None:
        goldfish = _goldfish.by_key(key)
        # The struct has the handle, so the object that owns the handle is kept alive.
        self._goldfish = goldfish
        self._ids = ids = ids.contiguous()
        tokens = native.struct("xact_decision")
        tokens.goldfish = goldfish._handle
        tokens.hash_ids = address(ids)
        tokens.id_type = native.ID_TYPES[name_of(ids.dtype)]
        tokens.interleaved = ids.numel() // max(ids.shape[0], 1) if seq_first else 1
        if cu_seqlens is None:
            tokens.row_len = _mask.row_len(ids.shape, seq_first)
        else:
            tokens.layout = native.DOCUMENTS
            self._offsets = cu_seqlens = cu_seqlens.contiguous()
            tokens.cu_seqlens, tokens.cu_seqlens_len = cu_seqlens.data_ptr(), cu_seqlens.numel()
        if preceding is not None:
            tokens.layout = native.CHUNKS
            self._preceding = preceding = preceding.contiguous()
            tokens.preceding, tokens.preceding_len = address(preceding), preceding.numel()
        if halo is not None:
            self._halo = halo = halo.contiguous()
            tokens.halo, tokens.halo_len = address(halo), halo.numel()
        if exempt is not None:
            self._exempt = exempt = exempt.contiguous()
            tokens.exempt, tokens.exempt_len = address(exempt), exempt.numel()
        if ids.is_cuda:
            self._tables = goldfish._on_device(ids.device)
            tokens.bitmap, tokens.coefficients = map(address, self._tables)
        self.struct = tokens


@torch.library.custom_op("xact::cross_entropy", mutates_args=())
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Optional[Tensor],
    divisor: Optional[Tensor],
    hash_ids: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    goldfish: Optional[str],
    seq_first: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: Optional[float],
    vocab: Optional[int],
    normalizer: str,
    per_row: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the tensors that the backward and ``Stats`` need.

    Returns:
        loss: [] f32, or [N] f32 where ``per_row`` is set.
        saved: uint8, the values per row that the backward needs in addition to the logits.
        summary: uint8, the bytes of an xact_cross_entropy_summary.
        losses, lse, z_losses: [N] f32 each; empty unless ``stats`` is set.
        argmax: [N] i32; empty unless ``stats`` is set.
    """
    op = native.cross_entropy(ignore_index, label_smoothing, z_loss, softcap, vocab, normalizer)
    rows = Rows(logits, labels, weights, hash_ids, cu_seqlens, preceding, halo, goldfish, seq_first)
    call = native.struct("xact_cross_entropy_args")
    rows.set(call)
    n = rows.rows
    new = logits.new_empty
    saved = new(native.query("xact_cross_entropy_saved_bytes", op, n), dtype=torch.uint8)
    summary = new(native.SUMMARY_BYTES, dtype=torch.uint8)
    losses = new(n if stats or per_row else 0, dtype=torch.float32)
    lse, z_losses = (new(n if stats else 0, dtype=torch.float32) for _ in range(2))
    argmax = new(n if stats else 0, dtype=torch.int32)
    call.saved, call.summary = saved.data_ptr(), summary.data_ptr()
    call.loss, call.lse, call.argmax = address(losses), address(lse), address(argmax)
    call.z_loss = address(z_losses)
    call.normalizer = address(divisor)
    run = Call(logits, "xact_cross_entropy_forward")
    run.workspace(call, "xact_cross_entropy_workspace_bytes", n)
    run(op, call)
    if not logits.is_cuda:
        refuse_bad_labels(summary, labels, logits.shape[-1] if vocab is None else vocab)
    if per_row:
        loss = losses.clone() if stats else losses
        losses = losses if stats else losses.new_empty(0)
    else:
        field = "loss" if normalizer == "none" else "mean"
        loss = native.summary_field(summary, field).clone()
    return loss, saved, summary, losses, lse, z_losses, argmax


def refuse_bad_labels(summary: Tensor, labels: Tensor, classes: int) -> None:
    """Raises ValueError for the first label that is no class. For CPU tensors, as reading a CUDA summary would wait."""
    row = int(native.summary_field(summary, "bad_row"))
    if row >= 0:
        label = int(labels.reshape(-1)[row])
        raise ValueError(
            f"labels[{row}] is {label}, which is neither one of {classes} classes nor ignore_index; "
            "mask such rows with ignore_index"
        )


@cross_entropy.register_fake
def _(
    logits,
    labels,
    weights,
    divisor,
    hash_ids,
    cu_seqlens,
    preceding,
    halo,
    goldfish,
    seq_first,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    vocab,
    normalizer,
    per_row,
    stats,
):
    n = labels.numel()
    new = logits.new_empty
    some = n if stats else 0
    # In compiled code ignore_index and vocab may be symbols. The size does not depend on them.
    op = native.cross_entropy(0, label_smoothing, z_loss, softcap, None, normalizer)
    return (
        new(n if per_row else (), dtype=torch.float32),
        new(n * native.query("xact_cross_entropy_saved_bytes", op, 1), dtype=torch.uint8),
        new(native.SUMMARY_BYTES, dtype=torch.uint8),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.int32),
    )


@torch.library.custom_op("xact::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    dloss: Tensor,
    logits: Tensor,
    labels: Tensor,
    weights: Optional[Tensor],
    hash_ids: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    saved: Tensor,
    summary: Tensor,
    goldfish: Optional[str],
    seq_first: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: Optional[float],
    vocab: Optional[int],
    normalizer: str,
) -> Tensor:
    """The gradient of the logits, of their shape and type."""
    dlogits = contiguous_like(logits)
    op = native.cross_entropy(ignore_index, label_smoothing, z_loss, softcap, vocab, normalizer)
    rows = Rows(logits, labels, weights, hash_ids, cu_seqlens, preceding, halo, goldfish, seq_first)
    if rows.rows == 0 or rows.cols == 0:
        return dlogits
    dloss = dloss.float()
    if dloss.dim() and dloss.stride(0) != 0:
        dloss = dloss.contiguous()
    call = native.struct("xact_cross_entropy_args")
    rows.set(call)
    call.gathered, call.ranks = saved.data_ptr(), 1
    call.dlogits = rows.matrix(dlogits)
    # The forward wrote its divisor there, also one of the caller's.
    call.normalizer = native.summary_address(summary, "normalizer")
    call.dloss, call.dloss_stride = dloss.data_ptr(), dloss.stride(0) if dloss.dim() else 0
    Call(logits, "xact_cross_entropy_backward")(op, call)
    return dlogits


@cross_entropy_backward.register_fake
def _(dloss, logits, *_):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _context(ctx, inputs, output):
    logits, labels, weights, _, hash_ids, cu_seqlens, preceding, halo, goldfish, seq_first, *options = inputs
    _, saved, summary, *_ = output
    ctx.save_for_backward(logits, labels, weights, hash_ids, cu_seqlens, preceding, halo, saved, summary)
    ctx.options = (goldfish, seq_first, *options[:6])
    # A strategy with a table of the caller cannot be made again from the key, so the object is kept alive.
    ctx.goldfish = None if goldfish is None else _goldfish.by_key(goldfish)
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx, dloss, *_):
    dlogits = torch.ops.xact.cross_entropy_backward(dloss, *ctx.saved_tensors, *ctx.options)
    return dlogits, *(None for _ in range(17))


cross_entropy.register_autograd(_gradient, setup_context=_context)
cross_entropy_backward.register_autograd(no_second_derivative("cross_entropy"))


@torch.library.custom_op("xact::goldfish_mask", mutates_args=())
def goldfish_mask(
    ids: Tensor,
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    exempt: Optional[Tensor],
    goldfish: str,
    seq_first: bool,
) -> Tensor:
    """True for each label that is kept: bool of the shape of the ids."""
    keep = torch.empty_like(ids, dtype=torch.bool, memory_format=torch.contiguous_format)
    if ids.numel() > 0:
        tokens = Tokens(goldfish, ids, cu_seqlens, preceding, halo, exempt, seq_first)
        call = native.struct("xact_goldfish_args")
        call.decision = native.pointer(tokens.struct)
        call.labels, call.keep = ids.numel(), keep.data_ptr()
        Call(ids, "xact_goldfish_mask")(call)
    return keep


@goldfish_mask.register_fake
def _(ids, cu_seqlens, preceding, halo, exempt, goldfish, seq_first):
    return torch.empty_like(ids, dtype=torch.bool, memory_format=torch.contiguous_format)
