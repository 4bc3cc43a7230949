"""Checks of arguments that need no library, so that a tensor without data fails as one with data does."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.int64, torch.int32, torch.uint32)
IDS = (*LABELS, torch.uint16, torch.uint8)
DEVICES = ("cpu", "cuda")


def name_of(dtype: torch.dtype) -> str:
    """A type without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def tensor(what: str, value: object) -> Tensor:
    """The value, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}; it must be a torch.Tensor")
    return value


def dtype(what: str, value: Tensor, allowed: tuple[torch.dtype, ...], remedy: str = "") -> None:
    """A tensor must have one of the types."""
    if value.dtype not in allowed:
        names = ", ".join(name_of(each) for each in allowed)
        raise TypeError(f"{what} is {name_of(value.dtype)}; it must be one of {names}{remedy}")


def device(what: str, value: Tensor, first: Tensor, first_name: str) -> None:
    """A tensor must be where the first one is."""
    if value.device != first.device:
        raise ValueError(f"{what} is on {value.device}, but {first_name} is on {first.device}; move one of them")


def data(what: str, value: Tensor) -> None:
    """A floating-point tensor that the library takes."""
    dtype(what, value, FLOATS, "; convert it, for example with .float()")
    if value.device.type not in (*DEVICES, "meta"):
        raise ValueError(f"{what} is on {value.device}; xact has kernels for CUDA devices and for the CPU")
    if value.layout != torch.strided:
        raise TypeError(f"{what} has the layout {value.layout}; it must be dense")


def same(what: str, value: Tensor, first: Tensor, first_name: str) -> None:
    """A tensor must have the shape, type and device of the first one."""
    device(what, value, first, first_name)
    if value.dtype != first.dtype:
        raise TypeError(
            f"{what} is {name_of(value.dtype)}, but {first_name} is {name_of(first.dtype)}; convert one of them"
        )
    if value.shape != first.shape:
        raise ValueError(f"{what} is {list(value.shape)}, but {first_name} is {list(first.shape)}")


def scalar(what: str, value: object, x: Tensor) -> Tensor:
    """A trainable scalar: one element, f32 or of the type of x, on the device of x."""
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
    """Ids or labels of a type that the library takes."""
    if value.dtype not in allowed:
        names = ", ".join(name_of(each) for each in allowed)
        raise TypeError(
            f"{what} is {name_of(value.dtype)}; it must be one of {names}: convert it, for example with .long()"
        )
    return value


def optional_same_device(what: str, value: Optional[Tensor], first: Tensor, first_name: str) -> None:
    """An optional tensor must be where the first one is."""
    if value is not None:
        device(what, tensor(what, value), first, first_name)
