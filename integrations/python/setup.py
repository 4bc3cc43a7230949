"""Builds the wheel: the Python files, and the library, which cargo compiles.

These environment variables change the build:

XACT_NO_CUDA=1          builds only the CPU backend, without nvcc.
XACT_CUDA_ARCHS=all     adds machine code to the PTX: see docs/building.md.
XACT_MANYLINUX=2_28     builds for every Linux with this glibc or a newer one. Needs ziglang and cargo-zigbuild from PyPI.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent / "tools"))
import sources  # noqa: E402

MANYLINUX = os.environ.get("XACT_MANYLINUX")
MACHINE = platform.machine()
TARGET = f"{MACHINE}-unknown-linux-gnu"


def compiled() -> Path:
    """Compiles the library, and returns its path."""
    root = sources.root()
    if shutil.which("cargo") is None:
        raise SystemExit("xact is compiled with Rust, and there is no cargo here: install it from https://rustup.rs")
    environment = dict(os.environ)
    command = [
        "cargo",
        "zigbuild" if MANYLINUX else "build",
        "--package",
        "xact-capi",
        "--profile",
        "bundle",
        "--locked",
    ]
    if MANYLINUX:
        # cargo-zigbuild is beside the Python that builds, and finds ziglang through it.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        command += ["--target", f"{TARGET}.{MANYLINUX.replace('_', '.')}"]
    if environment.get("XACT_NO_CUDA") == "1":
        command += ["--no-default-features"]
    else:
        # Finds an nvcc, or installs one from PyPI under the target folder.
        found = subprocess.run(["cargo", "xtask", "toolkit"], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
        environment["NVCC"] = found.stdout.splitlines()[-1]
        environment["XACT_REQUIRE_NVCC"] = "1"
    subprocess.run(command, cwd=root, env=environment, check=True)
    target = Path(environment.get("CARGO_TARGET_DIR", root / "target"))
    return root / target / (TARGET if MANYLINUX else "") / "bundle" / "libxact.so"


class BuildPy(build_py):
    """Copies the library beside the modules."""

    def run(self) -> None:
        super().run()
        # An editable installation loads the library from the sources' folder.
        folder = "src/xact" if self.editable_mode else f"{self.build_lib}/xact"
        shutil.copy2(compiled(), folder)


class BdistWheel(bdist_wheel):
    """Tags the wheel for every Python, because the library does not depend on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = f"manylinux_{MANYLINUX}_{MACHINE}" if MANYLINUX else super().get_tag()[2]
        return "py3", "none", tag


class Sdist(sdist):
    """Adds the Rust sources to the sdist, as the folder `rust`."""

    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        for name in sources.tracked():
            copy = Path(base_dir, "rust", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sources.root() / name, copy)


class Binary(Distribution):
    """Has a library, so its wheel is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


# The folder is not `build`, because the wheel would take files there that an earlier version of the package left.
with tempfile.TemporaryDirectory() as build:
    setup(
        version=sources.version(),
        distclass=Binary,
        cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel, "sdist": Sdist},
        options={"build": {"build_base": build}},
    )
