"""The operators of xact for PyTorch: fused, differentiable, accurate to their type, and compiled through.

Activations take f32, f16 and bf16 tensors of any shape and strides on the CPU or on a CUDA device; they compute in f32
and round once. Trainable scalars are tensors of one element (``[1]``, which FSDP can shard, or ``[]``) of f32 or of the
type of x, and are read on the device: no call waits for it. Everything works under ``torch.compile(fullgraph=True)``,
activation checkpointing, autocast and CUDA graphs, and the activations with DTensors. PyTorch's function transforms are
not among it, but for ``vmap``: ``torch.func.grad`` and forward derivatives raise.
"""

import math
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import _library as native
from .._goldfish import Goldfish
from . import _activation, _check, _cross_entropy, _mask, _sharding

__all__ = [
    "Stats",
    "cross_entropy",
    "nn",
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
        alpha_p: One element. Raw, as checkpoints hold it: α_p = softplus(alpha_p).
        alpha_n: One element. Raw: α_n = β + softplus(alpha_n).
        beta: The slope at 0; a tensor of one element makes it trainable.
        eps: The clamp of transformers' formula, −1e-6 there: expm1(min(x, eps)) − x for x ≤ 0. None is the ideal
            function, which is f(0) = 0.
        eps_gradient: With ``eps``, the derivative between it and 0: ``"analytic"``, close to β, or ``"autograd"``, what
            differentiating the clamp gives.
        effective: Whether ``alpha_p`` and ``alpha_n`` are α_p and α_n themselves.

    Returns:
        Tensor of the shape and type of x, contiguous.

    Raises:
        TypeError: A type that xact does not compute with.
        ValueError: A scalar of more than one element, or tensors on several devices.
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
    """x becomes :func:`xielu` of itself, and is returned; for inference, since it has no derivative."""
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
            _sharding.ensure(packed)
            return operators.packed(packed, alpha, order, value_first)
        if value_first:
            raise TypeError("value_first is of packed alone; x is the gate and v the value")
        _check.data("x", _check.tensor("x", x))
        _check.same("v", _check.tensor("v", v), x, "x")
        _check.scalar("alpha", alpha, x)
        _sharding.ensure(x)
        return operators.gated(x, v, alpha, order)

    return function


_PLAIN = """{title}: f(x) = x·G(x), with G(x) = (1 + 2α)·g(x) − α and g {gate}.

    Args:
        x: Tensor of any shape, f32, f16 or bf16.
        alpha: One element, f32 or of the type of x; its initial value is 0.

    Returns:
        Tensor of the shape and type of x, contiguous.

    Raises:
        TypeError: A type that xact does not compute with.
        ValueError: An alpha of more than one element, or tensors on two devices.
    """
_IN_PLACE = """x becomes :func:`{name}` of itself, and is returned; for inference, since it has no derivative."""
_GATED = """{title} as a gate: G(x)·v (``order=1``, {alias}) or x·G(x)·v (``order=2``). See :func:`{name}` for G.

    Args:
        x: The gate, of any shape, f32, f16 or bf16.
        v: The value, of the shape and type of x.
        alpha: One element, f32 or of that type; its initial value is 0.
        packed: Instead of x and v, one tensor ``[..., 2n]`` that holds both: its gradient comes back in one piece, and
            nothing is copied.
        order: 1 or 2.
        value_first: Whether the value is the first half of ``packed``.

    Returns:
        Tensor of the shape and type of x, or ``[..., n]`` of ``packed``, contiguous.

    Raises:
        TypeError: A type that xact does not compute with, or arguments that contradict each other.
        ValueError: Shapes that do not fit, or tensors on several devices.
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
    """What :func:`cross_entropy` also knows. No gradient flows through it; reading a number of a CUDA device waits for it.

    Attributes:
        loss: f32, of the shape of the labels: each row's weighted loss, not divided; 0 of a masked row, NaN of a bad one.
        lse: f32, likewise: log Σ e^logit; 0 of a masked row.
        z_loss: f32, likewise: the part of the loss that is z-loss.
        argmax: i32, likewise: the class of the largest logit; −1 of a masked row.
        total: [] f32: Σ of the losses of the kept rows.
        weight: [] f32: Σ of the weights of the kept rows.
        normalizer: [] f32: what the loss was divided by.
        labels: [] i64: rows whose label is not ignored.
        kept: [] i64: rows that count.
        dropped: [] i64: rows that Goldfish dropped.
        correct: [] i64: kept rows whose label is the argmax.
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
    return_stats: bool = False,
) -> Union[Tensor, tuple[Tensor, Stats]]:
    """Cross-entropy of rows of logits, some of which Goldfish may drop.

    The loss of a row is w·(lse − z_label + z_loss·lse²), with label smoothing as PyTorch has it. It is computed in f32
    whatever the type of the logits, in one pass over them, and its backward in one more.

    Args:
        logits: ``[..., V]`` f32, f16 or bf16. Rows may have a pitch, as ``logits[:, :-1]`` has.
        labels: i64, i32 or u32, of the shape of the logits without V. Already shifted.
        weights: f32, of the shape of the labels; a gradient of theirs is not computed. A row of weight 0 is masked.
        ignore_index: Rows with this label are masked: their logits are not read, their gradient is 0.
        label_smoothing: In [0, 1).
        z_loss: The coefficient of lse², at least 0.
        softcap: c of c·tanh(logit/c), or None.
        vocab: How many of the columns are classes; the rest are padding, and their gradient is 0. None for all.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, which gives the loss of each row.
        normalizer: What a mean divides by: ``"kept"``, the rows that count (None; PyTorch's mean where there are no
            weights), ``"labels"``, the rows whose label is not ignored, ``"weight"``, Σ of the weights of the kept rows,
            or a number, or a tensor of one element, such as the tokens of all ranks, which gets no gradient.
        goldfish: The strategy that drops rows.
        hash_ids: The ids that it decides from, of the shape of the labels; None for the labels themselves.
        cu_seqlens: ``[documents + 1]`` i32: where the documents of one row begin. None where each last dimension of the
            ids is a row of its own.
        return_stats: Whether to return :class:`Stats` too.

    Returns:
        The loss, f32: ``[]``, or of the shape of the labels with ``reduction="none"``. With ``return_stats``, a pair of it
        and :class:`Stats`. A mean of no rows is 0.

    Raises:
        TypeError: A type that xact does not compute with, or an argument without use, such as ``hash_ids`` without
            ``goldfish``.
        ValueError: Shapes, devices or numbers that do not fit. On the CPU also a label that is no class; on a CUDA device
            such a row's loss is NaN, and ``Stats.bad_row`` names it.
    """
    _check.data("logits", _check.tensor("logits", logits))
    _sharding.refuse("logits", logits)
    _check.integers("labels", _check.tensor("labels", labels), _check.LABELS)
    _check.device("labels", labels, logits, "logits")
    if logits.dim() == 0:
        raise ValueError("logits is a single number; it must be [..., V]")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels is {list(labels.shape)}, but logits is {list(logits.shape)}; "
            f"labels must be {list(logits.shape[:-1])}"
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"logits is {list(logits.shape)}; there must be at least one class")
    if weights is not None:
        _check.dtype("weights", _check.tensor("weights", weights), (torch.float32,))
        _like_labels("weights", weights, labels)
        if weights.requires_grad:
            weights = weights.detach()
    if reduction not in _cross_entropy.REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(_cross_entropy.REDUCTIONS)}")
    ignore_index = _check.whole("ignore_index", ignore_index)
    label_smoothing, z_loss = _check.number("label_smoothing", label_smoothing), _check.number("z_loss", z_loss)
    divide_by, divisor = _normalizer(normalizer, reduction, logits)
    if goldfish is None:
        for name, value in (("hash_ids", hash_ids), ("cu_seqlens", cu_seqlens)):
            if value is not None:
                raise TypeError(f"{name} is given without goldfish, which alone looks at it")
    elif not isinstance(goldfish, Goldfish):
        raise TypeError(f"goldfish is a {type(goldfish).__name__}; it must be an xact.Goldfish")
    if hash_ids is not None:
        _check.integers("hash_ids", _check.tensor("hash_ids", hash_ids), _check.IDS)
        _like_labels("hash_ids", hash_ids, labels)
    if cu_seqlens is not None:
        cu_seqlens = _mask.offsets(cu_seqlens, logits, "logits")
        if labels.dim() == 0 or any(size != 1 for size in labels.shape[:-1]):
            raise ValueError(
                f"cu_seqlens cuts one row into documents, but labels is {list(labels.shape)}; flatten what is packed"
            )
    if softcap is not None:
        softcap = _check.number("softcap", softcap)
        # 0 is the library's word for none.
        if not softcap > 0:
            raise ValueError(f"softcap is {softcap}; it must be above 0, or None")
    if vocab is not None and not 1 <= (vocab := _check.whole("vocab", vocab)) <= logits.shape[-1]:
        raise ValueError(f"vocab is {vocab}; it must be from 1 to {logits.shape[-1]}, the columns of logits")
    loss, _, summary, *rows = torch.ops.xact.cross_entropy(
        logits,
        labels,
        weights,
        divisor,
        hash_ids,
        cu_seqlens,
        None if goldfish is None else goldfish._key,
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        vocab,
        divide_by,
        reduction == "none",
        return_stats,
    )
    if reduction == "none":
        loss = loss.reshape(labels.shape)
    if not return_stats:
        return loss
    losses, lse, z_losses, argmax = (row.reshape(labels.shape) for row in rows)
    field = lambda name: native.summary_field(summary, name)  # noqa: E731
    totals = ("loss", "weight", "normalizer", "labels", "kept", "dropped", "correct", "bad_row", "nan_row")
    return loss, Stats(losses, lse, z_losses, argmax, *map(field, totals))


def _like_labels(what: str, value: Tensor, labels: Tensor) -> None:
    _check.device(what, value, labels, "labels")
    if value.shape != labels.shape:
        raise ValueError(f"{what} is {list(value.shape)}, but labels is {list(labels.shape)}")


def _normalizer(normalizer: object, reduction: str, logits: Tensor) -> tuple[str, Optional[Tensor]]:
    """What the library divides by, and the divisor if it is the caller's."""
    if reduction != "mean":
        if normalizer is not None:
            raise TypeError(f'normalizer is what a mean divides by; with reduction="{reduction}" leave it out')
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
        _check.device("normalizer", normalizer, logits, "logits")
        return "kept", normalizer.detach().float()
    normalizer = _check.number("normalizer", normalizer, "a name, a number or a tensor")
    return "kept", torch.full((), normalizer, dtype=torch.float32, device=logits.device)


from . import nn  # noqa: E402  (it is made of the functions above)
