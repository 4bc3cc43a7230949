# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "safetensors==0.8.0",
#     "torch==2.9.1",
#     "transformers==5.23.0",
# ]
# ///
"""Writes xielu_hf.safetensors: what Hugging Face's XIELUActivation computes on a CPU. README.md explains it."""

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
from transformers.activations import XIELUActivation

HERE = Path(__file__).parent
DTYPES = {"f64": torch.float64, "f32": torch.float32}


def initial(dtype):
    """A new module whose parameters and buffers were computed in `dtype`."""
    return XIELUActivation(dtype=dtype)


def default(dtype):
    """What a model holds that was built with the default type, bf16, and then cast: all four values are bf16's."""
    return XIELUActivation().to(dtype)


def apertus(dtype):
    """Layer 0 of Apertus-8B: raw parameters of the checkpoint, buffers of the default type."""
    module = default(dtype)
    with torch.no_grad():
        module.alpha_p.fill_(166.0)
        module.alpha_n.fill_(40.75)
    return module


CASES = {"initial": initial, "default": default, "apertus": apertus}


def neighbours(value, count):
    """`value` rounded to f32, and `count` f32 neighbours on either side."""
    below = above = np.float32(value)
    values = [below]
    for _ in range(count):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        values += [below, above]
    return values


def inputs():
    """Sorted f32 values without repetition, then -0.0, -inf, inf and NaN."""
    magnitudes = np.geomspace(1e-9, 1e3, 193)
    tiny = [2.0**-149, 2.0**-148, 2.0**-127, 2.0**-126 - 2.0**-149, 2.0**-126, 1e-42, 1e-39, 1e-30, 1e-20, 1e-12]
    parts = [
        magnitudes,
        -magnitudes,
        tiny,
        np.negative(tiny),
        np.linspace(-0.25, 0.25, 65),
        # The clamp: eps as f32 and as bf16, and the values around it.
        neighbours(-1e-6, 4),
        neighbours(-9.98377799987793e-07, 4),
        np.linspace(-2e-6, 2e-6, 33),
        # Where the negative side is smallest, turns, and crosses 0 with the initial parameters.
        np.linspace(-3.0, -0.5, 41),
        neighbours(-1.25, 3),
        neighbours(0.5, 3),
        # Where exp leaves the f32 range, normal and subnormal.
        [-16.0, -17.0, -20.0, -50.0, -80.0, -86.5, -87.0, -87.25, -87.5, -88.0, -88.75, -89.0],
        [-95.0, -100.0, -103.0, -103.5, -104.0, -105.0, -110.0, -150.0, -200.0, -300.0, -400.0],
        [0.0],
    ]
    values = np.unique(np.concatenate([np.asarray(part, dtype=np.float32) for part in parts]))
    special = np.array([-0.0, -np.inf, np.inf, np.nan], dtype=np.float32)
    return np.concatenate([values, special]).astype(np.float64)


def output_gradients(x):
    """A seeded dy, smaller where |x| is large so that no few elements make up the parameter gradients."""
    noise = np.random.Generator(np.random.PCG64(2411_13010)).standard_normal(x.size)
    return (noise / (1.0 + x * x)).astype(np.float32).astype(np.float64)


def check(name, x, y, gradient_x, dy, dx, sums, values):
    """Compares with the formula written out in NumPy's f64, so that a wrong file is not written."""
    alpha_p, alpha_n, beta, eps = values
    p, n = np.logaddexp(0.0, alpha_p), beta + np.logaddexp(0.0, alpha_n)
    single = name.startswith("f32")
    tolerance, smallest = (1e-6, 2.0**-149) if single else (2e-15, 2.0**-1074)

    def close(actual, expected, terms):
        error = np.abs(actual - expected)
        assert np.all(error <= tolerance * terms + 2 * smallest), (name, np.max(error / (terms + smallest)))

    finite = np.isfinite(x)
    v, positive = x[finite], x[finite] > 0
    e = np.expm1(np.minimum(v, eps))
    expected = np.where(positive, p * v * v + beta * v, n * (e - v) + beta * v)
    terms = np.where(positive, p * v * v, n * (np.abs(e) + np.abs(v))) + beta * np.abs(v)
    close(y[finite], expected, terms)
    # f(-inf) is inf - inf in this formula.
    assert y[x == np.inf] == np.inf and np.isnan(y[x == -np.inf]) and np.isnan(y[np.isnan(x)])

    v, positive = gradient_x, gradient_x > 0
    # torch.min passes no gradient to a clamped x, and half of it where the two are equal.
    share = np.where(v < eps, 1.0, np.where(v == eps, 0.5, 0.0))
    slope = np.where(positive, 2 * p * v + beta, n * (share * np.exp(np.minimum(v, eps)) - 1) + beta)
    close(dx, dy * slope, np.abs(dy) * np.where(positive, 2 * p * v + beta, 2 * n + beta))
    q = np.expm1(np.minimum(v, eps)) - v
    for actual, raw, addends in [
        (sums[0], alpha_p, np.where(positive, dy * v * v, 0.0)),
        (sums[1], alpha_n, np.where(positive, 0.0, dy * q)),
    ]:
        sigmoid = 1 / (1 + np.exp(-raw))
        close(actual, sigmoid * addends.sum(), sigmoid * np.abs(addends).sum())


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

    x = inputs()
    gradient_x = x[np.isfinite(x)]
    dy = output_gradients(gradient_x)
    tensors = {"x": x, "gradient.x": gradient_x, "gradient.dy": dy}
    metadata = {"generator": Path(__file__).name, **pins}
    for dtype_name, dtype in DTYPES.items():
        for case, make in CASES.items():
            name = f"{dtype_name}.{case}"
            module = make(dtype)
            with torch.no_grad():
                y = module(torch.from_numpy(x).to(dtype))
            leaf = torch.from_numpy(gradient_x).to(dtype).requires_grad_()
            (module(leaf) * torch.from_numpy(dy).to(dtype)).sum().backward()
            results = {"y": y, "dx": leaf.grad, "dalpha_p": module.alpha_p.grad, "dalpha_n": module.alpha_n.grad}
            settings = {key: getattr(module, key).detach().reshape(1) for key in ("alpha_p", "alpha_n", "beta", "eps")}
            for key, tensor in (results | settings).items():
                assert tensor.dtype == dtype
                tensors[f"{name}.{key}"] = tensor.numpy()
            # Shortest decimal that gives the same f64: exact for both types.
            values = {key: float(tensor) for key, tensor in settings.items()}
            metadata |= {f"{name}.{key}": repr(value) for key, value in values.items()}
            found = {key: tensor.double().numpy() for key, tensor in results.items()}
            sums = found["dalpha_p"], found["dalpha_n"]
            check(name, x, found["y"], gradient_x, dy, found["dx"], sums, values.values())

    path = HERE / "xielu_hf.safetensors"
    save_file(tensors, path, metadata)
    sort_metadata(path)
    print(f"{path.name}: {x.size} inputs, {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
