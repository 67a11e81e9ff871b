"""Large results in memory that earlier results have left behind.

New memory costs a page fault for every page, on a virtual machine up to 4 us: the 100 MB gradient
of 8192 x 3072 Bernoulli losses took 10 to 100 ms, where the kernel takes 8.  So the memory of a
large result is kept when the last array that looks at it is gone, and given to the next result of
that size; where more than `LIMIT` would be kept, all goes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SMALLEST = 2**17  # bytes: below, the C library does the same
LIMIT = 2**29  # bytes that are kept without being used

# Pieces of each size.  No lock: a list's append and pop are atomic, and the garbage collector may
# call _keep in the middle of anything.
_kept: dict[int, list[np.ndarray]] = {}


class _Lent:
    """Owns a piece of memory while arrays look at it; then the memory is kept."""

    __slots__ = ("__array_interface__", "__weakref__", "memory")

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self.memory = memory
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str,
            "data": (memory.ctypes.data, False),
        }  # fmt: skip

    def __del__(self) -> None:
        if _keep is not None:  # else the interpreter is ending
            _keep(self.memory)


def _keep(memory: np.ndarray) -> None:
    total = memory.nbytes + sum(size * len(pieces) for size, pieces in list(_kept.items()))
    if total > LIMIT:
        release()
    if memory.nbytes <= LIMIT:
        _kept.setdefault(memory.nbytes, []).append(memory)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array, in kept memory if there is a piece of that size."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    try:
        memory = _kept[size].pop()  # the latest, which caches may still hold
    except (KeyError, IndexError):
        memory = np.empty(size, np.uint8)
    return np.asarray(_Lent(memory, tuple(int(n) for n in shape), dtype))


def release() -> None:
    """Give all kept memory back."""
    _kept.clear()
