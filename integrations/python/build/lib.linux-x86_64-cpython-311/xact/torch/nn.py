"""Modules of the operators, whose parameters have the names and shapes of published checkpoints."""

from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

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
    """The raw parameter of an effective one; expm1 overflows where the two are the same number."""
    if not y > 0:
        raise ValueError(f"an effective parameter is {y}; softplus gives only what is above 0")
    return y + math.log(-math.expm1(-y))


class XIELU(nn.Module):
    """xIELU with trainable alpha_p and alpha_n, ``[1]`` each and raw, as Apertus' checkpoints have them.

    Args:
        alpha_p_init: The initial α_p.
        alpha_n_init: The initial α_n, above ``beta``.
        beta: The slope at 0.
        eps: The clamp of transformers' formula, −1e-6 there, or None for the ideal function.
        eps_gradient: See :func:`xact.torch.xielu`.
        device: Where the parameters are made.
        dtype: Their type: f32 beside any x, or that of x.

    The state dict has ``alpha_p``, ``alpha_n`` and the buffers ``beta`` and, unless it is None, ``eps``.
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
        self._numbers = (float(beta), eps)
        self.register_load_state_dict_post_hook(XIELU._read_buffers)

    @staticmethod
    def _read_buffers(module: "XIELU", _: Any) -> None:
        """The buffers are read when they are loaded, not in each call, which would wait for the device."""
        if module.beta.device.type != "meta":
            eps = module.eps
            module._numbers = (float(module.beta), None if eps is None else float(eps))

    def forward(self, x: Tensor) -> Tensor:
        """y of the shape and type of x."""
        beta, eps = self._numbers
        return functional.xielu(x, self.alpha_p, self.alpha_n, beta=beta, eps=eps, eps_gradient=self.eps_gradient)

    def extra_repr(self) -> str:
        """What is no parameter."""
        beta, eps = self._numbers
        return f"beta={beta}, eps={eps}"


class _Expanded(nn.Module):
    """What the expanded gates share: one trainable scalar alpha, ``[1]``."""

    name = ""

    def __init__(self, alpha_init: float = 0.0, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha_init, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """y of the shape and type of x."""
        return getattr(functional, self.name)(x, self.alpha)


class _Gated(_Expanded):
    """What their gated forms share."""

    def __init__(
        self,
        alpha_init: float = 0.0,
        *,
        order: int = 1,
        value_first: bool = False,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(alpha_init, device=device, dtype=dtype)
        if order not in (1, 2):
            raise ValueError(f"order is {order!r}; it must be 1 or 2")
        self.order, self.value_first = order, value_first

    def forward(self, x: Tensor, v: Optional[Tensor] = None) -> Tensor:
        """y of gate and value; of x alone where that holds both, ``[..., 2n]`` to ``[..., n]``."""
        function = getattr(functional, f"{self.name}_gated")
        if v is None:
            return function(packed=x, alpha=self.alpha, order=self.order, value_first=self.value_first)
        return function(x, v, self.alpha, order=self.order)

    def extra_repr(self) -> str:
        """What is no parameter."""
        return f"order={self.order}, value_first={self.value_first}"


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
    """:func:`xact.torch.cross_entropy` with its options; see there."""

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
        """The loss of ``[..., V]`` logits; ``weights``, ``hash_ids``, ``cu_seqlens`` and options may be given too."""
        return functional.cross_entropy(logits, labels, **(self.options | more))

    def extra_repr(self) -> str:
        """The options that are set."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
