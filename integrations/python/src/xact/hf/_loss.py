"""The loss of causal language models, as transformers calls it."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from .. import torch as functional

# Of transformers' losses and collators: a label that is not predicted.
IGNORE_INDEX = -100


def loss_function(
    logits: Tensor,
    labels: Optional[Tensor],
    vocab_size: int,
    num_items_in_batch: Union[None, int, Tensor] = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: Optional[Tensor] = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    **_: object,
) -> Tensor:
    """The loss for ``model.loss_function`` of causal language models: cross-entropy of each token with the next label.

    It is called as transformers calls its own loss, which copies the logits to f32 and saves that copy for the backward. This
    one reads the logits in their own type. With other options, use for example
    ``functools.partial(xact.hf.loss_function, z_loss=1e-4)``.

    Args:
        logits: ``[..., T, V]`` f32, f16 or bf16.
        labels: ``[..., T]`` i64, i32 or u32, not shifted: the logits of token t predict label t + 1. Rows with the label
            ``ignore_index`` are masked.
        vocab_size: The number of classes, at most V; further columns are padding, and their gradient is 0.
        num_items_in_batch: The divisor of the sum, such as a Trainer's count of labels over all accumulation steps and
            processes. None is the number of labels that are not masked.
        ignore_index: The label of masked rows.
        shift_labels: Instead of the labels, ``[..., T]``: logits t predict ``shift_labels[t]``.
        z_loss: See :func:`xact.torch.cross_entropy`.
        label_smoothing: Likewise.

    Other arguments of the model's forward are ignored, as in transformers.

    Returns:
        f32 ``[]``. If all labels are masked, the loss is 0, where transformers' is NaN.

    Raises:
        TypeError: A tensor has another type.
        ValueError: Shapes do not fit; on the CPU also, a label is no class.
    """
    return functional.cross_entropy(
        logits,
        # A model whose layers are on several devices has its logits on the last.
        next_labels(labels, shift_labels, ignore_index).to(logits.device),
        ignore_index=ignore_index,
        vocab=vocab_size,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        normalizer=tensor_on(logits, num_items_in_batch),
    )


def next_labels(labels: Optional[Tensor], shift_labels: Optional[Tensor], ignore_index: int) -> Tensor:
    """The label that each token predicts."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise TypeError("labels and shift_labels are None; give one of them")
    # The last token predicts nothing. A slice of the logits would be copied to fill its gradient with zeros.
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def tensor_on(logits: Tensor, value: Union[None, int, Tensor]) -> Union[None, int, Tensor]:
    """A number, or a tensor on the device of the logits."""
    return value.to(logits.device) if isinstance(value, Tensor) else value
