"""Goldfish: which labels take no part in the loss, decided from the text itself."""

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

# The strategies with their arguments beside k.
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
    """A Goldfish strategy: about one label in ``k`` is dropped, and which one is a function of the text.

    A label is decided about from its window, the ``h`` ids that end with its own, so a passage loses the same labels
    wherever it stands (Hans et al., "Be like a Goldfish, Don't Memorize!", arXiv 2406.10209). A label whose window would
    begin before its row or its document is kept.

    Args:
        strategy: ``"hash64"``, a sound 64-bit hash, which is what to use; ``"product-table"`` (the official code and
            Apertus v1, bit for bit; it collapses at h = 50), ``"dot-table"`` (Apertus' successor),
            ``"product-avalanche"``, ``"random"`` (any label, whatever the text) or ``"static"`` (every k-th).
        k: One label in ``k`` is dropped, at least 2.
        h: Ids in a window, at least 1. ``static`` and ``random`` have no window.
        seed: Another seed drops other labels; 0 to 2**64 - 1. Of ``hash64`` and ``random`` only.
        start: The first label of each row that ``static`` drops.
        table: 1,000,003 f32 numbers instead of the table that PyTorch draws; of the two ``-table`` strategies.

    Raises:
        TypeError: An argument that the strategy has no use for was given, or has the wrong type.
        ValueError: A number is out of its range.
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
            raise TypeError(f"the strategy {strategy} looks nothing up in a table; leave it out")
        self.strategy, self.k = strategy, _whole("k", k, 32)
        self.h, self.seed, self.start = _whole("h", h, 32), _whole("seed", seed, 64), _whole("start", start, 64)
        self._table = None if table is None else _as_table(table)
        self._native = native.Goldfish(strategy, self.k, self.h, self.seed, self.start, self._table)
        self._tables: dict[Any, tuple[Any, Any]] = {}
        self._lock = threading.Lock()
        # The name by which operators find it: the same in every process, so that compiled graphs may hold it.
        parts = [strategy, self.k, *(getattr(self, name) for name in takes)]
        if self._table is not None:
            parts.append(hashlib.sha256(self._table).hexdigest())
        self._key = ":".join(map(str, parts))
        _known[self._key] = self

    def __setattr__(self, name: str, value: object) -> None:
        # The library decides by what it was given; a number that is changed here would only seem to count.
        if hasattr(self, "_key"):
            raise AttributeError(f"{name} of a Goldfish cannot be changed; make another one")
        super().__setattr__(name, value)

    @property
    def window(self) -> int:
        """Ids of a window, 0 where ids do not matter: with ``window - 1`` ids of halo a part decides as the whole does."""
        return self._native.window()

    @property
    def dropped_share(self) -> float:
        """The share of labels that are dropped of text without repetitions, about 1/k."""
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
        # In a worker that was spawned, the library makes its own copy.
        self.__init__(**state)  # type: ignore[misc]

    def mask(
        self,
        ids: "Ids",
        cu_seqlens: Optional["Ids"] = None,
        halo: Union[int, "Ids"] = 0,
        exempt: Optional["Ids"] = None,
    ) -> "Ids":
        """True where a label is kept.

        Args:
            ids: The ids that decide, ``[..., T]``, one for each label: give the true ids where a label is ignored. NumPy
                array or tensor on any device of u8, u16, u32, i32 or i64. Each last dimension is a row of its own.
            cu_seqlens: ``[documents + 1]`` i32: where documents begin in the one row that the ids then are. No window
                crosses such an offset. Ids before the first offset and from the last on are documents of their own.
            halo: Ids before each row that have no label here, as a rank gets them from its neighbour: ``[rows, n]`` of
                the type of the ids; or a number, and then the first ``halo`` ids of each row are those.
            exempt: Ids that are never dropped, such as a tokenizer's special ones: whole numbers, or i64.

        Returns:
            bool, of the shape of the ids (less ``halo`` in the last dimension where that is a number), NumPy array or
            tensor as the ids, on the same device.

        Raises:
            TypeError: A type that is not among these.
            ValueError: Shapes that do not fit, or, on the CPU, offsets that decrease. On a CUDA device the host does not
                see them: windows then end at one of them or another.
        """
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(ids, torch.Tensor):
            from .torch import _mask

            return _mask.of_tensor(self, ids, cu_seqlens, halo, exempt)
        from . import _mask as of_numpy

        return of_numpy.of_array(self, ids, cu_seqlens, halo, exempt)

    def to(self, device: Union[str, "torch.device"]) -> "Goldfish":
        """Copies the tables to a CUDA device, and returns the strategy itself.

        The first call on a device does it otherwise; during the capture of a CUDA graph it cannot.
        """
        import torch

        self._on_device(torch.device(device))
        return self

    def _on_device(self, device: "torch.device") -> tuple[Any, Any]:
        """The bitmap and the coefficients as tensors on the device, None where the strategy has none."""
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
    """The strategy of that key: one that exists, or made anew."""
    found = _known.get(key)
    if found is not None:
        return found
    strategy, k, *rest = key.split(":")
    takes = STRATEGIES[strategy]
    if len(rest) > len(takes):
        raise RuntimeError("the Goldfish object with this table is gone; keep it as long as it is used")
    made = Goldfish(strategy, int(k), **dict(zip(takes, map(int, rest))))
    # Nobody else may hold it; the last few are enough.
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
