"""The wheel: its files, its requirements, and its metadata."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import xact

WHEELS = os.environ.get("XACT_WHEELS")
pytestmark = pytest.mark.skipif(WHEELS is None, reason="XACT_WHEELS names no folder: `cargo xtask` sets it")


@pytest.fixture(scope="module")
def wheel():
    (found,) = Path(WHEELS).glob("*.whl")
    return found


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as packed:
        packed.extract("xact/libxact.so", folder)
    return folder / "xact/libxact.so"


def symbols(library):
    """The dynamic symbols of an ELF file as (name, version, defined)."""
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        elf = ELFFile(file)
        versions = {}
        for number in elf.get_section_by_name(".gnu.version_r").iter_versions():
            for each in number[1]:
                versions[each["vna_other"]] = each.name
        numbers = elf.get_section_by_name(".gnu.version")
        for i, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
            version = versions.get(numbers.get_symbol(i)["ndx"])
            yield symbol.name, version, symbol["st_shndx"] != "SHN_UNDEF"


def test_it_is_for_every_python(wheel):
    assert re.fullmatch(r"xact_kernels-[\d.]+-py3-none-manylinux_2_28_x86_64\.whl", wheel.name)


def test_it_needs_no_newer_glibc(library, wheel):
    """The newest version of a symbol that the library needs, and auditwheel's tag for the wheel."""
    needed = {version for _, version, defined in symbols(library) if version and not defined}
    newest = max(tuple(map(int, v.removeprefix("GLIBC_").split("."))) for v in needed if v.startswith("GLIBC_"))
    assert newest <= (2, 28), needed
    auditwheel = [sys.executable, "-m", "auditwheel", "show", wheel]
    said = subprocess.run(auditwheel, capture_output=True, text=True, check=True).stdout
    assert '"manylinux_2_28_x86_64"' in said


def test_it_exports_its_functions_alone(library):
    from xact import _abi

    assert {name for name, _, defined in symbols(library) if defined and name} == set(_abi.FUNCTIONS)


def test_it_holds_what_it_should(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        metadata = packed.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"xact/py.typed", "xact/torch/nn.py", "xact/hf/_patch.py"} <= set(names)
    assert not [name for name in names if "tests" in name or name.endswith((".rs", ".cu"))]
    assert "Requires-Dist: numpy" in metadata and '; extra == "torch"' in metadata
    assert wheel.stat().st_size < 16 << 20


def test_it_has_kernels_and_machine_code(library):
    """PTX is text. The machine code of each architecture is compressed, and the text beside it names the architecture."""
    library = library.read_bytes()
    for target in (b".target sm_80", b".target sm_90"):
        assert target in library
    assert library.count(b"LZIP") >= 4


def test_versions_are_one():
    assert xact.__version__ == xact.version()
    reason = xact.kernels()
    assert reason is None or "driver" in reason, "the wheel holds kernels; only a driver may be missing"
