"""The sdist: a wheel can be built from it alone, as pip does if no wheel fits."""

import os
import subprocess
import sys
import tarfile

import pytest
from conftest import HERE

pytestmark = pytest.mark.skipif(os.environ.get("XACT_FULL") != "1", reason="compiles for minutes: XACT_FULL=1")

BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
# The imported module is that of the wheel, with the library beside it.
USE = """
import sys, numpy, xact
assert xact.__file__.startswith(sys.argv[1]), xact.__file__
assert "without" in xact.kernels(), xact.kernels()
keep = xact.Goldfish(k=4).mask(numpy.arange(10_000))
assert keep.shape == (10_000,) and 0.7 < keep.mean() < 0.8
"""


def test_a_wheel_is_built_from_it(tmp_path):
    def run(*words, cwd=tmp_path, **variables):
        # Nothing of this checkout is used, neither its target folder nor the wheel that the other tests import.
        left_out = ("CARGO_TARGET_DIR", "PYTHONPATH", "XACT_LIBRARY")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=kept | variables, check=True)

    run("-c", BUILD, tmp_path, cwd=HERE.parent)
    (sdist,) = tmp_path.glob("xact_kernels-*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
    assert not [name for name in names if "/target/" in name or name.endswith(".so")]
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, sdist, XACT_NO_CUDA="1")
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    run("-c", USE, site, PYTHONPATH=str(site))
