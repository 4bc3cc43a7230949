"""Opens and calls the shared library, and turns its errors into exceptions.

The library is opened by the first call. Calls release the GIL while they run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from pathlib import Path
from typing import Any, Optional, Sequence

from . import _abi

NAME = "libxact.so"
# The keys are the names of NumPy and PyTorch.
DTYPES = {
    "float32": _abi.XACT_DTYPE_F32,
    "float16": _abi.XACT_DTYPE_F16,
    "bfloat16": _abi.XACT_DTYPE_BF16,
}
ID_TYPES = {
    "uint8": _abi.XACT_ID_U8,
    "uint16": _abi.XACT_ID_U16,
    "uint32": _abi.XACT_ID_U32,
    "int32": _abi.XACT_ID_I32,
    "int64": _abi.XACT_ID_I64,
}
NORMALIZERS = {
    "kept": _abi.XACT_NORMALIZER_KEPT,
    "none": _abi.XACT_NORMALIZER_NONE,
    "labels": _abi.XACT_NORMALIZER_LABELS,
    "weight": _abi.XACT_NORMALIZER_WEIGHT,
}
LOGITS = {
    "f32": _abi.XACT_LOGITS_F32,
    "narrow": _abi.XACT_LOGITS_NARROW,
}
STRATEGIES = {
    "static": _abi.XACT_STRATEGY_STATIC,
    "random": _abi.XACT_STRATEGY_RANDOM,
    "product-table": _abi.XACT_STRATEGY_PRODUCT_TABLE,
    "product-avalanche": _abi.XACT_STRATEGY_PRODUCT_AVALANCHE,
    "dot-table": _abi.XACT_STRATEGY_DOT_TABLE,
    "hash64": _abi.XACT_STRATEGY_HASH64,
}
DOCUMENTS = _abi.XACT_LAYOUT_DOCUMENTS
CHUNKS = _abi.XACT_LAYOUT_CHUNKS
SUMMARY_BYTES = ctypes.sizeof(_abi.xact_cross_entropy_summary)

# These statuses raise TypeError and ValueError; all others raise RuntimeError.
_TYPE_ERRORS = (_abi.XACT_ERROR_PARAM_DTYPE, _abi.XACT_ERROR_LABEL_TYPE)
_VALUE_ERRORS = (
    _abi.XACT_ERROR_LENGTH,
    _abi.XACT_ERROR_SHAPE,
    _abi.XACT_ERROR_PITCH,
    _abi.XACT_ERROR_GROUP_PITCH,
    _abi.XACT_ERROR_HALVES,
    _abi.XACT_ERROR_BLOCK,
    _abi.XACT_ERROR_GROUPS,
    _abi.XACT_ERROR_TOO_LARGE,
    _abi.XACT_ERROR_OVERLAP,
    _abi.XACT_ERROR_NO_TABLE,
    _abi.XACT_ERROR_OFFSETS,
    _abi.XACT_ERROR_OUT_OF_RANGE,
    _abi.XACT_ERROR_UNKNOWN_OP,
    _abi.XACT_ERROR_NOT_GATED,
    _abi.XACT_ERROR_CLASSES,
    _abi.XACT_ERROR_KEPT_ROW,
    _abi.XACT_ERROR_BUDGET,
)


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library. The environment variable XACT_LIBRARY names another file than the one in the package.

    Raises:
        RuntimeError: The library cannot be loaded, or its interface has another version than this package needs.
    """
    path = os.environ.get("XACT_LIBRARY") or str(Path(__file__).with_name(NAME))
    try:
        loaded = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(
            f"the library of xact cannot be loaded: {error}; install xact-kernels again, or set XACT_LIBRARY"
        ) from None
    try:
        for name, (result, arguments) in _abi.FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        found = loaded.xact_abi_version()
    except AttributeError as error:
        raise RuntimeError(f"{path} is of another version than this package: {error}") from None
    if found != _abi.XACT_ABI_VERSION:
        raise RuntimeError(
            f"{path} has version {found} of the interface, but this package needs {_abi.XACT_ABI_VERSION}; "
            "install xact-kernels again"
        )
    return loaded


