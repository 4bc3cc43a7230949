"""The head compared with PyTorch's product and loss in f64: options, reductions, layouts, lists of kept rows, chunks."""

import formulas
import pytest
import torch
from conftest import DTYPES, values

import xact
import xact.torch as xt

N, H, V = 30, 20, 50


def batch(dtype=torch.float32, n=N, masked=True):
    hidden = values((n, H), dtype, scale=1.0).requires_grad_()
    weight = values((V, H), dtype, scale=0.4, seed=1).requires_grad_()
    labels = torch.arange(n) * 7 % V
    if masked:
        labels[::5] = -100
    return hidden, weight, labels


def exact(hidden, weight, labels, divide, dloss=None, **options):
    """The reduced loss, or the losses, and the gradients, in f64."""
    tensors = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    losses, counts = formulas.cross_entropy(tensors[0] @ tensors[1].T, labels, **options)
    loss = losses if divide is None else losses.sum() / divide(counts)
    return loss, *torch.autograd.grad(loss, tensors, torch.ones_like(loss) if dloss is None else dloss.double())


def near(got, want, dtype=torch.float32, chunks=1):
    """Within the sums of f32, and a rounding of the type for each chunk, relative to the largest element."""
    size = want.abs().max()
    steps = 1e-6 + (0 if dtype == torch.float32 else (chunks + 1) * torch.finfo(dtype).eps)
    assert got.dtype == dtype and (got.double() - want).abs().max() <= steps * size


OPTIONS = [
    dict(),
    dict(label_smoothing=0.2, z_loss=1e-3, softcap=3.0, vocab=47),
    dict(ignore_index=7),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "none")
