"""Goldfish masks of arrays and tensors, compared with the official ones, in worker processes, and with bad input."""

import json
import pickle

import numpy as np
import pytest

import xact

torch = pytest.importorskip("torch")

STRATEGIES = [
    dict(strategy="static", k=3, start=1),
    dict(strategy="random", k=4, seed=2**64 - 1),
    dict(strategy="product-table", k=4, h=13),
    dict(strategy="product-avalanche", k=4, h=13),
    dict(strategy="dot-table", k=50, h=50),
    dict(strategy="hash64", k=4, h=13, seed=7),
]


def make(options):
    options = dict(options)
    h = options.pop("h", None)
    return xact.Goldfish(**options, **({} if h is None else {"h": h}))


def test_continued_document():
    """One document 31…46, k 2, h 3: the decisions for the whole document, and for chunks with a halo."""
    goldfish = xact.Goldfish(k=2, h=3)
    ids = np.arange(31, 47)
    whole = goldfish.mask(ids)
    assert "".join(str(int(keep)) for keep in whole) == "1110010100111000"
    assert np.array_equal(goldfish.mask(ids[2:8], halo=2), whole[4:8])
    assert np.array_equal(goldfish.mask(ids[4:8][None], halo=ids[2:4][None])[0], whole[4:8])


def both(goldfish, ids, **given):
    """The mask of arrays, which that of tensors must equal."""
    keep = goldfish.mask(ids, **given)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    assert np.array_equal(goldfish.mask(torch.from_numpy(ids), **tensors).numpy(), keep)
    return keep


def test_chunks_in_zig_zag_order():
    """The same document in four chunks: rank 0 has the first and the last, and rank 1 the others."""
    goldfish = xact.Goldfish(k=2, h=3)
    ids = np.arange(31, 47)
    offsets = np.array([0, 4, 8], dtype=np.int32)
    for chunks, want in (((0, 12), "11101000"), ((4, 8), "01010011")):
        text = np.concatenate([ids[c : c + 4] for c in chunks])
        # Before the first chunk of the document there are no ids, so any will do.
        halo = np.array([ids[c - 2 : c] if c else [7, 7] for c in chunks])
        preceding = np.array(chunks)
        given = dict(cu_seqlens=offsets, preceding=preceding, halo=halo)
        assert "".join(str(int(keep)) for keep in both(goldfish, text, **given)) == want
        # The chunks of two rows of text, as [2, 8] and as [8, 2].
        offsets2 = np.array([0, 4, 8, 12, 16], dtype=np.int32)
        given = dict(cu_seqlens=offsets2, preceding=np.tile(preceding, 2), halo=np.tile(halo, (2, 1)))
        rows = both(goldfish, np.stack([text, text]), **given)
        assert ["".join(str(int(keep)) for keep in row) for row in rows] == [want, want]
        columns = both(goldfish, np.stack([text, text], axis=1), seq_dim=0, **given)
        assert np.array_equal(columns, rows.T)


@pytest.mark.parametrize("options", STRATEGIES, ids=lambda o: o["strategy"])
def test_columns_are_decided_as_rows(options):
    goldfish = make(options)
    ids = np.random.default_rng(2).integers(0, 5000, (3, 2, 40))
    columns = np.ascontiguousarray(np.moveaxis(ids, -1, 0))
    as_columns = lambda keep: np.moveaxis(keep, -1, 0)  # noqa: E731
    assert np.array_equal(both(goldfish, columns, seq_dim=0), as_columns(goldfish.mask(ids)))
    assert np.array_equal(both(goldfish, columns, seq_dim=0, halo=12), as_columns(goldfish.mask(ids, halo=12)))
    got = both(goldfish, columns[12:], seq_dim=0, halo=columns[:12])
    assert np.array_equal(got, as_columns(goldfish.mask(ids, halo=12)))
    # A single dimension is both the first and the last.
    assert np.array_equal(both(goldfish, ids[0, 0], seq_dim=0), goldfish.mask(ids[0, 0]))
    offsets = np.array([0, 10, 40], dtype=np.int32)
    got = both(goldfish, columns[:, 0, :1], seq_dim=0, cu_seqlens=offsets)
    assert np.array_equal(got[:, 0], goldfish.mask(ids[0, 0], offsets))
    assert both(goldfish, columns[:0], seq_dim=0).shape == (0, 3, 2)


