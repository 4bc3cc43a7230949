"""The head of a language model as PyTorch operators: a matrix product and cross-entropy in chunks of rows."""

from typing import Iterator, NamedTuple, Optional

import torch
from torch import Tensor

from .. import _goldfish
from .. import _library as native
from . import _layout
from ._check import name_of
from ._cross_entropy import Rows, Tokens, refuse_bad_labels
from ._device import Call, address, no_second_derivative
from ._memory import contiguous_like

LOGITS = ("f32", "narrow")


class _Head(NamedTuple):
    """The options of the head: the type of the logits, and what bounds the rows of a chunk."""

    logits: str
    max_bytes: int
    chunk_rows: Optional[int]


def _host_args(
    hidden: Tensor,
    weight: Tensor,
    loss: object,
    kept_rows: Optional[Tensor],
    head: _Head,
    d_hidden: Optional[Tensor],
    d_weight: Optional[Tensor],
) -> object:
    """The ``xact_linear_cross_entropy_args`` of a call on the CPU. The caller keeps the tensors and ``loss`` alive."""
    args = native.struct("xact_linear_cross_entropy_args")
    loss.cols = weight.shape[0]
    args.loss = native.pointer(loss)
    args.hidden_cols = hidden.shape[-1]
    logits_matrix = lambda t: native.logits_matrix(t.data_ptr(), *_layout.rows_of(t))  # noqa: E731
    matrix = lambda t: native.matrix(t.data_ptr(), _layout.rows_of(t).pitch)  # noqa: E731
    args.hidden, args.weight = logits_matrix(hidden), matrix(weight)
    if d_hidden is not None:
        args.d_hidden = logits_matrix(d_hidden)
    if d_weight is not None:
        args.d_weight, args.d_weight_dtype = matrix(d_weight), native.DTYPES[name_of(d_weight.dtype)]
    if kept_rows is not None:
        # An empty list, which is not the same as none, has an address too.
        args.kept_rows, args.kept_count = kept_rows.data_ptr() or native.pointer(args), kept_rows.numel()
    args.logits = native.LOGITS[head.logits]
    args.max_bytes, args.chunk_rows = head.max_bytes, head.chunk_rows or 0
    return args


def _listed(kept_rows: Optional[Tensor], hidden: Tensor) -> Optional[Tensor]:
    """The list as i32 on the device of the hidden states. A list on the CPU is checked: the library could not see a number
    beyond i32, nor a list on a CUDA device."""
    if kept_rows is None:
        return None
    n = _layout.row_count(hidden)
    if kept_rows.device.type == "cpu":
        rows = kept_rows[kept_rows != -1]
        if rows.numel() and (rows.min() < 0 or rows.max() >= n or rows.unique().numel() != rows.numel()):
            raise ValueError(f"kept_rows has a row twice, or one that is not from 0 to {n - 1}")
    return kept_rows.int().contiguous().to(hidden.device, non_blocking=True)


class _Chunk(NamedTuple):
    """Some rows of a call on a CUDA device."""

    # The numbers of the rows, [R] i64: where results go, N for the padding of a list, and where arguments come from.
    rows: Tensor
    read: Tensor
    hidden: Tensor
    logits: Tensor
    args: object
    # What the struct has the addresses of.
    kept: tuple


