"""Times PyTorch and other packages for the rows of `gpu --peers --list`.

    python torch_gpu.py --rows rows.json --out FOLDER [--ours "gpu --peers --json {}"]

The peers of a row are: for xIELU and cross-entropy, hand-written Triton kernels (triton_peer.py); for cross-entropy,
Liger-Kernel if it can be imported; and the formula of the authors (torch_cpu.py) in eager PyTorch. After all rows, QuACK
runs for cross-entropy if it can be imported. Last, the formula under torch.compile runs for the representative rows, and
takes seconds for each. `--ours` is run before and after the peers, so that both have the same clocks. The output files are
`ours-1.json`, `ours-2.json` and `peers.json`. Every time is the median of samples. The inputs are random, in buffers that
take turns and together exceed twice the L2 cache.

A peer that fails has an `error` instead of a time. `--smoke` runs every row once at a tiny size, also on a CPU (Triton's
kernels with TRITON_INTERPRET=1), and times nothing.
"""

import argparse
import gc
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from torch_cpu import activation

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# The names of the forms in torch_cpu.py.
FORMS = {"plain": "plain", "gated1": "order 1", "gated2": "order 2"}
# The modules, and the names of their packages.
DISTRIBUTIONS = {"torch": "torch", "triton": "triton", "liger_kernel": "liger-kernel", "quack": "quack-kernels"}
SAMPLES = 11
# The minimum duration of a sample in milliseconds: hundreds of times the resolution of an event.
SAMPLE_MS = 4.0


class Turns:
    """A peer: `call(turn)` runs on the buffers of a turn, and overwrites those in `overwritten`."""

    def __init__(self, turns, call, overwritten=()):
        self.turns, self.call, self.overwritten = turns, call, overwritten
        self.pristine = [tensor.detach().clone() for tensor in overwritten]

    def restore(self):
        with torch.no_grad():
            for tensor, pristine in zip(self.overwritten, self.pristine):
                tensor.copy_(pristine)

    def try_all(self):
        """A call on the buffers of every turn. Fails if the call does not overwrite what it should."""
        for turn in range(self.turns):
            self.call(turn)
        for tensor, pristine in zip(self.overwritten, self.pristine):
            if torch.equal(tensor, pristine):
                raise RuntimeError("it wrote no gradient")


def normal(row, device):
    dtype = DTYPES[row["dtype"]]
    return torch.randn(row["rows"], row["cols"], device=device, dtype=dtype) * row["scale"]


def make_activation(row, turns, device, compiled):
    f, tensors, scalars = activation(row["op"], FORMS[row["form"]])
    backward = row["direction"] == "backward"
    inputs = [[normal(row, device) for _ in range(tensors)] for _ in range(turns)]
    dtype = DTYPES[row["dtype"]]
    # The parameters have the type of x, as in Hugging Face.
    params = [torch.tensor(s, device=device, dtype=dtype, requires_grad=backward) for s in scalars]
    if compiled:
        f = torch.compile(f, dynamic=False)
    if not backward:

        def call(turn):
            with torch.no_grad():
                return f(*inputs[turn], *params)

        return Turns(turns, call)
    for tensors in inputs:
        for tensor in tensors:
            tensor.requires_grad_()
    dy = [normal(row, device) for _ in range(turns)]
    # Only the backward is timed, so the graphs are made here.
    outputs = [f(*inputs[turn], *params) for turn in range(turns)]

    def call(turn):
        return torch.autograd.grad(outputs[turn], [*inputs[turn], *params], dy[turn], retain_graph=True)

    return Turns(turns, call)


def make_torch_loss(row, turns, device, compiled):
    """Forward; forward and backward; or backward alone. The logits are not converted to f32 first, which is slower."""
    f = F.cross_entropy
    logits, labels = make_logits(row, turns, device)
    if compiled:
        f = torch.compile(f, dynamic=False)
    direction = row["direction"]
    if direction == "forward":

        def call(turn):
            with torch.no_grad():
                return f(logits[turn], labels)

        return Turns(turns, call)
    for tensor in logits:
        tensor.requires_grad_()
    if direction == "fused":
        return Turns(turns, lambda turn: torch.autograd.grad(f(logits[turn], labels), logits[turn]))
    losses = [f(tensor, labels) for tensor in logits]
    return Turns(turns, lambda turn: torch.autograd.grad(losses[turn], logits[turn], retain_graph=True))


