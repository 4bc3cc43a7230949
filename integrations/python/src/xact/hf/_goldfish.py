"""Goldfish for batches of transformers: labels are dropped before anything counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Optional

import torch
from torch import Tensor

from .._goldfish import Goldfish
from ._loss import IGNORE_INDEX
from ._patch import KNOWN


class GoldfishCollator:
    """A data collator that drops labels by Goldfish: they become −100 in the batch of another collator.

    Whoever counts labels other than −100 then counts the kept ones: a Trainer over accumulation steps and processes, or a
    loss with its own mean. The decision is made where the batch is made, so in the workers of a DataLoader, whether they are
    forked or spawned. A Trainer collates batches of evaluation with it, too; :func:`add_goldfish` drops labels of training
    only.

    A document loses the same labels in a row of its own, with padding on either side, and packed with others; a document
    begins with a row, after padding (``attention_mask``), and where ``position_ids`` are 0. Its first token is not predicted
    and is in no window. The decision is that of ``xact.torch.cross_entropy(..., ids[:, 1:], goldfish=...)`` for such rows.

    Args:
        goldfish: The strategy.
        collator: The collator, such as ``transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)``. Its batches
            are mappings with tensors ``input_ids`` and ``labels``, ``[rows, T]``, not shifted.
        exempt: Ids that are never dropped, such as ``tokenizer.all_special_ids``.

    Raises:
        TypeError: ``goldfish`` is no :class:`xact.Goldfish`, or, when called, a batch has no tensors.
        ValueError: When called, a batch has no ``input_ids`` or no ``labels``, or they differ in shape.
    """

    def __init__(
        self, goldfish: Goldfish, collator: Callable[[Any], Any], *, exempt: Optional[Iterable[int]] = None
    ) -> None:
        _check(goldfish)
        if not callable(collator):
            raise TypeError(f"collator is a {type(collator).__name__}; it must make a batch of a list of examples")
        self.goldfish, self.collator = goldfish, collator
        self.exempt = None if exempt is None else list(exempt)

    def __call__(self, examples: Any) -> Any:
        """The batch of these examples, with −100 for dropped labels."""
        return _dropped(self.collator(examples), self.goldfish, self.exempt)


def add_goldfish(trainer: Any, goldfish: Goldfish, *, exempt: Optional[Iterable[int]] = None) -> None:
    """Makes a ``transformers.Trainer`` drop labels by Goldfish in training, and count the kept ones.

    The labels become −100 in each batch before the Trainer counts the labels of its accumulation steps and, if
    ``average_tokens_across_devices`` is set, of its processes. Batches of evaluation keep their labels. The decisions are
    those of :class:`GoldfishCollator`.

    Args:
        trainer: A Trainer, or an object of a class derived from it. Its method ``get_batch_samples`` is replaced.
        goldfish: The strategy.
        exempt: Ids that are never dropped, such as ``tokenizer.all_special_ids``.

    Raises:
        TypeError: ``trainer`` has no ``get_batch_samples``, or ``goldfish`` is no :class:`xact.Goldfish`.
    """
    _check(goldfish)
    if not callable(getattr(trainer, "get_batch_samples", None)):
        raise TypeError(
            f"{type(trainer).__name__} has no get_batch_samples, which the Trainer of transformers {KNOWN} has; "
            "use xact.hf.GoldfishCollator as its data_collator"
        )
    exempt = None if exempt is None else list(exempt)
    inner = trainer.get_batch_samples

    def get_batch_samples(epoch_iterator: Iterator, num_batches: int, *more: Any, **named: Any) -> Any:
        batches = (_dropped(batch, goldfish, exempt) for batch in epoch_iterator)
        return inner(batches, num_batches, *more, **named)

    trainer.get_batch_samples = get_batch_samples


def _check(goldfish: object) -> None:
    if not isinstance(goldfish, Goldfish):
        raise TypeError(f"goldfish is a {type(goldfish).__name__}; it must be an xact.Goldfish")


def _dropped(batch: Any, goldfish: Goldfish, exempt: Optional[list[int]]) -> Any:
    """The batch, in which the labels are replaced by new ones that have −100 for dropped labels."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"the batch is a {type(batch).__name__}; it must be a mapping with input_ids and labels")
    for name in ("input_ids", "labels"):
        if name not in batch:
            raise ValueError(f"the batch has no {name}; Goldfish needs the ids of the text and the labels to drop")
        if not isinstance(batch[name], Tensor):
            raise TypeError(f"{name} is a {type(batch[name]).__name__}; it must be a torch.Tensor")
    ids, labels = batch["input_ids"], batch["labels"]
    if ids.dim() != 2 or labels.shape != ids.shape:
        raise ValueError(f"labels is {list(labels.shape)}, and input_ids is {list(ids.shape)}; both must be [rows, T]")
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, :1] = True
    positions, attended = batch.get("position_ids"), batch.get("attention_mask")
    if positions is not None:
        begins |= positions == 0
    if attended is not None and attended.dim() == 2:
        begins[:, 1:] |= (attended[:, 1:] != 0) & (attended[:, :-1] == 0)
    # A window has labels only, so it begins after the first token of a document.
    offsets = begins.flatten().nonzero().flatten().int() + 1
    keep = goldfish.mask(ids.reshape(-1), cu_seqlens=offsets, exempt=exempt).view_as(labels)
    # Nothing predicts the first token of a row, but transformers has versions that count its label.
    keep[:, :1] = False
    batch["labels"] = labels.masked_fill(~keep, IGNORE_INDEX)
    shifted = batch.get("shift_labels")
    if shifted is not None:
        # Where there are shifted labels, only they count. The last one's id is unknown, so it is kept.
        dropped = torch.nn.functional.pad(~keep[:, 1:], (0, 1), value=False)
        batch["shift_labels"] = shifted.masked_fill(dropped, IGNORE_INDEX)
    return batch
