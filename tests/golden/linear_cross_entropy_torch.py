# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "safetensors==0.8.0",
#     "torch==2.15.0",
# ]
# ///
"""Writes linear_cross_entropy_torch.safetensors: what PyTorch computes for a head in f64 on a CPU. README.md explains it."""

import os

# PyTorch's scalar code and one thread: the same bits whatever the vector unit. Read when torch is imported.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import json
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).parent
ROWS, WIDTH, CLASSES, IGNORE = 13, 10, 29, -100

# Every number is an f32.
CASES = {
    "plain": {},
    "all": {
        "label_smoothing": 0.25,
        "z_loss": 0.0009765625,
        "softcap": 12.0,
        "weighted": True,
        "normalizer": "weight",
    },
    "all_as_a_sum": {"label_smoothing": 0.125, "softcap": 5.0, "weighted": True, "normalizer": "none"},
}


def inputs():
    """Hidden states and weights that f32, f16 and bf16 all hold: multiples of 1/16 below 16."""
    random = np.random.default_rng(20261)
    grid = lambda *shape: np.clip(np.round(random.normal(0, 1, shape) * 16), -255, 255) / 16
    hidden, weight = grid(ROWS, WIDTH), grid(CLASSES, WIDTH)
    labels = random.integers(0, CLASSES, ROWS)
    labels[[3, 8]] = IGNORE
    weights = random.integers(1, 64, ROWS) / 16
    weights[5] = 0
    dloss = random.integers(-32, 32, ROWS) / 8
    return hidden, weight, labels, weights, dloss


def by_torch(hidden, weight, labels, weights, dloss, case):
    """Losses, mean, and the gradients of Σ dloss·loss/normalizer."""
    x, w = (torch.tensor(value, requires_grad=True) for value in (hidden, weight))
    z = torch.nn.functional.linear(x, w)
    if cap := case.get("softcap"):
        z = cap * torch.tanh(z / cap)
    of_row = torch.tensor(weights) if case.get("weighted") else torch.ones(ROWS, dtype=torch.float64)
    target = torch.tensor(labels)
    kept = (target != IGNORE) & (of_row != 0)
    loss = torch.nn.functional.cross_entropy(
        z,
        torch.where(kept, target, IGNORE),
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=case.get("label_smoothing", 0.0),
    )
    lse = torch.logsumexp(z, dim=1)
    loss = of_row * (loss + kept.double() * case.get("z_loss", 0.0) * lse**2)
    normalizer = {
        "kept": kept.sum().double(),
        "weight": (of_row * kept).sum(),
        "none": torch.tensor(1.0, dtype=torch.float64),
    }[case.get("normalizer", "kept")]
    (loss * torch.tensor(dloss) / normalizer).sum().backward()
    mean = (loss.sum() / normalizer).detach().reshape(1)
    return {"loss": loss.detach(), "mean": mean, "d_hidden": x.grad, "d_weight": w.grad}


def by_numpy(hidden, weight, labels, weights, dloss, case):
    """The same from the formula."""
    z = hidden @ weight.T
    cap = case.get("softcap")
    z = cap * np.tanh(z / cap) if cap else z
    slope = 1 - (z / cap) ** 2 if cap else np.ones_like(z)
    of_row = weights if case.get("weighted") else np.ones(ROWS)
    kept = (labels != IGNORE) & (of_row != 0)
    smooth, lam = case.get("label_smoothing", 0.0), case.get("z_loss", 0.0)
    lse = np.log(np.exp(z).sum(axis=1))
    share = np.full_like(z, smooth / CLASSES)
    share[kept, labels[kept]] += 1 - smooth
    loss = np.where(kept, of_row * ((share * (lse[:, None] - z)).sum(axis=1) + lam * lse**2), 0)
    normalizer = {"kept": kept.sum(), "weight": (of_row * kept).sum(), "none": 1}
    normalizer = normalizer[case.get("normalizer", "kept")]
    d = (1 + 2 * lam * lse[:, None]) * np.exp(z - lse[:, None]) - share
    d = d * slope * (kept * of_row * dloss / normalizer)[:, None]
    mean = np.array([loss.sum() / normalizer])
    return {"loss": loss, "mean": mean, "d_hidden": d @ weight, "d_weight": d.T @ hidden}


def sort_metadata(path):
    """safetensors writes it in random order; sorted, the same tensors are the same bytes."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(end - 8)
    assert len(text) == end - 8
    path.write_bytes(data[:8] + text + data[end:])


def main():
    pins = dict(re.findall(r'^#     "(\w+)==([\d.]+)",$', Path(__file__).read_text(), re.MULTILINE))
    for package, pin in pins.items():
        got = version(package).partition("+")[0]
        assert got == pin, f"{package} is {got}, not {pin}"
    torch.set_num_threads(1)
    names = ("hidden", "weight", "labels", "weights", "dloss")
    tensors = dict(zip(names, inputs()))
    for name, case in CASES.items():
        results = by_torch(*inputs(), case)
        for what, value in by_numpy(*inputs(), case).items():
            got = results[what].numpy()
            np.testing.assert_allclose(got, value, rtol=1e-11, atol=1e-14, err_msg=f"{name}.{what}")
            tensors[f"{name}.{what}"] = got
    path = HERE / "linear_cross_entropy_torch.safetensors"
    metadata = {"generator": Path(__file__).name, "cases": json.dumps(CASES), **pins}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata)
    sort_metadata(path)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
