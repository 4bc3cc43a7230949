"""The loss of logits whose columns are spread over ranks, in up to four real processes with gloo."""

import datetime
import os
import socket
import sys
import time

import formulas
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import DTYPES, check, values

import xact
import xact.torch as xt
from xact.torch import _parallel

RANKS = 4
# The columns of the ranks of groups of one to four: even, uneven, empty.
SHARDS = {1: [(12,)], 2: [(6, 6), (1, 11), (12, 0)], 3: [(4, 4, 4), (0, 7, 5)], 4: [(3, 3, 3, 3), (1, 0, 9, 2)]}
OPTIONS = {
    "mean": {},
    "rows": {"reduction": "none"},
    "sum": {"reduction": "sum", "z_loss": 1e-2, "label_smoothing": 0.1, "softcap": 5.0},
    "padded": {"vocab": 9},
    "normalizer": {"normalizer": 7.0},
    "goldfish": {"goldfish": xact.Goldfish(k=2, h=2)},
    "weights": {"weights": torch.linspace(0, 2, 15).view(3, 5), "normalizer": "weight"},
}


def start(work, ranks=RANKS, timeout=60):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (work, port, ranks, timeout), nprocs=ranks)


def _start(rank, work, port, ranks, timeout):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=timeout))
    work(rank)
    sys.stdout.flush()
    # As in test_ranks.py: static objects are not destroyed while threads of PyTorch still run.
    os._exit(0)


def exact(logits, labels, options):
    """The loss and the gradient of whole logits in f64."""
    logits = logits.detach().double().requires_grad_()
    names = ("weights", "z_loss", "label_smoothing", "softcap", "vocab")
    given = {name: options[name] for name in names if name in options}
    goldfish = options.get("goldfish")
    rows, kept = formulas.cross_entropy(logits, labels, goldfish and goldfish.mask(labels), **given)
    if options.get("reduction") == "none":
        loss = rows.view(labels.shape)
    elif options.get("reduction") == "sum":
        loss = rows.sum()
    else:
        divisor = options.get("normalizer", kept.sum())
        if divisor == "weight":
            divisor = options["weights"].flatten()[kept].double().sum()
        loss = rows.sum() / divisor
    return loss, torch.autograd.grad((loss * upstream(loss)).sum(), logits)[0]


def upstream(loss):
    """A gradient of the loss that differs from row to row."""
    return torch.linspace(0.5, 2, loss.numel()).view(loss.shape).to(loss.dtype)


def in_turn(logits, labels, columns, options):
    """The loss of the same shards in one process, which finishes their statistics in the order of the ranks."""
    given = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": None, "reduction": "mean"}
    given |= dict.fromkeys(("weights", "normalizer", "goldfish", "hash_ids", "cu_seqlens", "preceding", "halo"))
    given |= {"vocab": None, "seq_dim": -1} | options
    tokens, numbers, divisor, vocab = xt._rank_arguments(logits, labels, **given)
    shards = [_parallel.Shard(list(columns), vocab, rank) for rank in range(len(columns))]
    parts = [each.contiguous() for each in logits.detach().split(columns, -1)]
    saved = [_parallel.partial(part, labels, tokens, numbers, shard) for part, shard in zip(parts, shards)]
    gathered = torch.stack([each for each, shard in zip(saved, shards) if shard.classes])
    per_row = options.get("reduction") == "none"
    loss, _ = _parallel.finish(gathered, parts[0], labels, tokens, numbers, divisor, shards[0], per_row)
    return loss.view(labels.shape) if per_row else loss


