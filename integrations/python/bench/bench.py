"""Times the operators and PyTorch's own, eager and compiled, in one run. A step is a forward and its backward.

    python bench.py [--elements 16777216] [--rows 512 --vocab 131072] [--dtype bfloat16] [--samples 9] [--only xielu] [--json]

Each sample runs all variants one after the other, in a rotating order, so that other load on the machine affects all of them.
A copy of the same memory is timed too. The column `copy` is the bandwidth of a step as a share of the copy's. It counts the
minimum of bytes: x in, y out, then x and dy in, dx out. Gated steps have one more tensor each way; cross-entropy reads the
logits twice and writes their gradient. The last table has the time of a call with 16 elements.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import formulas  # noqa: E402

import xact  # noqa: E402
import xact.torch as xt  # noqa: E402


def eager_xielu(x, p, n):
    """The formula of transformers' XIELUActivation."""
    p, n = F.softplus(p), 0.5 + F.softplus(n)
    return torch.where(x > 0, p * x * x + 0.5 * x, (torch.expm1(torch.clamp(x, max=-1e-6)) - x) * n + 0.5 * x)


def cases(only):
    """Each op's name, our function, PyTorch's, the tensors and scalars of a call, and the tensors that a step moves."""
    yield "xielu", xt.xielu, eager_xielu, 1, 2, 5
    for name in ("xatlu", "xgelu", "xsilu"):
        yield name, getattr(xt, name), lambda x, a, n=name: formulas.expanded(n, x, a), 1, 1, 5
        for order in (1, 2):
            yield (
                f"{name}_gated {order}",
                lambda x, v, a, n=name, o=order: getattr(xt, f"{n}_gated")(x, v, a, order=o),
                lambda x, v, a, n=name, o=order: formulas.gated(n, x, v, a, o),
                2,
                1,
                8,
            )


def step(function, tensors, dy):
    def run():
        y = function(*tensors)
        return torch.autograd.grad(y, [each for each in tensors if each.requires_grad], dy)

    return run


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(variants, samples):
    """The median of the samples of each variant, which run in turn."""
    for run in variants.values():
        run()
        run()
    names = list(variants)
    found = {name: [] for name in names}
    for i in range(samples):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(timed(variants[name]))
    return {name: statistics.median(each) for name, each in found.items()}


def rows(arguments):
    dtype = getattr(torch, arguments.dtype)
    n = arguments.elements
    source, target = torch.randn(n).to(dtype), torch.empty(n, dtype=dtype)
    copy = lambda: target.copy_(source)  # noqa: E731
    width = source.element_size()
    for name, ours, theirs, count, scalars, moved in cases(arguments.only):
        if arguments.only and arguments.only not in name:
            continue
        torch._dynamo.reset()
        tensors = [torch.randn(n).to(dtype).requires_grad_() for _ in range(count)]
        tensors += [torch.full((1,), 0.25, requires_grad=True) for _ in range(scalars)]
        # In PyTorch, an f32 scalar beside a bf16 tensor makes the result f32, so checkpoints have scalars in the type of x.
        cast = [*tensors[:count], *(each.detach().to(dtype).requires_grad_() for each in tensors[count:])]
        dy = torch.randn(n).to(dtype)
        variants = {
            "copy": copy,
            "xact": step(ours, tensors, dy),
            "eager": step(theirs, cast, dy),
            "compile": step(torch.compile(theirs), cast, dy),
        }
        yield name, arguments.dtype, n, moved * n * width, 2 * n * width, medians(variants, arguments.samples)
    if arguments.only and arguments.only not in "cross_entropy":
        return
    torch._dynamo.reset()
    shape = (arguments.rows, arguments.vocab)
    n = shape[0] * shape[1]
    logits = (torch.randn(shape) * 2).to(dtype).requires_grad_()
    labels = torch.randint(shape[1], shape[:1])
    goldfish = xact.Goldfish(k=4)
    source, target = torch.randn(n).to(dtype), torch.empty(n, dtype=dtype)
    one = torch.ones(())
    variants = {
        "copy": copy,
        "xact": step(lambda x: xt.cross_entropy(x, labels), [logits], one),
        "xact, goldfish k=4": step(lambda x: xt.cross_entropy(x, labels, goldfish=goldfish), [logits], one),
        "eager": step(lambda x: F.cross_entropy(x, labels), [logits], one.to(dtype)),
        "compile": step(torch.compile(lambda x: F.cross_entropy(x, labels)), [logits], one.to(dtype)),
    }
    yield "cross_entropy", arguments.dtype, n, 3 * n * width, 2 * n * width, medians(variants, arguments.samples)


def call_costs():
    """Seconds of a forward of 16 elements without gradients, and of a step."""
    x, alpha, dy = torch.randn(16).requires_grad_(), torch.zeros(1, requires_grad=True), torch.randn(16)

    def many(run):
        return lambda: [run() for _ in range(1000)]

    variants = {
        "xsilu": many(lambda: xt.xsilu(x.detach(), alpha.detach())),
        "F.silu": many(lambda: F.silu(x.detach())),
        "xsilu, step": many(step(xt.xsilu, [x, alpha], dy)),
        "F.silu, step": many(step(F.silu, [x], dy)),
    }
    return {name: seconds / 1000 for name, seconds in medians(variants, 5).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--only", help="a part of the names of rows")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row")
    arguments = parser.parse_args()
    cpu = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    flags = "AVX-512" if "avx512f" in Path("/proc/cpuinfo").read_text() else "no AVX-512"
    print(f"# {cpu or platform.processor()} ({flags}), {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    head = f"{'step':<18} {'type':<9} {'elements':>10} {'variant':<19} {'ms':>9} {'of copy':>8} {'xact is':>8}"
    if not arguments.json:
        print(head)
    for name, dtype, n, moved, copied, found in rows(arguments):
        speed = copied / found["copy"]
        for variant, seconds in found.items():
            row = {
                "step": name,
                "dtype": dtype,
                "elements": n,
                "variant": variant,
                "seconds": seconds,
                "of_copy": (copied if variant == "copy" else moved) / seconds / speed,
                "times": seconds / found["xact"],
            }
            if arguments.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{name:<18} {dtype:<9} {n:>10} {variant:<19} {seconds * 1e3:>9.2f} {row['of_copy']:>8.0%} "
                    f"{row['times']:>7.2f}×",
                    flush=True,
                )
    if not arguments.only:
        for name, seconds in call_costs().items():
            print(f"{name:<18} a call of 16 elements: {seconds * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
