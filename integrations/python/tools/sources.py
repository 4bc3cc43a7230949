"""Finds the Rust sources: around this folder in a checkout, in the folder `rust` of an sdist."""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The root of the workspace."""
    packed = HERE / "rust"
    return packed if packed.exists() else HERE.parents[1]


def version() -> str:
    """The version of the workspace."""
    text = (root() / "Cargo.toml").read_text()
    return re.search(r'^version = "(.+)"$', text, re.M).group(1)


def tracked() -> list[str]:
    """The files of the repository outside this folder, relative to the root of the workspace."""
    command = ["git", "ls-files", "-z", "--", ".", ":!integrations/python"]
    listed = subprocess.run(command, cwd=root(), check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name]
