"""Checks the operators on a CUDA device with the installed PyTorch. It needs neither pytest nor a network.

    python device.py [--device cuda:0]

Each check prints a line. With `--device cpu` only the checks that need no device run, which tests the script itself.
"""

import argparse
import sys
import time
import traceback

import torch

import xact
import xact.torch as xt

CHECKS = []
NAMES = ("xatlu", "xgelu", "xsilu")
KINDS = ("xielu", "xsilu", "xsilu_gated 2", "xsilu_gated packed 2", "cross_entropy None")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(function):
    CHECKS.append(function)
    return function


def values(shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3).to(dtype).to(device)


def scalar(device, value=0.25):
    return torch.full((1,), value, device=device, requires_grad=True)


def calls(device, dtype=torch.bfloat16, rows=33, cols=64):
    """Each operator as a function of tensors that need gradients, with the tensors."""
    x, v = (values((rows, cols), dtype, device, seed).requires_grad_() for seed in (1, 2))
    yield "xielu", xt.xielu, [x, scalar(device), scalar(device)]
    yield "xielu, compat", lambda *a: xt.xielu(*a, eps=-1e-6), [x, scalar(device), scalar(device)]
    for name in NAMES:
        yield name, getattr(xt, name), [x, scalar(device)]
        for order in (1, 2):
            gated = getattr(xt, f"{name}_gated")
            yield f"{name}_gated {order}", lambda x, v, a, f=gated, o=order: f(x, v, a, order=o), [x, v, scalar(device)]
            yield (
                f"{name}_gated packed {order}",
                lambda xv, a, f=gated, o=order: f(packed=xv, alpha=a, order=o, value_first=True),
                [x, scalar(device)],
            )
    labels = (torch.arange(rows) * 7 % cols).to(device)
    labels[::5] = -100
    for goldfish in (None, xact.Goldfish(k=3, h=2), xact.Goldfish("dot-table", k=3, h=4)):
        if goldfish is not None:
            goldfish.to(device) if device.type == "cuda" else None

        def loss(x, goldfish=goldfish):
            return xt.cross_entropy(x, labels, goldfish=goldfish, z_loss=1e-4, softcap=20.0, label_smoothing=0.1)

        yield f"cross_entropy {goldfish}", loss, [x]


def step(function, tensors):
    y = function(*tensors)
    return [y, *torch.autograd.grad(y.float().sum(), tensors)]


def near(got, want, dtype):
    """Compares within one step of the type, plus an f32 tolerance for sums in another order."""
    eps = 4 * torch.finfo(torch.promote_types(dtype, torch.bfloat16) if dtype != torch.float32 else dtype).eps
    for each, other in zip(got, want):
        torch.testing.assert_close(each.cpu(), other.cpu(), rtol=max(eps, 2e-5), atol=1e-4)


@check
def as_on_the_cpu(device):
    for dtype in DTYPES:
        there = list(calls(device, dtype))
        for (name, function, tensors), (_, on_cpu, cpu) in zip(there, calls(torch.device("cpu"), dtype)):
            try:
                near(step(function, tensors), step(on_cpu, cpu), dtype)
            except AssertionError as error:
                raise AssertionError(f"{name} {dtype}: {error}") from None


@check
def masks(device):
    for strategy in ("static", "random", "product-table", "product-avalanche", "dot-table", "hash64"):
        goldfish = xact.Goldfish(strategy, k=3)
        ids = torch.randint(50_000, (7, 1001), generator=torch.Generator().manual_seed(0))
        assert torch.equal(goldfish.mask(ids.to(device)).cpu(), goldfish.mask(ids)), strategy


@check
def opcheck(device):
    for name in ("xielu", *NAMES):
        x = values((5, 8), torch.float32, device).requires_grad_()
        a = scalar(device)
        options = (a, None, 0.5, None, False, False) if name == "xielu" else ()
        torch.library.opcheck(getattr(torch.ops.xact, name).default, (x, a, *options))
        if name != "xielu":
            torch.library.opcheck(getattr(torch.ops.xact, f"{name}_gated").default, (x, x.detach().clone(), a, 2))
            torch.library.opcheck(getattr(torch.ops.xact, f"{name}_gated_packed").default, (x, a, 1, True, 1))
    labels = torch.arange(5, device=device)
    options = (-100, 0.1, 1e-4, None, None, "kept")
    arguments = (x, labels, None, None, labels, None, None, None, "hash64:3:2:0", False, *options, False, True)
    torch.library.opcheck(torch.ops.xact.cross_entropy.default, arguments)


