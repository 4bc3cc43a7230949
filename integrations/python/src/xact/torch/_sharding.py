"""Registers the placements of the operators' outputs for each placement of their inputs, for DTensors.

An output is sharded as x is. Beside a sharded x, the gradient of a scalar is Partial: each rank has the sum over its own
elements, and DTensor adds the sums up when a replicated gradient is needed.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_registered = False


def ensure(x: Tensor) -> None:
    """Registers the placements when x is the first DTensor. Otherwise torch.distributed.tensor is not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or _registered:
        return
    if isinstance(x, module.DTensor):
        _register()


def refuse(what: str, value: Tensor) -> None:
    """Raises TypeError for a DTensor, because a mean over all rows is not the sum of the ranks' means."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(value, module.DTensor):
        raise TypeError(
            f"{what} is a DTensor, which the loss does not take; give each rank whole rows with .to_local(), "
            "and set normalizer to the number of tokens of all ranks"
        )


def _register() -> None:
    global _registered
    _registered = True
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    from ._activation import EXPANDED

    everywhere = Replicate()

    def elements(x, tensors_in: int, scalars: int, others: int, tensors_out: int, sums: int, last: int):
        """The placements of an elementwise operator: replicated, or sharded along any but the last ``last`` dimensions.

        Inputs are ``tensors_in`` tensors, ``scalars`` scalars and ``others`` other arguments. Outputs are ``tensors_out``
        tensors and ``sums`` gradients of scalars.
        """
        rules = [
            (
                [everywhere] * (tensors_out + sums),
                [everywhere] * (tensors_in + scalars) + [None] * others,
            )
        ]
        for dim in range(x.ndim - last):
            rules.append(
                (
                    [Shard(dim)] * tensors_out + [Partial()] * sums,
                    [Shard(dim)] * tensors_in + [everywhere] * scalars + [None] * others,
                )
            )
        return rules

    ops = torch.ops.xact

    @register_sharding(ops.xielu.default)
    def _(x, alpha_p, alpha_n, beta, *options):
        scalars = 2 if beta is None else 3
        return [
            (out, [*of, *([None] * (1 if beta is None else 0)), *([None] * len(options))])
            for out, of in elements(x, 1, scalars, 0, 1, 0, 0)
        ]

    @register_sharding(ops.xielu_backward.default)
    def _(dy, x, alpha_p, alpha_n, beta, *options):
        scalars = 2 if beta is None else 3
        return [
            (out, [*of, *([None] * (1 if beta is None else 0)), *([None] * len(options))])
            for out, of in elements(x, 2, scalars, 0, 1, 3, 0)
        ]

    for name in EXPANDED:

        @register_sharding(getattr(ops, name).default)
        def _(x, alpha):
            return elements(x, 1, 1, 0, 1, 0, 0)

        @register_sharding(getattr(ops, f"{name}_backward").default)
        def _(dy, x, alpha, sums):
            return elements(x, 2, 1, 1, 1, 1, 0)

        @register_sharding(getattr(ops, f"{name}_gated").default)
        def _(x, v, alpha, order):
            return elements(x, 2, 1, 1, 1, 0, 0)

        @register_sharding(getattr(ops, f"{name}_gated_backward").default)
        def _(dy, x, v, alpha, order, sums):
            return elements(x, 3, 1, 2, 2, 1, 0)

        # The last dimension has both gate and value, so it cannot be sharded.
        @register_sharding(getattr(ops, f"{name}_gated_packed").default)
        def _(xv, alpha, order, value_first, block):
            return elements(xv, 1, 1, 3, 1, 0, 1)

        @register_sharding(getattr(ops, f"{name}_gated_packed_backward").default)
        def _(dy, xv, alpha, order, value_first, block, sums):
            return elements(xv, 2, 1, 4, 1, 1, 1)
