"""The operators of xact for PyTorch, fused and differentiable.

Activations take f32, f16 and bf16 tensors of any shape and strides on the CPU or on a CUDA device. They compute in f32 and
round each result once. Trainable scalars are tensors of one element, ``[1]`` (which FSDP can shard) or ``[]``, of f32 or of
the type of x. They are read on the device, so no call waits for the device. All operators work under
``torch.compile(fullgraph=True)``, activation checkpointing, autocast and CUDA graphs; the activations also take DTensors. Of
PyTorch's function transforms only ``vmap`` works: ``torch.func.grad`` and forward derivatives raise.
"""

import math
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import _library as native
from .._goldfish import Goldfish
from .._mask import is_one_row, is_seq_first
from . import _activation, _check, _cross_entropy, _linear_cross_entropy, _mask, _sharding

__all__ = [
    "Stats",
    "context_parallel_chunks",
    "cross_entropy",
    "linear_cross_entropy",
    "nn",
    "vocab_parallel_cross_entropy",
    "xatlu",
    "xatlu_",
    "xatlu_gated",
    "xgelu",
    "xgelu_",
    "xgelu_gated",
    "xielu",
    "xielu_",
    "xsilu",
    "xsilu_",
    "xsilu_gated",
]

EPS_GRADIENTS = ("analytic", "autograd")
BLOCKS = (1, 8, 16, 32, 64, 128, 256)


def xielu(
    x: Tensor,
    alpha_p: Tensor,
    alpha_n: Tensor,
    *,
    beta: Union[float, Tensor] = 0.5,
    eps: Optional[float] = None,
    eps_gradient: str = "analytic",
    effective: bool = False,
) -> Tensor:
    """xIELU, the activation of Apertus (Huang & Schlag, arXiv 2411.13010).

    For x > 0 it is α_p·x² + β·x, else α_n·(expm1(x) − x) + β·x.

    Args:
        x: Tensor of any shape, f32, f16 or bf16.
        alpha_p: A tensor of one element, f32 or of the type of x. The raw value, as in checkpoints: α_p = softplus(alpha_p).
        alpha_n: Likewise: α_n = β + softplus(alpha_n).
        beta: The slope β at 0: a number, or a tensor of one element, which is trainable.
        eps: The clamp of transformers' formula, which has −1e-6: expm1(min(x, eps)) − x for x ≤ 0. None is the ideal
            function, with f(0) = 0.
        eps_gradient: With ``eps``, the derivative for x between ``eps`` and 0: ``"analytic"`` is the derivative of the ideal
            function, close to β; ``"autograd"`` is the derivative of the clamped formula.
        effective: Whether ``alpha_p`` and ``alpha_n`` are the effective α_p and α_n, not the raw values.

    Returns:
        Tensor of the shape and type of x, contiguous.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A scalar has more than one element, or the tensors are on several devices.
    """
    arguments = _xielu_arguments(x, alpha_p, alpha_n, beta, eps, eps_gradient, effective)
    return torch.ops.xact.xielu(*arguments)


def xielu_(
    x: Tensor,
    alpha_p: Tensor,
    alpha_n: Tensor,
    *,
    beta: Union[float, Tensor] = 0.5,
    eps: Optional[float] = None,
    eps_gradient: str = "analytic",
    effective: bool = False,
) -> Tensor:
    """Overwrites x with :func:`xielu` of x, and returns x. It has no gradient.

    Raises:
        RuntimeError: Gradients are enabled, and x or a scalar requires one.
    """
    arguments = _xielu_arguments(x, alpha_p, alpha_n, beta, eps, eps_gradient, effective)
    _no_gradient("xielu_", *(each for each in arguments[:4] if each is not None))
    torch.ops.xact.xielu_(*arguments)
    return x


