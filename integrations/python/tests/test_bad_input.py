"""Bad input raises an error that says what to do: a table of cases, libraries that do not fit, and random calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import values

import xact.torch as xt

ALPHA = torch.zeros(1)
X = values((3, 4))
BAD = [
    (lambda: xt.xsilu([1.0], ALPHA), TypeError, "x is a list; it must be a torch.Tensor"),
    (lambda: xt.xsilu(X.double(), ALPHA), TypeError, "x is float64"),
    (lambda: xt.xsilu(X.int(), ALPHA), TypeError, "x is int32"),
    (lambda: xt.xsilu(X.to_sparse(), ALPHA), TypeError, "dense"),
    (lambda: xt.xsilu(X, ALPHA.to_sparse()), TypeError, "alpha has the layout torch.sparse_coo; it must be dense"),
    (lambda: xt.xsilu_gated(X, X.to_sparse(), ALPHA), TypeError, "v has the layout torch.sparse_coo"),
    (lambda: xt.xsilu(X, 0.5), TypeError, "alpha is a float"),
    (lambda: xt.xsilu(X, torch.zeros(4)), ValueError, "no scalars per channel"),
    (lambda: xt.xsilu(X, ALPHA.half()), TypeError, "alpha is float16; it must be float32"),
    (lambda: xt.xsilu(X.half(), ALPHA.bfloat16()), TypeError, "alpha is bfloat16"),
    (lambda: xt.xsilu(X, ALPHA.to("meta")), ValueError, "alpha is on meta, but x is on cpu"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, eps_gradient="none"), ValueError, "eps_gradient is 'none'"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, eps=float("nan")), ValueError, "eps is nan"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, eps=float("-inf")), ValueError, "eps is -inf"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, beta="a"), TypeError, "beta is a str; it must be a number or a tensor"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, beta=None), TypeError, "beta is a NoneType"),
    (lambda: xt.xielu(X, ALPHA, ALPHA, eps="a"), TypeError, "eps is a str; it must be a number"),
    (lambda: xt.xsilu_gated(X, X.T, ALPHA), ValueError, r"v is \[4, 3\], but x is \[3, 4\]"),
    (lambda: xt.xsilu_gated(X, X.half(), ALPHA), TypeError, "v is float16, but x is float32"),
    (lambda: xt.xsilu_gated(X, X), TypeError, "needs alpha"),
    (lambda: xt.xsilu_gated(X, X, ALPHA, order=3), ValueError, "order is 3"),
    (lambda: xt.xsilu_gated(X, X, ALPHA, order=1.0), ValueError, "order is 1.0"),
    (lambda: xt.xsilu_gated(X, X, ALPHA, packed=X), TypeError, "leave x and v out"),
    (lambda: xt.xsilu_gated(X, X, ALPHA, value_first=True), TypeError, "value_first needs packed"),
    (lambda: xt.xsilu_gated(packed=X[:, :3], alpha=ALPHA), ValueError, "two halves"),
    (lambda: xt.xsilu_gated(packed=X[:, :4], alpha=ALPHA, block=4), ValueError, "a block is one of 1, 8,"),
    (lambda: xt.xsilu_gated(packed=X[:, :4], alpha=ALPHA, block=8), ValueError, "divides half"),
    (lambda: xt.xsilu_gated(X, X, ALPHA, block=1), TypeError, "block needs packed"),
    (lambda: xt.xsilu_(X[:1].expand(3, 4), ALPHA), (ValueError, RuntimeError), "memory|overlap"),
]


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_bad_input(call, error, text):
    before = X.clone()
    with pytest.raises(error, match=text):
        call()
    assert torch.equal(X, before)


def python(code, **environment):
    """Runs code in a new process, and returns its stdout; fails if the process fails."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import xact, torch, xact.torch as xt
try:
    xt.xsilu(torch.ones(3), torch.zeros(1))
except RuntimeError as error:
    print(error)
"""


def test_a_library_that_does_not_fit(tmp_path):
    assert "cannot be loaded" in python(CALL, XACT_LIBRARY=str(tmp_path / "none.so"))
    for source, text in (
        ("int nothing;", "of another version"),
        (None, "version 99"),
    ):
        if source is None:
            from xact import _abi

            names = [name for name in _abi.FUNCTIONS if name != "xact_abi_version"]
            source = "int xact_abi_version(void) { return 99; }\n" + "\n".join(
                f"void {name}(void) {{}}" for name in names
            )
        (tmp_path / "a.c").write_text(source)
        subprocess.run(["gcc", "-shared", "-o", tmp_path / "a.so", tmp_path / "a.c"], check=True)
        assert text in python(CALL, XACT_LIBRARY=str(tmp_path / "a.so"))


def test_without_pytorch():
    """Masks of arrays need only NumPy."""
    code = """
import sys
sys.modules["torch"] = None
import numpy, xact
print(xact.Goldfish().mask(numpy.arange(100)).sum())
"""
    assert 60 < int(python(code)) < 100


def test_random_calls():
    """The calls are made in a new process, because a crash would end it."""
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, script, "10000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
