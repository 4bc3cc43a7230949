"""The code in the README files runs."""

import re

import pytest
import torch
from conftest import HERE, ROOT

PAGES = [HERE.parent / "README.md", ROOT / "README.md"]


def blocks():
    for page in PAGES:
        for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)):
            yield pytest.param(block, id=f"{page.parent.name}{i}")


@pytest.mark.parametrize("block", list(blocks()))
def test_block(block, activation_tables):
    torch.manual_seed(0)
    exec(compile(block, "README.md", "exec"), {})
