"""The operators as modules. Their parameters have the names and shapes of published checkpoints."""

from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from .. import torch as functional
from .._goldfish import Goldfish

__all__ = [
    "XATLU",
    "XATLUGated",
    "XGELU",
    "XGELUGated",
    "XIELU",
    "XSiLU",
    "XSiLUGated",
    "CrossEntropyLoss",
]


def _inverse_softplus(y: float) -> float:
    """x with softplus(x) = y. log(expm1(y)) would overflow for large y, where x and y are equal."""
    if not y > 0:
        raise ValueError(f"an effective parameter is {y}; it must be above 0, since it is the result of softplus")
    return y + math.log(-math.expm1(-y))


class XIELU(nn.Module):
    """xIELU with trainable raw alpha_p and alpha_n, ``[1]`` each, as in Apertus' checkpoints.

    Args:
        alpha_p_init: The initial α_p.
        alpha_n_init: The initial α_n, above ``beta``.
        beta: The slope at 0.
        eps: The clamp of transformers' formula, which has −1e-6, or None for the ideal function.
        eps_gradient: See :func:`xact.torch.xielu`.
        device: The device of the parameters.
        dtype: The type of the parameters: f32, or the type of x.

    The state dict has the parameters ``alpha_p`` and ``alpha_n`` and the buffers ``beta`` and, unless it is None, ``eps``.
    """

    def __init__(
        self,
        alpha_p_init: float = 0.8,
        alpha_n_init: float = 0.8,
        *,
        beta: float = 0.5,
        eps: Optional[float] = None,
        eps_gradient: str = "analytic",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if eps_gradient not in functional.EPS_GRADIENTS:
            raise ValueError(f"eps_gradient is {eps_gradient!r}; it must be one of {functional.EPS_GRADIENTS}")
        made = {"device": device, "dtype": dtype}
        self.alpha_p = nn.Parameter(torch.tensor([_inverse_softplus(alpha_p_init)], **made))
        self.alpha_n = nn.Parameter(torch.tensor([_inverse_softplus(alpha_n_init - beta)], **made))
        self.register_buffer("beta", torch.tensor(beta, **made))
        self.register_buffer("eps", None if eps is None else torch.tensor(eps, **made))
        self.eps_gradient = eps_gradient
        self._numbers: tuple[float, Optional[float]] = (float(beta), eps)
        # The buffers of which these are the numbers, and their versions.
        self._read: tuple[tuple[Optional[Tensor], ...], tuple[int, ...]] = ((None, None), ())

    def numbers(self) -> tuple[float, Optional[float]]:
        """beta and eps as numbers. Buffers are read again only after they have changed, since that waits for the device."""
        buffers = (self.beta, self.eps)
        if torch.compiler.is_compiling():
            # Compiled code has them as constants.
            return _numbers_of(*buffers, self._numbers)
        versions = tuple(map(_version, buffers))
        if versions != self._read[1] or any(now is not then for now, then in zip(buffers, self._read[0])):
            self._numbers = _numbers_of(*buffers, self._numbers)
            self._read = (buffers, versions)
        return self._numbers

    def forward(self, x: Tensor) -> Tensor:
        """xIELU of x, of the shape and type of x."""
        beta, eps = self.numbers()
        return functional.xielu(x, self.alpha_p, self.alpha_n, beta=beta, eps=eps, eps_gradient=self.eps_gradient)

    def extra_repr(self) -> str:
        """beta and eps, for ``repr``."""
        beta, eps = self.numbers()
        return f"beta={beta}, eps={eps}"


def _version(buffer: Optional[Tensor]) -> int:
    # Tensors that were made in inference mode count no versions.
    return 0 if buffer is None or buffer.is_inference() else buffer._version


def _numbers_of(beta: Tensor, eps: Optional[Tensor], known: tuple[float, Optional[float]]) -> Any:
    """The numbers in these buffers; ``known`` if they have no data, because they are on the meta device or fake."""
    if beta.device.type == "meta" or isinstance(beta, FakeTensor):
        return known
    return float(beta), None if eps is None else float(eps)


# What torch.compiler.assume_constant_result sets. Calling that imports the compiler, which takes seconds.
_numbers_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Expanded(nn.Module):
    """The base of the expanded activations, with a trainable alpha ``[1]``."""

    name = ""

    def __init__(self, alpha_init: float = 0.0, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha_init, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x, of the shape and type of x."""
        return getattr(functional, self.name)(x, self.alpha)


class _Gated(_Expanded):
    """The base of the gated activations, with a trainable alpha ``[1]``."""

    def __init__(
        self,
        alpha_init: float = 0.0,
        *,
        order: int = 1,
        value_first: bool = False,
        block: Optional[int] = None,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(alpha_init, device=device, dtype=dtype)
        if order not in (1, 2):
            raise ValueError(f"order is {order!r}; it must be 1 or 2")
        self.order, self.value_first, self.block = order, value_first, block

    def forward(self, x: Tensor, v: Optional[Tensor] = None) -> Tensor:
        """The gated activation of the gate x and the value v. Without v, x has both: ``[..., 2n]`` to ``[..., n]``."""
        function = getattr(functional, f"{self.name}_gated")
        if v is None:
            return function(
                packed=x, alpha=self.alpha, order=self.order, value_first=self.value_first, block=self.block
            )
        return function(x, v, self.alpha, order=self.order)

    def extra_repr(self) -> str:
        """order, value_first and block, for ``repr``."""
        return f"order={self.order}, value_first={self.value_first}, block={self.block}"


class XATLU(_Expanded):
    """xATLU with a trainable alpha ``[1]``: see :func:`xact.torch.xatlu`."""

    name = "xatlu"


class XGELU(_Expanded):
    """xGELU with a trainable alpha ``[1]``: see :func:`xact.torch.xgelu`."""

    name = "xgelu"


class XSiLU(_Expanded):
    """xSiLU with a trainable alpha ``[1]``: see :func:`xact.torch.xsilu`."""

    name = "xsilu"


class XATLUGated(_Gated):
    """xATGLU with a trainable alpha ``[1]``: see :func:`xact.torch.xatlu_gated`."""

    name = "xatlu"


class XGELUGated(_Gated):
    """xGEGLU with a trainable alpha ``[1]``: see :func:`xact.torch.xgelu_gated`."""

    name = "xgelu"


class XSiLUGated(_Gated):
    """xSwiGLU with a trainable alpha ``[1]``: see :func:`xact.torch.xsilu_gated`."""

    name = "xsilu"


class CrossEntropyLoss(nn.Module):
    """:func:`xact.torch.cross_entropy` as a module; the arguments are documented there."""

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: Optional[float] = None,
        vocab: Optional[int] = None,
        reduction: str = "mean",
        normalizer: Union[None, str, float] = None,
        goldfish: Optional[Goldfish] = None,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "softcap": softcap,
            "vocab": vocab,
            "reduction": reduction,
            "normalizer": normalizer,
            "goldfish": goldfish,
        }

    def forward(self, logits: Tensor, labels: Tensor, **more: Any) -> Any:
        """The loss of logits ``[..., V]`` and labels ``[...]``. ``more`` are further arguments of the function, such as
        ``weights``, ``hash_ids`` and ``cu_seqlens``; they override the module's options."""
        return functional.cross_entropy(logits, labels, **(self.options | more))

    def extra_repr(self) -> str:
        """The options that are not None, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
