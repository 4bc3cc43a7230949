"""The loss compared with PyTorch's in f64: every option, reduction and layout, and the statistics."""

import gc

import formulas
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DTYPES, check, values

import xact
import xact.torch as xt

N, V = 12, 50


def batch(dtype=torch.float32, n=N, v=V, masked=True):
    logits = values((n, v), dtype)
    labels = torch.arange(n) * 7 % v
    if masked:
        labels[::5] = -100
    return logits.requires_grad_(), labels


def exact(logits, labels, divide, dloss=None, **options):
    """The reduced loss, or the losses, and the gradient, in f64."""
    logits = logits.detach().double().requires_grad_()
    losses, counts = formulas.cross_entropy(logits, labels, **options)
    loss = losses if divide is None else losses.sum() / divide(counts)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss) if dloss is None else dloss.double())
    return loss, gradient, counts


OPTIONS = [
    dict(),
    dict(label_smoothing=0.1),
    dict(z_loss=1e-2),
    dict(softcap=5.0),
    dict(vocab=43),
    dict(label_smoothing=0.2, z_loss=1e-3, softcap=3.0, vocab=47),
    dict(ignore_index=7),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "none")
def test_options(dtype, options):
    logits, labels = batch(dtype)
    labels = labels % options.get("vocab", V)
    labels[::5] = options.get("ignore_index", -100)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0)) - 0.2
    weights[1] = 0
    for given in ({}, {"weights": weights}):
        for reduction, divide in (
            ("mean", lambda counts: counts.sum()),
            ("sum", lambda counts: 1),
            ("none", None),
        ):
            loss = xt.cross_entropy(logits, labels, reduction=reduction, **given, **options)
            want, gradient, _ = exact(logits, labels, divide, **given, **options)
            assert loss.dtype == torch.float32
            check(loss, want, torch.full_like(want, 8.0), f"{reduction}: the loss", f32_ulps=4)
            dloss = torch.ones_like(loss)
            (got,) = torch.autograd.grad(loss, logits, dloss)
            check(got, gradient, torch.ones_like(gradient), f"{reduction}: the gradient", f32_ulps=4)


def test_as_pytorch():
    """If PyTorch has the option, the same call gives the same number."""
    logits, labels = batch()
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.3):
            torch.testing.assert_close(
                xt.cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing),
                F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing),
            )


def test_normalizers():
    logits, labels = batch()
    weights = torch.tensor([1.0, 0.0, -1.0, 0.5] * 3)
    losses, counts = formulas.cross_entropy(logits.detach().double(), labels, weights=weights)
    divisors = {
        "kept": counts.sum(),
        "labels": (labels != -100).sum(),
        "weight": weights[counts].double().sum(),
        7: 7,
        7.5: 7.5,
        np.float32(6.5): 6.5,
        np.int64(6): 6,
        torch.tensor(9.0): 9,
        torch.tensor([9]): 9,
    }
    for normalizer, divisor in divisors.items():
        loss, stats = xt.cross_entropy(logits, labels, weights=weights, normalizer=normalizer, return_stats=True)
        check(loss, losses.sum() / divisor, losses.abs().sum() / divisor, f"{normalizer}")
        torch.testing.assert_close(stats.normalizer.double(), torch.as_tensor(divisor).double().reshape(()))
        (gradient,) = torch.autograd.grad(loss, logits)
        exact_gradient = exact(logits, labels, lambda _: divisor, weights=weights)[1]  # noqa: B023
        check(gradient, exact_gradient, torch.ones_like(gradient).double(), f"{normalizer}")


def test_upstream_gradients():
    logits, labels = batch()
    upstream = torch.linspace(-2, 2, N)
    loss = xt.cross_entropy(logits, labels, reduction="none")
    (got,) = torch.autograd.grad(loss, logits, upstream, retain_graph=True)
    check(got, exact(logits, labels, None, upstream)[1], torch.full((N, V), 2.0).double(), "per row")
    # The gradient of a sum has stride 0, and that of a view of another tensor has another stride.
    (got,) = torch.autograd.grad(loss.sum() * 3, logits, retain_graph=True)
    check(got, 3 * exact(logits, labels, None)[1], torch.full((N, V), 3.0).double(), "of a sum")
    (got,) = torch.autograd.grad(loss, logits, torch.stack([upstream, upstream], 1)[:, 0])
    check(got, exact(logits, labels, None, upstream)[1], torch.full((N, V), 2.0).double(), "strided")
    mean = xt.cross_entropy(logits, labels)
    (got,) = torch.autograd.grad(mean * -0.5, logits)
    check(got, -0.5 * exact(logits, labels, lambda c: c.sum())[1], torch.ones(N, V).double(), "of a mean")