def _xielu_arguments(x, alpha_p, alpha_n, beta, eps, eps_gradient, effective):
    x = _check.tensor("x", x)
    _check.data("x", x)
    _check.scalar("alpha_p", alpha_p, x)
    _check.scalar("alpha_n", alpha_n, x)
    if eps_gradient not in EPS_GRADIENTS:
        raise ValueError(f"eps_gradient is {eps_gradient!r}; it must be one of {', '.join(EPS_GRADIENTS)}")
    slope = 0.5
    if isinstance(beta, Tensor):
        _check.scalar("beta", beta, x)
    else:
        slope, beta = _check.number("beta", beta, "a number or a tensor"), None
    if eps is not None:
        eps = _check.number("eps", eps)
        if not eps > -math.inf:
            raise ValueError(f"eps is {eps}; it must be a number, such as -1e-6, or None for the ideal function")
    _sharding.ensure(x)
    return x, alpha_p, alpha_n, beta, slope, eps, eps_gradient == "autograd", effective


def _no_gradient(name: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{name} has no derivative, since it overwrites x; use {name[:-1]}, or torch.no_grad()")


def _plain(name: str):
    operators = _activation.EXPANDED[name]

    def function(x: Tensor, alpha: Tensor) -> Tensor:
        _check.data("x", _check.tensor("x", x))
        _check.scalar("alpha", alpha, x)
        _sharding.ensure(x)
        return operators.plain(x, alpha)

    return function


def _in_place(name: str):
    operators = _activation.EXPANDED[name]

    def function(x: Tensor, alpha: Tensor) -> Tensor:
        _check.data("x", _check.tensor("x", x))
        _check.scalar("alpha", alpha, x)
        _no_gradient(f"{name}_", x, alpha)
        operators.plain_(x, alpha)
        return x

    return function


def _gated(name: str):
    operators = _activation.EXPANDED[name]

    def function(
        x: Optional[Tensor] = None,
        v: Optional[Tensor] = None,
        alpha: Optional[Tensor] = None,
        *,
        packed: Optional[Tensor] = None,
        order: int = 1,
        value_first: bool = False,
        block: Optional[int] = None,
    ) -> Tensor:
        if isinstance(order, (bool, float)) or order not in (1, 2):
            raise ValueError(f"order is {order!r}; it must be 1, for G(x)·v, or 2, for x·G(x)·v")
        if alpha is None:
            raise TypeError(f"{name}_gated needs alpha, a tensor of one element")
        if packed is not None:
            if x is not None or v is not None:
                raise TypeError("packed holds gate and value; leave x and v out")
            _check.data("packed", _check.tensor("packed", packed))
            if packed.dim() == 0 or packed.shape[-1] % 2:
                raise ValueError(
                    f"packed is {list(packed.shape)}; its last dimension must hold two halves of equal length"
                )
            _check.scalar("alpha", alpha, packed)
            block = 0 if block is None else _block(block, packed)
            _sharding.ensure(packed)
            return operators.packed(packed, alpha, order, value_first, block)
        if value_first or block is not None:
            name_of = "value_first" if value_first else "block"
            raise TypeError(f"{name_of} needs packed; without it, x is the gate and v the value")
        _check.data("x", _check.tensor("x", x))
        _check.same("v", _check.tensor("v", v), x, "x")
        _check.scalar("alpha", alpha, x)
        _sharding.ensure(x)
        return operators.gated(x, v, alpha, order)

    return function


def _block(block: int, packed: Tensor) -> int:
    """The columns after which gate and value alternate."""
    block, n = _check.whole("block", block), packed.shape[-1] // 2
    if block not in BLOCKS or n % block:
        raise ValueError(
            f"block is {block}, and packed is {list(packed.shape)}; a block is one of {', '.join(map(str, BLOCKS))}, and "
            "divides half of the last dimension"
        )
    return block


_PLAIN = """{title}: f(x) = x·G(x), with G(x) = (1 + 2α)·g(x) − α and g {gate}.

    Args:
        x: Tensor of any shape, f32, f16 or bf16.
        alpha: α, a tensor of one element, f32 or of the type of x; models initialise it to 0.

    Returns:
        Tensor of the shape and type of x, contiguous.

    Raises:
        TypeError: A tensor has another type.
        ValueError: alpha has more than one element, or the tensors are on two devices.
    """
_IN_PLACE = """Overwrites x with :func:`{name}` of x, and returns x. It has no gradient.

    Raises:
        RuntimeError: Gradients are enabled, and x or alpha requires one.
    """
_GATED = """{title} as a gate: G(x)·v (``order=1``, {alias}) or x·G(x)·v (``order=2``). See :func:`{name}` for G.

    Args:
        x: The gate, of any shape, f32, f16 or bf16.
        v: The value, of the shape and type of x.
        alpha: α, a tensor of one element, f32 or of the type of x; models initialise it to 0.
        packed: Instead of x and v, one tensor ``[..., 2n]`` with the gate in the first half of the last dimension and the
            value in the second. Neither the tensor nor its gradient ``[..., 2n]`` is copied.
        order: 1 or 2.
        value_first: Whether the value is the first half of ``packed``, or its first block.
        block: None, if ``packed`` has halves. Otherwise gate and value alternate in the last dimension in blocks of so many
            columns: 1, if they are ``packed[..., ::2]`` and ``packed[..., 1::2]``, or 8, 16, 32, 64, 128 or 256. It must
            divide n.

    Returns:
        Tensor of the shape and type of x, or ``[..., n]`` of the type of ``packed``, contiguous.

    Raises:
        TypeError: A tensor has another type, or arguments contradict each other.
        ValueError: Shapes do not fit, or the tensors are on several devices.
    """


def _functions(name: str, title: str, gate: str, alias: str):
    made = _plain(name), _in_place(name), _gated(name)
    for function, suffix, doc in zip(made, ("", "_", "_gated"), (_PLAIN, _IN_PLACE, _GATED)):
        function.__name__ = function.__qualname__ = name + suffix
        function.__doc__ = doc.format(name=name, title=title, gate=gate, alias=alias)
    return made


xatlu, xatlu_, xatlu_gated = _functions("xatlu", "xATLU", "(arctan(x) + π/2)/π", "xATGLU")
xgelu, xgelu_, xgelu_gated = _functions("xgelu", "xGELU", "the normal distribution function Φ(x), exact", "xGEGLU")
xsilu, xsilu_, xsilu_gated = _functions("xsilu", "xSiLU", "the logistic function σ(x)", "xSwiGLU")


class Stats(NamedTuple):
    """The statistics of :func:`cross_entropy`. They have no gradients. Reading one of a CUDA device waits for the device.

    Attributes:
        loss: f32 of the shape of the labels: the weighted loss of each row, not divided by the normalizer. A masked row has
            0, a bad one NaN.
        lse: f32 of the shape of the labels: log Σ e^logit of each row; a masked row has 0.
        z_loss: f32 of the shape of the labels: the z-loss term of each row's loss.
        argmax: i32 of the shape of the labels: the class of the largest logit of each row; a masked row has −1.
        total: [] f32: the sum of the losses of the kept rows.
        weight: [] f32: the sum of the weights of the kept rows.
        normalizer: [] f32: the divisor of the loss.
        labels: [] i64: the number of rows whose label is not ignored.
        kept: [] i64: the number of kept rows, which are those that are not masked.
        dropped: [] i64: the number of rows that Goldfish dropped.
        correct: [] i64: the number of kept rows whose label is the argmax.
        bad_row: [] i64: the first row whose label is no class, or −1.
        nan_row: [] i64: the first kept row whose loss is NaN for another reason, or −1.
    """

    loss: Tensor
    lse: Tensor
    z_loss: Tensor
    argmax: Tensor
    total: Tensor
    weight: Tensor
    normalizer: Tensor
    labels: Tensor
    kept: Tensor
    dropped: Tensor
    correct: Tensor
    bad_row: Tensor
    nan_row: Tensor


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Optional[Tensor] = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: Optional[float] = None,
    vocab: Optional[int] = None,
    reduction: str = "mean",
    normalizer: Union[None, str, float, Tensor] = None,
    goldfish: Optional[Goldfish] = None,
    hash_ids: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    preceding: Optional[Tensor] = None,
    halo: Optional[Tensor] = None,
    seq_dim: int = -1,
    return_stats: bool = False,
) -> Union[Tensor, tuple[Tensor, Stats]]:
    """Cross-entropy of rows of logits, optionally without the rows that Goldfish drops.

    The loss of a row is w·(lse − z_label + z_loss·lse²), with label smoothing as in PyTorch. It is computed in f32 for every
    type of the logits. The forward reads the logits once, and so does the backward.

    Args:
        logits: ``[..., V]`` f32, f16 or bf16. Rows may have a pitch, as in ``logits[:, :-1]``.
        labels: i64, i32 or u32, of the shape of the logits without V. The caller shifts them.
        weights: f32 of the shape of the labels. They get no gradient. A row of weight 0 is masked.
        ignore_index: Rows with this label are masked: their logits are not read, and their gradient is 0.
        label_smoothing: A number in [0, 1).
        z_loss: The coefficient of lse², at least 0.
        softcap: c > 0 replaces each logit by c·tanh(logit/c); None leaves the logits as they are.
        vocab: The number of columns that are classes. The others are padding, and their gradient is 0. None is all.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, which returns the loss of each row.
        normalizer: The divisor of a mean: ``"kept"`` or None, the number of kept rows, which without weights is PyTorch's
            mean; ``"labels"``, the number of rows whose label is not ignored; ``"weight"``, the sum of the weights of the
            kept rows; or a number or a tensor of one element, such as the number of tokens of all ranks. A tensor gets no
            gradient.
        goldfish: The strategy that drops rows. A dropped row is masked.
        hash_ids: The ids from which the strategy decides, of the shape of the labels; None is the labels themselves.
        cu_seqlens: ``[documents + 1]`` i32, the offsets at which documents begin; the ids must then be one row. With None,
            each slice of the ids along ``seq_dim`` is a separate row.
        preceding: ``[chunks]`` i64: ``cu_seqlens`` then cuts the ids into chunks of documents, as :meth:`xact.Goldfish.mask`
            describes.
        halo: The ids before each row or chunk, of the type of the ids: ``[rows, n]``, ``[n, rows]`` with ``seq_dim=0``, or
            ``[chunks, n]`` with ``preceding``.
        seq_dim: The dimension of the labels along which the text runs: -1, or 0 for labels of shape ``[T, ...]``. Only
            Goldfish depends on it.
        return_stats: Whether to also return :class:`Stats`.

    Returns:
        The loss, f32 ``[]``, or of the shape of the labels with ``reduction="none"``; with ``return_stats``, a pair of the
        loss and :class:`Stats`. A mean of no rows is 0.

    Raises:
        TypeError: A tensor has another type, or an argument has no effect, such as ``hash_ids`` without ``goldfish``.
        ValueError: Shapes, devices or numbers do not fit; on the CPU also, a label is no class. On a CUDA device the loss of
            such a row is NaN, and ``Stats.bad_row`` has the row.
    """
    _check_logits(logits)
    tensors, options = _loss_arguments(
        "logits",
        logits,
        labels,
        ("logits", logits.shape),
        weights=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        vocab=vocab,
        reduction=reduction,
        normalizer=normalizer,
        goldfish=goldfish,
        hash_ids=hash_ids,
        cu_seqlens=cu_seqlens,
        preceding=preceding,
        halo=halo,
        seq_dim=seq_dim,
    )
    per_row = reduction == "none"
    loss, _, summary, *rows = torch.ops.xact.cross_entropy(logits, *tensors, *options, per_row, return_stats)
    return _loss_and_stats(loss, summary, rows, labels, reduction, return_stats)