class _Chunks:
    """The chunks of a call on a CUDA device: PyTorch's matrix products, and the library's cross-entropy on their logits.

    Nothing waits for the device. All lists have one more row than the call, for the padding of the list of kept rows.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Optional[Tensor],
        kept_rows: Optional[Tensor],
        tokens: Optional[Tokens],
        vocab: Optional[int],
        head: _Head,
    ) -> None:
        self.n, self._head = labels.numel(), head
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        self.classes = weight.shape[0] if vocab is None else vocab
        self.weight = weight[: self.classes]
        self._labels = labels.reshape(-1)
        ones = lambda n: torch.ones(n, dtype=torch.float32, device=hidden.device)  # noqa: E731
        self.weights = ones(self.n) if weights is None else weights.reshape(-1)
        self.rows = None
        if kept_rows is not None:
            # -1 is padding.
            self.rows = torch.where(kept_rows < 0, self.n, kept_rows).long()
            listed = torch.zeros(self.n + 1, dtype=torch.bool, device=hidden.device)
            listed[self.rows] = True
            self.weights = torch.where(listed[: self.n], self.weights, 0.0)
        # The decision needs whole rows of text, which a chunk does not have.
        self._kept_weights = self.weights
        if tokens is not None:
            keep = ones(self.n)
            call = native.struct("xact_goldfish_args")
            call.decision, call.labels, call.weights = native.pointer(tokens.struct), self.n, address(keep)
            if self.n:
                Call(hidden, "xact_goldfish_mask")(call)
            self._kept_weights = torch.where(keep != 0, self.weights, 0.0)

    def __iter__(self) -> Iterator[_Chunk]:
        """The chunks with their logits."""
        size = self.hidden.element_size()
        narrow = self._head.logits == "narrow" or size == 4
        # With f32 logits of 16-bit hidden states, the gradients are narrowed beside them.
        of_row = self.classes * (size if narrow else 4 + size) + 2 * self.hidden.shape[-1] * size
        for rows in chunks_of(self.n if self.rows is None else self.rows.numel(), of_row, self._head):
            if self.rows is None:
                numbers = read = torch.arange(rows.start, rows.stop, device=self.hidden.device)
                hidden, labels, weights = (t[rows] for t in (self.hidden, self._labels, self._kept_weights))
            else:
                numbers = self.rows[rows]
                # Padding reads row 0, with the weight 0.
                read = torch.where(numbers == self.n, 0, numbers)
                hidden, labels = self.hidden.index_select(0, read), taken(self._labels, read)
                weights = torch.where(numbers == self.n, 0.0, self._kept_weights[read])
            if narrow:
                logits = torch.mm(hidden, self.weight.t())
            else:
                logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
            labels, weights = labels.contiguous(), weights.contiguous()
            args = native.struct("xact_cross_entropy_args")
            args.rows, args.cols = logits.shape
            args.dtype = native.DTYPES[name_of(logits.dtype)]
            args.logits = args.dlogits = native.logits_matrix(logits.data_ptr(), *_layout.rows_of(logits))
            args.labels, args.label_type = labels.data_ptr(), native.ID_TYPES[name_of(labels.dtype)]
            args.weights = weights.data_ptr()
            yield _Chunk(numbers, read, hidden, logits, args, (labels, weights))


def taken(values: Tensor, rows: Tensor) -> Tensor:
    """The values of some rows. PyTorch cannot index u32."""
    if values.dtype == torch.uint32:
        return values.view(torch.int32)[rows].view(torch.uint32)
    return values[rows]


def chunks_of(rows: int, row_bytes: int, head: _Head) -> Iterator[slice]:
    """Equal chunks of rows that fit into the budget, of a multiple of 128 rows if there are several."""
    most = head.max_bytes // row_bytes
    if head.chunk_rows is not None:
        of_chunk = min(head.chunk_rows, rows)
    elif rows <= most:
        of_chunk = rows
    else:
        step = 128 if most >= 128 else 1
        of_chunk = -(-rows // -(-rows // max(most // step * step, 1)))
        of_chunk = -(-of_chunk // step) * step
    if of_chunk > most:
        raise ValueError(
            f"max_bytes is {head.max_bytes}, but {of_chunk * row_bytes} bytes are needed; "
            "raise it, or take fewer rows in a chunk"
        )
    for start in range(0, rows, max(of_chunk, 1)):
        yield slice(start, min(start + of_chunk, rows))


class _Gradients:
    """The gradients that a call on a CUDA device computes chunk by chunk."""

    def __init__(
        self, chunks: _Chunks, hidden: Tensor, weight: Tensor, with_d_hidden: bool, with_d_weight: bool
    ) -> None:
        self._chunks = chunks
        # The last row is for the padding of the list.
        shape = (chunks.n + 1, hidden.shape[-1])
        self._d_hidden = hidden.new_zeros(shape) if with_d_hidden else None
        self.d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if with_d_weight else None

    def add(self, chunk: _Chunk) -> None:
        dlogits = chunk.logits.to(chunk.hidden.dtype)
        if self._d_hidden is not None:
            self._d_hidden.index_copy_(0, chunk.rows, torch.mm(dlogits, self._chunks.weight))
        if self.d_weight is not None:
            self.d_weight[: self._chunks.classes].addmm_(dlogits.t(), chunk.hidden)

    def d_hidden(self, hidden: Tensor) -> Optional[Tensor]:
        return None if self._d_hidden is None else self._d_hidden[:-1].view(hidden.shape)


@torch.library.custom_op("xact::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Optional[Tensor],
    divisor: Optional[Tensor],
    hash_ids: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    kept_rows: Optional[Tensor],
    goldfish: Optional[str],
    seq_first: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: Optional[float],
    vocab: Optional[int],
    normalizer: str,
    logits: str,
    max_bytes: int,
    chunk_rows: Optional[int],
    per_row: bool,
    stats: bool,
    with_d_hidden: bool,
    with_d_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the tensors that the backward and ``Stats`` need.

    Returns:
        loss: [] f32, or [N] f32 where ``per_row`` is set.
        saved: uint8, the values per row from which the backward computes gradients.
        summary: uint8, the bytes of an xact_cross_entropy_summary.
        losses, lse, z_losses: [N] f32 each; empty unless ``stats`` is set.
        argmax: [N] i32; empty unless ``stats`` is set.
        d_hidden, d_weight: the gradients for dloss = 1; empty unless ``with_d_hidden`` or ``with_d_weight`` is set.
    """
    op = native.cross_entropy(ignore_index, label_smoothing, z_loss, softcap, vocab, normalizer)
    head = _Head(logits, max_bytes, chunk_rows)
    hidden, weight, kept_rows = _layout.grouped(hidden), _layout.dense(weight), _listed(kept_rows, hidden)
    rows = Rows(hidden, labels, weights, hash_ids, cu_seqlens, preceding, halo, goldfish, seq_first)
    call = native.struct("xact_cross_entropy_args")
    rows.set(call)
    n = rows.rows
    new = hidden.new_empty
    saved = new(native.query("xact_cross_entropy_saved_bytes", op, n), dtype=torch.uint8)
    summary = new(native.SUMMARY_BYTES, dtype=torch.uint8)
    losses = new(n if stats or per_row else 0, dtype=torch.float32)
    lse, z_losses = (new(n if stats else 0, dtype=torch.float32) for _ in range(2))
    argmax = new(n if stats else 0, dtype=torch.int32)
    call.summary = summary.data_ptr()
    call.loss, call.lse, call.argmax = address(losses), address(lse), address(argmax)
    call.z_loss = address(z_losses)
    call.normalizer = address(divisor)
    if hidden.is_cuda:
        chunks = _Chunks(hidden, weight, labels, weights, kept_rows, rows.tokens, vocab, head)
        gradients = _Gradients(chunks, hidden, weight, with_d_hidden, with_d_weight)
        # The divisor needs no logits, so a first call on any statistics writes it for the chunks.
        saved.zero_()
        call.cols = call.classes = chunks.classes
        call.weights = address(chunks.weights)
        call.gathered, call.ranks = address(saved), 1
        finish = Call(hidden, "xact_cross_entropy_finish")
        finish.workspace(call, "xact_cross_entropy_workspace_bytes", n)
        finish(op, call)
        of_row = saved.numel() // max(n, 1)
        # The statistics of rows that no chunk has: NaN, and the argmax -1.
        every = saved.new_full((n + 1, of_row), 255)
        name = "xact_cross_entropy_forward" + "_with_gradient" * (with_d_hidden or with_d_weight)
        for chunk in chunks:
            of_chunk = saved.new_empty(len(chunk.rows), of_row)
            total = torch.empty_like(summary)
            chunk.args.saved, chunk.args.summary = address(of_chunk), address(total)
            if stats:
                # The statistics of a forward without an argmax have none.
                of_chunk_argmax = argmax.new_empty(len(chunk.rows))
                chunk.args.argmax = address(of_chunk_argmax)
            chunk.args.normalizer = native.summary_address(summary, "normalizer")
            run = Call(hidden, name)
            run.workspace(chunk.args, "xact_cross_entropy_workspace_bytes", len(chunk.rows))
            run(op, chunk.args)
            every.index_copy_(0, chunk.rows, of_chunk)
            if with_d_hidden or with_d_weight:
                gradients.add(chunk)
        saved.copy_(every[:n].reshape(-1))
        finish(op, call)
        d_hidden, d_weight = gradients.d_hidden(hidden), gradients.d_weight
    else:
        d_hidden = contiguous_like(hidden) if with_d_hidden else None
        d_weight = contiguous_like(weight) if with_d_weight else None
        call.saved = saved.data_ptr()
        args = _host_args(hidden, weight, call, kept_rows, head, d_hidden, d_weight)
        name = "xact_linear_cross_entropy_forward" + "_with_gradient" * (with_d_hidden or with_d_weight)
        native.run_on_host(name, torch.get_num_threads(), op, args)
        refuse_bad_labels(summary, labels, weight.shape[0] if vocab is None else vocab)
    if per_row:
        loss = losses.clone() if stats else losses
        losses = losses if stats else losses.new_empty(0)
    else:
        field = "loss" if normalizer == "none" else "mean"
        loss = native.summary_field(summary, field).clone()
    none = lambda: new(0)  # noqa: E731
    d_hidden = none() if d_hidden is None else d_hidden
    d_weight = none() if d_weight is None else d_weight
    return loss, saved, summary, losses, lse, z_losses, argmax, d_hidden, d_weight


