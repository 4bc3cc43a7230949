"""The code for CUDA tensors, without a GPU. The tensors report a CUDA device. A replacement for the library records its
arguments, and then computes on the host, where the memory of those tensors really is."""

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NAMES, values

import xact
import xact.torch as xt
from xact import _abi
from xact import _library as native


class Recorder:
    """Replaces the library: its device functions check and record their arguments, and call the host functions."""

    def __init__(self, real):
        self._real = real
        self.calls = []
        self.opened = []
        self.loaded = []

    def __getattr__(self, name):
        twin = getattr(self._real, f"{name}_host", None)
        return getattr(self._real, name) if twin is None else lambda *a: self._launch(name, twin, *a)

    def xact_device_open(self, ordinal, address):
        self.opened.append(ordinal)
        ctypes.c_void_p.from_address(address).value = 0xD0 + ordinal
        return _abi.XACT_OK

    def xact_device_preload(self, device, name):
        self.loaded.append((device, name))
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
# Fields with addresses of host memory: arrays of pointers, handles and structs.
OF_THE_HOST = ("params", "dparams", "decision", "goldfish")


def check_addresses(struct):
    """Every other address must be in device memory."""
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
    """The memory of all existing tensors, which counts as device memory here."""
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor) and each.numel():
            try:
                start = each.untyped_storage().data_ptr()
            except RuntimeError:
                continue  # a FakeTensor that tests of the compiler left
            yield start, start + each.untyped_storage().nbytes()


class Stream:
    def __init__(self, handle):
        self.cuda_stream = handle


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder(native.library())
    made.streams = iter(range(0x1000, 0x2000))
    made.asked = []
    # Whether all tensors report the CUDA device.
    made.on = True

    def current_stream(device):
        made.asked.append((device.index, next(made.streams)))
        return Stream(made.asked[-1][1])

    cpu = torch.device("cpu")
    monkeypatch.setattr(native, "library", lambda: made)
    monkeypatch.setattr(native, "_devices", {})
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: made.on))
    monkeypatch.setattr(torch.Tensor, "device", property(lambda _: torch.device("cuda", 1) if made.on else cpu))
    made_anywhere = ("full", "ones", "zeros", "arange", "as_tensor")
    for owner, name in (*((torch, name) for name in made_anywhere), (torch.Tensor, "to")):

        def at_home(*arguments, real=getattr(owner, name), device=None, **options):
            return real(*(each for each in arguments if not isinstance(each, torch.device)), **options)

        monkeypatch.setattr(owner, name, at_home)
    return made


def functions():
    yield "xielu", 1, lambda x, a: xt.xielu(x, a, a)
    for name in NAMES:
        yield name, 1, getattr(xt, name)
        yield f"{name}_gated", 2, getattr(xt, f"{name}_gated")
        yield f"{name}_gated, packed", 1, lambda x, a, f=getattr(xt, f"{name}_gated"): f(packed=x, alpha=a)


@pytest.mark.parametrize("name, count, function", list(functions()))
def test_activations(recorder, name, count, function):
    tensors = [*(values((4, 6), seed=seed) for seed in range(count)), torch.full((1,), 0.25)]

    def step():
        inputs = [each.clone().requires_grad_() for each in tensors]
        y = function(*inputs)
        return y, *torch.autograd.grad(y.sum(), inputs)

    got = step()
    (forward, *first, _), (backward, *second, args) = recorder.calls
    assert (forward, backward) == ("xact_activation_forward", "xact_activation_backward")
    # Each call asks for the current stream of the tensor's device, and of no other device.
    assert first == [0xD1, 0x1000] and second == [0xD1, 0x1001] and recorder.asked == [(1, 0x1000), (1, 0x1001)]
    assert recorder.opened == [1]
    assert args.workspace_bytes == 24 and args.workspace is not None and args.dparam_count == args.param_count
    recorder.on = False
    for got, want in zip(got, step()):
        assert torch.equal(got, want)
    assert len(recorder.calls) == 2, "tensors of the CPU go to no device"


def test_without_sums_there_is_no_workspace(recorder):
    x = values((9,)).requires_grad_()
    xt.xsilu(x, torch.zeros(1)).sum().backward()
    *_, args = recorder.calls[-1]
    assert args.dparams is None and args.workspace is None and args.workspace_bytes == 0


