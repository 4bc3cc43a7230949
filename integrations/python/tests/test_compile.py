"""The operators under PyTorch's own checks and under torch.compile."""

import pytest
import torch
from conftest import NAMES, values

import xact
import xact.torch as xt

ops = torch.ops.xact


def scalar(value=0.25):
    return torch.full((1,), value, requires_grad=True)


def samples():
    """Every operator with arguments: tensors that need gradients, and views."""
    x = lambda seed=0, dtype=torch.float32: values((3, 8), dtype, seed=seed).requires_grad_()  # noqa: E731
    strided = values((8, 3)).t().requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        yield "xielu", (x(0, dtype), scalar(), scalar(), None, 0.5, None, False, False)
    yield "xielu", (strided, scalar(), scalar(), scalar(), 0.5, -1e-6, True, False)
    options = (scalar().detach(), scalar().detach(), None, 0.5, None, False, False)
    yield "xielu_backward", (values((3, 8)), values((3, 8)), *options, True)
    yield "xielu_backward", (values((3, 8)), values((3, 8)), *options, False)
    yield "xielu_", (values((3, 8)), *options)
    for name in NAMES:
        yield name, (x(), scalar())
        yield f"{name}_", (values((3, 8)), scalar().detach())
        yield f"{name}_backward", (values((3, 8)), values((3, 8)), scalar().detach(), True)
        yield f"{name}_gated", (x(), strided, scalar(), 1)
        yield f"{name}_gated_backward", (*(values((3, 8), seed=i) for i in range(3)), scalar().detach(), 2, True)
        yield f"{name}_gated_packed", (x(), scalar(), 2, True, 0)
        yield f"{name}_gated_packed", (x(), scalar(), 1, False, 1)
        yield f"{name}_gated_packed_backward", (values((3, 4)), values((3, 8)), scalar().detach(), 1, False, 0, True)
        yield f"{name}_gated_packed_backward", (values((3, 4)), values((3, 8)), scalar().detach(), 2, True, 1, True)
    labels = torch.tensor([1, -100, 7])
    goldfish = xact.Goldfish(k=3, h=2)
    offsets = torch.tensor([0, 1, 3], dtype=torch.int32)
    chunks = (offsets, torch.tensor([2, 0]), torch.arange(4).view(2, 2))
    more = (-100, 0.1, 1e-4, 30.0, 8, "kept")
    for per_row, stats in ((False, False), (True, True)):
        yield (
            "cross_entropy",
            (x(), labels, torch.rand(3), None, labels, *chunks, goldfish._key, False, *more, per_row, stats),
        )
    nothing = (None,) * 7
    _, saved, summary, *_ = ops.cross_entropy(values((3, 8)), labels, *nothing, False, *more, False, False)
    yield (
        "cross_entropy_backward",
        (torch.ones(()), values((3, 8)), labels, *nothing[:5], saved, summary, None, False, *more),
    )
    weight = lambda: values((8, 8), seed=3).requires_grad_()  # noqa: E731
    for per_row, stats, kept in ((False, False, None), (True, True, torch.tensor([2, -1, 0]))):
        at_once = (not per_row, not per_row)
        tensors = (torch.rand(3), None, labels, *chunks, kept)
        head = ("f32", 1 << 30, 2)
        yield (
            "linear_cross_entropy",
            (x(), weight(), labels, *tensors, goldfish._key, False, *more, *head, per_row, stats, *at_once),
        )
    nothing = (None,) * 8
    hidden, some = values((3, 8)), values((8, 8), seed=3)
    _, saved, summary, *_ = ops.linear_cross_entropy(
        hidden, some, labels, *nothing, False, *more, *head, False, False, False, False
    )
    for wanted in ((True, True), (False, True)):
        yield (
            "linear_cross_entropy_backward",
            (torch.ones(()), hidden, some, labels, *nothing[:6], saved, summary, None, False, *more, *head, *wanted),
        )
    offsets = torch.tensor([0, 13, 40], dtype=torch.int32)
    yield "goldfish_mask", (torch.arange(40), offsets, None, None, None, goldfish._key, False)
    yield "goldfish_mask", (torch.arange(40).view(4, 10), None, None, None, None, goldfish._key, True)


