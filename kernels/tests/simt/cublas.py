"""Stands for cuBLAS: what its functions do with the arguments that they get, by NumPy.

Matrices are read where the arguments say that they lie, by columns: a wrong transposition, leading
dimension or type shows in the numbers. As on a GPU the call only starts the work: `start` is told.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = {0: np.dtype(np.float32), 1: np.dtype(np.float64)}
COMPUTE = {68: 23, 77: 10, 75: 7, 70: 52}  # bits behind the point that are left of the factors


def columns(address: int, kind: int, rows: int, count: int, leading: int) -> np.ndarray:
    """A column-major matrix as cuBLAS sees it, (rows, count)."""
    assert leading >= max(1, rows)
    dtype = KINDS[kind]
    numbers = (leading * (count - 1) + rows) * dtype.itemsize
    memory = np.frombuffer((ctypes.c_char * numbers).from_address(address), dtype)
    strides = (dtype.itemsize, leading * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory, (rows, count), strides)


def rounded(matrix: np.ndarray, bits: int) -> np.ndarray:
    """To nearest, ties to even, of float32 that keep so many bits."""
    if bits >= 23:
        return matrix
    words, cut = matrix.astype(np.float32).view(np.uint32), np.uint32(23 - bits)
    odd = (words >> cut) & np.uint32(1)
    words = words + (np.uint32(1) << (cut - np.uint32(1))) - np.uint32(1) + odd
    return ((words >> cut) << cut).view(np.float32)


class FakeCublas:
    """The functions of `_cublas.SIGNATURES`, with status 0 if all is well."""

    def __init__(self, start: Callable[[Callable[[], None]], None]):
        self.start, self.calls = start, []

    def __getattr__(self, name: str) -> Callable[..., int]:
        """cublasCreate_v2 and its like: remembered, no more."""

        def call(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            return 0

        return call

    def cublasGemmEx_64(self, handle, op_a, op_b, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb,
                        beta, c, kind_c, ldc, compute, algorithm) -> int:  # fmt: skip
        self.calls.append(("cublasGemmEx_64", op_a, op_b, m, n, k, compute))
        assert algorithm == -1
        assert (compute == 70) == (kind_c == 1)
        factors = columns(a, kind_a, *((k, m) if op_a else (m, k)), lda)
        others = columns(b, kind_b, *((n, k) if op_b else (k, n)), ldb)
        out, weights = columns(c, kind_c, m, n, ldc), (alpha._obj.value, beta._obj.value)

        def multiply() -> None:
            one, two = (rounded(f, COMPUTE[compute]) for f in (factors, others))
            found = weights[0] * ((one.T if op_a else one) @ (two.T if op_b else two))
            out[...] = found + weights[1] * out if weights[1] else found

        self.start(multiply)
        return 0
