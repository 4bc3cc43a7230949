"""Apertus and other models of Hugging Face transformers with the kernels of xact.

:func:`patch` gives models our xIELU, :func:`loss_function` is the loss of causal language models without an f32 copy of the
logits, :func:`fuse_head` computes it without any logits, and :class:`GoldfishCollator` and :func:`add_goldfish` drop labels
before a Trainer counts them. :func:`install_xielu` serves programs that look for the package ``xielu``. Only these functions
import transformers, so ``import xact.hf`` needs PyTorch alone.
"""

from ._goldfish import GoldfishCollator, add_goldfish
from ._head import fuse_head
from ._loss import loss_function
from ._patch import XIELU, patch
from ._xielu import install_xielu

__all__ = ["GoldfishCollator", "XIELU", "add_goldfish", "fuse_head", "install_xielu", "loss_function", "patch"]
