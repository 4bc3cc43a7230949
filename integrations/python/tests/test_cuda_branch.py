"""What is done with CUDA tensors, without a GPU: tensors that say they are on a device, and a library that writes down
what it is given and then computes on the host, whose memory those tensors really are."""

import ctypes
import gc

import pytest
import torch
from conftest import NAMES, values

import xact
import xact.torch as xt
from xact import _abi
from xact import _library as native


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    ordinal = 1
    is_cuda = True
    device = property(lambda self: torch.device("cuda", self.ordinal))


def on_device(tensor):
    return tensor.detach().as_subclass(OnDevice)


class Recorder:
    """Stands in for the library: its device functions check and note their arguments, and do what their twins do."""

    def __init__(self, real):
        self._real = real
        self.calls = []
        self.opened = []

    def __getattr__(self, name):
        twin = getattr(self._real, f"{name}_host", None)
        return getattr(self._real, name) if twin is None else lambda *a: self._launch(name, twin, *a)

    def xact_device_open(self, ordinal, address):
        self.opened.append(ordinal)
        ctypes.c_void_p.from_address(address).value = 0xD0 + ordinal
        return _abi.XACT_OK

    def xact_activation_workspace_bytes(self, *arguments):
        return self._bytes(arguments[-1], 24)

    def xact_cross_entropy_workspace_bytes(self, *arguments):
        return self._bytes(arguments[-1], 48)

    def _bytes(self, address, size):
        ctypes.c_uint64.from_address(address).value = size
        return _abi.XACT_OK

    def _launch(self, name, twin, device, stream, *arguments):
        kind = next(kind for prefix, kind in ARGS.items() if name.startswith(prefix))
        args = kind.from_buffer_copy(ctypes.string_at(arguments[-1], ctypes.sizeof(kind)))
        self.calls.append((name, device, stream, args))
        check_addresses(args)
        return twin(*arguments)


ARGS = {
    "xact_activation": _abi.xact_activation_args,
    "xact_cross_entropy": _abi.xact_cross_entropy_args,
    "xact_goldfish": _abi.xact_goldfish_args,
}
# Addresses in the structs that are of host memory: arrays of pointers, handles and structs.
OF_THE_HOST = ("params", "dparams", "decision", "goldfish")


def check_addresses(struct):
    """Every address must be that of memory of the device."""
    for field, kind in struct._fields_:
        value = getattr(struct, field)
        if field == "decision" and value is not None:
            check_addresses(_abi.xact_decision.from_address(value))
        if isinstance(value, ctypes.Structure):
            check_addresses(value)
        elif kind is ctypes.c_void_p and value is not None and field not in OF_THE_HOST:
            assert any(low <= value < high for low, high in device_memory()), f"{field} is no memory of the device"
    if isinstance(struct, _abi.xact_activation_args):
        for array, count in ((struct.params, struct.param_count), (struct.dparams, struct.dparam_count)):
            for value in (ctypes.c_void_p * count).from_address(array) if array else ():
                assert any(low <= value < high for low, high in device_memory()), "a scalar is not on the device"


def device_memory():
    """The memory of the tensors that say they are on the device."""
    for each in gc.get_objects():
        if type(each) is OnDevice and each.numel():
            start = each.untyped_storage().data_ptr()
            yield start, start + each.untyped_storage().nbytes()


class Stream:
    def __init__(self, handle):
        self.cuda_stream = handle


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder(native.library())
    made.streams = iter(range(0x1000, 0x2000))
    made.asked = []

    def current_stream(device):
        made.asked.append((device.index, next(made.streams)))
        return Stream(made.asked[-1][1])

    monkeypatch.setattr(native, "library", lambda: made)
    monkeypatch.setattr(native, "_devices", {})
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    to = torch.Tensor.to

    def moved(self, *a, **k):
        target = a[0] if a else k.get("device")
        return on_device(self) if getattr(target, "type", None) == "cuda" else to(self, *a, **k)

    monkeypatch.setattr(torch.Tensor, "to", moved)
    return made


def functions():
    yield "xielu", 1, lambda x, a: xt.xielu(x, a, a)
    for name in NAMES:
        yield name, 1, getattr(xt, name)
        yield f"{name}_gated", 2, getattr(xt, f"{name}_gated")
        yield f"{name}_gated, packed", 1, lambda x, a, f=getattr(xt, f"{name}_gated"): f(packed=x, alpha=a)