def version() -> str:
    """The version of the library."""
    return library().xact_version().decode()


def abi_version() -> int:
    """The version of the library's C interface."""
    return library().xact_abi_version()


def kernels() -> Optional[str]:
    """None if the library has CUDA kernels and a CUDA driver is present; otherwise the reason why kernels cannot run."""
    for function in (library().xact_kernels_built, library().xact_cuda_available):
        if function() != _abi.XACT_OK:
            return _text()
    return None


def _text() -> str:
    return library().xact_last_error().decode(errors="replace")


def check(status: int) -> None:
    """Raises the exception for a status that is not XACT_OK, with the library's text."""
    if status == _abi.XACT_OK:
        return
    if status in _TYPE_ERRORS:
        raise TypeError(_text())
    raise (ValueError if status in _VALUE_ERRORS else RuntimeError)(_text())


def struct(name: str) -> Any:
    """A new struct of arguments with ``size`` set and all other fields 0."""
    made = getattr(_abi, name)()
    made.size = ctypes.sizeof(made)
    return made


def pointer(value: Any) -> int:
    """The address of a struct. The caller must keep the struct alive while the address is used."""
    return ctypes.addressof(value)


def addresses(values: Sequence[int]) -> Any:
    """An array of pointers. Structs store only its address, so the caller must keep it alive."""
    return (ctypes.c_void_p * len(values))(*values)


def matrix(address: int, pitch: int) -> Any:
    """An ``xact_matrix``: the address of the first element, and the pitch of the rows in elements."""
    return _abi.xact_matrix(address or None, pitch)


def logits_matrix(address: int, pitch: int, group_rows: int, group_pitch: int) -> Any:
    """An ``xact_logits_matrix``; pitches are in elements."""
    return _abi.xact_logits_matrix(address or None, pitch, group_rows, group_pitch)


def query(name: str, *arguments: Any) -> int:
    """Calls a function that returns one u64, such as a number of bytes, and returns that."""
    result = ctypes.c_uint64()
    check(getattr(library(), name)(*map(_argument, arguments), ctypes.addressof(result)))
    return result.value


def _argument(value: Any) -> Any:
    return ctypes.addressof(value) if isinstance(value, ctypes.Structure) else value


def run(name: str, *arguments: Any) -> None:
    """Calls a function by name and checks its status."""
    check(getattr(library(), name)(*map(_argument, arguments)))


_threads = 0


def run_on_host(name: str, threads: int, *arguments: Any) -> None:
    """Calls the CPU variant (``_host``) of a function with ``threads`` threads; 0 keeps the number of the last call."""
    global _threads
    if threads not in (0, _threads):
        check(library().xact_set_num_threads(threads))
        _threads = threads
    run(f"{name}_host", *arguments)


@functools.lru_cache(maxsize=256)
def activation(
    name: str,
    beta: Optional[float] = None,
    eps: Optional[float] = None,
    autograd: bool = False,
    effective: bool = False,
) -> Any:
    """An ``xact_activation`` with these options; ``autograd`` selects XACT_COMPAT_AUTOGRAD, and is used only with ``eps``."""
    op = _abi.xact_activation()
    check(library().xact_activation_init(ctypes.addressof(op), ctypes.sizeof(op), name.encode()))
    # The struct stores only a pointer. Setting the field here makes ctypes keep the bytes alive.
    op.name = name.encode()
    if beta is not None:
        op.beta = beta
    if eps is not None:
        op.eps = eps
        op.compat = _abi.XACT_COMPAT_AUTOGRAD if autograd else _abi.XACT_COMPAT_ANALYTIC
    if effective:
        op.parameters = _abi.XACT_PARAMETERS_EFFECTIVE
    return op


@functools.lru_cache(maxsize=256)
def cross_entropy(
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: Optional[float],
    vocab: Optional[int],
    normalizer: str,
) -> Any:
    """An ``xact_cross_entropy`` with these options."""
    op = _abi.xact_cross_entropy()
    check(library().xact_cross_entropy_init(ctypes.addressof(op), ctypes.sizeof(op)))
    op.ignore_index, op.vocab = ignore_index, vocab or 0
    op.label_smoothing, op.z_loss, op.softcap = label_smoothing, z_loss, softcap or 0.0
    op.normalizer = NORMALIZERS[normalizer]
    return op


