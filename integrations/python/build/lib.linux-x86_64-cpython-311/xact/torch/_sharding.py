"""How the operators work on DTensors: each says how its outputs are placed where its inputs are.

Sharded elements stay where they are. The gradient of a scalar beside a sharded x is Partial: each rank has the sum of its
own elements, and DTensor adds them up where a replicated gradient is asked for.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_registered = False


def ensure(x: Tensor) -> None:
    """Registers the rules as soon as a DTensor comes; without one, torch.distributed.tensor is not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or _registered:
        return
    if isinstance(x, module.DTensor):
        _register()


def _register() -> None:
    global _registered
    _registered = True
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    from ._activation import EXPANDED

    everywhere = Replicate()

    def elements(x, tensors_in: int, scalars: int, others: int, tensors_out: int, sums: int, last: int):
        """Placements of an operator on tensors of one shape; the last ``last`` dimensions are not sharded."""
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

        # Both halves lie in the last dimension, which therefore stays whole.
        @register_sharding(getattr(ops, f"{name}_gated_packed").default)
        def _(xv, alpha, order, value_first):
            return elements(xv, 1, 1, 2, 1, 0, 1)

        @register_sharding(getattr(ops, f"{name}_gated_packed_backward").default)
        def _(dy, xv, alpha, order, value_first, sums):
            return elements(xv, 2, 1, 3, 1, 1, 1)
