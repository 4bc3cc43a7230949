"""The activations as PyTorch operators: ``torch.ops.xact.xielu`` and so on, each with a backward operator.

All operators but the in-place ones return new contiguous tensors, support fake tensors, and have a first derivative; a second
derivative raises. The C library does the work, on the current stream of the device.
"""

import ctypes
from typing import Optional, Sequence

import torch
from torch import Tensor

from .. import _library as native
from . import _layout
from ._check import name_of
from ._device import Call, matrix, no_second_derivative
from ._memory import contiguous_like

Scalars = Sequence[Tensor]

# The columns after which gate and value alternate in one tensor, or 0, and whether the value is first.
Blocks = tuple[int, bool]
NO_BLOCKS = (0, False)


def _shape(tensors: Sequence[Tensor]) -> tuple[list[Tensor], int, int]:
    """The tensors, copied if they have no single row pitch, and the number of rows and columns of the first."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        tensors = [_layout.dense(tensor) for tensor in tensors]
    rows, cols = _layout.common_shape(tensors)
    return list(tensors), rows, cols


class _Args:
    """The arguments of a call: the struct, and the arrays of pointers that the struct refers to."""

    def __init__(self, rows: int, cols: int, x: Tensor, params: Scalars, order: int, blocks: Blocks) -> None:
        self.struct = native.struct("xact_activation_args")
        self.struct.rows, self.struct.cols, self.struct.order = rows, cols, order
        self.struct.block, self.struct.value_first = blocks
        self.struct.dtype = native.DTYPES[name_of(x.dtype)]
        self.struct.param_dtype = native.DTYPES[name_of(params[0].dtype)]
        self.struct.params = self._array(params)
        self.struct.param_count = len(params)
        self._rows = rows

    def _array(self, tensors: Scalars) -> int:
        array = native.addresses([tensor.data_ptr() for tensor in tensors])
        self._kept = (*getattr(self, "_kept", ()), array)
        return ctypes.addressof(array)

    def set(self, **tensors: Optional[Tensor]) -> None:
        """Sets the struct's fields of these names, except to None."""
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(self.struct, name, matrix(tensor, self._rows))

    def sums(self, gradients: Scalars) -> None:
        """Sets the f32 tensors that receive the gradients of the parameters."""
        self.struct.dparams, self.struct.dparam_count = self._array(gradients), len(gradients)


def forward_into(
    op: object, x: Tensor, v: Optional[Tensor], y: Tensor, params: Scalars, order: int = 0, blocks: Blocks = NO_BLOCKS
) -> None:
    """Writes f(x), G(x)·v (order 1) or f(x)·v (order 2) to y. y must have a single row pitch, and may be x itself.

    With ``blocks``, x ``[..., 2n]`` has both gate and value.
    """
    if y.numel() == 0:
        return
    (y, x, *gated), rows, cols = _shape([y, x] if v is None else [y, x, v])
    args = _Args(rows, cols, x, params, order, blocks)
    args.set(x=x, y=y, v=gated[0] if gated else None)
    Call(x, "xact_activation_forward")(op, args.struct)


def backward_into(
    op: object,
    x: Tensor,
    v: Optional[Tensor],
    dy: Tensor,
    dx: Tensor,
    dv: Optional[Tensor],
    params: Scalars,
    sums: bool,
    order: int = 0,
    blocks: Blocks = NO_BLOCKS,
) -> list[Tensor]:
    """Writes dx and dv. Returns the gradient of each parameter, of its shape and type; without ``sums``, an empty list.

    With ``blocks``, x and dx ``[..., 2n]`` have both gate and value.
    """
    gradients = [param.new_zeros(param.shape, dtype=torch.float32) for param in params] if sums else []
    if dx.numel() > 0:
        (dy, x, dx, *gated), rows, cols = _shape([dy, x, dx] if v is None else [dy, x, dx, v, dv])
        v, dv = gated or (None, None)
        args = _Args(rows, cols, x, params, order, blocks)
        args.set(x=x, v=v, dy=dy, dx=dx, dv=dv)
        run = Call(x, "xact_activation_backward")
        if sums:
            args.sums(gradients)
            run.workspace(args.struct, "xact_activation_workspace_bytes", op, args.struct.dtype, rows, cols)
        run(op, args.struct)
    return [gradient.to(param.dtype) for gradient, param in zip(gradients, params)]