@check
def compiled(device):
    for name, function, tensors in calls(device):
        # inductor takes seconds for each function, so it compiles one of each kind.
        if device.type == "cuda" and name not in KINDS:
            continue
        torch._dynamo.reset()
        backend = {} if device.type == "cuda" else {"backend": "aot_eager"}
        fast = torch.compile(function, fullgraph=True, **backend)
        try:
            near(step(fast, tensors), step(function, tensors), torch.bfloat16)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@check
def captured(device):
    """A graph of a step, replayed with other inputs, gives the results of direct calls, and is not empty."""
    if device.type != "cuda":
        return "no device"
    xact.preload(device)
    for name, function, tensors in calls(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step(function, tensors)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step(function, tensors)
        with torch.no_grad():
            tensors[0].copy_(values(tensors[0].shape, tensors[0].dtype, device, seed=9))
        graph.replay()
        torch.cuda.synchronize(device)
        want = step(function, tensors)
        for got, each in zip(results, want):
            assert torch.equal(got, each), f"{name}: the replay differs"
    return None


@check
def streams(device):
    """Work on a side stream waits for the work that the stream has queued."""
    if device.type != "cuda":
        return "no device"
    side = torch.cuda.Stream(device)
    x = torch.zeros(1 << 24, device=device)
    alpha = torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        y = xt.xsilu(x, alpha)
    side.synchronize()
    torch.testing.assert_close(y[:8].cpu(), torch.sigmoid(torch.ones(8)), rtol=1e-6, atol=0)
    return None


@check
def devices(device):
    """The current device of the thread is unchanged."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return "fewer than two devices"
    with torch.cuda.device(0):
        xt.xsilu(torch.ones(9, device="cuda:1"), torch.zeros(1, device="cuda:1"))
        assert torch.cuda.current_device() == 0
        assert torch.empty(1, device="cuda").device.index == 0
    return None


@check
def nothing_waits(device):
    """A call returns before the device has finished earlier work."""
    if device.type != "cuda":
        return "no device"
    for name, function, tensors in calls(device):
        step(function, tensors)
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(function, tensors)
        except RuntimeError as error:
            raise AssertionError(f"{name}: {error}") from None
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return None


@check
def speed(device):
    """Seconds of a step of 2^26 bf16 elements and of a copy, for orientation; the crate's bench measures accurately."""
    if device.type != "cuda":
        return "no device"
    x = torch.randn(1 << 26, device=device).bfloat16().requires_grad_()
    dy, alpha = torch.ones_like(x), scalar(device)

    def timed(run):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for i in range(12):
            if i == 2:
                events[0].record()
            run()
        events[1].record()
        torch.cuda.synchronize(device)
        return events[0].elapsed_time(events[1]) / 10

    copy = timed(lambda: dy.copy_(x.detach()))
    silu = timed(lambda: torch.autograd.grad(torch.nn.functional.silu(x), x, dy))
    own = timed(lambda: torch.autograd.grad(xt.xsilu(x, alpha), [x, alpha], dy))
    return f"copy {copy:.3f} ms, step of F.silu {silu:.3f} ms, step of xsilu with dalpha {own:.3f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    device = torch.device(parser.parse_args().device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"xact {xact.version()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}, {name}")
    if device.type == "cuda" and xact.kernels() is not None:
        sys.exit(f"no kernels: {xact.kernels()}")
    passed, failed, notes = 0, [], []
    for function in CHECKS:
        start = time.perf_counter()
        try:
            note = function(device)
            if note is None:
                passed += 1
            else:
                notes.append(f"{function.__name__}: {note}")
        except Exception:  # noqa: BLE001  (the others are to run, whatever it was)
            traceback.print_exc()
            note = "FAILED"
            failed.append(function.__name__)
        print(f"{function.__name__:<16} {time.perf_counter() - start:>7.1f} s  {note or 'passed'}", flush=True)
    # The results are also printed in one line.
    outcome = [f"{passed} passed", *(f"{name} FAILED" for name in failed), *notes]
    print(f"checked with PyTorch {torch.__version__}: {'; '.join(outcome)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
