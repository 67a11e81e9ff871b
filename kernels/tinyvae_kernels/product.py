"""Matrix products into given memory, by the BLAS that NumPy brings, or by cuBLAS.

    out = a b      or      out = out + a b

Transposed views are read as they are.  NumPy's own matmul does not add to its output, and cannot be
called from a program (`_program.py`); both are one call of cblas_?gemm.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from ._dispatch import check_floats, device_of, jit, select
from ._program import cblas, recorder

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS_LAYOUT and CBLAS_TRANSPOSE
GEMM = {np.dtype(np.float32): "sgemm", np.dtype(np.float64): "dgemm"}


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
    if device_of(out) is not None or _function(out.dtype) is None:
        if accumulate:
            out += a @ b
        else:
            np.matmul(a, b, out=out)
    elif not accumulate and _is_turned(a, b):
        turned = np.empty(out.shape[::-1], out.dtype)
        _product_blas(b.T, a.T, turned, False)
        transpose(turned, out)
    else:
        _product_blas(a, b, out, accumulate)
    return out


# OpenBLAS packs a transposed right factor slowly, which shows where few rows share that work.
# EPYC, one thread, (N, 784) times the transpose of (400, 784): 518 us at N = 64, and 436 as the
# product of (400, 784) and (784, N), then transposed; 244 and 131 at N = 16; 1,068 and 1,045 at
# N = 160.  With 20 for the 784 or for the 400 the transposition costs more than it saves.
FEW_ROWS, DEEP, LARGE = 160, 128, 40_000


def _is_turned(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether (b^T a^T)^T is the faster way to a b."""
    if a.shape[0] > FEW_ROWS or b.shape[0] < DEEP or b.size < LARGE:
        return False
    return b.strides[0] == b.itemsize and a.strides[1] == a.itemsize


def transpose(a: np.ndarray, out: np.ndarray) -> None:
    """out = a^T.  a: (N, M), out: (M, N), C order."""
    select(out, _transpose_numpy, _transpose_numba, _transpose_numpy)(a, out)


def _transpose_numpy(a, out):
    out[...] = a.T


@jit
def _transpose_numba(a, out):
    N, M = a.shape
    for first in range(0, N, 16):  # 16 rows of a: their cache lines stay
        last = min(first + 16, N)
        for j in range(M):
            for i in range(first, last):
                out[j, i] = a[i, j]


class _Gemm:
    """The body: callable, and callable from a program."""

    __name__ = "product"

    def __call__(self, a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
        if not out.size or not b.size:  # nothing to add up: BLAS refuses such shapes
            out[...] = out if accumulate else 0
            return
        a, b = _readable(a), _readable(b)
        program = recorder.get()
        if program is not None:
            program.calls.append((self, (a, b, out, accumulate)))
        _function(out.dtype)(*(value for _, value in _arguments(a, b, out, accumulate)))

    def native(self, args: tuple) -> tuple[int, bool, list]:
        """How a program calls BLAS."""
        address = cblas(GEMM[args[2].dtype])
        assert address is not None
        return address, False, _arguments(*args)


_product_blas = _Gemm()


def _readable(a: np.ndarray) -> np.ndarray:
    """A matrix that BLAS can read, by rows or by columns: itself, or a copy."""
    for matrix in (a, a.T):
        down, across = matrix.strides
        if across == a.itemsize and down >= a.itemsize * matrix.shape[1]:
            return a
    return np.ascontiguousarray(a)


def _arguments(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool) -> list:
    """The arguments of cblas_?gemm, with their LLVM types."""
    kind = "float" if out.dtype == np.float32 else "double"
    flags, leading = zip(*(_layout(matrix) for matrix in (a, b)), strict=True)
    (N, K), M = a.shape, b.shape[1]
    return [
        ("i32", ROW_MAJOR), ("i32", flags[0]), ("i32", flags[1]),
        ("i64", N), ("i64", M), ("i64", K), (kind, 1.0),
        ("ptr", a.ctypes.data), ("i64", leading[0]), ("ptr", b.ctypes.data), ("i64", leading[1]),
        (kind, 1.0 if accumulate else 0.0), ("ptr", out.ctypes.data), ("i64", max(1, M)),
    ]  # fmt: skip


def _layout(matrix: np.ndarray) -> tuple[int, int]:
    """Whether BLAS shall read it transposed, and how far apart its rows (then columns) lie."""
    down, across = (stride // matrix.itemsize for stride in matrix.strides)
    if across == 1 and down >= matrix.shape[1]:
        return PLAIN, max(1, down)
    return TRANSPOSED, max(1, across)


@functools.cache
def _function(dtype: np.dtype) -> Any:
    """cblas_sgemm or cblas_dgemm, or None where NumPy was built with another BLAS."""
    address = cblas(GEMM[dtype])
    if address is None:
        return None
    number = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    integer, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    return ctypes.CFUNCTYPE(
        None, integer, integer, integer, size, size, size, number, pointer, size, pointer, size,
        number, pointer, size,
    )(address)  # fmt: skip