def make_logits(row, turns, device):
    labels = torch.randint(0, row["cols"], (row["rows"],), device=device)
    return [normal(row, device) for _ in range(turns)], labels


def make_triton(row, turns, device):
    import triton_peer

    direction = row["direction"]
    if row["op"] == "xielu":
        _, _, scalars = activation(row["op"], FORMS[row["form"]])
        dtype = DTYPES[row["dtype"]]
        params = [torch.tensor(s, device=device, dtype=dtype) for s in scalars]
        x = [normal(row, device) for _ in range(turns)]
        if direction == "forward":
            return Turns(turns, lambda turn: triton_peer.xielu_forward(x[turn], *params))
        dy = [normal(row, device) for _ in range(turns)]
        return Turns(turns, lambda turn: triton_peer.xielu_backward(x[turn], dy[turn], *params))
    logits, labels = make_logits(row, turns, device)
    if direction == "forward":
        return Turns(turns, lambda turn: triton_peer.cross_entropy(logits[turn], labels, False))
    if direction == "backward":
        lse = [triton_peer.cross_entropy(tensor, labels, False)[1] for tensor in logits]
        return Turns(turns, lambda turn: triton_peer.cross_entropy_backward(logits[turn], labels, lse[turn]))
    return Turns(turns, lambda turn: triton_peer.cross_entropy(logits[turn], labels, True), logits)


def make_liger(row, turns, device):
    """Liger-Kernel, whose forward overwrites the logits with the gradient, so it is a peer of `fused` only.

    Every call waits for a count of the labels, which is part of its time.
    """
    if row["direction"] != "fused":
        return None
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    logits, labels = make_logits(row, turns, device)
    for tensor in logits:
        # Without this, Liger computes only the loss.
        tensor.requires_grad_()

    def call(turn):
        return cross_entropy_forward(logits[turn], labels, None, -100, 0.0, 0.0, "mean", None, False)

    return Turns(turns, call, logits)


def make_quack(row, turns, device):
    """`return_dx` for `fused`; for `backward` the gradient from the lse of a forward."""
    from quack.cross_entropy import cross_entropy_bwd, cross_entropy_fwd

    logits, labels = make_logits(row, turns, device)
    if row["direction"] == "backward":
        lse = [cross_entropy_fwd(tensor, labels, return_lse=True)[1] for tensor in logits]
        dloss = torch.full((row["rows"],), 1 / row["rows"], device=device)
        return Turns(turns, lambda turn: cross_entropy_bwd(logits[turn], labels, dloss, lse[turn]))
    with_dx = row["direction"] == "fused"
    return Turns(turns, lambda turn: cross_entropy_fwd(logits[turn], labels, return_dx=with_dx))


def peers_of(rows, device):
    """The rows, each with the name and the maker of a peer.

    First Triton, Liger-Kernel and eager PyTorch for each row, which compile little; then QuACK for all rows, which compiles
    a kernel for each; and last torch.compile. If the time runs out, the slowest peers are left out.
    """
    # Without a GPU, Triton can run in its interpreter, if TRITON_INTERPRET=1.
    can_triton = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    has = {module for module in DISTRIBUTIONS if version(module) is not None}
    losses = [row for row in rows if row["op"] == "cross_entropy"]
    for row in rows:
        if can_triton and "triton" in has and row["op"] in ("xielu", "cross_entropy"):
            yield row, "Triton", make_triton
        if can_triton and "liger_kernel" in has and row in losses:
            yield row, "Liger-Kernel", make_liger
        yield row, "torch eager", lambda *of: make_torch(*of, False)
    for row in losses if device.type == "cuda" and "quack" in has else []:
        yield row, "QuACK", make_quack
    for row in rows:
        if row["representative"]:
            yield row, "torch.compile", lambda *of: make_torch(*of, True)


def make_torch(row, turns, device, compiled):
    make = make_torch_loss if row["op"] == "cross_entropy" else make_activation
    return make(row, turns, device, compiled)