@linear_cross_entropy.register_fake
def _(
    hidden,
    weight,
    labels,
    weights,
    divisor,
    hash_ids,
    cu_seqlens,
    preceding,
    halo,
    kept_rows,
    goldfish,
    seq_first,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    vocab,
    normalizer,
    logits,
    max_bytes,
    chunk_rows,
    per_row,
    stats,
    with_d_hidden,
    with_d_weight,
):
    n = labels.numel()
    new = hidden.new_empty
    some = n if stats else 0
    op = native.cross_entropy(0, label_smoothing, z_loss, softcap, None, normalizer)
    like = lambda t, given: torch.empty_like(t, memory_format=torch.contiguous_format) if given else new(0)  # noqa: E731
    return (
        new(n if per_row else (), dtype=torch.float32),
        new(n * native.query("xact_cross_entropy_saved_bytes", op, 1), dtype=torch.uint8),
        new(native.SUMMARY_BYTES, dtype=torch.uint8),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.float32),
        new(some, dtype=torch.int32),
        like(hidden, with_d_hidden),
        like(weight, with_d_weight),
    )


@torch.library.custom_op("xact::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward(
    dloss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Optional[Tensor],
    hash_ids: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    kept_rows: Optional[Tensor],
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
    logits: str,
    max_bytes: int,
    chunk_rows: Optional[int],
    with_d_hidden: bool,
    with_d_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the hidden states and of the weights, of their shapes and types; empty unless they are wanted. The
    logits are computed again."""
    op = native.cross_entropy(ignore_index, label_smoothing, z_loss, softcap, vocab, normalizer)
    head = _Head(logits, max_bytes, chunk_rows)
    hidden, weight, kept_rows = _layout.grouped(hidden), _layout.dense(weight), _listed(kept_rows, hidden)
    rows = Rows(hidden, labels, weights, hash_ids, cu_seqlens, preceding, halo, goldfish, seq_first)
    dloss = dloss.float()
    if dloss.dim():
        dloss = dloss.contiguous()
    divisor = native.summary_address(summary, "normalizer")
    if hidden.is_cuda:
        chunks = _Chunks(hidden, weight, labels, weights, kept_rows, rows.tokens, vocab, head)
        gradients = _Gradients(chunks, hidden, weight, with_d_hidden, with_d_weight)
        saved = saved.view(rows.rows, -1) if rows.rows else saved
        for chunk in chunks:
            of_chunk = saved[chunk.read]
            chunk.args.gathered, chunk.args.ranks = address(of_chunk), 1
            of_rows = dloss[chunk.read] if dloss.dim() else dloss
            chunk.args.dloss, chunk.args.dloss_stride = of_rows.data_ptr(), dloss.dim()
            chunk.args.normalizer = divisor
            Call(hidden, "xact_cross_entropy_backward")(op, chunk.args)
            gradients.add(chunk)
        d_hidden, d_weight = gradients.d_hidden(hidden), gradients.d_weight
    else:
        call = native.struct("xact_cross_entropy_args")
        rows.set(call)
        call.gathered, call.ranks = saved.data_ptr(), 1
        call.normalizer = divisor
        call.dloss, call.dloss_stride = dloss.data_ptr(), dloss.dim()
        d_hidden = contiguous_like(hidden) if with_d_hidden else None
        d_weight = contiguous_like(weight) if with_d_weight else None
        args = _host_args(hidden, weight, call, kept_rows, head, d_hidden, d_weight)
        native.run_on_host("xact_linear_cross_entropy_backward", torch.get_num_threads(), op, args)
    none = lambda: hidden.new_empty(0)  # noqa: E731
    return none() if d_hidden is None else d_hidden, none() if d_weight is None else d_weight


@linear_cross_entropy_backward.register_fake
def _(dloss, hidden, weight, *arguments):
    like = lambda t, given: (  # noqa: E731
        torch.empty_like(t, memory_format=torch.contiguous_format) if given else hidden.new_empty(0)
    )
    return like(hidden, arguments[-2]), like(weight, arguments[-1])


def _context(ctx, inputs, output):
    hidden, weight, labels, weights, _, hash_ids, cu_seqlens, preceding, halo, kept_rows, *options = inputs
    _, saved, summary, *_, d_hidden, d_weight = output
    goldfish, seq_first, *of_loss, per_row, _, with_d_hidden, with_d_weight = options
    # The gradients of a scalar loss are multiplied by dloss; without them, they are computed when dloss is known.
    ctx.at_once = with_d_hidden or with_d_weight
    if ctx.at_once:
        ctx.save_for_backward(d_hidden, d_weight)
    else:
        rows = (labels, weights, hash_ids, cu_seqlens, preceding, halo, kept_rows)
        ctx.save_for_backward(hidden, weight, *rows, saved, summary)
        ctx.options = (goldfish, seq_first, *of_loss)
        # A strategy with a table of the caller cannot be made again from the key, so the object is kept alive.
        ctx.goldfish = None if goldfish is None else _goldfish.by_key(goldfish)
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx, dloss, *_):
    wanted = ctx.needs_input_grad[:2]
    if ctx.at_once:
        gradients = (gradient * dloss if want else None for gradient, want in zip(ctx.saved_tensors, wanted))
    else:
        both = torch.ops.xact.linear_cross_entropy_backward(dloss, *ctx.saved_tensors, *ctx.options, *wanted)
        gradients = (gradient if want else None for gradient, want in zip(both, wanted))
    return *gradients, *(None for _ in range(23))


linear_cross_entropy.register_autograd(_gradient, setup_context=_context)
linear_cross_entropy_backward.register_autograd(no_second_derivative("linear_cross_entropy"))