def summary_field(summary: Any, name: str) -> Any:
    """A field of ``summary``, a uint8 tensor with an ``xact_cross_entropy_summary``, as a view of shape ``[]``."""
    import torch

    field = getattr(_abi.xact_cross_entropy_summary, name)
    # Counts are u64. A row that does not exist has all bits set, which is -1 as i64.
    dtype = torch.float32 if field.size == 4 else torch.int64
    return summary[field.offset : field.offset + field.size].view(dtype)[0]


def summary_address(summary: Any, name: str) -> int:
    """The address of a field of ``summary``, see :func:`summary_field`."""
    return summary.data_ptr() + getattr(_abi.xact_cross_entropy_summary, name).offset


class Goldfish:
    """Owns the library's handle of a strategy."""

    def __init__(self, strategy: str, k: int, h: int, seed: int, start: int, table: Any) -> None:
        made = struct("xact_goldfish_strategy")
        made.kind, made.k, made.h, made.seed, made.start = STRATEGIES[strategy], k, h, seed, start
        if table is not None:
            made.table, made.table_len = table.ctypes.data, table.size
        handle = ctypes.c_void_p()
        check(library().xact_goldfish_create(ctypes.addressof(made), ctypes.addressof(handle)))
        self.handle = handle.value

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None:
            library().xact_goldfish_free(handle)

    def tables(self) -> tuple[Optional[list[int]], Optional[list[int]]]:
        """The u32 words of the bitmap, and the i64 coefficients; None if the strategy has none."""
        return (
            self._numbers("xact_goldfish_bitmap", ctypes.c_uint32),
            self._numbers("xact_goldfish_coefficients", ctypes.c_int64),
        )

    def _numbers(self, name: str, kind: Any) -> Optional[list[int]]:
        values, count = ctypes.c_void_p(), ctypes.c_uint64()
        call = getattr(library(), name)
        check(call(self.handle, ctypes.addressof(values), ctypes.addressof(count)))
        return list((kind * count.value).from_address(values.value)) if count.value else None

    def window(self) -> int:
        """The number of ids in a window; 0 if the strategy does not depend on ids."""
        return query("xact_goldfish_window", self.handle)

    def dropped_share(self) -> float:
        """The share of labels that the strategy drops from text without repetitions."""
        share = ctypes.c_double()
        check(library().xact_goldfish_dropped_share(self.handle, ctypes.addressof(share)))
        return share.value


_devices: dict[int, int] = {}
_opening = threading.Lock()


def device(ordinal: int) -> int:
    """The handle of a CUDA device. It stays open, so each kernel is loaded once per process.

    Raises:
        RuntimeError: The library has no kernels, or there is no CUDA driver; the text says what to do.
    """
    handle = _devices.get(ordinal)
    if handle is None:
        with _opening:
            handle = _devices.get(ordinal)
            if handle is None:
                opened = ctypes.c_void_p()
                check(library().xact_device_open(ordinal, ctypes.addressof(opened)))
                handle = _devices[ordinal] = opened.value
    return handle


def preload(on: Any, name: Optional[str] = None) -> None:
    """Loads kernels onto a CUDA device. Call it before a CUDA graph is captured.

    Without it, the first call of an op loads its kernels, which fails while a stream is captured.

    Args:
        on: The ordinal of a CUDA device, a ``torch.device``, or a name such as ``"cuda:1"``.
        name: The op: the name of an activation, ``"cross_entropy"`` or ``"goldfish"``; None loads all.

    Raises:
        TypeError: ``on`` is not a device.
        ValueError: No op has this name.
        RuntimeError: ``on`` is not a CUDA device, the library has no kernels, or there is no CUDA driver.
    """
    if not isinstance(on, int):
        import torch

        named = torch.device(on)
        if named.type != "cuda":
            raise RuntimeError(f"{named} is no CUDA device, and has no kernels to load")
        on = torch.cuda.current_device() if named.index is None else named.index
    check(library().xact_device_preload(device(on), None if name is None else name.encode()))