def version(module):
    """The version of a module's package; `None` if the module cannot be imported."""
    try:
        imported = importlib.import_module(module)
    except Exception:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS[module])
    except importlib.metadata.PackageNotFoundError:
        # Images of NVIDIA and nightly builds call Triton pytorch-triton.
        return getattr(imported, "__version__", "of no known version")


def elapsed(run, count):
    """Milliseconds of `count` calls. The GPU is busy until they are queued, so that the host's time is not measured."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(20_000_000)
    start.record()
    for i in range(count):
        run(i)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(row, make, device):
    """Milliseconds of a call."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    turns = max(3, math.ceil(2 * l2 / max(row["bytes"], 1)))
    work = make(row, turns, device)
    if work is None:
        return None
    for _ in range(3):
        work.restore()
        work.try_all()
    torch.cuda.synchronize()
    once = elapsed(work.call, work.turns) / work.turns
    rounds = 1 if work.overwritten else max(1, math.ceil(SAMPLE_MS / (once * work.turns)))
    calls = rounds * work.turns
    times = []
    for _ in range(SAMPLES):
        work.restore()
        times.append(elapsed(lambda i: work.call(i % work.turns), calls) / calls)
    return statistics.median(times)


def measure_all(rows, device, smoke, deadline, save):
    """A line for each row and peer. `save` is called with the lines so far, in case the time runs out."""
    found = []
    for row, peer, make in peers_of(rows, device):
        result = {"name": row["name"], "peer": peer, "ms": None, "error": None}
        if time.monotonic() > deadline:
            result["error"] = "no time left"
            found.append(result)
            continue
        try:
            if smoke:
                work = make(row, 2, device)
                if work is None:
                    continue
                work.try_all()
            else:
                result["ms"] = measure(row, make, device)
                if result["ms"] is None:
                    continue
        except Exception as error:  # a peer that fails is a line of the table, and does not end the run
            result["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        found.append(result)
        save(found)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    save(found)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=pathlib.Path, required=True, help="what `gpu --peers --list` printed")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder for the files")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further row after that")
    parser.add_argument("--ours", help="command to run before and after; {} is the file that it is to write")
    parser.add_argument("--site", help="a folder of packages, for those that are not installed")
    parser.add_argument("--smoke", action="store_true", help="run every row once at a tiny size, time nothing")
    arguments = parser.parse_args()
    if arguments.site:
        sys.path.append(arguments.site)
    deadline = time.monotonic() + arguments.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.smoke:
        print("No GPU, nothing measured.", file=sys.stderr)
        return 1
    rows = json.loads(arguments.rows.read_text())
    if arguments.smoke:
        for row in rows:
            row["rows"], row["cols"] = 4, 96
    torch.manual_seed(0)
    torch._dynamo.config.cache_size_limit = 1000
    # The backward is timed repeatedly on the tensors that one forward saved. Before 2.6 there was no other way.
    if hasattr(torch._functorch.config, "donated_buffer"):
        torch._functorch.config.donated_buffer = False
    versions = {module: version(module) for module in DISTRIBUTIONS}

    def ours(number):
        """Whether all of our rows have a time. A row without a time takes no time from the peers."""
        if not arguments.ours:
            return True
        file = str(arguments.out / f"ours-{number}.json")
        command = [word.replace("{}", file) for word in shlex.split(arguments.ours)]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
        if status != 0:
            print(f"ours, run {number}: exit status {status}", file=sys.stderr)
        return status == 0

    def save(found):
        text = json.dumps({"versions": versions, "rows": found}, indent=1)
        # The file is replaced atomically, in case the time runs out during writing.
        partial = arguments.out / "peers.partial"
        partial.write_text(text)
        partial.rename(arguments.out / "peers.json")

    done = [ours(1)]
    found = measure_all(rows, device, arguments.smoke, deadline, save)
    done.append(ours(2))
    failed = sum(row["error"] is not None for row in found)
    print(f"{len(found)} rows of peers, {failed} without a time; ours failed {done.count(False)} times; {versions}")
    return 1 if not all(done) or arguments.smoke and failed else 0


if __name__ == "__main__":
    sys.exit(main())
