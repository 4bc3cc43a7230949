"""Kernels for training language models: expanded activations, Goldfish, and Goldfish-masked cross-entropy.

``xact.torch`` has the operators for PyTorch, and ``xact.torch.nn`` the modules. :class:`Goldfish` makes masks from NumPy
arrays and from tensors; masks from arrays need no PyTorch. CUDA is first used when a CUDA tensor is passed, or by
:func:`preload` and :func:`kernels`.
"""

from importlib import metadata

from ._goldfish import Goldfish
from ._library import abi_version, kernels, preload, version

__all__ = ["Goldfish", "__version__", "abi_version", "kernels", "preload", "version"]

__version__ = metadata.version("xact-kernels")
