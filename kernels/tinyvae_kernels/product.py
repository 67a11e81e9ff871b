"""Matrix products into given memory: by tiles of our own (`_tile.py`), or by cuBLAS.

    out = a b      or      out = out + a b

The left factor is read as it lies, transposed or not.  A transposed right factor is copied first.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from . import _math
from ._cublas import is_readable
from ._cuda import Accelerator
from ._dispatch import check_floats, contiguous, device_of, empty, jit, jit_rows, select


def product(a: Any, b: Any, out: Any, *, accumulate: bool = False) -> Any:
    """out = a b, or out + a b; returns out.

    a: (N, K), b: (K, M), out: (N, M), C-contiguous and not a part of a or b.
    Raises ValueError if the shapes do not fit, TypeError for dtypes and devices.
    """
    check_floats(a=a, b=b, out=out)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"cannot multiply matrices of shapes {a.shape} and {b.shape}")
    if out.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"out has shape {out.shape}, the product ({a.shape[0]}, {b.shape[1]})")
    if not out.flags.c_contiguous:
        raise ValueError("out must be C-contiguous")
    select(out, _product_numpy, _product_tiles, _product_cuda)(a, b, out, accumulate)
    return out


def _product_numpy(a, b, out, accumulate):
    if accumulate:
        out += a @ b
    else:
        np.matmul(a, b, out=out)


def _product_tiles(a, b, out, accumulate):
    if b.shape[1] > 1 and b.strides[1] != b.itemsize:
        copy = empty(b.shape, b)
        transpose(b.T, copy)
        b = copy
    _product_numba(out, a, b, int(accumulate))


# Rows of a and rows of b in one go: four vectors of each of b's fill an eighth of a 1 MB cache.
ROWS, DEPTH = 480, 512


# A row of out is the same to the bit whatever the number of rows, and so of threads.
@jit_rows.sharing("b", each=1)
def _product_numba(out, a, b, accumulate):
    N, K = a.shape
    if K == 0 and accumulate == 0:
        out[:] = 0
    rows = np.arange(min(N, ROWS)) * a.strides[0]
    below = np.arange(min(N, ROWS)) * out.strides[0]
    steps = np.arange(min(K, DEPTH)) * a.strides[1]
    for k in range(0, K, DEPTH):
        depth = min(DEPTH, K - k)
        for i in range(0, N, ROWS):
            some = min(ROWS, N - i)
            _math.tiles(
                a.ctypes.data + i * a.strides[0] + k * a.strides[1], rows[:some], steps[:depth],
                b[k : k + depth],
                out.ctypes.data + i * out.strides[0], below[:some], accumulate != 0 or k > 0,
            )  # fmt: skip


def _product_cuda(a, b, out, accumulate):
    if not out.size or not a.size:  # nothing to add up: cuBLAS need not be asked
        if not accumulate:
            out.fill(0)
        return
    a, b = (m if is_readable(m) else contiguous(m) for m in (a, b))
    device = cast(Accelerator, device_of(out))
    with device.active(out):
        device.cublas().product(a, b, out, accumulate)


def transpose(a: np.ndarray, out: np.ndarray) -> None:
    """out = a^T.  a: (N, M), out: (M, N), C order."""
    select(out, _transpose_numpy, _transpose_numba, _transpose_numpy)(a, out)


def _transpose_numpy(a, out):
    out[...] = a.T


@jit
def _transpose_numba(a, out):
    N, M = a.shape
    side = _math.square(a)
    N0 = N - N % side if a.strides[1] == a.itemsize else 0
    M0 = M - M % side
    for i in range(0, N0, side):
        for j in range(0, M0, side):
            _math.transpose_square(a, out, i, j)
        for j in range(M0, M):
            for k in range(i, i + side):
                out[j, k] = a[k, j]
    for i in range(N0, N):
        for j in range(M):
            out[j, i] = a[i, j]
