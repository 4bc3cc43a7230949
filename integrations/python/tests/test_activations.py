"""The activations compared with their formulas in f64: results, gradients, layouts, types."""

import formulas
import pytest
import torch
import torch.nn.functional as F
from conftest import ALPHAS, DTYPES, NAMES, XIELU, check, values

import xact.torch as xt

SHAPES = [(7,), (3, 5), (2, 3, 33), (1, 1, 4097)]


def scalar(value, dtype, shape=(1,)):
    return torch.full(shape, value, dtype=dtype, requires_grad=True)


def doubled(tensor):
    return tensor.detach().double().requires_grad_()


def run(function, exact, tensors, scalars, dy=None):
    """Results and gradients of both; those in f64 also with the sum of the absolute terms of each scalar's gradient."""
    y = function(*tensors, *scalars)
    dy = torch.ones_like(y) if dy is None else dy
    got = torch.autograd.grad(y, [*tensors, *scalars], dy)
    tensors64, scalars64 = [doubled(t) for t in tensors], [doubled(s) for s in scalars]
    # Each element has its own scalars, so that the terms of their gradients are known.
    own = [s.reshape(()).expand(tensors64[0].shape).clone().detach().requires_grad_() for s in scalars64]
    y64 = exact(*tensors64, *own)
    want = torch.autograd.grad(y64, [*tensors64, *own], dy.double())
    return y, got, y64, want


def check_all(y, got, y64, want, scalars, terms, gradient_terms):
    """``terms`` bound the addends of y, and ``gradient_terms`` those of the gradients of tensors."""
    check(y, y64, terms, "y")
    count = len(got) - len(scalars)
    for i in range(count):
        check(got[i], want[i], gradient_terms, f"gradient {i}", f32_ulps=64)
    for gradient, terms, scalar in zip(got[count:], want[count:], scalars):
        assert gradient.shape == scalar.shape and gradient.dtype == scalar.dtype
        exact, size = terms.sum().reshape(gradient.shape), terms.abs().sum().reshape(gradient.shape)
        check(gradient, exact, size, "gradient of a scalar", f32_ulps=128)


def xielu_terms(x, p, n, beta=0.5):
    """The addends of xIELU and of its derivative, for effective parameters; they are small where x is small."""
    x = x.detach().double()
    slope = torch.full_like(x, beta)
    y = torch.where(x > 0, p * x * x, n * x.abs()) + beta * x.abs()
    return y, torch.where(x > 0, 2 * p * x, n * torch.expm1(x).abs()) + slope