def test_without_gradient():
    logits, labels = batch()
    want = xt.cross_entropy(logits, labels)
    with torch.no_grad():
        loss = xt.cross_entropy(logits, labels)
    assert not loss.requires_grad and torch.equal(loss, want.detach())
    assert not xt.cross_entropy(logits.detach(), labels).requires_grad


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint32])
def test_labels(kind):
    logits, labels = batch(masked=False)
    assert torch.equal(xt.cross_entropy(logits, labels.to(kind)), xt.cross_entropy(logits, labels))


def test_shapes():
    """Logits [B, T, V], views with two pitches, and empty tensors."""
    logits = values((3, 5, V)).requires_grad_()
    labels = torch.arange(15).reshape(3, 5)
    loss = xt.cross_entropy(logits, labels, reduction="none")
    assert loss.shape == (3, 5)
    flat = xt.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert torch.equal(loss.flatten(), flat)
    for view, shifted in (
        (logits[:, :-1], labels[:, 1:]),
        (logits[..., 3:], labels),
        (logits.transpose(0, 1), labels.T),
        (logits[..., ::2], labels),
    ):
        loss = xt.cross_entropy(view, shifted)
        want = xt.cross_entropy(view.contiguous(), shifted.contiguous())
        assert torch.equal(loss, want)
        got, want = (torch.autograd.grad(each, logits)[0] for each in (loss, want))
        assert torch.equal(got, want)
    one = xt.cross_entropy(logits[0, 0], labels[0, 0])
    torch.testing.assert_close(one, F.cross_entropy(logits[0, 0], labels[0, 0]))
    for n in (0,):
        empty, none = values((n, V)).requires_grad_(), torch.zeros(n, dtype=torch.int64)
        loss = xt.cross_entropy(empty, none)
        assert loss == 0 and torch.autograd.grad(loss, empty)[0].shape == (n, V)
        assert xt.cross_entropy(empty, none, reduction="none").shape == (n,)


def test_logits_with_two_pitches_are_not_copied(monkeypatch):
    from xact.torch import _layout

    monkeypatch.setattr(_layout.Tensor, "contiguous", lambda self: pytest.fail("copied"))
    logits = values((3, 5, V))
    assert _layout.grouped(logits[:, :-1]).data_ptr() == logits.data_ptr()


def test_all_rows_masked():
    logits, _ = batch()
    labels = torch.full((N,), -100)
    with torch.no_grad():
        logits[3, 3] = float("nan")
    loss, stats = xt.cross_entropy(logits, labels, return_stats=True)
    assert loss == 0 and stats.kept == 0 and stats.labels == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(N, V))


