"""Batches out of stored rows in one pass: gathered by number, scaled, binarized.  On the CPU.

Sizes: N rows stored, B of a batch, D values a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import philox
from ._dispatch import jit, select
from ._program import scalar
from .philox import _philox_uniform_numba

AT_ONCE = 4096  # elements: their noise stays in the first-level cache


def gather_rows(array: np.ndarray, index: np.ndarray, out: np.ndarray, *, scale: Any = 1.0) -> None:
    """out_id = array[index_i, d] / scale, in out's type.

    array: (N, D), any numbers; index: (B,) int64 in [0, N); out: (B, D) float32 or float64.
    Raises ValueError if the shapes differ, IndexError for an index out of range.
    """
    _check(array, index, out)
    select(out, _gather_rows_numpy, _gather_rows_numba, _on_the_cpu)(
        out, array, index, scalar(scale, out.dtype.type)
    )


def gather_bits(
    array: np.ndarray,
    index: np.ndarray,
    out: np.ndarray,
    *,
    seed: int,
    scale: Any = 1.0,
    stream: int = 0,
    step: Any = 0,
    offset: int = 0,
) -> None:
    """out_id = [array[index_i, d] / scale > u_e], u_e uniform: bits x ~ Bernoulli(grey).

    array, index, out, scale: as for gather_rows; seed, stream, step, offset: of philox_uniform;
    element e = i D + d of out gets its element offset + e.     Salakhutdinov and Murray 2008
    """
    _check(array, index, out)
    words = philox.numbers(out.size, seed, stream, step, offset)
    select(out, _gather_bits_numpy, _gather_bits_numba, _on_the_cpu)(
        out, array, index, scalar(scale, out.dtype.type), *words
    )


def _check(array: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    if array.ndim != 2 or out.shape != (len(index), array.shape[1]):
        raise ValueError(f"out must be ({len(index)}, D) for array (N, D), got {out.shape} for "
                         f"{array.shape}")  # fmt: skip
    if len(index) and not (index.min() >= 0 and index.max() < len(array)):
        raise IndexError(f"index must be in [0, {len(array)})")


# ----------------------------------------------------------------------------------------- bodies
def _gather_rows_numpy(out, array, index, scale):
    out[...] = array[index].astype(out.dtype) / scale


def _gather_bits_numpy(out, array, index, scale, *words):
    u = np.empty(out.size, out.dtype)
    philox._philox_uniform_numpy(u, *words)
    out[...] = array[index].astype(out.dtype) / scale > u.reshape(out.shape)


@jit.exact
def _gather_rows_numba(out, array, index, scale):
    dtype = out.dtype.type
    for i in range(out.shape[0]):
        row, to = array[index[i]], out[i]
        for d in range(out.shape[1]):
            to[d] = dtype(row[d]) / scale


@jit.exact
def _gather_bits_numba(out, array, index, scale, key0, key1, stream, step, offset):
    dtype = out.dtype.type
    B, D = out.shape
    rows = max(1, AT_ONCE // max(1, D))
    u = np.empty((min(rows, B), D), out.dtype)
    for first in range(0, B, rows):
        count = min(rows, B - first)
        noise = u[:count].reshape(-1)
        _philox_uniform_numba(noise, key0, key1, stream, step, offset + first * D)
        for i in range(count):
            row, to, level = array[index[first + i]], out[first + i], u[i]
            for d in range(D):
                to[d] = dtype(dtype(row[d]) / scale > level[d])


def _on_the_cpu(*ignored: Any) -> None:
    raise TypeError("stored rows are gathered on the CPU")
