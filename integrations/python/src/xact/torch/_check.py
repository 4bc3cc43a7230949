"""Checks of arguments. They need no data, so they also fail for fake tensors."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.int64, torch.int32, torch.uint32)
IDS = (*LABELS, torch.uint16, torch.uint8)
DEVICES = ("cpu", "cuda")


def name_of(dtype: torch.dtype) -> str:
    """The name of a type without ``torch.``, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def tensor(what: str, value: object) -> Tensor:
    """Returns the value, which must be a dense tensor without a forward-mode tangent."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}; it must be a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{what} has the layout {value.layout}; it must be dense")
    # For a custom operator, PyTorch would silently drop the tangent.
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise RuntimeError(f"{what} is a dual tensor, but xact has no forward derivatives; use backward derivatives")
    return value


def number(what: str, value: object, instead: str = "a number") -> float:
    """Returns the value, which must be a number, as a float."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "__float__")):
        raise TypeError(f"{what} is a {type(value).__name__}; it must be {instead}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{what} is {value}; it must be in the range of f32") from None


def whole(what: str, value: object) -> int:
    """Returns the value, which must be a whole number in the range of i64."""
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"{what} is {value!r}; it must be a whole number")
    if not isinstance(value, int):
        value = operator.index(value)  # type: ignore[arg-type]
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{what} is {value}; it must be from -2**63 to 2**63 - 1")
    return value


def dtype(what: str, value: Tensor, allowed: tuple[torch.dtype, ...], remedy: str = "") -> None:
    """Raises TypeError unless the tensor has one of the types."""
    if value.dtype not in allowed:
        names = ", ".join(name_of(each) for each in allowed)
        raise TypeError(f"{what} is {name_of(value.dtype)}; it must be one of {names}{remedy}")


def device(what: str, value: Tensor, first: Tensor, first_name: str) -> None:
    """Raises ValueError unless the tensor is on the device of the first one."""
    if value.device != first.device:
        raise ValueError(f"{what} is on {value.device}, but {first_name} is on {first.device}; move one of them")


def data(what: str, value: Tensor) -> None:
    """Raises unless the tensor is f32, f16 or bf16, on the CPU, a CUDA device or the meta device."""
    dtype(what, value, FLOATS, "; convert it, for example with .float()")
    if value.device.type not in (*DEVICES, "meta"):
        raise ValueError(f"{what} is on {value.device}; xact has kernels for CUDA devices and for the CPU")


def same(what: str, value: Tensor, first: Tensor, first_name: str) -> None:
    """Raises unless the tensor has the shape, type and device of the first one."""
    device(what, value, first, first_name)
    if value.dtype != first.dtype:
        raise TypeError(
            f"{what} is {name_of(value.dtype)}, but {first_name} is {name_of(first.dtype)}; convert one of them"
        )
    if value.shape != first.shape:
        raise ValueError(f"{what} is {list(value.shape)}, but {first_name} is {list(first.shape)}")


def scalar(what: str, value: object, x: Tensor) -> Tensor:
    """Returns the value, which must be a tensor of one element, f32 or of the type of x, on the device of x."""
    value = tensor(what, value)
    if value.numel() != 1:
        raise ValueError(
            f"{what} is {list(value.shape)}; it must have one element, since xact has no scalars per channel"
        )
    device(what, value, x, "x")
    if value.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"{what} is {name_of(value.dtype)}; it must be float32 or the type of x, {name_of(x.dtype)}")
    return value


def integers(what: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> Tensor:
    """Returns the tensor of ids or labels, which must have one of the types."""
    dtype(what, value, allowed, ": convert it, for example with .long()")
    return value