def test_goldfish():
    logits, labels = batch(n=200)
    ids = torch.randint(0, 1000, (200,), generator=torch.Generator().manual_seed(0))
    goldfish = xact.Goldfish(k=4, h=5)
    offsets = torch.tensor([0, 70, 200], dtype=torch.int32)
    preceding, halo, halos = torch.tensor([1, 30]), ids[50:54], ids[50:58].view(2, 4)
    for given, keep in (
        (dict(hash_ids=ids), goldfish.mask(ids)),
        (dict(hash_ids=ids, cu_seqlens=offsets), goldfish.mask(ids, offsets)),
        (dict(hash_ids=ids, halo=halo), goldfish.mask(ids, halo=halo)),
        (
            dict(hash_ids=ids, cu_seqlens=offsets, preceding=preceding, halo=halos),
            goldfish.mask(ids, offsets, preceding=preceding, halo=halos),
        ),
        (dict(), goldfish.mask(labels)),
    ):
        loss, stats = xt.cross_entropy(logits, labels, goldfish=goldfish, return_stats=True, **given)
        want, gradient, counts = exact(logits, labels, lambda c: c.sum(), keep=keep)
        check(loss, want, want.new_tensor(40), "the loss")
        check(torch.autograd.grad(loss, logits)[0], gradient, torch.ones_like(gradient), "the gradient")
        assert stats.kept == counts.sum() and stats.kept + stats.dropped == (labels != -100).sum()
    # The columns of [s, b] are separate texts.
    shape = (50, 4)
    got = xt.cross_entropy(
        logits.view(50, 4, V),
        labels.view(shape),
        goldfish=goldfish,
        hash_ids=ids.view(shape),
        halo=ids[:8].view(2, 4),
        seq_dim=0,
        reduction="none",
    )
    keep = goldfish.mask(ids.view(shape), halo=ids[:8].view(2, 4), seq_dim=0)
    assert torch.equal(got != 0, keep & (labels != -100).view(shape))
    # The rows of a batch are separate texts.
    shape = (4, 50)
    got = xt.cross_entropy(
        logits.view(4, 50, V), labels.view(shape), goldfish=goldfish, hash_ids=ids.view(shape), reduction="none"
    )
    assert torch.equal(got != 0, goldfish.mask(ids.view(shape)) & (labels != -100).view(shape))


def test_goldfish_that_is_gone_is_found_again():
    """The backward works after the caller has deleted the strategy with its table."""
    logits, labels = batch()
    table = np.random.default_rng(0).random(1000003, dtype=np.float32)
    for make in (lambda: xact.Goldfish(k=2, h=2, seed=12345), lambda: xact.Goldfish("product-table", table=table)):
        loss = xt.cross_entropy(logits, labels, goldfish=make())
        gc.collect()
        loss.backward()


def test_stats():
    logits, labels = batch()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0))
    loss, stats = xt.cross_entropy(logits, labels, weights=weights, z_loss=1e-2, return_stats=True)
    kept = labels != -100
    x = logits.detach()
    lse = torch.where(kept, x.logsumexp(-1), 0)
    torch.testing.assert_close(stats.lse, lse)
    torch.testing.assert_close(stats.z_loss, torch.where(kept, weights * 1e-2 * lse**2, 0))
    torch.testing.assert_close(stats.loss, xt.cross_entropy(x, labels, weights=weights, z_loss=1e-2, reduction="none"))
    assert torch.equal(stats.argmax, torch.where(kept, x.argmax(-1), -1).int())
    torch.testing.assert_close(stats.total, stats.loss.sum())
    torch.testing.assert_close(stats.weight, weights[kept].sum())
    assert stats.labels == stats.kept == kept.sum() and stats.dropped == 0
    assert stats.correct == (x.argmax(-1) == labels).sum()
    assert stats.bad_row == -1 and stats.nan_row == -1
    assert all(not each.requires_grad for each in stats)
    with torch.no_grad():
        logits[4, 2] = float("nan")
    assert xt.cross_entropy(logits, labels, return_stats=True)[1].nan_row == 4


