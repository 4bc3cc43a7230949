"""Calls of the library with tensors, on the current CUDA stream or on the CPU."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .. import _library as native
from . import _layout


def matrix(tensor: Tensor, rows: int) -> object:
    """The ``xact_matrix`` of a tensor with ``rows`` rows; the pitch of a single row does not matter."""
    layout = _layout.rows_of(tensor) if rows != 1 else None
    pitch = tensor.numel() if layout is None else layout.pitch
    return native.matrix(tensor.data_ptr(), pitch)


def address(tensor: Optional[Tensor]) -> Optional[int]:
    """The address of the first element of a tensor; None for None and for an empty tensor."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


class Call:
    """A call on the device of a tensor.

    On a CUDA device the call is queued on the stream that is current at the time of the call: under capture and in autograd's
    threads it is another one than when the object was made. Scratch memory comes from PyTorch's allocator, which does not
    reuse it before the work on that stream is done.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self._tensor = tensor
        self._name = name

    def workspace(self, args: object, query: str, *arguments: object) -> None:
        """Allocates the scratch memory whose size the function ``query`` returns; on the CPU the library makes its own."""
        if not self._tensor.is_cuda:
            return
        size = native.query(query, *arguments)
        self._scratch = self._tensor.new_empty(size, dtype=torch.uint8)
        args.workspace, args.workspace_bytes = address(self._scratch), size

    def __call__(self, *arguments: object) -> None:
        if self._tensor.is_cuda:
            index = self._tensor.device.index
            stream = torch.cuda.current_stream(self._tensor.device).cuda_stream
            native.run(self._name, native.device(index), stream, *arguments)
        else:
            native.run_on_host(self._name, torch.get_num_threads(), *arguments)


def no_second_derivative(name: str):
    """The derivative of a backward operator, which raises."""

    def refuse(ctx, *_):
        raise RuntimeError(
            f"xact has no second derivative of {name}; if you need it, compute {name} with PyTorch's own operations"
        )

    return refuse
