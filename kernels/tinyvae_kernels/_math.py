"""Elementary functions that the Numba bodies use, for float32 and float64.

Here stand their names and, for plain Python, their NumPy meaning; `_numba.py` gives them bodies
that LLVM can vectorize (Numba's wheels come without SVML, so `math.exp` is a slow scalar call).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# fastmath without "nnan" and "ninf": sums may be reordered and vectorized, but a NaN in the data
# stays visible in the loss instead of being optimised away.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def exp(x: Any) -> Any:
    """e^x. In float32: to 1e-7, and 0 below -87."""
    return np.exp(x)


def exp_negative(x: Any) -> Any:
    """e^x for x <= 0, in float32 to 1e-7: without the care that overflow asks for."""
    return np.exp(x)


def expm1(x: Any) -> Any:
    """e^x - 1, without cancellation near 0; in float32 to 4e-7."""
    return np.expm1(x)


def log1p01(u: Any) -> Any:
    """log(1 + u) for u in [0, 1], the half that softplus needs."""
    return np.log1p(u)


def log1p01_and_inverse(u: Any) -> Any:
    """log(1 + u) and 1 / (1 + u) for u in [0, 1], by one division: softplus and its derivative."""
    return np.log1p(u), 1 / (1 + u)


def log01(u: Any) -> Any:
    """log(u) for normal u in (0, 1]."""
    return np.log(u)


def sin_turn(t: Any) -> Any:
    """sin(2 pi t) for t in [0, 1)."""
    return np.sin(2 * math.pi * t)


def cos_turn(t: Any) -> Any:
    """cos(2 pi t) for t in [0, 1)."""
    return np.cos(2 * math.pi * t)


def log(x: Any) -> Any:
    """log(x) for normal x > 0; x itself where it is infinite or NaN. In float32 to 3e-7."""
    return np.log(x)


def log1p(u: Any) -> Any:
    """log(1 + u) for u > -1, without cancellation near 0; in float32 to 3e-7."""
    return np.log1p(u)


def row_max(row: Any) -> Any:
    """The largest of a row of numbers, one at least; where some are NaN, it or the largest."""
    return np.max(row)


def tiles(number: Any, *arguments: Any) -> None:
    """A matrix product, tile by tile, of numbers of this type: see `_tile.py`.  Numba alone."""
    raise NotImplementedError


def call(address: int, number: Any, *arguments: int) -> None:
    """The compiled kernel at this address, which takes a number and whole ones.  Numba alone."""
    raise NotImplementedError


def square(a: Any) -> int:
    """The side of the squares that `transpose_square` turns.  For Numba bodies alone."""
    raise NotImplementedError


def transpose_square(a: Any, out: Any, i: int, j: int) -> None:
    """out[j:, i:] = a[i:, j:]^T, one square; the rows of both are contiguous.  As `square`."""
    raise NotImplementedError
