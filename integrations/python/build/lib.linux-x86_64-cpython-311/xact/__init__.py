"""Kernels for training language models: expanded activations, Goldfish, and Goldfish-masked cross-entropy.

``xact.torch`` has the operators for PyTorch, ``xact.torch.nn`` its modules, and :class:`Goldfish` masks of NumPy arrays and
of tensors. CUDA is not touched before a CUDA tensor arrives, and PyTorch is not needed for masks of arrays.
"""

from importlib import metadata

from ._goldfish import Goldfish
from ._library import abi_version, kernels, preload, version

__all__ = ["Goldfish", "__version__", "abi_version", "kernels", "preload", "version"]

__version__ = metadata.version("xact-kernels")