@pytest.mark.parametrize("options", STRATEGIES, ids=lambda o: o["strategy"])
def test_arrays_and_tensors_alike(options):
    goldfish = make(options)
    ids = np.random.default_rng(0).integers(0, 50000, (3, 200))
    want = goldfish.mask(ids)
    assert want.dtype == bool and want.shape == ids.shape and 0 < want.sum() < want.size
    for dtype in ("int64", "int32", "uint32", "uint16"):
        assert np.array_equal(goldfish.mask(ids.astype(dtype)), want)
        tensor = torch.from_numpy(ids.astype(dtype))
        got = goldfish.mask(tensor)
        assert got.dtype == torch.bool and np.array_equal(got.numpy(), want)
    assert np.array_equal(goldfish.mask(np.asfortranarray(ids)), want)
    assert np.array_equal(goldfish.mask(torch.from_numpy(ids.T.copy()).T).numpy(), want)


def test_against_the_official_masks(golden):
    recorded = json.loads((golden / "goldfish.json").read_text())
    names = {
        "hash-table": "product-table",
        "hash-avalanche": "product-avalanche",
        "swissai-moe-dot": "dot-table",
        "static": "static",
    }
    for case in recorded["mask_cases"]:
        options = {name: case[name] for name in ("k", "h", "start") if name in case}
        goldfish = xact.Goldfish(names[case["strategy"]], **options)
        keep = goldfish.mask(np.array(recorded["sequences"][case["seq"]]))
        assert np.flatnonzero(~keep).tolist() == case["dropped"], case


def test_documents_and_exempt_ids():
    goldfish = xact.Goldfish(k=2, h=4)
    ids = np.random.default_rng(1).integers(0, 9, 64)
    offsets = np.array([0, 10, 11, 40, 64], dtype=np.int32)
    want = np.concatenate([goldfish.mask(ids[a:b]) for a, b in zip(offsets, offsets[1:])])
    assert np.array_equal(goldfish.mask(ids, offsets), want)
    got = goldfish.mask(torch.from_numpy(ids)[None], torch.from_numpy(offsets))
    assert np.array_equal(got[0].numpy(), want)
    exempt = goldfish.mask(ids, exempt=[3, 5])
    assert exempt[(ids == 3) | (ids == 5)].all() and not exempt.all()
    assert np.array_equal(goldfish.mask(torch.from_numpy(ids), exempt=[3, 5]).numpy(), exempt)
    for few in ({3, 5}, (5, 3), np.array([3, 5])):
        assert np.array_equal(goldfish.mask(ids, exempt=few), exempt)
    for few in ({3, 5}, (5, 3), torch.tensor([3, 5])):
        assert np.array_equal(goldfish.mask(torch.from_numpy(ids), exempt=few).numpy(), exempt)
    for nothing in ([], set(), None):
        assert np.array_equal(goldfish.mask(ids, exempt=nothing), goldfish.mask(ids))
        assert np.array_equal(
            goldfish.mask(torch.from_numpy(ids), exempt=nothing), goldfish.mask(torch.from_numpy(ids))
        )


def test_empty():
    goldfish = xact.Goldfish()
    for shape in ((0,), (3, 0), (0, 5)):
        assert goldfish.mask(np.zeros(shape, dtype=np.int64)).shape == shape
        assert goldfish.mask(torch.zeros(shape, dtype=torch.int64)).shape == shape


def test_what_it_says_of_itself():
    goldfish = xact.Goldfish(k=4, h=5)
    assert goldfish.window == 5 and xact.Goldfish("static").window == 0
    assert abs(goldfish.dropped_share - 0.25) < 1e-9
    ids = np.random.default_rng(0).integers(0, 50000, 200_000)
    assert abs((~goldfish.mask(ids)).mean() - goldfish.dropped_share) < 0.005
    with pytest.raises(AttributeError, match="make another one"):
        goldfish.k = 5