def context_parallel_chunks(
    ids: Tensor,
    goldfish: Goldfish,
    *,
    group: Optional["torch.distributed.ProcessGroup"] = None,
    order: str = "contiguous",
    cu_seqlens: Optional[Tensor] = None,
) -> dict[str, Tensor]:
    """The arguments with which Goldfish decides about a rank's part of a text as about the whole text.

    The result is for :meth:`xact.Goldfish.mask` of the rank's ids, and for :func:`cross_entropy` and
    :func:`vocab_parallel_cross_entropy` of its labels: ``goldfish.mask(ids, **chunks)``. Two all-gathers exchange the shapes
    and the last ids of each rank. The call waits for the device.

    Args:
        ids: ``[..., T]``, the rank's ids, one for each of its labels. Every rank has the same shape.
        goldfish: The strategy. ``static`` and ``random`` count the labels of a document from its beginning.
        group: The process group; None is the default group.
        order: ``"contiguous"``: rank r has part r of the text. ``"zigzag"``: the text has two parts for each rank, and rank r
            of R has part r and then part 2R − 1 − r.
        cu_seqlens: ``[documents + 1]`` i32, the offsets in the whole text at which documents begin; the ids must then be one
            row. With None, each row is a document.

    Returns:
        The arguments ``cu_seqlens``, ``preceding`` and, if the strategy has windows, ``halo``.

    Raises:
        TypeError: A tensor has another type.
        ValueError: Shapes do not fit, or differ between the ranks.
        RuntimeError: torch.distributed is not initialised, this process is not in the group, or a rank does not answer.
    """
    from . import _context

    return _context.context_parallel_chunks(ids, goldfish, group=group, order=order, cu_seqlens=cu_seqlens)