def expanded_terms(x, alpha):
    """The addends of f: x·g, 2α·x·g and α·x, and those of its derivative, which include the derivative of g."""
    x = x.detach().double().abs()
    return (1 + 2 * abs(alpha)) * x, (1 + 2 * abs(alpha)) * (1 + x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("raw", XIELU)
def test_xielu(dtype, shape, raw):
    x = values(shape, dtype).requires_grad_()
    scalars = [scalar(each, torch.float32) for each in raw]
    exact = lambda x, p, n: formulas.xielu(x, p, n)  # noqa: E731
    y, got, y64, want = run(xt.xielu, exact, [x], scalars)
    p, n = (F.softplus(torch.tensor(each, dtype=torch.float64)) for each in raw)
    check_all(y, got, y64, want, scalars, *xielu_terms(x, p, n + 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_xielu_options(dtype):
    x = values((5, 9), dtype).requires_grad_()
    p, n, beta = (scalar(each, torch.float32) for each in (0.3, 1.5, 0.5))
    size = xielu_terms(x, 2, 3)
    effective = lambda x, p, n: formulas.xielu(x, p, n, effective=True)  # noqa: E731
    check_all(*run(lambda *a: xt.xielu(*a, effective=True), effective, [x], [p, n]), [p, n], *size)
    trained = lambda x, p, n, b: formulas.xielu(x, p, n, beta=b)  # noqa: E731
    function = lambda x, p, n, b: xt.xielu(x, p, n, beta=b)  # noqa: E731
    check_all(*run(function, trained, [x], [p, n, beta]), [p, n, beta], *size)
    # transformers' formula, whose gradient autograd takes through the clamp.
    clamped = lambda x, p, n: formulas.xielu(x, p, n, eps=-1e-3)  # noqa: E731
    function = lambda x, p, n: xt.xielu(x, p, n, eps=-1e-3, eps_gradient="autograd")  # noqa: E731
    check_all(*run(function, clamped, [x], [p, n]), [p, n], size[0] + 3e-3, size[1])
    y, exact = xt.xielu(x, p, n, beta=0.25), formulas.xielu(*map(doubled, (x, p, n)), beta=0.25)
    check(y, exact, size[0], "beta as a number")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_expanded(name, dtype, alpha):
    x = values((3, 41), dtype).requires_grad_()
    scalars = [scalar(alpha, torch.float32)]
    exact = lambda x, a: formulas.expanded(name, x, a)  # noqa: E731
    y, got, y64, want = run(getattr(xt, name), exact, [x], scalars)
    check_all(y, got, y64, want, scalars, *expanded_terms(x, alpha))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("alpha", ALPHAS[:4])
def test_gated(name, dtype, order, alpha):
    x, v = (values((6, 21), dtype, seed=seed).requires_grad_() for seed in (1, 2))
    scalars = [scalar(alpha, torch.float32)]
    function = getattr(xt, f"{name}_gated")
    exact = lambda x, v, a: formulas.gated(name, x, v, a, order)  # noqa: E731
    f, df = expanded_terms(x, alpha)
    gate = torch.full_like(f, 1 + 2 * abs(alpha)) if order == 1 else f
    v64 = v.detach().double().abs()
    y, got, y64, want = run(lambda x, v, a: function(x, v, a, order=order), exact, [x, v], scalars)
    check_all(y, got, y64, want, scalars, gate * v64, df * (1 + v64))
    for value_first in (False, True):
        halves = [v, x] if value_first else [x, v]
        packed = torch.cat(halves, dim=-1).detach().requires_grad_()
        a = scalars[0].detach().clone().requires_grad_()
        whole = function(packed=packed, alpha=a, order=order, value_first=value_first)
        assert torch.equal(whole, y)
        dpacked, da = torch.autograd.grad(whole.sum(), [packed, a])
        dfirst, dsecond = dpacked.chunk(2, -1)
        dx, dv = (dsecond, dfirst) if value_first else (dfirst, dsecond)
        assert torch.equal(dx, got[0]) and torch.equal(dv, got[1])
        # The rows are divided into other chunks than one long row is.
        torch.testing.assert_close(da, got[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [1, 8, 32])
@pytest.mark.parametrize("contiguous", [True, False])
def test_blocks(name, dtype, block, contiguous):
    """Gate and value that alternate have the results of separate tensors, also in rows with a pitch."""
    x, v, dy = (values((6, 64), dtype, seed=seed) for seed in (1, 2, 3))
    alpha = torch.tensor([0.25], requires_grad=True)
    function = getattr(xt, f"{name}_gated")

    def step(y, tensors):
        return y, *torch.autograd.grad(y, [*tensors, alpha], dy)

    x, v = x.requires_grad_(), v.requires_grad_()
    for order in (1, 2):
        y, dx, dv, dalpha = step(function(x, v, alpha, order=order), [x, v])
        for value_first in (False, True):

            def join(x, v):
                blocks = [each.detach().unflatten(-1, (-1, block)) for each in ((v, x) if value_first else (x, v))]
                return torch.stack(blocks, dim=-2).flatten(-3)

            packed = join(x, v)
            if not contiguous:
                packed = torch.cat([packed, packed[:, :5]], dim=-1)[:, :128]
            packed.requires_grad_()
            whole = function(packed=packed, alpha=alpha, order=order, value_first=value_first, block=block)
            got, dpacked, da = step(whole, [packed])
            assert torch.equal(got, y) and torch.equal(dpacked, join(dx, dv))
            torch.testing.assert_close(da, dalpha, rtol=1e-5, atol=1e-4)


def test_value_first():
    """[[3, 1]] is (value, gate): 3·σ(1)."""
    packed = torch.tensor([[3.0, 1.0]], requires_grad=True)
    y = xt.xsilu_gated(packed=packed, alpha=torch.zeros(1), value_first=True)
    (dpacked,) = torch.autograd.grad(y, packed, torch.ones_like(y))
    torch.testing.assert_close(y, torch.tensor([[2.1931758]]))
    torch.testing.assert_close(dpacked, torch.tensor([[0.7310586, 0.5898358]]))


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1),
    "every other column": lambda x: x[..., ::2],
    "every other row": lambda x: x[::2],
    "offset": lambda x: x.flatten()[1:],
    "a slice of the columns": lambda x: x[..., 1:5],
    "expanded": lambda x: x[:1].expand(4, *x.shape[1:]),
    "one number, expanded": lambda x: x[:1, :1, :1].expand(3, 2, 5),
    "no dimensions": lambda x: x[0, 0, 0],
    "empty": lambda x: x[:0],
    "empty rows": lambda x: x[..., :0],
    "reversed": lambda x: x.flip(-1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    """A view gives the same results as its contiguous copy, for every tensor of a call."""
    view = LAYOUTS[layout]
    alpha = torch.tensor([0.25], requires_grad=True)
    make = lambda seed: view(values((4, 6, 8), dtype, seed=seed))  # noqa: E731
    x, v, dy = make(1), make(2), make(3)

    def step(function, tensors, dy):
        tensors = [each.detach().requires_grad_() for each in tensors]
        y = function(*tensors, alpha)
        return y, *torch.autograd.grad(y, [*tensors, alpha], dy)

    for function in (xt.xsilu, lambda x, a: xt.xielu(x, a, a)):
        for got, want in zip(step(function, [x], dy), step(function, [x.contiguous()], dy.contiguous())):
            assert got.shape == want.shape and got.is_contiguous()
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
    got = step(xt.xatlu_gated, [x, v], dy)
    for got, want in zip(got, step(xt.xatlu_gated, [x.contiguous(), v.contiguous()], dy.contiguous())):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_views_are_not_copied(monkeypatch):
    """Rows with a pitch are passed to the library without a copy."""
    from xact.torch import _device

    seen = []
    matrix = _device.matrix
    monkeypatch.setattr("xact.torch._activation.matrix", lambda t, rows: seen.append(t.data_ptr()) or matrix(t, rows))
    x = values((8, 64))
    xt.xsilu(x[:, 16:48], torch.zeros(1))
    assert x.data_ptr() + 16 * 4 in seen


def test_upstream_gradient_of_stride_0():
    x = values((33,)).requires_grad_()
    alpha = torch.zeros(1, requires_grad=True)
    xt.xgelu(x, alpha).sum().backward()
    (want,) = torch.autograd.grad(xt.xgelu(x, alpha), x, torch.ones(33))
    assert torch.equal(x.grad, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scalars_of_either_type(dtype):
    x = values((64,), dtype).requires_grad_()
    for shape in ((1,), (), (1, 1)):
        for kind in (torch.float32, dtype):
            p, n = (scalar(0.5, kind, shape) for _ in range(2))
            dx, dp, dn = torch.autograd.grad(xt.xielu(x, p, n).sum(), [x, p, n])
            assert dx.dtype == dtype and dp.dtype == dn.dtype == kind and dp.shape == dn.shape == shape
    p, n = scalar(0.5, torch.float32), scalar(0.5, dtype)
    dp, dn = torch.autograd.grad(xt.xielu(x, p, n).sum(), [p, n])
    assert dp.dtype == torch.float32 and dn.dtype == dtype


def test_only_what_is_asked_for():
    x, alpha = values((9,)), torch.zeros(1, requires_grad=True)
    xt.xatlu(x, alpha).sum().backward()
    assert alpha.grad is not None and x.grad is None
    x = values((9,)).requires_grad_()
    xt.xatlu(x, torch.zeros(1)).sum().backward()
    assert x.grad is not None


def test_in_place():
    alpha = torch.full((1,), 0.25)
    for function, in_place in (
        (lambda x: xt.xsilu(x, alpha), lambda x: xt.xsilu_(x, alpha)),
        (lambda x: xt.xielu(x, alpha, alpha), lambda x: xt.xielu_(x, alpha, alpha)),
    ):
        for view in LAYOUTS.values():
            x = view(values((4, 6, 8))).clone(memory_format=torch.preserve_format)
            want, version = function(x.clone()), x._version
            assert in_place(x) is x and torch.equal(x, want)
            assert x._version > version


def test_in_place_is_noticed_by_autograd():
    """The tensor that sigmoid has saved is overwritten, so PyTorch must raise an error."""
    x = values((9,)).requires_grad_()
    y = torch.sigmoid(x)
    with torch.no_grad():
        xt.xsilu_(y, torch.zeros(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="xsilu_ has no derivative"):
        xt.xsilu_(x, torch.zeros(1))
    with pytest.raises(RuntimeError, match="xielu_ has no derivative"):
        xt.xielu_(values((9,)), torch.zeros(1), torch.zeros(1), beta=torch.tensor(0.5, requires_grad=True))


def test_second_derivatives_are_refused():
    x = values((9,)).requires_grad_()
    alpha = torch.zeros(1, requires_grad=True)
    for y in (xt.xsilu(x, alpha), xt.xielu(x, alpha, alpha), xt.xgelu_gated(x, x, alpha)):
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            dx.sum().backward()


def test_forward_derivatives_are_refused():
    """Without the check, PyTorch would silently drop the tangent, or leave that of x unchanged."""
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        x, alpha = (forward_ad.make_dual(each, torch.ones_like(each)) for each in (values((9,)), torch.zeros(1)))
        for call in (
            lambda: xt.xsilu(x, torch.zeros(1)),
            lambda: xt.xsilu(values((9,)), alpha),
            lambda: xt.xsilu_(x, torch.zeros(1)),
            lambda: xt.cross_entropy(x[None], torch.tensor([1])),
        ):
            with pytest.raises(RuntimeError, match="no forward derivatives"):
                call()
        # Tensors that are not dual are accepted at that level too.
        assert torch.equal(xt.xsilu(values((9,)), torch.zeros(1)), xt.xsilu(values((9,)), torch.zeros(1)))
    with pytest.raises(RuntimeError, match="no forward derivatives"):
        torch.func.jvp(lambda x: xt.xsilu(x, torch.zeros(1)), (values((9,)),), (torch.ones(9),))


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    x = values((64,)).requires_grad_()
    alpha = torch.zeros(1, requires_grad=True)
    want = torch.autograd.grad(xt.xsilu(x, alpha).sum(), [x, alpha])
    y = checkpoint(lambda x: xt.xsilu(x, alpha), x, use_reentrant=False)
    for got, want in zip(torch.autograd.grad(y.sum(), [x, alpha]), want):
        assert torch.equal(got, want)


def test_autocast():
    """x keeps the type that autocast gave it, and the scalar is f32."""
    linear, alpha = torch.nn.Linear(8, 8), torch.zeros(1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = xt.xsilu(linear(values((4, 8))), alpha)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert alpha.grad.dtype == torch.float32 and linear.weight.grad is not None


def test_gradients_by_differences():
    """The gradients of x and of every scalar in f32, compared with central differences of the f64 formula."""
    x = values((7,)).requires_grad_()
    for p, n in XIELU[:1]:
        scalars = [scalar(p, torch.float32), scalar(n, torch.float32)]
        got = torch.autograd.grad(xt.xielu(x, *scalars).sum(), [x, *scalars])
        inputs = [doubled(each) for each in (x, *scalars)]
        assert torch.autograd.gradcheck(lambda *a: formulas.xielu(*a).sum(), inputs)
        want = torch.autograd.grad(formulas.xielu(*inputs).sum(), inputs)
        for got, want in zip(got, want):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    for name in NAMES:
        alpha = scalar(0.25, torch.float32)
        got = torch.autograd.grad(getattr(xt, name)(x, alpha).sum(), [x, alpha])
        inputs = [doubled(each) for each in (x, alpha)]
        assert torch.autograd.gradcheck(lambda *a: formulas.expanded(name, *a).sum(), inputs)
        want = torch.autograd.grad(formulas.expanded(name, *inputs).sum(), inputs)
        for got, want in zip(got, want):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