def compared(rank):
    """All options, types and shards, in groups of the first one, two, three and four ranks."""
    # Every rank takes part in the creation of every group.
    groups = {size: dist.new_group(list(range(size))) for size in SHARDS}
    labels = torch.arange(15).view(3, 5) % 9
    labels[0, 1] = labels[2, 4] = -100
    for size, all_columns in SHARDS.items():
        if rank >= size:
            with pytest.raises(RuntimeError, match="this process is not in the group"):
                xt.vocab_parallel_cross_entropy(values((3, 5, 2)), labels, group=groups[size])
            continue
        for columns in all_columns:
            for dtype in DTYPES:
                logits = values((3, 5, 12), dtype)
                for name, options in OPTIONS.items():
                    what = f"{size} ranks, {columns}, {dtype}, {name}"
                    shard = logits.split(columns, -1)[rank].clone().requires_grad_()
                    loss = xt.vocab_parallel_cross_entropy(shard, labels, group=groups[size], **options)
                    assert torch.equal(loss, in_turn(logits, labels, columns, options)), what
                    want, gradient = exact(logits, labels, options)
                    # The largest terms: logits and lse up to 10, weights up to 2, and the sum of 15 rows.
                    terms = 10.0 * {"sum": 15, "rows": 1}.get(name, 2)
                    check(loss, want, torch.full_like(want, terms), what)
                    (loss * upstream(loss)).sum().backward()
                    mine = gradient.split(columns, -1)[rank]
                    check(shard.grad, mine, torch.full_like(mine, 4.0), what)
                    every = [torch.empty_like(loss) for _ in range(size)]
                    dist.all_gather(every, loss.detach(), group=groups[size])
                    assert all(torch.equal(each, loss) for each in every), what
    empty = torch.empty(0, 3, requires_grad=True)
    loss = xt.vocab_parallel_cross_entropy(empty, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and empty.grad.shape == (0, 3)
    masked = torch.full((5, 3), float("nan"), requires_grad=True)
    loss = xt.vocab_parallel_cross_entropy(masked, torch.full((5,), -100))
    loss.backward()
    assert loss == 0 and not masked.grad.any()
    dist.barrier()


def chunks(rank):
    """Goldfish of a part of a text is that of the whole text, for windows shorter and longer than the parts of the ranks."""
    for length in (2, 6, 40):
        for order, pieces in (("contiguous", 1), ("zigzag", 2)):
            whole = torch.randint(50, (3, RANKS * pieces * length), generator=torch.Generator().manual_seed(length))
            cut = whole.view(3, -1, length)
            mine = cut[:, [rank, 2 * RANKS - 1 - rank][:pieces]].flatten(1)
            where = torch.arange(whole.shape[1]).view(-1, length)[[rank, 2 * RANKS - 1 - rank][:pieces]].flatten()
            documents = torch.tensor([0, 1, length, length + 3, 3 * length + 1, whole.shape[1]], dtype=torch.int32)
            for goldfish in (
                xact.Goldfish(k=2, h=1),
                xact.Goldfish(k=2, h=13),
                xact.Goldfish("product-table", k=3, h=4),
                xact.Goldfish("static", k=3),
            ):
                for dtype in (torch.int64, torch.uint16):
                    got = goldfish.mask(
                        mine.to(dtype), **xt.context_parallel_chunks(mine.to(dtype), goldfish, order=order)
                    )
                    assert torch.equal(got, goldfish.mask(whole)[:, where]), (length, order, goldfish)
                packed = xt.context_parallel_chunks(mine[0], goldfish, order=order, cu_seqlens=documents)
                want = goldfish.mask(whole[0], documents)[where]
                assert torch.equal(goldfish.mask(mine[0], **packed), want), (length, order, goldfish)
                # The same in a loss, whose divisor is the kept labels of all ranks.
                logits = values((len(where), 50)).requires_grad_()
                total = want.sum()
                dist.all_reduce(total)
                loss = xt.cross_entropy(logits, mine[0], goldfish=goldfish, normalizer=total, **packed)
                rows, _ = formulas.cross_entropy(logits.double(), mine[0], want)
                torch.testing.assert_close(loss.double(), rows.sum() / total, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="a multiple of 2"):
        xt.context_parallel_chunks(torch.arange(5), goldfish, order="zigzag")
    with pytest.raises(ValueError, match="order is 'ring'"):
        xt.context_parallel_chunks(torch.arange(4), goldfish, order="ring")
    with pytest.raises(ValueError, match=r"the ranks have \[rows, T, pieces\] \[\[1, 4, 1\], \[1, 5, 1\]"):
        xt.context_parallel_chunks(torch.arange(4 + rank), xact.Goldfish("static"))
    dist.barrier()


def refused(rank):
    """Every rank gets the error, so none waits for another."""
    labels = torch.arange(6)
    call = xt.vocab_parallel_cross_entropy
    with pytest.raises(ValueError, match=r"rows \[6, 5\]; give every rank the same"):
        call(values((6 - rank, 4)), labels[: 6 - rank])
    with pytest.raises(ValueError, match=r"vocab \[8, 7\]"):
        call(values((6, 4)), labels, vocab=8 - rank)
    with pytest.raises(ValueError, match=r"vocab is 9, and the ranks have \[4, 4\] columns"):
        call(values((6, 4)), labels, vocab=9)
    with pytest.raises(ValueError, match=r"labels\[5\] is 8, which is neither one of 8 classes"):
        call(values((6, 4)), torch.tensor([0, 1, 2, 3, 4, 8]))
    with pytest.raises(ValueError, match="labels must be"):
        call(values((6, 4)), labels[:5])
    counted = []
    gather = dist.all_gather_into_tensor
    dist.all_gather_into_tensor = lambda *tensors, **more: counted.append(tensors[1].nbytes) or gather(*tensors, **more)
    for _ in range(3):
        call(values((6, 5)), labels)
    dist.all_gather_into_tensor = gather
    assert counted == [24, 120, 120, 120], "the check of a shape once, then 20 bytes per row"
    dist.barrier()


def left_alone(rank):
    """A rank dies after the first call; the other gets an error, at the latest after the timeout."""
    logits, labels = values((6, 4)), torch.arange(6)
    xt.vocab_parallel_cross_entropy(logits, labels)
    if rank == 1:
        os._exit(0)
    begun = time.monotonic()
    with pytest.raises(RuntimeError):
        for _ in range(1000):
            xt.vocab_parallel_cross_entropy(logits, labels)
    assert time.monotonic() - begun < 20


def apart(rank):
    """One rank repeats a shape that was compared, the other has a new one, so that their collectives do not fit."""
    labels = torch.arange(6)
    xt.vocab_parallel_cross_entropy(values((6, 4)), labels)
    for _ in range(2):
        xt.vocab_parallel_cross_entropy(values((6 - rank, 4)), labels[: 6 - rank])


def test_losses_are_those_of_one_process_bit_for_bit():
    start(compared)


def test_goldfish_of_a_text_that_is_spread_over_ranks():
    start(chunks)


def test_ranks_that_disagree_get_errors_and_shapes_are_compared_once():
    start(refused, ranks=2)


def test_a_rank_that_is_left_alone_gets_an_error():
    start(left_alone, ranks=2, timeout=5)


def test_ranks_that_come_apart_do_not_hang():
    """gloo even ends such a process, with a message."""
    begun = time.monotonic()
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        start(apart, ranks=2, timeout=5)
    assert time.monotonic() - begun < 30


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="torch.distributed has no process group; call"):
        xt.vocab_parallel_cross_entropy(values((6, 4)), torch.arange(6) % 4)
