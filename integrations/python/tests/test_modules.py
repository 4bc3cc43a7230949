"""The modules: the names in published checkpoints, initial values, round trips."""

import ast
from pathlib import Path

import formulas
import pytest
import torch
from conftest import NAMES, check, values

import xact
import xact.torch as xt
from xact.torch import nn

CLASSES = {"xatlu": nn.XATLU, "xgelu": nn.XGELU, "xsilu": nn.XSiLU}
GATED = {"xatlu": nn.XATLUGated, "xgelu": nn.XGELUGated, "xsilu": nn.XSiLUGated}


def test_xielu():
    module = nn.XIELU()
    x = values((3, 8))
    want = formulas.xielu(x.double(), torch.tensor(0.8), torch.tensor(0.8), effective=True)
    check(module(x), want, 4 * (1 + x.double().abs()) ** 2, "initial values")
    assert {name: tuple(each.shape) for name, each in module.state_dict().items()} == {
        "alpha_p": (1,),
        "alpha_n": (1,),
        "beta": (),
    }
    assert [name for name, _ in module.named_parameters()] == ["alpha_p", "alpha_n"]
    assert nn.XIELU(alpha_p_init=200.0, alpha_n_init=900.0).alpha_n.item() == 899.5
    with pytest.raises(ValueError, match="effective parameter"):
        nn.XIELU(alpha_n_init=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_transformers(dtype):
    """The checkpoint's names and types load strictly; beta and eps are those of the file."""
    state = {
        "alpha_p": torch.tensor([166.0]),
        "alpha_n": torch.tensor([40.75]),
        "beta": torch.tensor(0.25),
        "eps": torch.tensor(-1e-6),
    }
    state = {name: each.to(dtype) for name, each in state.items()}
    module = nn.XIELU(eps=-1e-3, dtype=dtype)
    module.load_state_dict(state, strict=True)
    eps = float(state["eps"])
    x = torch.tensor([0.0, -1e-7, -1.0])
    want = xt.xielu(x, torch.tensor([166.0]), torch.tensor([40.75]), beta=0.25, eps=eps)
    assert torch.equal(nn.XIELU.forward(module.float(), x), want)
    for name, each in module.to(dtype).state_dict().items():
        assert torch.equal(each, state[name])


def test_a_checkpoint_on_the_meta_device():
    with torch.device("meta"):
        module = nn.XIELU(eps=-1e-6)
    assert module(torch.empty(3, device="meta")).shape == (3,)
    state = nn.XIELU(beta=0.25, alpha_n_init=0.75, eps=-1e-5).state_dict()
    module.load_state_dict(state, assign=True)
    assert "beta=0.25, eps=-9.99" in repr(module) or "beta=0.25, eps=-1" in repr(module)


@pytest.mark.parametrize("name", NAMES)
def test_expanded(name):
    module = CLASSES[name](0.25)
    x = values((3, 8))
    assert torch.equal(module(x), getattr(xt, name)(x, torch.tensor([0.25])))
    gated = GATED[name](0.25, order=2, value_first=True)
    y = getattr(xt, f"{name}_gated")(packed=x, alpha=torch.tensor([0.25]), order=2, value_first=True)
    assert torch.equal(gated(x), y)
    in_turn = GATED[name](0.25, block=1)
    assert torch.equal(in_turn(x), getattr(xt, f"{name}_gated")(x[:, ::2], x[:, 1::2], torch.tensor([0.25])))
    assert torch.equal(GATED[name](0.25)(x, x), getattr(xt, f"{name}_gated")(x, x, torch.tensor([0.25])))
    assert list(module.state_dict()) == ["alpha"] and module.alpha.shape == (1,)
    assert "order=2, value_first=True" in repr(gated)


def test_type_checkers_see_every_name():
    """Type checkers do not run the module, so they miss names that are only made at run time. py.typed promises all names."""
    module = ast.parse(Path(xt.__file__).read_text())
    seen = {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            seen.add(node.name)
        if isinstance(node, ast.ImportFrom):
            seen |= {each.name for each in node.names}
    assert set(xt.__all__) <= seen


def test_a_step_of_training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), nn.XIELU(), torch.nn.Linear(16, 16), nn.XSiLUGated())
    loss_function = nn.CrossEntropyLoss(goldfish=xact.Goldfish(k=8, h=2), z_loss=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, labels = values((32, 8)), torch.arange(32) % 8
    losses = []
    for _ in range(20):
        loss = loss_function(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.7
    assert "z_loss=0.0001" in repr(loss_function)
