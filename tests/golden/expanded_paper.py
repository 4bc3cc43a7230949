# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "safetensors==0.8.0",
# ]
# ///
"""Writes expanded_paper.safetensors: xATLU, xGELU and xSiLU, plain and gated, as the author of the paper computes them, in f64. README.md explains it."""

import json
import math
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ALPHAS = {"initial": 0.0, "trained": 0.3, "constant": -0.5}

# The modules XAT, XGE and XSig of src/x_activation.py in github.com/AllenHaoHuang/x-activation at
# 3ce8a4c19ca36bee42e80123bde2eac547b2a3d0: operation by operation, forward and then backward as PyTorch
# differentiates each of them. A gate is what `forward` returns, and what `backward` makes of its gradient:
# the gradients of x and of alpha.


def each(function, x):
    return np.array([function(v) for v in x])


def xatlu(x, alpha):
    arctan = each(math.atan, x)
    factor = (1 / math.pi) * (1 + 2 * alpha)

    def backward(grad):
        return grad * factor / (x * x + 1), np.sum(grad * arctan) * (1 / math.pi) * 2

    return arctan * factor + 0.5, backward


def xgelu(x, alpha):
    inv_sqrt2 = 1 / math.sqrt(2)
    z = x * inv_sqrt2
    erf = each(math.erf, z)
    factor = 0.5 + alpha

    def backward(grad):
        return grad * factor * (2 / math.sqrt(math.pi) * np.exp(-z * z)) * inv_sqrt2, np.sum(grad * erf)

    return erf * factor + 0.5, backward


def xsilu(x, alpha):
    sigmoid = 1 / (1 + np.exp(-x))
    factor = 1 + 2 * alpha

    def backward(grad):
        return grad * factor * sigmoid * (1 - sigmoid), np.sum(grad * sigmoid) * 2 - np.sum(grad)

    return sigmoid * factor - alpha, backward


def plain(gate, x, v, dy, alpha):
    """XATLU, XGELU, XSiLU: gate(x) * x."""
    g, backward = gate(x, alpha)
    dx, dalpha = backward(dy * x)
    return {"y": g * x, "dx": dx + dy * g, "dalpha": dalpha}


def first(gate, x, v, dy, alpha):
    """XATGLU, XGEGLU, XSwiGLU of order 1: gate(x) * v."""
    g, backward = gate(x, alpha)
    dx, dalpha = backward(dy * v)
    return {"y": g * v, "dx": dx, "dv": dy * g, "dalpha": dalpha}


def second(gate, x, v, dy, alpha):
    """The same of order 2: gate(x) * x * v."""
    g, backward = gate(x, alpha)
    grad = dy * v
    dx, dalpha = backward(grad * x)
    return {"y": g * x * v, "dx": dx + grad * g, "dv": dy * (g * x), "dalpha": dalpha}


def check(gate, form, x, v, dy, alpha, found):
    """The derivatives against differences of the values, so that a wrong file is not written."""
    step = 1e-5

    def difference(value):
        ahead, behind = value(step), value(-step)
        return (ahead - behind) / (2 * step)

    size = np.abs(dy) * (1 + np.abs(v)) * (1 + np.abs(x))
    dx = dy * difference(lambda h: form(gate, x + h, v, dy, alpha)["y"])
    assert np.all(np.abs(found["dx"] - dx) <= 1e-9 * size), (gate, form, "dx")
    if "dv" in found:
        dv = dy * difference(lambda h: form(gate, x, v + h, dy, alpha)["y"])
        assert np.all(np.abs(found["dv"] - dv) <= 1e-9 * size), (gate, form, "dv")
    dalpha = np.sum(dy * difference(lambda h: form(gate, x, v, dy, alpha + h)["y"]))
    assert abs(found["dalpha"] - dalpha) <= 1e-9 * np.sum(size), (gate, form, "dalpha")


def f32(values):
    return np.asarray(values, dtype=np.float32).astype(np.float64)


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

    magnitudes = np.geomspace(1e-6, 30, 60)
    x = np.unique(f32(np.concatenate([magnitudes, -magnitudes, np.linspace(-30, 30, 121), np.linspace(-3, 3, 60)])))
    generator = np.random.Generator(np.random.PCG64(2405_20768))
    v, dy = (f32(generator.standard_normal(x.size)) for _ in range(2))
    tensors = {"x": x, "v": v, "dy": dy}
    for gate in (xatlu, xgelu, xsilu):
        for case, alpha in ALPHAS.items():
            alpha = float(np.float32(alpha))
            tensors[f"{case}.alpha"] = np.array([alpha])
            for form in (plain, first, second):
                found = form(gate, x, v, dy, alpha)
                check(gate, form, x, v, dy, alpha, found)
                for key, values in found.items():
                    tensors[f"{gate.__name__}.{case}.{form.__name__}.{key}"] = np.atleast_1d(values)
    path = Path(__file__).with_suffix(".safetensors")
    save_file(tensors, path, {"generator": Path(__file__).name, **pins})
    sort_metadata(path)
    print(f"{path.name}: {x.size} inputs, {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
