"""Memory for results."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

# Below, huge pages gain nothing.
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
    """Memory of the shape, type and device of x, contiguous.

    Large memory of the CPU is new in each call, and the kernel gives it page by page as it is first written: in pages of
    4 KiB that takes longer than the work itself. Huge pages are asked for, which Linux gives by default to who asks.
    """
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    size = made.numel() * made.element_size()
    if _madvise is not None and size >= LEAST and not made.is_cuda and made.device.type == "cpu":
        start = -(-made.data_ptr() // HUGE) * HUGE
        end = (made.data_ptr() + size) // HUGE * HUGE
        # Advice that is not taken changes nothing.
        _madvise(start, end - start, _ADVICE)
    return made
