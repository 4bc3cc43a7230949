"""DTensors and FSDP, in two real processes with gloo."""

import os
import socket
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import values

import xact.torch as xt


def run(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (work, port), nprocs=2)


def _start(rank, work, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        work(rank, torch.distributed.init_device_mesh("cpu", (2,)))
        # gloo aborts a process if its peer exits during a common operation.
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # All checks have passed. A normal exit destroys static objects while threads of PyTorch may still run, and then the C++
    # runtime sometimes calls terminate.
    sys.stdout.flush()
    os._exit(0)


def sharded(rank, mesh):
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    def compare(function, whole, scalars, dims):
        for dim in dims:
            inputs = [each.clone().requires_grad_() for each in whole]
            own = [each.clone().requires_grad_() for each in scalars]
            want = torch.autograd.grad(function(*inputs, *own).square().sum(), [*inputs, *own])
            x = [distribute_tensor(each, mesh, [Shard(dim)]).requires_grad_() for each in whole]
            a = [distribute_tensor(each, mesh, [Replicate()]).requires_grad_() for each in scalars]
            y = function(*x, *a)
            assert y.placements == (Shard(dim),), y.placements
            got = torch.autograd.grad(y.square().sum(), [*x, *a])
            for gradient in got[len(whole) :]:
                assert gradient.placements == (Partial(),), gradient.placements
            for got, want in zip(got, want):
                torch.testing.assert_close(got.full_tensor(), want, rtol=1e-5, atol=1e-5)

    x, v = values((6, 8), seed=1), values((6, 8), seed=2)
    scalars = [torch.full((1,), 0.25), torch.full((1,), 0.5)]
    compare(xt.xielu, [x], scalars, [0, 1])
    for name in ("xatlu", "xgelu", "xsilu"):
        compare(getattr(xt, name), [x], scalars[:1], [0, 1])
        gated = getattr(xt, f"{name}_gated")
        compare(gated, [x, v], scalars[:1], [0, 1])
        compare(lambda xv, a: gated(packed=xv, alpha=a, order=2), [x], scalars[:1], [0])  # noqa: B023
    with pytest.raises(TypeError, match="logits is a DTensor"):
        xt.cross_entropy(distribute_tensor(x, mesh, [Shard(0)]), torch.arange(3))


def fully_sharded(rank, mesh):
    from torch.distributed.fsdp import fully_shard

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(8, 16), xt.nn.XIELU(), torch.nn.Linear(16, 16), xt.nn.XSiLUGated(), torch.nn.Linear(8, 8)
        )

    plain, parallel = model(), model()
    for layer in parallel:
        fully_shard(layer, mesh=mesh)
    fully_shard(parallel, mesh=mesh)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (plain, parallel)]
    x, labels = values((8, 8)), torch.arange(8)
    for _ in range(3):
        whole = xt.cross_entropy(plain(x), labels)
        half = slice(rank * 4, rank * 4 + 4)
        part = xt.cross_entropy(parallel(x[half]), labels[half])
        for loss, optimizer in zip((whole, part), optimizers):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for (name, want), got in zip(plain.named_parameters(), parallel.parameters()):
        torch.testing.assert_close(got.full_tensor(), want, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("work", [sharded, fully_sharded])
def test_two_ranks(work):
    run(work)