def test_options(dtype, options):
    hidden, weight, labels = batch(dtype)
    labels = labels % options.get("vocab", V)
    labels[::5] = options.get("ignore_index", -100)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0)) - 0.2
    weights[1] = 0
    for reduction, divide in (("mean", lambda counts: counts.sum()), ("sum", lambda counts: 1), ("none", None)):
        loss = xt.linear_cross_entropy(
            hidden, weight, labels, reduction=reduction, weights=weights, chunk_rows=9, **options
        )
        dloss = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1))
        want, *gradients = exact(hidden, weight, labels, divide, dloss, weights=weights, **options)
        torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=1e-5)
        for got, gradient in zip(torch.autograd.grad(loss, (hidden, weight), dloss), gradients):
            near(got, gradient, dtype, chunks=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_cross_entropy(dtype):
    """The statistics are those of the loss of whole logits, and neither the chunks nor the list of kept rows matter."""
    hidden, weight, labels = batch(dtype)
    goldfish = xact.Goldfish(k=3, h=2)
    ids = torch.arange(N) * 7 % V
    options = dict(goldfish=goldfish, hash_ids=ids, return_stats=True)
    loss, stats = xt.linear_cross_entropy(hidden, weight, labels, **options)
    logits = hidden.float() @ weight.float().T
    want, theirs = xt.cross_entropy(logits, labels, **options)
    torch.testing.assert_close(loss, want)
    for name in ("labels", "kept", "dropped", "correct", "bad_row", "nan_row", "normalizer", "weight"):
        assert getattr(stats, name) == getattr(theirs, name), name
    assert stats.dropped > 0
    torch.testing.assert_close(stats.loss, theirs.loss)
    assert torch.equal(stats.argmax, theirs.argmax)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    kept = (goldfish.mask(ids) & (labels != -100)).flatten().nonzero().flatten()
    assert kept.numel() == stats.kept
    more = torch.cat([kept.flip(0), torch.tensor([-1, -1])])
    for chunk_rows in (None, 4):
        for list_ in (None, kept, more.int()):
            got, of_list = xt.linear_cross_entropy(
                hidden, weight, labels, kept_rows=list_, chunk_rows=chunk_rows, **options
            )
            assert torch.equal(got, loss) and torch.equal(of_list.lse, stats.lse)
            assert of_list.kept == stats.kept
            for each, other in zip(torch.autograd.grad(got, (hidden, weight)), gradients):
                near(each, other.double(), dtype, chunks=9)
    # Without Goldfish, the list itself is the mask.
    got = xt.linear_cross_entropy(hidden, weight, labels, kept_rows=kept)
    assert torch.equal(got, loss)
    none = xt.linear_cross_entropy(hidden, weight, labels, kept_rows=kept[:0])
    assert none == 0 and all((g == 0).all() for g in torch.autograd.grad(none, (hidden, weight)))


def test_which_gradients_are_computed():
    hidden, weight, labels = batch()
    both = torch.autograd.grad(xt.linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    for frozen in (0, 1):
        tensors = [hidden, weight]
        tensors[frozen] = tensors[frozen].detach()
        (got,) = torch.autograd.grad(xt.linear_cross_entropy(*tensors, labels), tensors[1 - frozen])
        assert torch.equal(got, both[1 - frozen])
    with torch.no_grad():
        loss = xt.linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    # A graph that is kept gives the same gradients twice.
    loss = xt.linear_cross_entropy(hidden, weight, labels)
    for _ in range(2):
        for got, want in zip(torch.autograd.grad(loss * 4, (hidden, weight), retain_graph=True), both):
            assert torch.equal(got, want * 4)
    checkpointed = torch.utils.checkpoint.checkpoint(
        lambda x, w: xt.linear_cross_entropy(x, w, labels), hidden, weight, use_reentrant=False
    )
    for got, want in zip(torch.autograd.grad(checkpointed, (hidden, weight)), both):
        assert torch.equal(got, want)


def test_a_loss_scale_reaches_f16():
    """With the scale, the gradients do not underflow."""
    hidden, weight, labels = batch(torch.float16)
    scale = 2.0**-20
    small = xt.linear_cross_entropy(hidden, weight, labels, normalizer=1 / scale)
    want = exact(hidden, weight, labels, lambda _: 1 / scale, torch.tensor(65536.0))[1:]
    for got, want in zip(torch.autograd.grad(small * 65536, (hidden, weight)), want):
        near(got, want, torch.float16)


def test_layouts():
    hidden, weight, labels = batch()
    want = xt.linear_cross_entropy(hidden, weight, labels)
    wide = torch.zeros(V, H + 3)
    wide[:, :H] = weight.detach()
    assert torch.equal(xt.linear_cross_entropy(hidden, wide[:, :H], labels), want)
    sequences = torch.zeros(3, 11, H)
    sequences[:, :-1] = hidden.detach().view(3, 10, H)
    view = sequences[:, :-1]
    for kind in (torch.int64, torch.int32):
        got = xt.linear_cross_entropy(view, weight, labels.view(3, 10).to(kind))
        assert torch.equal(got, want)
    assert torch.equal(xt.linear_cross_entropy(hidden.t().contiguous().t(), weight, labels), want)
    none = xt.linear_cross_entropy(hidden[:0], weight, labels[:0])
    assert none == 0 and (torch.autograd.grad(none, weight)[0] == 0).all()


def test_autocast():
    hidden, weight, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = xt.linear_cross_entropy(hidden, weight, labels)
    want = xt.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels)
    assert torch.equal(loss, want)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, (hidden, weight)))


BAD = [
    (lambda x, w, y: xt.linear_cross_entropy(x, w.T, y), ValueError, r"they must be \[\.\.\., H\] and \[V, H\]"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w[0], y), ValueError, "they must be"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w.bfloat16(), y), TypeError, "weight is bfloat16"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w[:0], y), ValueError, "at least one class"),
    (lambda x, w, y: xt.linear_cross_entropy(x[:, :0], w[:, :0], y), ValueError, "at least one column"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y[1:]), ValueError, "labels must be"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, vocab=V + 1), ValueError, "the rows of weight"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, bias=w[:, 0]), TypeError, "bias"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, logits="bf16"), ValueError, "logits is 'bf16'"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, max_bytes=1000), ValueError, "max_bytes is 1000"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, max_bytes=0), ValueError, "max_bytes is 0"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, chunk_rows=0), ValueError, "chunk_rows is 0"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=y.float()), TypeError, "kept_rows is float32"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=y[None]), ValueError, r"it must be \[K\]"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=torch.tensor([1, 1])), ValueError, "twice"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=torch.tensor([N])), ValueError, "from 0 to 29"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=torch.tensor([2**32])), ValueError, "from 0 to 29"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y, kept_rows=torch.tensor([-2])), ValueError, "from 0 to 29"),
    (lambda x, w, y: xt.linear_cross_entropy(x, w, y + V), ValueError, r"labels\[0\] is 50"),
]


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call(*batch(masked=False))
