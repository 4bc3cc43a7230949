"""Allocates results in huge pages."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

# In bytes. Below LEAST, huge pages gain nothing.
LEAST = 4 << 20
HUGE = 2 << 20

try:
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _ADVICE = mmap.MADV_HUGEPAGE
except (AttributeError, OSError):
    # Not on Linux.
    _madvise = None


def contiguous_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape, type and device of x.

    A large CPU tensor gets fresh memory in each call, which Linux maps page by page on the first write. With pages of 4 KiB
    that takes longer than the operator itself, so this function asks for huge pages with madvise.
    """
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    size = made.numel() * made.element_size()
    if _madvise is not None and size >= LEAST and not made.is_cuda and made.device.type == "cpu":
        start = -(-made.data_ptr() // HUGE) * HUGE
        end = (made.data_ptr() + size) // HUGE * HUGE
        # A failure changes nothing but the speed.
        _madvise(start, end - start, _ADVICE)
    return made