def vocab_parallel_cross_entropy(
    logits_shard: Tensor,
    labels: Tensor,
    *,
    group: Optional["torch.distributed.ProcessGroup"] = None,
    weights: Optional[Tensor] = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: Optional[float] = None,
    vocab: Optional[int] = None,
    reduction: str = "mean",
    normalizer: Union[None, str, float, Tensor] = None,
    goldfish: Optional[Goldfish] = None,
    hash_ids: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    preceding: Optional[Tensor] = None,
    halo: Optional[Tensor] = None,
    seq_dim: int = -1,
) -> Tensor:
    """:func:`cross_entropy` of logits whose columns are spread over the ranks of a process group.

    The columns of the ranks follow each other in the order of the ranks; ranks may have different numbers of columns, also
    none. Every rank passes the same labels and options. A call has one all-gather, of 20 bytes per row, and no reduction; the
    first call of a shape has another, in which the ranks compare their shapes. The loss has the same bits on every rank. The
    gradient is that of the rank's own logits, for an upstream gradient that is the same on every rank.

    Args:
        logits_shard: ``[..., v]`` f32, f16 or bf16: the columns of this rank. v may be 0.
        labels: i64, i32 or u32, of the shape of the logits without v: classes of all ranks, from 0 to V − 1.
        group: The process group; None is the default group. If a rank fails, the others raise at the latest after the
            timeout of the group.
        vocab: The number V of columns of all ranks together that are classes; the columns after them, such as those that make
            shards equal, are padding. None is all columns.
        normalizer: As for :func:`cross_entropy`. For data-parallel groups, give the number of tokens of all of them.

    The other arguments are those of :func:`cross_entropy`. Goldfish decides from the same ids on every rank. Under
    ``torch.compile`` the call runs eagerly, and breaks the graph.

    Returns:
        The loss, f32 ``[]``, or of the shape of the labels with ``reduction="none"``.

    Raises:
        TypeError: A tensor has another type.
        ValueError: Shapes do not fit, on all ranks together or on this one; on the CPU also, a label is no class.
        RuntimeError: torch.distributed is not initialised, this process is not in the group, or a rank does not answer.
    """
    # It imports torch.distributed and the compiler, which takes seconds.
    from . import _parallel

    tokens, numbers, divisor, vocab = _rank_arguments(
        logits_shard,
        labels,
        weights=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        vocab=vocab,
        reduction=reduction,
        normalizer=normalizer,
        goldfish=goldfish,
        hash_ids=hash_ids,
        cu_seqlens=cu_seqlens,
        preceding=preceding,
        halo=halo,
        seq_dim=seq_dim,
    )
    return _parallel.cross_entropy(logits_shard, labels, tokens, numbers, divisor, vocab, reduction == "none", group)