def test_it_is_its_options():
    a, b = xact.Goldfish(seed=3), xact.Goldfish(seed=3)
    assert a == b and hash(a) == hash(b) and a != xact.Goldfish(seed=4)
    assert repr(a) == "Goldfish('hash64', k=4, h=13, seed=3)"
    ids = np.arange(1000)
    assert np.array_equal(pickle.loads(pickle.dumps(a)).mask(ids), a.mask(ids))
    table = np.random.default_rng(0).random(1000003, dtype=np.float32)
    own = xact.Goldfish("product-table", table=table)
    again = pickle.loads(pickle.dumps(own))
    assert own == again and own != xact.Goldfish("product-table")
    assert np.array_equal(again.mask(ids), own.mask(ids))
    assert not np.array_equal(own.mask(ids), xact.Goldfish("product-table").mask(ids))
    assert np.array_equal(own.mask(torch.from_numpy(ids)).numpy(), own.mask(ids))


def collate(texts):
    ids = torch.tensor(texts)
    return ids, GOLDFISH.mask(ids)


GOLDFISH = xact.Goldfish()
OFFSETS = np.array([0, 8], dtype=np.int32)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_in_workers_of_a_data_loader(method):
    """A forked child has no threads of the parent's pool, and must not wait for them."""
    texts = np.random.default_rng(0).integers(0, 9999, (64, 4096)).tolist()
    ids, keep = collate(texts)  # the pool of the parent runs
    loader = torch.utils.data.DataLoader(
        texts, batch_size=16, collate_fn=collate, num_workers=2, multiprocessing_context=method, timeout=120
    )
    parts = list(loader)
    assert torch.equal(torch.cat([part[0] for part in parts]), ids)
    assert torch.equal(torch.cat([part[1] for part in parts]), keep)


