"""Builds the wheel: the Python files, and the library that cargo compiles.

These variables of the environment change what is built:

XACT_NO_CUDA=1          the CPU backend alone; no nvcc is needed.
XACT_CUDA_ARCHS=all     machine code beside the PTX: see docs/building.md.
XACT_MANYLINUX=2_28     for every Linux with that glibc or a newer one. Needs ziglang and cargo-zigbuild from PyPI.
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
    """Compiles the library; returns its path."""
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
        # cargo-zigbuild is beside the Python that builds, and finds ziglang by it.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        command += ["--target", f"{TARGET}.{MANYLINUX.replace('_', '.')}"]
    if environment.get("XACT_NO_CUDA") == "1":
        command += ["--no-default-features"]
    else:
        # Finds an nvcc, or installs one from PyPI into the target folder.
        found = subprocess.run(["cargo", "xtask", "toolkit"], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
        environment["NVCC"] = found.stdout.splitlines()[-1]
        environment["XACT_REQUIRE_NVCC"] = "1"
    subprocess.run(command, cwd=root, env=environment, check=True)
    target = Path(environment.get("CARGO_TARGET_DIR", root / "target"))
    return root / target / (TARGET if MANYLINUX else "") / "bundle" / "libxact.so"


class BuildPy(build_py):
    """Puts the library beside the modules."""

    def run(self) -> None:
        super().run()
        # An editable installation takes it from the sources' folder.
        folder = "src/xact" if self.editable_mode else f"{self.build_lib}/xact"
        shutil.copy2(compiled(), folder)


class BdistWheel(bdist_wheel):
    """One wheel for every Python: the library knows none."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = f"manylinux_{MANYLINUX}_{MACHINE}" if MANYLINUX else super().get_tag()[2]
        return "py3", "none", tag


class Sdist(sdist):
    """Takes the Rust sources along, as the folder `rust`."""

    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        for name in sources.tracked():
            copy = Path(base_dir, "rust", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sources.root() / name, copy)


class Binary(Distribution):
    """Has a library, so that its wheel is of a platform."""

    def has_ext_modules(self) -> bool:
        return True


# Elsewhere than in `build`, of which the wheel would take what an earlier state of the package left there.
with tempfile.TemporaryDirectory() as build:
    setup(
        version=sources.version(),
        distclass=Binary,
        cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel, "sdist": Sdist},
        options={"build": {"build_base": build}},
    )
