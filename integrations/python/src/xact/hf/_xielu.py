"""The package ``xielu`` for programs that look for it, with the kernels of xact."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec

import torch
from torch import Tensor

from .. import torch as functional
from ._patch import wide


class _XIELU:
    """The class ``torch.classes.xielu.XIELU`` of the package ``xielu``, called as transformers, vLLM and SGLang call it."""

    def forward(
        self, x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: float, eps: float, with_vector_loads: bool = False
    ) -> Tensor:
        """xIELU of x, with raw parameters; ``with_vector_loads`` has no effect."""
        return functional.xielu(x, wide(alpha_p, x), wide(alpha_n, x), beta=beta, eps=eps)


def install_xielu() -> None:
    """Makes ``import xielu.ops`` and ``torch.classes.xielu.XIELU`` find xact, in this process.

    transformers, vLLM and SGLang look for the package ``xielu`` when they make an activation, and call it for CUDA tensors in
    eager mode. Call this function before a model is built, in every process that builds one; forked processes inherit it.
    For training in transformers use :func:`patch`, which also serves ``torch.compile`` and the CPU.

    Raises:
        RuntimeError: The package ``xielu`` is installed, or has been imported.
    """
    ops = sys.modules.get("xielu.ops")
    if ops is not None and getattr(ops, "XIELU", None) is _XIELU:
        return
    if "xielu" in sys.modules or importlib.util.find_spec("xielu") is not None:
        raise RuntimeError(
            "the package xielu is installed, and would be hidden; uninstall it, or leave install_xielu out"
        )
    package, ops = map(_module, ("xielu", "xielu.ops"))
    package.ops, ops.XIELU = ops, _XIELU  # type: ignore[attr-defined]
    sys.modules |= {"xielu": package, "xielu.ops": ops}
    # A plain attribute of the namespace is found before the classes that C++ registers.
    torch.classes.xielu.XIELU = _XIELU


def _module(name: str) -> types.ModuleType:
    # With a spec, importlib.util.find_spec finds the module. Only a package can have modules in it.
    return importlib.util.module_from_spec(ModuleSpec(name, None, is_package=name == "xielu"))
