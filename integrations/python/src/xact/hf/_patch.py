"""xIELU of xact in models of transformers."""

from __future__ import annotations

import functools
from typing import Any, Optional

import torch
from torch import Tensor

from .. import torch as functional
from ..torch import nn

# The versions of transformers in which the parts that are replaced were seen.
KNOWN = "4.56 to 5.24"
# The state of transformers' XIELUActivation, in checkpoints too.
STATE = {"alpha_p", "alpha_n", "beta", "eps"}


class XIELU(nn.XIELU):
    """The xIELU that :func:`patch` gives to models: made and called like transformers' ``XIELUActivation``.

    Args:
        alpha_p_init: The initial α_p.
        alpha_n_init: The initial α_n, above ``beta``.
        beta: The slope at 0.
        eps: The clamp of transformers' formula.
        dtype: The type of the parameters and buffers.
        with_vector_loads: Has no effect; transformers' class has it.
        ideal: Whether to compute the ideal function, which has no clamp. The state dict has ``eps`` all the same.
        eps_gradient: See :func:`xact.torch.xielu`.
    """

    def __init__(
        self,
        alpha_p_init: float = 0.8,
        alpha_n_init: float = 0.8,
        beta: float = 0.5,
        eps: float = -1e-6,
        dtype: Optional[torch.dtype] = torch.bfloat16,
        with_vector_loads: bool = False,
        *,
        ideal: bool = False,
        eps_gradient: str = "analytic",
    ) -> None:
        super().__init__(alpha_p_init, alpha_n_init, beta=beta, eps=eps, eps_gradient=eps_gradient, dtype=dtype)
        self.ideal = ideal

    def forward(self, input: Tensor) -> Tensor:
        """xIELU of the input, of its shape and type."""
        beta, eps = self.numbers()
        alphas = (wide(alpha, input) for alpha in (self.alpha_p, self.alpha_n))
        eps = None if self.ideal else eps
        return functional.xielu(input, *alphas, beta=beta, eps=eps, eps_gradient=self.eps_gradient)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{super().extra_repr()}, ideal={self.ideal}, eps_gradient={self.eps_gradient!r}"


def wide(alpha: Tensor, x: Tensor) -> Tensor:
    """The parameter in a type that the operator takes beside x; where a model mixes types, f32, which changes no value."""
    return alpha if alpha.dtype in (torch.float32, x.dtype) else alpha.float()


def patch(model: Optional[torch.nn.Module] = None, *, ideal: bool = False, eps_gradient: str = "analytic") -> None:
    """Makes models of transformers compute xIELU with xact.

    Without a model, every model that is built or loaded afterwards has our xIELU. With a model, its own are replaced; they
    keep their parameters and buffers, so optimizers that have them stay right. The state dict has the same names, so
    checkpoints load strictly in both directions. A second call sets the options anew.

    By default the function is that of the checkpoint, with the clamp that its buffer ``eps`` says, in f32 arithmetic. The
    gradient differs from autograd's of transformers' formula only for inputs between ``eps`` and 0, for which it is that of
    the ideal function; ``eps_gradient="autograd"`` makes the two equal there.

    Args:
        model: A model with transformers' ``XIELUActivation``, or None.
        ideal: Whether to compute the ideal function, without the clamp.
        eps_gradient: See :func:`xact.torch.xielu`.

    Raises:
        ImportError: transformers is not installed.
        ValueError: The model has no xIELU, has one that is not transformers', or its scalars are on several devices. The
            model is left as it was.
        RuntimeError: transformers is of a version that has not the parts that are replaced.
    """
    if eps_gradient not in functional.EPS_GRADIENTS:
        raise ValueError(f"eps_gradient is {eps_gradient!r}; it must be one of {', '.join(functional.EPS_GRADIENTS)}")
    activations = _activations()
    options = {"ideal": ideal, "eps_gradient": eps_gradient}
    if model is not None:
        _patch_model(model, activations.XIELUActivation, options)
        return
    made = functools.partial(XIELU, **options)
    # Apertus' modelling file reads the first table, other models the second, which is a copy of it.
    for table in (activations.ACT2CLS, activations.ACT2FN):
        table["xielu"] = made


def _activations() -> Any:
    """The module ``transformers.activations``, which must have the names that are replaced."""
    try:
        import transformers
        from transformers import activations
    except ImportError as error:
        raise ImportError(f"xact.hf.patch needs transformers ({error}); pip install 'xact-kernels[hf]'") from error
    for name in ("ACT2CLS", "ACT2FN", "XIELUActivation"):
        if not hasattr(activations, name):
            raise RuntimeError(
                f"transformers {transformers.__version__} has no activations.{name}; xact.hf.patch knows {KNOWN}"
            )
    return activations


def _patch_model(model: torch.nn.Module, theirs: type, options: dict[str, Any]) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    # One activation may have several parents.
    new: dict[torch.nn.Module, XIELU] = {}
    for name, module in model.named_modules():
        if isinstance(module, XIELU):
            new[module] = module
        elif isinstance(module, theirs):
            new[module] = _replacement(name, module)
        elif "xielu" in type(module).__name__.lower():
            raise ValueError(
                f"{name} is a {type(module).__module__}.{type(module).__name__}, which is unknown; patch replaces "
                "transformers' XIELUActivation. Replace it by hand with xact.torch.nn.XIELU"
            )
    if not new:
        act = getattr(getattr(model, "config", None), "hidden_act", None)
        raise ValueError(
            f"{type(model).__name__} has no xIELU"
            + (f"; its hidden_act is {act!r}" if act is not None else "")
            + ". patch is for models with hidden_act='xielu', such as Apertus"
        )
    if model in new:
        raise ValueError("model is itself an activation, which has no parent to be replaced in; use xact.hf.XIELU")
    for ours in new.values():
        vars(ours).update(options)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            model.set_submodule(name, new[module])


def _replacement(name: str, module: torch.nn.Module) -> XIELU:
    """Our xIELU with the parameters and buffers of theirs."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    if set(state) != STATE:
        raise ValueError(f"{name} has the state {sorted(state)}; that of transformers {KNOWN} is {sorted(STATE)}")
    devices = {each.device for each in state.values()}
    if len(devices) > 1:
        where = ", ".join(f"{key} on {each.device}" for key, each in state.items())
        raise ValueError(f"{name} has its scalars on several devices: {where}; move the model to one")
    if "forward" in vars(module):
        raise ValueError(
            f"{name} has a forward of its own, as accelerate's hooks and other patches give it; "
            "call patch() without a model before the model is built"
        )
    with torch.device("meta"):
        ours = XIELU()
    for key, each in state.items():
        setattr(ours, key, each)
    return ours.train(module.training)
