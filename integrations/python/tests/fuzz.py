"""Makes random valid and invalid calls. Each must return or raise a Python exception. test_bad_input.py runs this script in
a separate process, because a crash would end it.

    python fuzz.py COUNT
"""

import sys

import numpy
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import xact
import xact.torch as xt

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
sizes = st.integers(0, 7)
shapes = st.lists(sizes, max_size=3).map(tuple)
VIEWS = [
    lambda t: t,
    lambda t: t.T if t.dim() == 2 else t,
    lambda t: t[..., ::2] if t.dim() else t,
    lambda t: t[:1].expand(3, *t.shape[1:]) if t.dim() and t.shape[0] else t,
    lambda t: t.flatten()[1:],
]


@st.composite
def tensors(draw, shape=shapes, dtypes=None):
    shape = draw(shape)
    dtype = draw(st.sampled_from(dtypes or DTYPES))
    tensor = (torch.randn(shape) * draw(st.sampled_from([1.0, 100.0, 1e30]))).to(dtype)
    tensor = draw(st.sampled_from(VIEWS))(tensor)
    if tensor.is_floating_point() and draw(st.booleans()):
        tensor.requires_grad_()
    return tensor


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=4), tensors(),
    tensors(st.just((1,))), st.just(torch.empty(3, device="meta")), st.just(numpy.arange(3)),
)  # fmt: skip
floats = tensors(dtypes=DTYPES[:3])
scalars = tensors(st.sampled_from([(1,), ()]), DTYPES[:3])
goldfish = st.builds(
    xact.Goldfish, st.sampled_from(["hash64", "random"]), st.integers(2, 5),
)  # fmt: skip


@st.composite
def either(draw, likely):
    """A value that is probably valid, or, once in ten calls, any value."""
    return draw(anything if draw(st.integers(0, 9)) == 0 else likely)


@st.composite
def losses(draw):
    rows, cols = draw(st.lists(sizes, max_size=2)), draw(sizes)
    logits = draw(either(tensors(st.just((*rows, cols)), DTYPES[:3])))
    labels = draw(either(tensors(st.just(tuple(rows)), [torch.int64, torch.int32])))
    options = {
        "weights": either(tensors(st.just(tuple(rows)), [torch.float32])),
        "ignore_index": either(st.integers(-200, 7)),
        "label_smoothing": either(st.floats(0, 1)),
        "z_loss": either(st.floats(0, 1)),
        "softcap": either(st.floats(0.1, 50)),
        "vocab": either(sizes),
        "reduction": either(st.sampled_from(["mean", "sum", "none"])),
        "normalizer": either(st.sampled_from(["kept", "labels", "weight", 3.0])),
        "goldfish": either(goldfish),
        "hash_ids": either(tensors(st.just(tuple(rows)), [torch.int64])),
        "cu_seqlens": either(tensors(st.just((3,)), [torch.int32])),
        "preceding": either(tensors(st.just((2,)), [torch.int64])),
        "halo": either(tensors(st.just((2, 2)), [torch.int64])),
        "seq_dim": either(st.sampled_from([0, -1])),
        "return_stats": st.booleans(),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(options)), max_size=5))
    return xt.cross_entropy, (logits, labels), {name: draw(options[name]) for name in chosen}


@st.composite
def activations(draw):
    name = draw(st.sampled_from(["xielu", "xielu_", "xatlu", "xgelu_", "xsilu", "xsilu_"]))
    x, *rest = draw(either(floats)), draw(either(scalars))
    options = {}
    if name.startswith("xielu"):
        rest.append(draw(either(scalars)))
        likely = {
            "beta": either(st.one_of(st.floats(-1, 1), scalars)),
            "eps": either(st.floats(-1, 0)),
            "eps_gradient": either(st.sampled_from(["analytic", "autograd"])),
            "effective": st.booleans(),
        }
        options = {each: draw(likely[each]) for each in draw(st.sets(st.sampled_from(sorted(likely)), max_size=2))}
    return getattr(xt, name), (x, *rest), options


@st.composite
def gated(draw):
    function = getattr(xt, draw(st.sampled_from(["xatlu", "xgelu", "xsilu"])) + "_gated")
    options = {}
    for name, likely in {
        "order": either(st.sampled_from([1, 2])),
        "value_first": st.booleans(),
        "block": either(st.sampled_from([1, 1, 8])),
        "packed": either(floats),
    }.items():
        if draw(st.booleans()):
            options[name] = draw(likely)
    if "packed" in options and draw(st.booleans()):
        return function, (), {"alpha": draw(either(scalars)), **options}
    shape = st.just(draw(shapes))
    x, v = (draw(either(tensors(shape, DTYPES[:2]))) for _ in range(2))
    return function, (x, v, draw(either(scalars))), options


@st.composite
def masks(draw):
    ids = draw(either(tensors(dtypes=[torch.int64, torch.int32, torch.uint8])))
    if (
        draw(st.booleans())
        and isinstance(ids, torch.Tensor)
        and ids.dtype != torch.bfloat16
        and ids.device.type == "cpu"
    ):
        ids = ids.detach().numpy()
    options = {}
    for name, likely in {
        "cu_seqlens": st.lists(st.integers(-5, 30), max_size=4).map(lambda v: numpy.array(v, dtype=numpy.int32)),
        "halo": either(st.integers(0, 4)),
        "exempt": either(st.lists(st.integers(-5, 5), max_size=3)),
        "preceding": st.lists(st.integers(-1, 9), max_size=3).map(lambda v: numpy.array(v, dtype=numpy.int64)),
        "seq_dim": either(st.sampled_from([0, -1])),
    }.items():
        if draw(st.booleans()):
            value = draw(likely)
            torch_wanted = isinstance(ids, torch.Tensor) and isinstance(value, numpy.ndarray)
            options[name] = torch.from_numpy(value) if torch_wanted else value
    return draw(goldfish).mask, (ids,), options


count = int(sys.argv[1])
outcomes = {"returned": 0, "refused": 0}


@settings(
    max_examples=count, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.one_of(losses(), activations(), gated(), masks()))
def check(call):
    function, arguments, options = call
    try:
        result = function(*arguments, **options)
        result = result[0] if isinstance(result, tuple) else result
        if isinstance(result, torch.Tensor) and result.requires_grad and result.device.type == "cpu":
            result.float().sum().backward()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        assert str(error), f"{error!r} says nothing"
        outcomes["refused"] += 1
    else:
        outcomes["returned"] += 1


check()
print(outcomes)
assert min(outcomes.values()) > count / 10, "the calls are not of both kinds"
