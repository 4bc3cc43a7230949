"""Times the head of a language model, its gradients included, beside PyTorch's ways, and measures their memory.

    python head.py [--rows 512 --hidden 1024 --vocab 32768 131072] [--dtype float32 bfloat16] [--samples 5] [--only TEXT]

PyTorch's ways are `linear` and `cross_entropy`, and `linear_cross_entropy` with each policy of its chunks. `xact, k = 4`
drops every fourth label by its list of kept rows. Each sample runs all ways one after the other, in a rotating order, so that
other load on the machine affects all of them; the median counts. Memory is what the process has at most during a call beyond
what it had before, the gradients included (Linux). The first call of each way is not timed.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import xact.torch as xt


def ways(hidden, weight, labels):
    """Each way's name, and a function that returns the loss."""
    yield "xact", lambda: xt.linear_cross_entropy(hidden, weight, labels)
    if hidden.dtype != torch.float32:
        yield "xact, narrow", lambda: xt.linear_cross_entropy(hidden, weight, labels, logits="narrow")
    kept = torch.arange(len(labels))
    kept = kept[kept % 4 != 0].int()
    yield "xact, k = 4", lambda: xt.linear_cross_entropy(hidden, weight, labels, kept_rows=kept)
    yield "linear + cross_entropy", lambda: F.cross_entropy(F.linear(hidden, weight), labels)
    if hasattr(F, "linear_cross_entropy"):
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

        for policy in ("compact", "accurate"):
            options = LinearCrossEntropyOptions(acc_policy=policy)
            yield policy, lambda o=options: F.linear_cross_entropy(hidden, weight, labels, options=o)
            whole = LinearCrossEntropyOptions(acc_policy=policy, chunking_method=None)
            yield f"{policy}, one chunk", lambda o=whole: F.linear_cross_entropy(hidden, weight, labels, options=o)


def batch(rows, cols, vocab, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, cols, generator=generator)
    weight = torch.randn(vocab, cols, generator=generator) / cols**0.5
    labels = torch.randint(vocab, (rows,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def step(loss, tensors):
    return lambda: torch.autograd.grad(loss(), tensors)


def peak(run):
    """The bytes of memory that a call takes at most."""
    status = Path("/proc/self/status")
    resident = lambda key: int(status.read_text().split(f"{key}:")[1].split()[0]) << 10  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--only", default="", help="only the ways whose names have this text")
    parser.add_argument("--skip", default="-", help="not the ways whose names have this text")
    options = parser.parse_args()
    chosen = lambda name: options.only in name and options.skip not in name  # noqa: E731
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| vocabulary | dtype | way | ms | of the fastest of PyTorch | GFLOP/s | MiB |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for vocab in options.vocab:
        for dtype in options.dtype:
            dtype = getattr(torch, dtype)
            hidden, weight, labels = batch(options.rows, options.hidden, vocab, dtype)
            every = ways(hidden, weight, labels)
            runs = {name: step(loss, (hidden, weight)) for name, loss in every if chosen(name)}
            memory = {name: peak(run) for name, run in runs.items()}
            seconds = {name: [] for name in runs}
            for sample in range(options.samples):
                names = list(runs)
                for name in names[sample % len(names) :] + names[: sample % len(names)]:
                    start = time.perf_counter()
                    runs[name]()
                    seconds[name].append(time.perf_counter() - start)
            medians = {name: statistics.median(each) for name, each in seconds.items()}
            theirs = [median for name, median in medians.items() if "xact" not in name]
            flops = 6 * options.rows * options.hidden * vocab
            for name, median in medians.items():
                share = f"{min(theirs) / median:.2f} ×" if theirs else ""
                rate = flops * (0.75 if "k = 4" in name else 1) / median / 1e9
                label = str(dtype).removeprefix("torch.")
                print(
                    f"| {vocab} | {label} | {name} | {median * 1e3:.0f} | {share} | {rate:.0f} | {memory[name] >> 20} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
