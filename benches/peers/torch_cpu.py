"""PyTorch's side of `cargo xtask bench --peers`. It times one row of the table at a time, on request.

It reads requests from stdin, one line each, and answers each with a line on stdout:

    {"op": "xielu", "form": "plain", "dtype": "f32", "len": 65536, "pass": "forward"}  ->  {"variants": [...]}
    "eager"  ->  seconds of one call, as a number

`form` is plain, order 1 or order 2. A row of cross_entropy has "rows" and "vocab" instead of "len". A pass is `forward`,
without autograd, or `step`, a forward and its backward. `variants` is empty if the program does not have the op. The first
line that the program writes has its name and its variants. The environment variable THREADS sets the number of PyTorch's
threads.

xIELU is the formula of transformers (XIELUActivation) with eps = -1e-6. The expanded gates are the formulas of their
author. Cross-entropy is torch.nn.functional.cross_entropy of the logits without a conversion to f32, which is slower.
"""

import argparse
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# The minimum duration of a sample, as in benches/cpu.rs.
SAMPLE = 2e-3


def xielu(x, alpha_p, alpha_n):
    beta, eps = 0.5, -1e-6
    alpha_p = F.softplus(alpha_p)
    alpha_n = beta + F.softplus(alpha_n)
    return torch.where(
        x > 0,
        alpha_p * x * x + beta * x,
        (torch.expm1(torch.clamp(x, max=eps)) - x) * alpha_n + beta * x,
    )


def xatlu_gate(x, alpha):
    return (torch.arctan(x) / math.pi) * (1 + 2 * alpha) + 0.5


def xgelu_gate(x, alpha):
    return torch.erf(x / math.sqrt(2)) * (0.5 + alpha) + 0.5


def xsilu_gate(x, alpha):
    return torch.sigmoid(x) * (1 + 2 * alpha) - alpha


GATES = {"xatlu": xatlu_gate, "xgelu": xgelu_gate, "xsilu": xsilu_gate}


def activation(op, form):
    """The function, the number of tensors that it takes, and the initial values of its parameters."""
    if op == "xielu":
        # The softplus of these is 0.8, and 0.8 - beta.
        raw = [math.log(math.expm1(0.8)), math.log(math.expm1(0.3))]
        return xielu, 1, raw
    gate = GATES[op]
    return {
        "plain": (lambda x, alpha: x * gate(x, alpha), 1, [0.0]),
        "order 1": (lambda x, v, alpha: gate(x, alpha) * v, 2, [0.0]),
        "order 2": (lambda x, v, alpha: x * gate(x, alpha) * v, 2, [0.0]),
    }[form]


def calls(row):
    """The function to time and its arguments; those that are floats need gradients."""
    dtype = DTYPES[row["dtype"]]
    if row["op"] == "cross_entropy":
        shape = (row["rows"], row["vocab"])
        # Random numbers with a period, as in benches/cpu.rs, because generating all of them would take too long.
        count = shape[0] * shape[1]
        period = torch.randn((1 << 14) + 1) * 2
        logits = period.repeat(count // len(period) + 1)[:count].view(shape).to(dtype)
        labels = torch.randint(0, shape[1], (shape[0],))
        return F.cross_entropy, [logits, labels]
    if row["op"] not in (*GATES, "xielu"):
        return None
    function, tensors, params = activation(row["op"], row["form"])
    arguments = [(torch.randn(row["len"]) * 2).to(dtype) for _ in range(tensors)]
    arguments += [torch.tensor(p, dtype=dtype) for p in params]
    return function, arguments


def timed(function, arguments, step):
    """A call to time."""
    if not step:

        def forward():
            with torch.no_grad():
                function(*arguments)

        return forward
    arguments = [
        a.clone().requires_grad_(True) if a.is_floating_point() else a
        for a in arguments
    ]
    dy = torch.ones_like(function(*arguments).detach())

    def run():
        for argument in arguments:
            argument.grad = None
        function(*arguments).backward(dy)

    return run


def seconds(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def prepare(row):
    """The variants of a row that can be timed: name -> (call, repeats)."""
    made = calls(row)
    if made is None:
        return {}
    function, arguments = made
    step = row["pass"] == "step"
    torch._dynamo.reset()
    variants = {}
    for name, f in [("eager", function), ("compile", torch.compile(function))]:
        call = timed(f, arguments, step)
        for _ in range(3):
            call()
        variants[name] = call, math.ceil(SAMPLE / seconds(call, 2))
    return variants


def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(int(os.environ["THREADS"]))
    torch.manual_seed(0)
    hello = {"name": f"PyTorch {torch.__version__}", "variants": ["eager", "compile"]}
    print(json.dumps(hello), flush=True)
    variants = {}
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, dict):
            variants.clear()
            variants = prepare(request)
            answer = {"variants": list(variants)}
        else:
            answer = seconds(*variants[request])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