def _check_logits(logits: Tensor) -> None:
    """Raises unless the argument ``logits`` of a loss is a tensor with rows that the library can read."""
    _check.data("logits", _check.tensor("logits", logits))
    _sharding.refuse("logits", logits)
    if logits.dim() == 0:
        raise ValueError("logits is a single number; it must be [..., V]")


def _rank_arguments(logits_shard: Tensor, labels: Tensor, **arguments: object) -> tuple:
    """Checks the arguments of a loss over ranks: the inputs of its rows, its options, the divisor, and ``vocab``."""
    _check_logits(logits_shard)
    tensors, options = _loss_arguments("logits", logits_shard, labels, None, **arguments)
    _, weights, divisor, *tokens = tensors
    key, seq_first, *numbers, vocab, divide_by = options
    return (weights, *tokens, key, seq_first), (*numbers, divide_by), divisor, vocab


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    weights: Optional[Tensor] = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: Optional[float] = None,
    vocab: Optional[int] = None,
    reduction: str = "mean",
    normalizer: Union[None, str, float, Tensor] = None,
    goldfish: Optional[Goldfish] = None,
    hash_ids: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    preceding: Optional[Tensor] = None,
    halo: Optional[Tensor] = None,
    seq_dim: int = -1,
    kept_rows: Optional[Tensor] = None,
    logits: str = "f32",
    max_bytes: int = 1 << 30,
    chunk_rows: Optional[int] = None,
    return_stats: bool = False,
) -> Union[Tensor, tuple[Tensor, Stats]]:
    """:func:`cross_entropy` of ``hidden @ weight.T``, without the logits of all rows in memory.

    The rows are computed in chunks that fit into ``max_bytes``. A mean or a sum computes the gradients in the forward, in
    three matrix products; ``reduction="none"``, and f16, whose gradients need the scale of the loss, compute the logits again
    in the backward. On the CPU, rows that are masked or that Goldfish drops are not multiplied. On a CUDA device that needs
    ``kept_rows``, since nothing waits for the device to know them. Under autocast, hidden states and weights are converted to
    its type.

    Args:
        hidden: ``[..., H]`` f32, f16 or bf16. Rows may have a pitch, as in ``hidden[:, :-1]``.
        weight: ``[V, H]`` of the type of ``hidden``. There is no bias: append a column of ones to ``hidden``, and the bias to
            ``weight``. The gradient of a 16-bit weight is rounded once for each chunk.
        kept_rows: ``[K]`` i32 or i64: the rows of ``hidden``, flattened to ``[N, H]``, that may be kept, in any order; -1 is
            padding. A row that is not listed has the weight 0. A data loader can make the list from the text:
            ``(goldfish.mask(ids) & (labels != -100)).flatten().nonzero().flatten()``. A list on the CPU is checked; a list on
            a CUDA device is not, and must have no row twice.
        logits: ``"f32"``, or ``"narrow"`` for logits of the type of ``hidden``, which takes less memory, and costs f16 and
            bf16 five digits of the loss.
        max_bytes: The most memory for a chunk and what its products need. More rows in a chunk read the weights, and write
            their gradient, less often.
        chunk_rows: The rows of a chunk; None is as many as fit.

    The other arguments, the results and the errors are those of :func:`cross_entropy`. ``vocab`` is the number of rows of
    ``weight`` that are classes.

    Raises:
        TypeError: As :func:`cross_entropy`, and ``weight`` has another type than ``hidden``.
        ValueError: As :func:`cross_entropy`; a list of kept rows has a row twice or one that does not exist; ``max_bytes`` is
            too small for a row.
    """
    _check.data("hidden", _check.tensor("hidden", hidden))
    _sharding.refuse("hidden", hidden)
    _check.data("weight", _check.tensor("weight", weight))
    _sharding.refuse("weight", weight)
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden is {list(hidden.shape)} and weight is {list(weight.shape)}; they must be [..., H] and [V, H]"
        )
    _check.device("weight", weight, hidden, "hidden")
    if weight.dtype != hidden.dtype:
        names = _check.name_of(weight.dtype), _check.name_of(hidden.dtype)
        raise TypeError(f"weight is {names[0]}, but hidden is {names[1]}; convert one of them, or use autocast")
    if hidden.shape[-1] == 0:
        raise ValueError(f"hidden is {list(hidden.shape)}; there must be at least one column")
    tensors, options = _loss_arguments(
        "hidden",
        hidden,
        labels,
        ("weight", weight.shape),
        weights=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        vocab=vocab,
        reduction=reduction,
        normalizer=normalizer,
        goldfish=goldfish,
        hash_ids=hash_ids,
        cu_seqlens=cu_seqlens,
        preceding=preceding,
        halo=halo,
        seq_dim=seq_dim,
    )
    if logits not in _linear_cross_entropy.LOGITS:
        raise ValueError(f"logits is {logits!r}; it must be one of {', '.join(_linear_cross_entropy.LOGITS)}")
    if (max_bytes := _check.whole("max_bytes", max_bytes)) < 1:
        raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1")
    if chunk_rows is not None and (chunk_rows := _check.whole("chunk_rows", chunk_rows)) < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1, or None")
    if kept_rows is not None:
        _check.dtype("kept_rows", _check.tensor("kept_rows", kept_rows), (torch.int32, torch.int64))
        if kept_rows.dim() != 1:
            raise ValueError(f"kept_rows is {list(kept_rows.shape)}; it must be [K]")
        if kept_rows.device.type != "cpu":
            _check.device("kept_rows", kept_rows, hidden, "hidden")
    per_row = reduction == "none"
    at_once = torch.is_grad_enabled() and not per_row and hidden.dtype != torch.float16
    loss, _, summary, *rows = torch.ops.xact.linear_cross_entropy(
        hidden,
        weight,
        *tensors,
        kept_rows,
        *options,
        logits,
        max_bytes,
        chunk_rows,
        per_row,
        return_stats,
        at_once and hidden.requires_grad,
        at_once and weight.requires_grad,
    )
    return _loss_and_stats(loss, summary, rows[:4], labels, reduction, return_stats)


