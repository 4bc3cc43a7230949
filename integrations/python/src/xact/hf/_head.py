"""A head that computes the loss of causal language models without their logits."""

from __future__ import annotations

import functools
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import torch as functional
from ._loss import IGNORE_INDEX, loss_function, next_labels, tensor_on

# Models whose forward does nothing to the logits between the head and the loss. Others scale or cap them.
KNOWN = ("apertus", "llama", "mistral", "qwen2", "qwen3")


def fuse_head(
    model: torch.nn.Module,
    *,
    max_bytes: int = 1 << 30,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> None:
    """Makes a causal language model of transformers compute its training loss without the logits of all tokens.

    A forward in training mode with labels computes head and loss together, with :func:`xact.torch.linear_cross_entropy`, and
    its output has ``logits=None``. Every other forward, as in evaluation and generation, has logits as before; its loss is
    :func:`loss_function`. The state dict stays the same. A second call sets the options anew.

    Args:
        model: A model of type apertus, llama, mistral, qwen2 or qwen3, whose head has no bias.
        max_bytes: The memory for the logits of a part of the tokens and what their products need.
        z_loss: See :func:`xact.torch.cross_entropy`.
        label_smoothing: Likewise.

    Raises:
        TypeError: The model is no module.
        ValueError: The model is of another type, whose forward may change the logits, or its head is not a plain linear layer
            without a bias. The model is left as it was.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in KNOWN or not hasattr(model, "loss_function"):
        raise ValueError(
            f"{type(model).__name__} is of type {kind!r}; fuse_head knows the causal language models of "
            f"{', '.join(KNOWN)}, which leave the logits as they are. Use xact.torch.linear_cross_entropy by hand"
        )
    head = getattr(model, "lm_head", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ValueError(f"lm_head is {head!r}; fuse_head needs a torch.nn.Linear without a bias")
    forward = vars(head).get("forward")
    if type(head).forward is not torch.nn.Linear.forward or not isinstance(forward, (_Head, type(None))):
        raise ValueError("lm_head has a forward of its own, as adapters and accelerate's hooks give it; fuse it before")
    if forward is None:
        forward = _Head(head)
        head.forward = forward
        model.register_forward_pre_hook(forward.before, with_kwargs=True)
        model.register_forward_hook(forward.after, always_call=True)
    model.loss_function = functools.partial(
        _loss, forward, max_bytes=max_bytes, z_loss=z_loss, label_smoothing=label_smoothing
    )


class _Head:
    """The forward of a head, which leaves its product to the loss in a forward that has labels."""

    def __init__(self, head: torch.nn.Linear) -> None:
        self.head = head
        self.fused = False

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden if self.fused else torch.nn.functional.linear(hidden, self.head.weight)

    def before(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels") is not None
        self.fused = model.training and labels

    def after(self, model: torch.nn.Module, args: tuple, output: Any) -> Any:
        fused, self.fused = self.fused, False
        if not fused or output is None:
            return output
        if isinstance(output, tuple):
            loss, _, *rest = output
            return (loss, None, *rest)
        return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _loss(
    head: _Head,
    logits: Tensor,
    labels: Optional[Tensor],
    vocab_size: int,
    num_items_in_batch: Union[None, int, Tensor] = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: Optional[Tensor] = None,
    *,
    max_bytes: int,
    z_loss: float,
    label_smoothing: float,
    **_: object,
) -> Tensor:
    """The loss, for ``logits`` that are the hidden states if the head has left the product to it."""
    options = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    if not head.fused:
        arguments = (labels, vocab_size, num_items_in_batch, ignore_index, shift_labels)
        return loss_function(logits, *arguments, **options)
    return functional.linear_cross_entropy(
        logits,
        head.head.weight,
        next_labels(labels, shift_labels, ignore_index).to(logits.device),
        ignore_index=ignore_index,
        vocab=vocab_size,
        normalizer=tensor_on(logits, num_items_in_batch),
        max_bytes=max_bytes,
        **options,
    )
