"""The memory of large results on the CPU.

Linux zeroes fresh memory on the first write. For a large result that takes longer than the operator, even in huge pages, and
PyTorch gets fresh memory for every large CPU tensor. Results of at least LEAST bytes are therefore in blocks of this module.
A block whose tensors are gone is kept for the next result of its size, as PyTorch keeps CUDA memory.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import torch
from torch import Tensor

# In bytes. A result of LEAST takes as long to write as a call of an operator. The blocks that wait for a result have KEPT
# bytes at most: the gradients of 2048 x 131,072 f32 logits, or all results of a step of a layer.
LEAST = 4 << 20
KEPT = 1 << 30
HUGE = 2 << 20

# The blocks that wait. A finalizer, another thread or a fork may come between any two lines of this module, so that a lock
# could be found locked. Each append and pop is atomic.
_waiting: deque[mmap.mmap] = deque()


def contiguous_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape, type and device of x."""
    size = x.numel() * x.element_size()
    if size < LEAST or x.device.type != "cpu":
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    # Lengths of sequences vary. Sizes are rounded up to a multiple of an eighth of a power of two, so that few differ.
    step = max(HUGE, 1 << size.bit_length() - 4)
    block = _take(-(-size // step) * step)
    # Storage that PyTorch frees lets go of the view, in whatever thread.
    view = memoryview(block)
    weakref.finalize(view, _give, block).atexit = False
    return torch.frombuffer(view, dtype=x.dtype, count=x.numel()).view(x.shape)


def _take(size: int) -> mmap.mmap:
    """A block of exactly ``size`` bytes: one that waits, else a new one."""
    for _ in range(len(_waiting)):
        try:
            block = _waiting.pop()
        except IndexError:
            break
        if len(block) == size:
            return block
        # Sizes that are not asked for any more gather on the left, where _give drops them.
        _waiting.appendleft(block)
    block = mmap.mmap(-1, size, **_PRIVATE)
    if _HUGE_PAGES is not None:
        with suppress(OSError):  # a kernel without huge pages
            block.madvise(_HUGE_PAGES)
    return block


def _give(block: mmap.mmap) -> None:
    """Keeps a block, and drops others while they have more than KEPT bytes."""
    _waiting.append(block)
    with suppress(IndexError, RuntimeError):  # somebody else changed the deque, and counts its bytes himself
        while sum(map(len, _waiting)) > KEPT:
            _waiting.popleft()


# Anonymous memory is shared with forked processes unless it is private. Neither constant is in every system's module.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)