BAD = [
    (lambda: xact.Goldfish("hash46"), ValueError, "no strategy is called 'hash46'"),
    (lambda: xact.Goldfish(k=1), ValueError, "k"),
    (lambda: xact.Goldfish(h=0), ValueError, "h"),
    (lambda: xact.Goldfish(k=2.5), TypeError, "k is 2.5"),
    (lambda: xact.Goldfish(seed=-1), ValueError, "seed is -1"),
    (lambda: xact.Goldfish("static", seed=1), TypeError, "has no seed"),
    (lambda: xact.Goldfish(table=np.zeros(3, dtype=np.float32)), TypeError, "table"),
    (lambda: xact.Goldfish("product-table", table=np.zeros(3, dtype=np.float32)), ValueError, "3 elements"),
    (lambda: xact.Goldfish("product-table", table=np.zeros(1000003)), TypeError, "float64"),
    (lambda: GOLDFISH.mask([1, 2]), TypeError, "list"),
    (lambda: GOLDFISH.mask(np.zeros(3)), TypeError, "float64"),
    (lambda: GOLDFISH.mask(np.zeros(3, dtype=">i8")), TypeError, ">i8"),
    (lambda: GOLDFISH.mask(torch.zeros(3)), TypeError, "float32"),
    (lambda: GOLDFISH.mask(torch.zeros(3, dtype=torch.int8)), TypeError, "int8"),
    (lambda: GOLDFISH.mask(np.arange(9), halo=10), ValueError, "halo is 10"),
    (lambda: GOLDFISH.mask(np.arange(9), halo=1.5), TypeError, "halo"),
    (lambda: GOLDFISH.mask(np.arange(9), halo=np.arange(3, dtype=np.int32)), TypeError, "halo is int32"),
    (lambda: GOLDFISH.mask(np.arange(8).reshape(2, 4), halo=np.arange(3)), ValueError, "halo"),
    # The number of ids is right, but not the number of rows.
    (lambda: GOLDFISH.mask(np.arange(8).reshape(2, 4), halo=np.zeros((4, 1), dtype=np.int64)), ValueError, "2 rows"),
    (
        lambda: GOLDFISH.mask(torch.arange(8).reshape(2, 4), halo=torch.zeros(4, dtype=torch.int64)),
        ValueError,
        "2 rows",
    ),
    (lambda: GOLDFISH.mask(torch.arange(8), halo=torch.tensor(2)), ValueError, r"halo is \[\]"),
    (lambda: GOLDFISH.mask(torch.arange(8), halo=np.array([1, 2])), TypeError, "halo is a ndarray"),
    (lambda: GOLDFISH.mask(np.arange(8), halo=torch.tensor([1, 2])), TypeError, "halo is a Tensor"),
    (lambda: GOLDFISH.mask(np.arange(8), seq_dim=1), ValueError, "seq_dim is 1"),
    (lambda: GOLDFISH.mask(torch.arange(8), seq_dim=None), ValueError, "seq_dim is None"),
    (
        lambda: GOLDFISH.mask(np.arange(8).reshape(4, 2), seq_dim=0, halo=np.zeros((2, 1), dtype=np.int64)),
        ValueError,
        r"\[n, rows\]",
    ),
    (lambda: GOLDFISH.mask(np.arange(8), preceding=np.array([0])), TypeError, "without cu_seqlens"),
    (lambda: GOLDFISH.mask(torch.arange(8), preceding=torch.tensor([0])), TypeError, "without cu_seqlens"),
    (lambda: GOLDFISH.mask(np.arange(8), OFFSETS, preceding=np.array([0.0])), TypeError, "preceding is float64"),
    (lambda: GOLDFISH.mask(np.arange(8), OFFSETS, preceding=np.array([0, 1])), ValueError, "cu_seqlens"),
    (lambda: GOLDFISH.mask(np.arange(8), OFFSETS, preceding=np.array([-1])), ValueError, "preceding is -1"),
    (lambda: GOLDFISH.mask(np.arange(8), OFFSETS, preceding=np.array([1]), halo=3), TypeError, "own halo"),
    (
        lambda: GOLDFISH.mask(np.arange(8), OFFSETS, preceding=np.array([1]), halo=np.arange(3)),
        ValueError,
        r"\[chunks, n\]",
    ),
    (
        lambda: GOLDFISH.mask(torch.arange(8), torch.from_numpy(OFFSETS), preceding=torch.tensor([1.0])),
        TypeError,
        "preceding is float32",
    ),
    (lambda: GOLDFISH.mask(np.arange(8), exempt=[1.5]), TypeError, "exempt"),
    (lambda: GOLDFISH.mask(torch.arange(8), exempt=[1.5]), TypeError, "exempt"),
    (lambda: GOLDFISH.mask(np.arange(8), exempt="ab"), TypeError, "exempt"),
    (lambda: GOLDFISH.mask(np.arange(8), exempt=[2**70]), ValueError, "exempt"),
    (lambda: GOLDFISH.mask(np.arange(8), exempt=3), TypeError, "exempt is a int"),
    (
        lambda: GOLDFISH.mask(torch.arange(8), exempt=torch.zeros((2, 2), dtype=torch.int64)),
        ValueError,
        "one dimension",
    ),
    (lambda: GOLDFISH.mask(torch.arange(8).to_sparse()), TypeError, "ids has the layout"),
    (lambda: GOLDFISH.mask(np.arange(8).reshape(2, 4), np.array([0, 8], dtype=np.int32)), ValueError, "one row"),
    (lambda: GOLDFISH.mask(np.arange(8), np.array([0, 5, 3], dtype=np.int32)), ValueError, "cu_seqlens"),
    (lambda: GOLDFISH.mask(np.arange(8), np.array([0, 8])), TypeError, "int64"),
    (lambda: GOLDFISH.mask(torch.arange(8), torch.tensor([0, 8])), TypeError, "int64"),
    (lambda: GOLDFISH.mask(torch.arange(8), torch.tensor([[0, 8]], dtype=torch.int32)), ValueError, "one dimension"),
]


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