BAD = [
    (lambda x, y: xt.cross_entropy([1.0], y), TypeError, "logits is a list"),
    (lambda x, y: xt.cross_entropy(x.double(), y), TypeError, "float64"),
    (lambda x, y: xt.cross_entropy(x, y.double()), TypeError, "labels is float64"),
    (lambda x, y: xt.cross_entropy(x, y.to(torch.uint8)), TypeError, "labels is uint8"),
    (lambda x, y: xt.cross_entropy(x, y.to_sparse()), TypeError, "labels has the layout torch.sparse_coo"),
    (lambda x, y: xt.cross_entropy(x, y[:-1]), ValueError, "labels must be"),
    (lambda x, y: xt.cross_entropy(x, y.to("meta")), ValueError, "labels is on meta"),
    (lambda x, y: xt.cross_entropy(x, y, weights=torch.ones(3)), ValueError, "weights is"),
    (lambda x, y: xt.cross_entropy(x, y, weights=torch.ones(N).double()), TypeError, "weights is float64"),
    (lambda x, y: xt.cross_entropy(x, y, reduction="median"), ValueError, "reduction is 'median'"),
    (lambda x, y: xt.cross_entropy(x, y, normalizer="rows"), ValueError, "normalizer is 'rows'"),
    (lambda x, y: xt.cross_entropy(x, y, normalizer=3.0, reduction="sum"), TypeError, "leave it out"),
    (lambda x, y: xt.cross_entropy(x, y, normalizer=torch.ones(2)), ValueError, "one element"),
    (lambda x, y: xt.cross_entropy(x, y, normalizer=torch.tensor(1j)), TypeError, "normalizer is complex64"),
    (lambda x, y: xt.cross_entropy(x, y, normalizer=1j), TypeError, "normalizer is a complex"),
    (
        lambda x, y: xt.cross_entropy(x, y, ignore_index=1.5),
        TypeError,
        "ignore_index is 1.5; it must be a whole number",
    ),
    (lambda x, y: xt.cross_entropy(x, y, ignore_index=None), TypeError, "ignore_index is None"),
    (lambda x, y: xt.cross_entropy(x, y, ignore_index=2**63), ValueError, "ignore_index is 9223372036854775808"),
    (lambda x, y: xt.cross_entropy(x, y, vocab=5.5), TypeError, "vocab is 5.5; it must be a whole number"),
    (lambda x, y: xt.cross_entropy(x, y, label_smoothing="0.1"), TypeError, "label_smoothing is a str"),
    (lambda x, y: xt.cross_entropy(x, y, z_loss=None), TypeError, "z_loss is a NoneType; it must be a number"),
    (lambda x, y: xt.cross_entropy(x, y, softcap="a"), TypeError, "softcap is a str"),
    (lambda x, y: xt.cross_entropy(x, y, hash_ids=y), TypeError, "without goldfish"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish="hash64"), TypeError, "goldfish is a str"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish=xact.Goldfish(), hash_ids=y[1:]), ValueError, "hash_ids is"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish=xact.Goldfish(), cu_seqlens=y), TypeError, "cu_seqlens is int64"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish=xact.Goldfish(), preceding=y), TypeError, "without cu_seqlens"),
    (lambda x, y: xt.cross_entropy(x, y, preceding=y), TypeError, "preceding is given without goldfish"),
    (lambda x, y: xt.cross_entropy(x, y, halo=y), TypeError, "halo is given without goldfish"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish=xact.Goldfish(), halo=3), TypeError, "halo is a int"),
    (lambda x, y: xt.cross_entropy(x, y, goldfish=xact.Goldfish(), halo=y.int()), TypeError, "halo is torch.int32"),
    (lambda x, y: xt.cross_entropy(x, y, seq_dim=1), ValueError, "seq_dim is 1"),
    (lambda x, y: xt.cross_entropy(x, y, label_smoothing=1.5), ValueError, "label_smoothing is 1.5"),
    (lambda x, y: xt.cross_entropy(x, y, label_smoothing=float("nan")), ValueError, "label_smoothing"),
    (lambda x, y: xt.cross_entropy(x, y, z_loss=-1.0), ValueError, "z_loss"),
    (lambda x, y: xt.cross_entropy(x, y, softcap=-1.0), ValueError, "softcap"),
    (lambda x, y: xt.cross_entropy(x, y, softcap=0.0), ValueError, "softcap"),
    (lambda x, y: xt.cross_entropy(x, y, vocab=V + 1), ValueError, "vocab|columns|class"),
    (lambda x, y: xt.cross_entropy(x, y, vocab=0), ValueError, "vocab"),
    (lambda x, y: xt.cross_entropy(x, y, vocab=-3), ValueError, "vocab"),
    (lambda x, y: xt.cross_entropy(x[:, :0], y), ValueError, "class"),
    (lambda x, y: xt.cross_entropy(x, y + V), ValueError, r"labels\[0\] is 50"),
    (lambda x, y: xt.cross_entropy(x, y - 1), ValueError, r"labels\[0\] is -1"),
]


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_bad_input(call, error, text):
    logits, labels = batch(masked=False)
    with pytest.raises(error, match=text):
        call(logits, labels)