@pytest.mark.parametrize("strategy", ["hash64", "product-table", "dot-table"])
def test_cross_entropy(recorder, strategy):
    goldfish = xact.Goldfish(strategy, k=3, h=2)
    logits, labels = values((40, 16)), torch.arange(40) * 7 % 16
    offsets = torch.tensor([0, 11, 40], dtype=torch.int32)
    weights = torch.rand(40)

    def step():
        x = logits.clone().requires_grad_()
        loss, stats = xt.cross_entropy(
            x, labels, weights=weights, goldfish=goldfish, hash_ids=labels, cu_seqlens=offsets, return_stats=True
        )
        (gradient,) = torch.autograd.grad(loss * 3, x)
        return loss, gradient, stats.kept, stats.lse

    got = step()
    names = [name for name, *_ in recorder.calls]
    assert names == ["xact_cross_entropy_forward", "xact_cross_entropy_backward"]
    assert [(device, stream) for _, device, stream, _ in recorder.calls] == [(0xD1, 0x1000), (0xD1, 0x1001)]
    assert recorder.calls[0][3].workspace_bytes == 48
    recorder.on = False
    for got, want in zip(got, step()):
        assert torch.equal(got, want)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy(recorder, listed, reduction):
    """PyTorch's products, and the loss of the library on the logits of each chunk."""
    goldfish = xact.Goldfish(k=3, h=2)
    hidden, weight, labels = values((40, 8)), values((16, 8), scale=0.5), torch.arange(40) * 7 % 16
    labels[::6] = -100
    keep = (goldfish.mask(labels) & (labels != -100)).nonzero().flatten()
    kept_rows = torch.cat([keep.flip(0), torch.tensor([-1, -1])]) if listed else None
    weights, recorder.calls = torch.rand(40), []
    weights[keep[0]] = 0

    def step():
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, stats = xt.linear_cross_entropy(
            x,
            w,
            labels,
            weights=weights,
            goldfish=goldfish,
            vocab=15,
            reduction=reduction,
            kept_rows=kept_rows,
            chunk_rows=13,
            z_loss=1e-3,
            return_stats=True,
        )
        dloss = torch.arange(1, 1 + loss.numel()).view(loss.shape).float()
        return loss, *torch.autograd.grad(loss, (x, w), dloss), stats.kept, stats.dropped, stats.lse, stats.argmax

    labels[labels == 15] = 3
    got = step()
    names = [name for name, *_ in recorder.calls]
    chunks = -(-(40 if kept_rows is None else kept_rows.numel()) // 13)
    forward = "xact_cross_entropy_forward" + "_with_gradient" * (reduction == "mean")
    finish = "xact_cross_entropy_finish"
    backward = [] if reduction == "mean" else ["xact_goldfish_mask", *["xact_cross_entropy_backward"] * chunks]
    assert names == ["xact_goldfish_mask", finish, *[forward] * chunks, finish, *backward]
    recorder.on = False
    for got, want in zip(got, step()):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)


def test_a_divisor_is_read_on_the_device(recorder):
    logits, labels = values((3, 8)).requires_grad_(), torch.tensor([1, 5, 2])
    for normalizer in (3.0, torch.tensor([3.0])):
        xt.cross_entropy(logits, labels, normalizer=normalizer).backward()
        assert all(args.normalizer is not None for *_, args in recorder.calls[-2:])


def test_bad_labels_are_no_error_on_a_device(recorder):
    """The host does not wait for results of the device."""
    loss, stats = xt.cross_entropy(values((3, 8)), torch.tensor([1, 8, 2]), return_stats=True, reduction="none")
    assert stats.bad_row == 1 and loss.isnan().tolist() == [False, True, False]


def test_mask(recorder):
    goldfish = xact.Goldfish("dot-table", k=3, h=4)
    ids = torch.arange(200)
    got = goldfish.mask(ids, exempt=[3, 4])
    assert [each[:3] for each in recorder.calls] == [("xact_goldfish_mask", 0xD1, 0x1000)]
    recorder.on = False
    assert torch.equal(got, goldfish.mask(ids, exempt=[3, 4]))
    assert goldfish.to(torch.device("cuda", 1)) is goldfish


def test_in_place(recorder):
    x = values((9,))
    y = xt.xsilu_(x, torch.zeros(1))
    (_, _, _, args) = recorder.calls[0]
    assert y is x and args.x.ptr == args.y.ptr == x.data_ptr()


def test_preload(recorder):
    for device in (1, "cuda:1", torch.device("cuda", 1)):
        xact.preload(device)
    xact.preload(0, "xielu")
    assert recorder.loaded == [(0xD1, None)] * 3 + [(0xD0, b"xielu")]
    with pytest.raises(RuntimeError, match="cpu is no CUDA device"):
        xact.preload("cpu")


class OnDevice(torch.Tensor):
    """A tensor that reports a CUDA device to Python code."""

    is_cuda = True
    device = torch.device("cuda", 1)


def test_tensors_on_several_devices():
    x, alpha = values((9,)).as_subclass(OnDevice), torch.zeros(1)
    with pytest.raises(ValueError, match="alpha is on cpu, but x is on cuda:1"):
        xt.xsilu(x, alpha)


@pytest.mark.skipif(xact.kernels() is None, reason="there is a driver")
def test_without_a_driver():
    """The error for a device that does not exist says what to do."""
    x, alpha = values((9,)).as_subclass(OnDevice), torch.zeros(1).as_subclass(OnDevice)
    with pytest.raises(RuntimeError, match="driver|kernels"):
        xt.xsilu(x, alpha)


def test_importing_touches_no_device():
    """A child that is forked after cuInit can never use CUDA."""
    assert not torch.cuda.is_initialized()


def test_the_checks_of_a_device_run_without_one():
    """The GPU kit runs tests/device.py, which must pass on the CPU, so that a failure on a GPU is not its own error."""
    script = Path(__file__).with_name("device.py")
    done = subprocess.run([sys.executable, script, "--device", "cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"checked with PyTorch {torch.__version__}: 4 passed; " in done.stdout
