# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "safetensors==0.8.0",
#     "torch==2.9.1",
# ]
# ///
"""Writes cross_entropy_torch.safetensors: what PyTorch's cross_entropy computes in f64 on a CPU. README.md explains it."""

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
ROWS, CLASSES, IGNORE = 14, 37, -100

# Every number is an f32.
CASES = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.125},
    "z_loss": {"z_loss": 0.0078125},
    "softcap": {"softcap": 5.0},
    "weights": {"weighted": True},
    "by_weight": {"weighted": True, "normalizer": "weight"},
    "all": {
        "label_smoothing": 0.25,
        "z_loss": 0.0009765625,
        "softcap": 12.0,
        "weighted": True,
        "normalizer": "weight",
    },
    "all_as_a_sum": {
        "label_smoothing": 0.25,
        "z_loss": 0.0009765625,
        "softcap": 12.0,
        "weighted": True,
        "normalizer": "none",
    },
}


def inputs():
    """Logits that f32, f16 and bf16 all hold: multiples of 1/16 below 16."""
    random = np.random.default_rng(20250)
    logits = np.clip(np.round(random.normal(0, 4, (ROWS, CLASSES)) * 16), -255, 255) / 16
    labels = random.integers(0, CLASSES, ROWS)
    labels[[2, 9]] = IGNORE
    # Confident rows, one right and one wrong, and a row of equal logits.
    logits[4] = -12
    logits[4, labels[4]] = 15.5
    logits[5] = -12
    logits[5, (labels[5] + 1) % CLASSES] = 15.5
    logits[6] = 3.25
    # A class that cannot be.
    logits[7, (labels[7] + 1) % CLASSES] = -np.inf
    weights = random.integers(1, 64, ROWS) / 16
    weights[11] = 0
    dloss = random.integers(-32, 32, ROWS) / 8
    return logits, labels, weights, dloss


def by_torch(logits, labels, weights, dloss, case):
    """Losses, lse, mean, and the gradients of Σ dloss·loss/normalizer."""
    z = torch.tensor(logits, requires_grad=True)
    capped = z
    if cap := case.get("softcap"):
        capped = cap * torch.tanh(z / cap)
    target = torch.tensor(labels)
    kept = target != IGNORE
    w = torch.tensor(weights) if case.get("weighted") else torch.ones(ROWS, dtype=torch.float64)
    kept &= w != 0
    loss = torch.nn.functional.cross_entropy(
        capped,
        torch.where(kept, target, IGNORE),
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=case.get("label_smoothing", 0.0),
    )
    lse = torch.logsumexp(capped, dim=1)
    loss = w * (loss + kept.double() * case.get("z_loss", 0.0) * lse**2)
    normalizer = {
        "kept": kept.sum().double(),
        "weight": (w * kept).sum(),
        "none": torch.tensor(1.0, dtype=torch.float64),
    }[case.get("normalizer", "kept")]
    (loss * torch.tensor(dloss) / normalizer).sum().backward()
    return {
        "loss": loss.detach(),
        "lse": (lse * kept.double()).detach(),
        "mean": (loss.sum() / normalizer).detach().reshape(1),
        "dlogits": z.grad,
    }, kept


def by_numpy(logits, labels, weights, dloss, case):
    """The same from the formula."""
    cap = case.get("softcap")
    z = cap * np.tanh(logits / cap) if cap else logits
    slope = 1 - (z / cap) ** 2 if cap else np.ones_like(z)
    w = weights if case.get("weighted") else np.ones(ROWS)
    kept = (labels != IGNORE) & (w != 0)
    smooth, lam = case.get("label_smoothing", 0.0), case.get("z_loss", 0.0)
    top = z.max(axis=1, keepdims=True)
    lse = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0]
    p = np.exp(z - lse[:, None])
    hot = np.zeros_like(z)
    hot[kept, labels[kept]] = 1
    share = (1 - smooth) * hot + smooth / CLASSES
    with np.errstate(invalid="ignore"):
        loss = w * (np.where(share > 0, share * (lse[:, None] - z), 0).sum(axis=1) + lam * lse**2)
    loss = np.where(kept, loss, 0)
    normalizer = {"kept": kept.sum(), "weight": (w * kept).sum(), "none": 1}
    normalizer = normalizer[case.get("normalizer", "kept")]
    d = (1 + 2 * lam * lse[:, None]) * p - share
    d = d * slope * (kept * w * dloss / normalizer)[:, None]
    return {
        "loss": loss,
        "lse": np.where(kept, lse, 0),
        "mean": np.array([loss.sum() / normalizer]),
        "dlogits": d,
    }


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
        assert version(package) == pin, f"{package} is {version(package)}, not {pin}"
    torch.set_num_threads(1)
    logits, labels, weights, dloss = inputs()
    tensors = {"logits": logits, "labels": labels, "weights": weights, "dloss": dloss}
    for name, case in CASES.items():
        # Smoothing makes the loss of an impossible class infinite, unless the cap makes it possible.
        rows = dict(zip(("logits", "labels", "weights", "dloss"), inputs()))
        if case.get("label_smoothing") and not case.get("softcap"):
            rows["labels"][7] = IGNORE
            tensors[f"{name}.labels"] = rows["labels"]
        results, _ = by_torch(**rows, case=case)
        for what, value in by_numpy(**rows, case=case).items():
            got = results[what].numpy()
            np.testing.assert_allclose(got, value, rtol=1e-11, atol=1e-14, err_msg=f"{name}.{what}")
            tensors[f"{name}.{what}"] = got
    path = HERE / "cross_entropy_torch.safetensors"
    metadata = {"generator": Path(__file__).name, "cases": json.dumps(CASES), **pins}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata)
    sort_metadata(path)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