def _contiguous(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape, type and device of x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _need(ctx, first: int, count: int) -> bool:
    """Whether any of ``count`` inputs of an operator, from ``first`` on, needs a gradient."""
    return any(ctx.needs_input_grad[first : first + count])


# xIELU


def _xielu(beta: float, eps: Optional[float], autograd: bool, effective: bool) -> object:
    return native.activation("xielu", beta=beta, eps=eps, autograd=autograd, effective=effective)


def _given(alpha_p: Tensor, alpha_n: Tensor, beta: Optional[Tensor]) -> Scalars:
    """The scalars of a call."""
    return [alpha_p, alpha_n] if beta is None else [alpha_p, alpha_n, beta]


def _in_one_type(params: Scalars) -> Scalars:
    """The scalars in one type: their own if all have the same, else f32."""
    if len({param.dtype for param in params}) > 1:
        return [param.float() for param in params]
    return params


@torch.library.custom_op("xact::xielu", mutates_args=())
def xielu(
    x: Tensor,
    alpha_p: Tensor,
    alpha_n: Tensor,
    beta: Optional[Tensor],
    slope: float,
    eps: Optional[float],
    autograd: bool,
    effective: bool,
) -> Tensor:
    """xIELU of x. ``slope`` is β if ``beta`` is None."""
    y = contiguous_like(x)
    forward_into(_xielu(slope, eps, autograd, effective), x, None, y, _in_one_type(_given(alpha_p, alpha_n, beta)))
    return y


@torch.library.custom_op("xact::xielu_", mutates_args=("x",))
def xielu_(
    x: Tensor,
    alpha_p: Tensor,
    alpha_n: Tensor,
    beta: Optional[Tensor],
    slope: float,
    eps: Optional[float],
    autograd: bool,
    effective: bool,
) -> None:
    """Overwrites x with xIELU of x."""
    op, params = _xielu(slope, eps, autograd, effective), _in_one_type(_given(alpha_p, alpha_n, beta))
    in_place(x, lambda y: forward_into(op, y, None, y, params))


@torch.library.custom_op("xact::xielu_backward", mutates_args=())
def xielu_backward(
    dy: Tensor,
    x: Tensor,
    alpha_p: Tensor,
    alpha_n: Tensor,
    beta: Optional[Tensor],
    slope: float,
    eps: Optional[float],
    autograd: bool,
    effective: bool,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and the gradients of alpha_p, alpha_n and beta; a gradient that is not computed is an empty tensor."""
    dx = contiguous_like(x)
    op, given = _xielu(slope, eps, autograd, effective), _given(alpha_p, alpha_n, beta)
    gradients = backward_into(op, x, None, dy, dx, None, _in_one_type(given), sums)
    gradients = [gradient.to(param.dtype) for gradient, param in zip(gradients, given)]
    gradients += [x.new_empty(0) for _ in range(3 - len(gradients))]
    return dx, *gradients


@xielu.register_fake
def _(x, alpha_p, alpha_n, beta, slope, eps, autograd, effective):
    return _contiguous(x)


@xielu_backward.register_fake
def _(dy, x, alpha_p, alpha_n, beta, slope, eps, autograd, effective, sums):
    nothing = x.new_empty(0)
    if not sums:
        return _contiguous(x), nothing, x.new_empty(0), x.new_empty(0)
    last = nothing if beta is None else torch.empty_like(beta)
    return _contiguous(x), torch.empty_like(alpha_p), torch.empty_like(alpha_n), last


def _xielu_context(ctx, inputs, output):
    x, alpha_p, alpha_n, beta, *ctx.options = inputs
    ctx.save_for_backward(x, alpha_p, alpha_n, beta)


def _xielu_gradient(ctx, dy):
    x, alpha_p, alpha_n, beta = ctx.saved_tensors
    sums = _need(ctx, 1, 3)
    dx, dalpha_p, dalpha_n, dbeta = torch.ops.xact.xielu_backward(dy, x, alpha_p, alpha_n, beta, *ctx.options, sums)
    if not sums:
        return dx, None, None, None, None, None, None, None
    return dx, dalpha_p, dalpha_n, None if beta is None else dbeta, None, None, None, None


xielu.register_autograd(_xielu_gradient, setup_context=_xielu_context)
xielu_backward.register_autograd(no_second_derivative("xielu"))


def in_place(x: Tensor, work) -> None:
    """Calls ``work`` with x. If x has no single row pitch, calls it with a contiguous copy, and copies the result to x."""
    y = _layout.dense(x)
    work(y)
    if y is not x:
        x.copy_(y)


# The expanded gates


class Expanded:
    """The operators of one expanded gate: plain, in place, gated, and gated with gate and value in one tensor."""

    def __init__(self, name: str) -> None:
        self.name = name
        library = torch.library

        def plain(x: Tensor, alpha: Tensor) -> Tensor:
            y = contiguous_like(x)
            forward_into(native.activation(name), x, None, y, [alpha])
            return y

        def plain_(x: Tensor, alpha: Tensor) -> None:
            in_place(x, lambda y: forward_into(native.activation(name), y, None, y, [alpha]))

        def plain_backward(dy: Tensor, x: Tensor, alpha: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
            dx = contiguous_like(x)
            gradients = backward_into(native.activation(name), x, None, dy, dx, None, [alpha], sums)
            return dx, *(gradients or [x.new_empty(0)])

        def gated(x: Tensor, v: Tensor, alpha: Tensor, order: int) -> Tensor:
            y = contiguous_like(x)
            forward_into(native.activation(name), x, v, y, [alpha], order)
            return y

        def gated_backward(
            dy: Tensor, x: Tensor, v: Tensor, alpha: Tensor, order: int, sums: bool
        ) -> tuple[Tensor, Tensor, Tensor]:
            dx, dv = contiguous_like(x), contiguous_like(v)
            gradients = backward_into(native.activation(name), x, v, dy, dx, dv, [alpha], sums, order)
            return dx, dv, *(gradients or [x.new_empty(0)])

        def packed(xv: Tensor, alpha: Tensor, order: int, value_first: bool, block: int) -> Tensor:
            x, v, blocks = sides(xv, value_first, block)
            y = contiguous_like(half(xv))
            forward_into(native.activation(name), x, v, y, [alpha], order, blocks)
            return y

        def packed_backward(
            dy: Tensor, xv: Tensor, alpha: Tensor, order: int, value_first: bool, block: int, sums: bool
        ) -> tuple[Tensor, Tensor]:
            dxv = contiguous_like(xv)
            (x, v, blocks), (dx, dv, _) = (sides(each, value_first, block) for each in (xv, dxv))
            gradients = backward_into(native.activation(name), x, v, dy, dx, dv, [alpha], sums, order, blocks)
            return dxv, *(gradients or [xv.new_empty(0)])

        def define(suffix: str, work, mutates=()):
            return library.custom_op(f"xact::{name}{suffix}", work, mutates_args=mutates)

        def sum_like(alpha: Tensor, x: Tensor, sums: bool) -> Tensor:
            return torch.empty_like(alpha) if sums else x.new_empty(0)

        self.plain = define("", plain)
        self.plain_ = define("_", plain_, ("x",))
        self.plain_backward = define("_backward", plain_backward)
        self.gated = define("_gated", gated)
        self.gated_backward = define("_gated_backward", gated_backward)
        self.packed = define("_gated_packed", packed)
        self.packed_backward = define("_gated_packed_backward", packed_backward)

        self.plain.register_fake(lambda x, alpha: _contiguous(x))
        self.plain_backward.register_fake(lambda dy, x, alpha, sums: (_contiguous(x), sum_like(alpha, x, sums)))
        self.gated.register_fake(lambda x, v, alpha, order: _contiguous(x))
        self.gated_backward.register_fake(
            lambda dy, x, v, alpha, order, sums: (_contiguous(x), _contiguous(v), sum_like(alpha, x, sums))
        )
        self.packed.register_fake(
            lambda xv, alpha, order, value_first, block: xv.new_empty((*xv.shape[:-1], xv.shape[-1] // 2))
        )
        self.packed_backward.register_fake(
            lambda dy, xv, alpha, order, value_first, block, sums: (_contiguous(xv), sum_like(alpha, xv, sums))
        )

        def differentiable(forward, backward, tensors: int) -> None:
            def context(ctx, inputs, output):
                ctx.save_for_backward(*inputs[:tensors])
                ctx.options = inputs[tensors:]

            def gradient(ctx, dy):
                sums = _need(ctx, tensors - 1, 1)
                *gradients, dalpha = backward(dy, *ctx.saved_tensors, *ctx.options, sums)
                return *gradients, dalpha if sums else None, *(None for _ in ctx.options)

            forward.register_autograd(gradient, setup_context=context)
            backward.register_autograd(no_second_derivative(name))

        differentiable(self.plain, self.plain_backward, 2)
        differentiable(self.gated, self.gated_backward, 3)
        differentiable(self.packed, self.packed_backward, 2)


def half(xv: Tensor) -> Tensor:
    """The first half ``[..., n]`` of a tensor ``[..., 2n]``, as a view."""
    return xv[..., : xv.shape[-1] // 2]


def sides(xv: Tensor, value_first: bool, block: int) -> tuple[Tensor, Optional[Tensor], Blocks]:
    """Gate and value of a tensor ``[..., 2n]``: two views, or, if they alternate in blocks, the tensor itself and None."""
    if block:
        return xv, None, (block, value_first)
    first, second = half(xv), xv[..., xv.shape[-1] // 2 :]
    return (*((second, first) if value_first else (first, second)), NO_BLOCKS)


EXPANDED = {name: Expanded(name) for name in ("xatlu", "xgelu", "xsilu")}