SAMPLES = list(samples())


@pytest.mark.parametrize("name, arguments", SAMPLES, ids=[f"{name}{i}" for i, (name, _) in enumerate(SAMPLES)])
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(ops, name).default, arguments)


def test_every_operator_is_checked():
    defined = {
        name.removeprefix("xact::").removesuffix(".default")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("xact::")
    }
    assert defined == {name for name, _ in SAMPLES}


GOLDFISH = xact.Goldfish(k=3, h=2)


def steps():
    """For each family, a function to compile, and a function that makes its arguments for a number of rows."""
    tensor = lambda rows, seed: values((rows, 16), torch.bfloat16, seed=seed).requires_grad_()  # noqa: E731
    yield "xielu", xt.xielu, lambda n: [tensor(n, 0), scalar(), scalar()]
    for name in NAMES:
        yield name, getattr(xt, name), lambda n: [tensor(n, 0), scalar()]
        yield f"{name}_gated", getattr(xt, f"{name}_gated"), lambda n: [tensor(n, 0), tensor(n, 1), scalar()]

    def packed(xv, alpha):
        return xt.xsilu_gated(packed=xv, alpha=alpha, order=2, value_first=True)

    yield "packed", packed, lambda n: [tensor(n, 0), scalar()]

    def loss(logits, labels):
        loss, stats = xt.cross_entropy(
            logits, labels, goldfish=GOLDFISH, hash_ids=labels, z_loss=1e-4, softcap=30.0, return_stats=True
        )
        return loss * 2 + stats.kept

    yield "cross_entropy", loss, lambda n: [tensor(n, 0), torch.arange(n) % 16]

    def head(hidden, weight, labels):
        loss, stats = xt.linear_cross_entropy(
            hidden, weight, labels, goldfish=GOLDFISH, z_loss=1e-4, softcap=30.0, chunk_rows=4, return_stats=True
        )
        return loss * 2 + stats.kept

    yield "linear_cross_entropy", head, lambda n: [tensor(n, 0), tensor(16, 1), torch.arange(n) % 16]


def compare(function, compiled, arguments):
    with_gradient = [each for each in arguments if getattr(each, "requires_grad", False)]
    want, got = function(*arguments), compiled(*arguments)
    assert torch.equal(got, want)
    ones = torch.ones_like(want)
    for got, want in zip(torch.autograd.grad(got, with_gradient, ones), torch.autograd.grad(want, with_gradient, ones)):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", [name for name, *_ in steps()])
def test_aot_eager(name):
    torch._dynamo.reset()
    function, make = next(rest for each, *rest in steps() if each == name)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 12, 31):
        compare(function, compiled, make(rows))


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["xielu", "xsilu", "xgelu_gated", "packed", "cross_entropy", "linear_cross_entropy"])
def test_inductor(name):
    torch._dynamo.reset()
    function, make = next(rest for each, *rest in steps() if each == name)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for rows in (5, 12):
        compare(function, compiled, make(rows))


def test_numbers_that_differ_from_call_to_call():
    """A vocabulary that comes from a shape, and an index that is an argument, are symbols in the graph."""
    torch._dynamo.reset()

    def loss(logits, labels, ignore_index):
        return xt.cross_entropy(logits, labels, vocab=logits.shape[-1] - 3, ignore_index=ignore_index)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for cols, ignore_index in ((16, 2), (19, 3), (33, -100)):
        compare(loss, compiled, [values((7, cols)).requires_grad_(), torch.arange(7), ignore_index])


def test_a_module_compiles_with_its_neighbours():
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), xt.nn.XIELU(), torch.nn.Linear(8, 8), xt.nn.XSiLU())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = values((4, 8))
    torch.testing.assert_close(compiled(x), model(x))


def test_vmap():
    x, alpha = values((3, 8)), torch.zeros(1)
    got = torch.func.vmap(xt.xsilu, in_dims=(0, None))(x, alpha)
    assert torch.equal(got, xt.xsilu(x, alpha))
