"""Large results in memory that earlier results have left behind.

New memory costs a page fault for every page, on a virtual machine up to 4 us: the 100 MB gradient
of 8192 x 3072 Bernoulli losses took 10 to 100 ms, where the kernel takes 8.  So the memory of a
large result is kept when the last array that looks at it is gone, and given to the next result of
that size; where more than `LIMIT` would be kept, all goes.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

SMALLEST = 2**17  # bytes: below, the C library does the same
LINE = 64  # bytes
LIMIT = 2**29  # bytes that are kept without being used

# Pieces of each size.  No lock: a list's append and pop are atomic, and the garbage collector may
# call _keep in the middle of anything.
_kept: dict[int, list[ctypes.Array]] = {}


class _Lent(np.ndarray):
    """Holds a piece of memory while arrays look at it; then the memory is kept.

    An array, whose buffer others can have as their base: an object with `__array_interface__` does
    the same, but NumPy takes 3 us longer to read it.  What lies under it must be no array, or NumPy
    would take that for the base.
    """

    memory: ctypes.Array | None = None

    def __del__(self) -> None:
        if self.memory is not None and _keep is not None:  # else the interpreter is ending
            _keep(self.memory)


def _keep(memory: ctypes.Array) -> None:
    total = len(memory) + sum(size * len(pieces) for size, pieces in list(_kept.items()))
    if total > LIMIT:
        release()
    if len(memory) <= LIMIT:
        _kept.setdefault(len(memory), []).append(memory)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array, in kept memory if there is a piece of that size."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    size = int(size)
    try:
        memory = _kept[size].pop()  # the latest, which caches may still hold
    except (KeyError, IndexError):
        memory = _aligned(size)
    lent = _Lent(size, np.uint8, memory)  # type: ignore[arg-type]  # a buffer is enough
    lent.memory = memory  # a view of it has none
    return np.ndarray(shape, dtype, lent)


def _aligned(size: int) -> ctypes.Array:
    """New memory in line with the cache: where vectors of 64 bytes cross its lines, each costs two
    accesses, and the C library aligns to 16.
    """
    whole = np.empty(size + LINE, np.uint8)
    return (ctypes.c_ubyte * size).from_buffer(whole.data, -whole.ctypes.data % LINE)


def is_view(array: Any) -> bool:
    """Whether an array looks at the memory of another one, which others may hold."""
    base = array.base
    return hasattr(base, "dtype") and not isinstance(base, _Lent)


def release() -> None:
    """Give all kept memory back."""
    _kept.clear()