@pytest.mark.parametrize(
    "name, count, function", list(functions()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_activations(recorder, name, count, function):
    tensors = [values((4, 6), seed=seed) for seed in range(count)]
    alpha = torch.full((1,), 0.25)

    def step(make):
        inputs = [make(each).requires_grad_() for each in (*tensors, alpha)]
        y = function(*inputs)
        return y, torch.autograd.grad(y.sum(), inputs)

    y, gradients = step(on_device)
    (forward, *first, _), (backward, *second, args) = recorder.calls
    assert (forward, backward) == ("xact_activation_forward", "xact_activation_backward")
    # Each call asks anew for the stream of the tensor's device, and for no other device.
    assert first == [0xD1, 0x1000] and second == [0xD1, 0x1001] and recorder.asked == [(1, 0x1000), (1, 0x1001)]
    assert recorder.opened == [1]
    assert args.workspace_bytes == 24 and args.workspace is not None and args.dparam_count == args.param_count
    assert type(y) is OnDevice
    y_cpu, gradients_cpu = step(lambda each: each.clone())
    assert len(recorder.calls) == 2, "tensors of the CPU go to no device"
    assert torch.equal(torch.Tensor(y), y_cpu)
    for got, want in zip(gradients, gradients_cpu):
        assert torch.equal(torch.Tensor(got), want)


def test_without_sums_there_is_no_workspace(recorder):
    x = on_device(values((9,))).requires_grad_()
    xt.xsilu(x, on_device(torch.zeros(1))).sum().backward()
    *_, args = recorder.calls[-1]
    assert args.dparams is None and args.workspace is None and args.workspace_bytes == 0


@pytest.mark.parametrize("strategy", ["hash64", "product-table", "dot-table"])
def test_cross_entropy(recorder, strategy):
    goldfish = xact.Goldfish(strategy, k=3, h=2)
    logits, labels = values((40, 16)), torch.arange(40) * 7 % 16
    offsets = torch.tensor([0, 11, 40], dtype=torch.int32)
    weights = torch.rand(40)

    def step(make):
        x = make(logits.clone()).requires_grad_()
        ids = make(labels)
        loss, stats = xt.cross_entropy(
            x, ids, weights=make(weights), goldfish=goldfish, hash_ids=ids, cu_seqlens=make(offsets), return_stats=True
        )
        (gradient,) = torch.autograd.grad(loss * 3, x)
        return loss, gradient, stats.kept, stats.lse

    got = step(on_device)
    names = [name for name, *_ in recorder.calls]
    assert names == ["xact_cross_entropy_forward", "xact_cross_entropy_backward"]
    assert [(device, stream) for _, device, stream, _ in recorder.calls] == [(0xD1, 0x1000), (0xD1, 0x1001)]
    assert recorder.calls[0][3].workspace_bytes == 48
    for got, want in zip(got, step(lambda each: each)):
        assert torch.equal(torch.Tensor(got), want)


def test_bad_labels_are_no_error_on_a_device(recorder):
    """The host does not wait for what the device finds out."""
    loss, stats = xt.cross_entropy(
        on_device(values((3, 8))), on_device(torch.tensor([1, 8, 2])), return_stats=True, reduction="none"
    )
    assert stats.bad_row == 1 and loss.isnan().tolist() == [False, True, False]


def test_mask(recorder):
    goldfish = xact.Goldfish("dot-table", k=3, h=4)
    ids = torch.arange(200)
    got = goldfish.mask(on_device(ids), exempt=[3, 4])
    assert type(got) is OnDevice and [each[:3] for each in recorder.calls] == [("xact_goldfish_mask", 0xD1, 0x1000)]
    assert torch.equal(torch.Tensor(got).bool(), goldfish.mask(ids, exempt=[3, 4]))
    assert goldfish.to(torch.device("cuda", 1)) is goldfish


def test_in_place(recorder):
    x = on_device(values((9,)))
    y = xt.xsilu_(x, on_device(torch.zeros(1)))
    (_, _, _, args) = recorder.calls[0]
    assert y is x and args.x.ptr == args.y.ptr == x.data_ptr()


def test_tensors_on_several_devices():
    x, alpha = on_device(values((9,))), torch.zeros(1)
    with pytest.raises(ValueError, match="alpha is on cpu, but x is on cuda:1"):
        xt.xsilu(x, alpha)


def test_without_a_driver():
    """Of a device that is not there the error says what to do."""
    if xact.kernels() is None:
        pytest.skip("there is a driver")
    x = on_device(values((9,)))
    with pytest.raises(RuntimeError, match="driver|kernels"):
        xt.xsilu(x, on_device(torch.zeros(1)))


def test_importing_touches_no_device():
    """A child that is forked after cuInit can never use CUDA."""
    assert not torch.cuda.is_initialized()
