"""Fixtures and values for several tests."""

import math
import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# Processes that a test starts find the modules in this folder.
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
# PyTorch keeps compiled graphs, also between runs, and calls operators from them as they were declared then.
_compiled = tempfile.TemporaryDirectory()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name


@pytest.fixture
def golden():
    """The folder of the golden files, which have results of other implementations."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def activation_tables(monkeypatch):
    """Restores transformers' tables of activations, which xact.hf.patch changes."""
    from transformers import activations

    for table in (activations.ACT2CLS, activations.ACT2FN):
        monkeypatch.setitem(table, "xielu", dict.__getitem__(table, "xielu"))


def pytest_configure(config):
    config.addinivalue_line("markers", "inductor: compiles with inductor, which takes long")


try:
    import torch
except ModuleNotFoundError:
    # Without PyTorch, only masks of NumPy arrays are tested.
    torch = None

if torch is not None:
    DTYPES = (torch.float32, torch.float16, torch.bfloat16)
    NAMES = ("xatlu", "xgelu", "xsilu")
    # Parameters: initial, of Apertus-8B's first layer, and extreme.
    XIELU = (
        (math.log(math.expm1(0.8)), math.log(math.expm1(0.3))),
        (166.0, 40.75),
        (-5.0, -5.0),
    )
    ALPHAS = (0.0, -0.5, -1.0, 0.25, 3.0)

    def values(shape, dtype=torch.float32, scale=3.0, seed=0):
        """Random numbers of both signs, including the neighbourhood of 0."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        small = torch.rand(shape, generator=generator) < 0.1
        return torch.where(small, x * 1e-5, x).to(dtype)

    # The error of a 16-bit result before it is rounded, relative to its largest term: what the type can show.
    VISIBLE = {torch.float32: 0.0, torch.float16: 2.0**-18, torch.bfloat16: 2.0**-15}

    def bound(exact, terms, dtype, f32_ulps=8):
        """The allowed error: half a step of the type, what it can show, and some steps of f32 of the largest term."""
        scale = torch.maximum(exact.abs(), terms.abs())
        step = torch.finfo(dtype)
        return (
            exact.abs() * step.eps / 2
            + scale * max(torch.finfo(torch.float32).eps * f32_ulps, VISIBLE[dtype])
            + step.smallest_normal * step.eps
        )

    def check(got, exact, terms, what="", f32_ulps=8):
        """Compares a result with the exact one; two equal infinities are equal."""
        assert got.shape == exact.shape, f"{what}: {list(got.shape)}, expected {list(exact.shape)}"
        dtype, got, exact = got.dtype, got.detach().double(), exact.detach().double()
        rounded = exact.to(dtype).double()
        same = (got == rounded) | (got.isnan() & exact.isnan())
        error = (got - exact).abs()
        wrong = ~same & ~(error <= bound(exact, terms.detach().double(), dtype, f32_ulps))
        if wrong.any():
            i = wrong.flatten().nonzero()[0].item()
            raise AssertionError(
                f"{what}: {wrong.sum().item()} of {wrong.numel()} wrong, the first at {i}: "
                f"{got.flatten()[i].item()!r} for {exact.flatten()[i].item()!r}"
            )
