"""Goldfish drops labels from the loss, depending on the ids before them."""

from __future__ import annotations

import hashlib
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Optional, Union

from . import _library as native

if TYPE_CHECKING:
    import numpy
    import torch

    Ids = Union[numpy.ndarray, torch.Tensor]

# The strategies, each with its arguments other than k.
STRATEGIES = {
    "static": ("start",),
    "random": ("seed",),
    "product-table": ("h",),
    "product-avalanche": ("h",),
    "dot-table": ("h",),
    "hash64": ("h", "seed"),
}
TABLES = ("product-table", "dot-table")

_known: "weakref.WeakValueDictionary[str, Goldfish]" = weakref.WeakValueDictionary()


class Goldfish:
    """A Goldfish strategy, which drops about one label in ``k`` from the loss.

    The strategy decides about a label from its window, the ``h`` ids that end with the label's own. A passage therefore
    loses the same labels wherever it occurs (Hans et al., "Be like a Goldfish, Don't Memorize!", arXiv 2406.10209). A label
    whose window would begin before its row or its document is kept.

    Args:
        strategy: ``"hash64"``, a 64-bit hash, is recommended. ``"product-table"`` equals the official code and Apertus v1
            bit for bit; at h = 50 many windows have the same product, often 0, so use h up to about 24. ``"dot-table"`` is
            that of Apertus' successor. Further: ``"product-avalanche"``, ``"random"`` (independent of the ids) and
            ``"static"`` (every k-th label).
        k: One label in ``k`` is dropped; at least 2.
        h: The number of ids in a window; at least 1. ``static`` and ``random`` have no window.
        seed: Another seed drops other labels; 0 to 2**64 - 1. Only ``hash64`` and ``random`` take it.
        start: The first label of each row that ``static`` drops.
        table: 1,000,003 f32 numbers instead of the table that PyTorch draws. Only the two ``-table`` strategies take it.

    Raises:
        TypeError: The strategy does not take an argument that was given, or an argument has the wrong type.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        strategy: str = "hash64",
        k: int = 4,
        h: int = 13,
        seed: int = 0,
        *,
        start: int = 0,
        table: Optional["numpy.ndarray"] = None,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"no strategy is called {strategy!r}: there are {', '.join(STRATEGIES)}")
        takes = STRATEGIES[strategy]
        for name, value, default in (("h", h, 13), ("seed", seed, 0), ("start", start, 0)):
            if name not in takes and value != default:
                raise TypeError(f"the strategy {strategy} has no {name}; leave it out")
        if table is not None and strategy not in TABLES:
            raise TypeError(f"the strategy {strategy} has no table; leave it out")
        self.strategy, self.k = strategy, _whole("k", k, 32)
        self.h, self.seed, self.start = _whole("h", h, 32), _whole("seed", seed, 64), _whole("start", start, 64)
        self._table = None if table is None else _as_table(table)
        self._native = native.Goldfish(strategy, self.k, self.h, self.seed, self.start, self._table)
        self._tables: dict[Any, tuple[Any, Any]] = {}
        self._lock = threading.Lock()
        # Operators find the object by this key. It is the same in every process, so compiled graphs can contain it.
        parts = [strategy, self.k, *(getattr(self, name) for name in takes)]
        if self._table is not None:
            parts.append(hashlib.sha256(self._table).hexdigest())
        self._key = ":".join(map(str, parts))
        _known[self._key] = self

    def __setattr__(self, name: str, value: object) -> None:
        # The library has copied the numbers, so a change here would have no effect.
        if hasattr(self, "_key"):
            raise AttributeError(f"{name} of a Goldfish cannot be changed; make another one")
        super().__setattr__(name, value)

    @property
    def window(self) -> int:
        """The number of ids in a window; 0 if the strategy does not depend on ids.

        With ``window - 1`` ids of halo, a part of a row gets the same decisions as in the whole row.
        """
        return self._native.window()

    @property
    def dropped_share(self) -> float:
        """The share of labels that the strategy drops from text without repetitions, about 1/k."""
        return self._native.dropped_share()

    @property
    def _handle(self) -> Any:
        return self._native.handle

    def __repr__(self) -> str:
        takes = "".join(f", {name}={getattr(self, name)}" for name in STRATEGIES[self.strategy])
        table = "" if self._table is None else ", table=…"
        return f"Goldfish({self.strategy!r}, k={self.k}{takes}{table})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Goldfish) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> dict[str, Any]:
        names = ("strategy", "k", *STRATEGIES[self.strategy])
        return {name: getattr(self, name) for name in names} | {"table": self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The process that unpickles makes its own handle.
        self.__init__(**state)  # type: ignore[misc]

    def mask(
        self,
        ids: "Ids",
        cu_seqlens: Optional["Ids"] = None,
        halo: Union[int, "Ids"] = 0,
        exempt: Optional["Ids"] = None,
        *,
        preceding: Optional["Ids"] = None,
        seq_dim: int = -1,
    ) -> "Ids":
        """Computes which labels are kept: True for a kept label, False for a dropped one.

        Args:
            ids: ``[..., T]`` u8, u16, u32, i32 or i64, a NumPy array or a tensor on the CPU or a CUDA device. One id for
                each label, from which the strategy decides; for an ignored label, give the true id. Each slice along
                ``seq_dim`` is a separate row.
            cu_seqlens: ``[documents + 1]`` i32, the offsets at which documents begin. The ids must then be one row,
                ``[T]`` or ``[1, T]``. No window crosses an offset. The ids before the first offset are a document, and so
                are the ids from the last offset on.
            halo: ``[rows, n]`` of the type of the ids, or ``[n, rows]`` with ``seq_dim=0``: the ids before each row, such as
                those of the previous rank, which have no label here. Or a number: then the first ``halo`` ids of each row
                have no label.
            exempt: Ids that are never dropped, such as a tokenizer's special ids: a list of whole numbers, or ``[n]`` i64.
            preceding: ``[chunks]`` i64: ``cu_seqlens``, ``[chunks + 1]``, then cuts the ids, of any shape, into chunks of
                documents, such as those of a rank in zig-zag order, and ``preceding[c]`` labels of its document are before
                chunk c (0: the document begins with it). The offsets count the labels of all rows, row after row. The halo
                is ``[chunks, n]``, of which the last ``min(n, preceding[c])`` ids are used.
            seq_dim: The dimension along which the text runs: -1, or 0 for ids of shape ``[T, ...]``, which are decided as the
                transposed ones.

        Returns:
            bool of the shape of the ids, less ``halo`` in ``seq_dim`` if that is a number. A NumPy array or a tensor as the
            ids are, on the same device.

        Raises:
            TypeError: An argument has a type other than these.
            ValueError: Shapes do not fit, or, on the CPU, offsets decrease or are negative for chunks. On a CUDA device the
                numbers are not checked; if offsets decrease, which of them end a window is unspecified.
        """
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(ids, torch.Tensor):
            from .torch import _mask

            return _mask.of_tensor(self, ids, cu_seqlens, halo, exempt, preceding, seq_dim)
        from . import _mask as of_numpy

        return of_numpy.of_array(self, ids, cu_seqlens, halo, exempt, preceding, seq_dim)

    def to(self, device: Union[str, "torch.device"]) -> "Goldfish":
        """Copies the strategy's tables to a CUDA device, and returns the same object.

        Call it before a CUDA graph is captured. Without it, the first call on the device copies them.
        """
        import torch

        self._on_device(torch.device(device))
        return self

    def _on_device(self, device: "torch.device") -> tuple[Any, Any]:
        """The bitmap (u32) and the coefficients (i64) as tensors on the device; None if the strategy has none."""
        import torch

        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        with self._lock:
            if device not in self._tables:
                bitmap, coefficients = self._native.tables()
                self._tables[device] = tuple(
                    None if values is None else torch.tensor(values, dtype=dtype).to(device)
                    for values, dtype in ((bitmap, torch.uint32), (coefficients, torch.int64))
                )
            return self._tables[device]


def by_key(key: str) -> Goldfish:
    """The strategy of a key: an existing object, or a new one."""
    found = _known.get(key)
    if found is not None:
        return found
    strategy, k, *rest = key.split(":")
    takes = STRATEGIES[strategy]
    if len(rest) > len(takes):
        raise RuntimeError("the Goldfish object with this table is gone; keep it as long as it is used")
    made = Goldfish(strategy, int(k), **dict(zip(takes, map(int, rest))))
    # There may be no other reference to the new object, so the last eight are kept alive.
    _made.append(made)
    del _made[:-8]
    return made


_made: list[Goldfish] = []


def _whole(name: str, value: object, bits: int) -> int:
    try:
        number = value.__index__()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"{name} is {value!r}; it must be a whole number") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} is {number}; it must be from 0 to 2**{bits} - 1")
    return number


def _as_table(table: object) -> "numpy.ndarray":
    import numpy

    array = numpy.ascontiguousarray(table)
    if array.dtype != numpy.float32 or array.ndim != 1:
        raise TypeError(f"the table is {array.dtype} {list(array.shape)}; it must be float32 [n]")
    return array
