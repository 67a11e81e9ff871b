"""Matrix products into given memory: by tiles of our own (`_tile.py`), or by cuBLAS.

    out = a b      or      out = out + a b

The left factor is read as it lies, transposed or not.  A transposed right factor is copied first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from . import _math
from ._cublas import is_readable
from ._cuda import Accelerator
from ._dispatch import check_floats, contiguous, device_of, empty, jit, jit_rows, select
from ._program import Call, Program


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
        (N, K), M = a.shape, b.shape[1]
        if 2 * N * (K + M) < K * M and N % 16 == 0 and not accumulate:
            # (b^T a^T)^T: to copy a few rows and their result costs less than to copy b
            turned = product(b.T, transpose(a, empty((K, N), a)), empty((M, N), a))
            transpose(turned, out)
            return
        b = transpose(b.T, empty(b.shape, b))
    _product_numba(out, a, b, int(accumulate), tiles(out.dtype))


# Rows of a and rows of b in one go: four vectors of each of b's fill an eighth of a 1 MB cache.
ROWS, DEPTH = 480, 512


# A row of out is the same to the bit whatever the number of rows, and so of threads.
@jit_rows.sharing("b", each=1)
def _product_numba(out, a, b, accumulate, tiles):
    (N, K), M = a.shape, b.shape[1]
    if K == 0 and accumulate == 0:
        out.fill(0)
    rows, below = _multiples(a.strides[0], N, ROWS), _multiples(out.strides[0], N, ROWS)
    steps = _multiples(a.strides[1], K, DEPTH)
    for k in range(0, K, DEPTH):
        for i in range(0, N, ROWS):
            _math.call(
                tiles, out.dtype.type(0),
                a.ctypes.data + i * a.strides[0] + k * a.strides[1],
                rows.ctypes.data, min(ROWS, N - i), steps.ctypes.data, min(DEPTH, K - k),
                b.ctypes.data + k * b.strides[0], b.strides[0], M,
                out.ctypes.data + i * out.strides[0], below.ctypes.data, max(accumulate, k),
            )  # fmt: skip


@jit
def _multiples(step, count, most):
    """0, step, 2 step, ...: as many as are needed, or the most."""
    table = np.empty(min(count, most), np.int64)
    for i in range(len(table)):
        table[i] = i * step
    return table


def _product_cuda(a, b, out, accumulate):
    if not out.size or not a.size:  # nothing to add up: cuBLAS need not be asked
        if not accumulate:
            out.fill(0)
        return
    a, b = (m if is_readable(m) else contiguous(m) for m in (a, b))
    device = cast(Accelerator, device_of(out))
    with device.active(out):
        device.cublas().product(a, b, out, accumulate)


@functools.cache
def tiles(dtype: np.dtype) -> int:
    """Where the machine code of `_tiles_numba` for numbers of this type begins.

    Called by address: it is compiled once, and not once more into every kernel that multiplies.
    """
    from ._numba import address

    return address(_tiles_numba.dispatcher(), (dtype.type(0), *[0] * 11))


@jit
def _tiles_numba(number, a, rows, N, steps, K, b, down, M, c, out, accumulate):
    _math.tiles(number, a, rows, N, steps, K, b, down, M, c, out, accumulate)


def only_product(program: Program, out: np.ndarray) -> Call | None:
    """The call out = a b, if it is all that a program does with out: kernel, (out, a, b, ...)."""
    calls = [c for c in program.calls if any(np.may_share_memory(x, out) for x in _arrays(c[1]))]
    if len(calls) != 1:
        return None
    kernel, args = calls[0]
    return calls[0] if kernel is _product_numba and args[0] is out and args[3] == 0 else None


def _arrays(args: tuple) -> Iterator[np.ndarray]:
    for value in args:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, tuple):
            yield from _arrays(value)


def transpose(a: Any, out: Any) -> Any:
    """out = a^T, or that of each of several matrices; returns out.

    a: (..., N, M); out: (..., M, N), C-contiguous.
    """
    if out.size:
        select(out, _transpose_numpy, _transpose_numba, _transpose_numpy)(
            a.reshape(-1, *a.shape[-2:]), out.reshape(-1, *out.shape[-2:])
        )
    return out


def _transpose_numpy(a, out):
    out[...] = a.swapaxes(1, 2)


@jit
def _transpose_numba(a, out):
    L, N, M = a.shape
    side = _math.square(a)
    N0 = N - N % side if a.strides[2] == a.itemsize else 0
    M0 = M - M % side
    for n in range(L):
        for i in range(0, N0, side):
            for j in range(0, M0, side):
                _math.transpose_square(a[n], out[n], i, j)
            for j in range(M0, M):
                for k in range(i, i + side):
                    out[n, j, k] = a[n, k, j]
        for i in range(N0, N):
            for j in range(M):
                out[n, j, i] = a[n, i, j]