def _loss_and_stats(
    loss: Tensor, summary: Tensor, rows: list[Tensor], labels: Tensor, reduction: str, return_stats: bool
) -> Union[Tensor, tuple[Tensor, Stats]]:
    """The result of a loss from those of its operator."""
    if reduction == "none":
        loss = loss.reshape(labels.shape)
    if not return_stats:
        return loss
    losses, lse, z_losses, argmax = (row.reshape(labels.shape) for row in rows)
    field = lambda name: native.summary_field(summary, name)  # noqa: E731
    totals = ("loss", "weight", "normalizer", "labels", "kept", "dropped", "correct", "bad_row", "nan_row")
    return loss, Stats(losses, lse, z_losses, argmax, *map(field, totals))


def _loss_arguments(
    name: str,
    first: Tensor,
    labels: Tensor,
    shape_with_classes: Optional[tuple[str, torch.Size]],
    *,
    weights: Optional[Tensor],
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: Optional[float],
    vocab: Optional[int],
    reduction: str,
    normalizer: Union[None, str, float, Tensor],
    goldfish: Optional[Goldfish],
    hash_ids: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    preceding: Optional[Tensor],
    halo: Optional[Tensor],
    seq_dim: int,
) -> tuple[tuple, tuple]:
    """Checks the arguments of a loss, and returns those of its operator: tensors, and options.

    ``name`` is the name of ``first``, ``[..., n]``, the tensor with the rows. The pair is the name and the shape of the
    tensor that has a column, or as ``weight`` a row, for each class; None if other ranks have classes too.
    """
    _check.integers("labels", _check.tensor("labels", labels), _check.LABELS)
    _check.device("labels", labels, first, name)
    if labels.shape != first.shape[:-1]:
        raise ValueError(
            f"labels is {list(labels.shape)}, but {name} is {list(first.shape)}; "
            f"labels must be {list(first.shape[:-1])}"
        )
    if shape_with_classes is not None:
        what, shape = shape_with_classes
        classes = shape[0 if what == "weight" else -1]
        if classes == 0:
            raise ValueError(f"{what} is {list(shape)}; there must be at least one class")
    if weights is not None:
        _check.dtype("weights", _check.tensor("weights", weights), (torch.float32,))
        _like_labels("weights", weights, labels)
        if weights.requires_grad:
            weights = weights.detach()
    if reduction not in _cross_entropy.REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(_cross_entropy.REDUCTIONS)}")
    ignore_index = _check.whole("ignore_index", ignore_index)
    label_smoothing, z_loss = _check.number("label_smoothing", label_smoothing), _check.number("z_loss", z_loss)
    divide_by, divisor = _normalizer(normalizer, reduction, first, name)
    if goldfish is None:
        given = {"hash_ids": hash_ids, "cu_seqlens": cu_seqlens, "preceding": preceding, "halo": halo}
        for name, value in given.items():
            if value is not None:
                raise TypeError(f"{name} is given without goldfish, and has no effect then; leave it out")
    elif not isinstance(goldfish, Goldfish):
        raise TypeError(f"goldfish is a {type(goldfish).__name__}; it must be an xact.Goldfish")
    if hash_ids is not None:
        _check.integers("hash_ids", _check.tensor("hash_ids", hash_ids), _check.IDS)
        _like_labels("hash_ids", hash_ids, labels)
    seq_first = is_seq_first(seq_dim, labels.shape)
    if preceding is not None:
        if cu_seqlens is None:
            raise TypeError("preceding is given without cu_seqlens, which says where the chunks begin")
        preceding = _mask.numbers("preceding", preceding, torch.int64, first, name)
    if cu_seqlens is not None:
        cu_seqlens = _mask.numbers("cu_seqlens", cu_seqlens, torch.int32, first, name)
        if preceding is None and not is_one_row(labels.shape, seq_first):
            raise ValueError(
                f"cu_seqlens cuts one row into documents, but labels is {list(labels.shape)}; flatten the labels"
            )
    if halo is not None:
        halo = _mask.of_segments(halo, labels if hash_ids is None else hash_ids, preceding, seq_first)
    if softcap is not None:
        softcap = _check.number("softcap", softcap)
        # To the library, 0 means no softcap.
        if not softcap > 0:
            raise ValueError(f"softcap is {softcap}; it must be above 0, or None")
    if vocab is not None:
        vocab = _check.whole("vocab", vocab)
        if shape_with_classes is not None and not 1 <= vocab <= classes:
            lines = "rows" if what == "weight" else "columns"
            raise ValueError(f"vocab is {vocab}; it must be from 1 to {classes}, the {lines} of {what}")
    tensors = (labels, weights, divisor, hash_ids, cu_seqlens, preceding, halo)
    key = None if goldfish is None else goldfish._key
    return tensors, (key, seq_first, ignore_index, label_smoothing, z_loss, softcap, vocab, divide_by)


