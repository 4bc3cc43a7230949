"""Large results on the CPU are in memory of ours, which is used again only when no tensor is left in it."""

import gc
import io
import os
import threading

import pytest
import torch

import xact.torch as xt
from xact.torch import _memory

# Elements of f32, twice the bytes from which results are kept.
LARGE = 2 * _memory.LEAST // 4


@pytest.fixture(autouse=True)
def nothing_waits():
    gc.collect()
    _memory._waiting.clear()


def result(n=LARGE, value=1.0):
    return xt.xsilu(torch.full((n,), value), torch.zeros(1))


def is_of(y, value):
    """Whether all elements of y are what ``result`` gives for the value."""
    return torch.equal(y, result(1, value).expand_as(y))


def waiting():
    return sum(map(len, _memory._waiting))


def test_memory_is_used_again_once_its_tensor_is_gone():
    y = result()
    at = y.data_ptr()
    del y
    assert waiting() >= LARGE * 4
    again = result(value=2.0)
    assert again.data_ptr() == at and waiting() == 0
    assert is_of(again, 2.0)


@pytest.mark.parametrize("keep", [lambda y: y[5:7], lambda y: y.numpy(), lambda y: y.untyped_storage()])
def test_memory_is_not_used_again_while_somebody_has_a_part_of_it(keep):
    y = result()
    at, kept = y.data_ptr(), keep(y)
    del y
    other = result(value=3.0)
    assert other.data_ptr() != at and waiting() == 0
    del kept
    assert waiting() > 0


def test_live_results_do_not_share_memory():
    results = [result(value=float(i)) for i in range(8)]
    assert len({y.data_ptr() for y in results}) == 8
    for i, y in enumerate(results):
        assert is_of(y, float(i)), i


def test_what_a_backward_saved_is_kept():
    x = torch.randn(LARGE, requires_grad=True)
    y = xt.xsilu(x, torch.zeros(1))
    loss = (y * y).sum()  # the product saves y
    expected = (2 * y * torch.autograd.functional.vjp(torch.nn.functional.silu, x, torch.ones(LARGE))[1]).detach()
    del y
    result(value=7.0)  # would overwrite y
    loss.backward()
    torch.testing.assert_close(x.grad, expected)


def test_waiting_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(_memory, "KEPT", 3 * LARGE * 4)
    results = [result(LARGE + i * LARGE // 8) for i in range(8)]
    del results
    assert 0 < waiting() <= _memory.KEPT


def test_small_results_and_other_shapes():
    assert xt.xsilu(torch.zeros(16), torch.zeros(1)).untyped_storage().nbytes() == 64
    y = xt.xsilu(torch.ones(3, LARGE // 2).t(), torch.zeros(1))
    assert y.shape == (LARGE // 2, 3) and y.is_contiguous()
    assert xt.xsilu(torch.ones(LARGE, dtype=torch.bfloat16), torch.zeros(1)).dtype == torch.bfloat16


def test_results_can_be_saved_and_shared():
    y = result()
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file), y)
    assert torch.equal(y.clone().share_memory_(), y)
    assert y.share_memory_().is_shared()


def test_threads_do_not_get_the_same_memory():
    wrong = []

    def work(value):
        for _ in range(20):
            y, z = result(value=value), result(value=-value)
            if not (is_of(y, value) and z.data_ptr() != y.data_ptr()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i + 1),)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_memory_of_its_own():
    live, dead = result(value=1.0), result(value=2.0)
    at = dead.data_ptr()
    del dead  # waits in both processes
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        mine = _memory.contiguous_like(live)
        # A small part: PyTorch's own threads do not exist here.
        mine[:8], live[:8] = 9.0, 9.0
        os.write(write, b"y" if mine.data_ptr() == at else b"n")
        os._exit(0)
    assert os.read(read, 1) == b"y"
    os.waitpid(child, 0)
    mine = _memory.contiguous_like(live)
    assert mine.data_ptr() == at and not (mine[:8] == 9.0).any() and not (live[:8] == 9.0).any()


def test_the_storage_of_a_large_result_says_that_it_cannot_be_resized():
    with pytest.raises(RuntimeError, match="not resizable"):
        result().untyped_storage().resize_(0)