def _like_labels(what: str, value: Tensor, labels: Tensor) -> None:
    _check.device(what, value, labels, "labels")
    if value.shape != labels.shape:
        raise ValueError(f"{what} is {list(value.shape)}, but labels is {list(labels.shape)}")


def _normalizer(normalizer: object, reduction: str, first: Tensor, name: str) -> tuple[str, Optional[Tensor]]:
    """The library's normalizer, and the divisor ``[]`` or ``[1]`` f32 if the caller gives one."""
    if reduction != "mean":
        if normalizer is not None:
            raise TypeError(f'normalizer is the divisor of a mean; with reduction="{reduction}" leave it out')
        return "none", None
    if normalizer is None:
        return "kept", None
    if isinstance(normalizer, str):
        if normalizer not in _cross_entropy.NORMALIZERS:
            names = ", ".join(_cross_entropy.NORMALIZERS)
            raise ValueError(f"normalizer is {normalizer!r}; it must be one of {names}, a number or a tensor")
        return normalizer, None
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer is {list(normalizer.shape)}; it must have one element")
        if normalizer.is_complex():
            raise TypeError(f"normalizer is {_check.name_of(normalizer.dtype)}; it must be real")
        _check.device("normalizer", normalizer, first, name)
        return "kept", normalizer.detach().float()
    normalizer = _check.number("normalizer", normalizer, "a name, a number or a tensor")
    return "kept", torch.full((), normalizer, dtype=torch.float32, device=first.device)


from . import nn  # noqa: E402  (nn uses the functions above)
