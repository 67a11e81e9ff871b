"""Nearest code: the quantization of VQ-VAE, with the straight-through gradient.

Sizes: N vectors (batch times positions), K codes, Z numbers each.

Straight through (van den Oord, Vinyals and Kavukcuoglu 2017, section 3.2): the step has a
derivative of zero almost everywhere, so the backward pretends that the output was z.  This is *not*
the derivative of what the forward computes, and finite differences do not confirm it.  The codebook
gets no gradient here: it learns by a loss of its own between z and the codes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import launch, typed
from ._dispatch import apart, check_dout, check_floats, contiguous, empty, jit, jit_rows, select
from ._math import row_max

BLOCK = 2**20  # differences that the reference holds at once
LINE = 16  # float32 numbers in a line of the cache
TILE = 64  # rows of z that one block of threads takes, as codebook.cu has it


class CodebookSaved(NamedTuple):
    """What `nearest_code_forward` keeps: the chosen codes (N,), int64, and what quantized is."""

    codes: Any
    shape: tuple[int, ...]
    dtype: Any


def nearest_code_forward(z: Any, codebook: Any) -> Any:
    """The code that is nearest to each vector.

    quantized_n = codebook_c,   c = argmin_k sum_j (z_nj - codebook_kj)^2       the first of equals
    z: (N, Z), codebook: (K, Z), K >= 1.  The squares of differences are summed, and not their
    expansion |e|^2 - 2 z e, which loses the digits that decide between two near codes.
    A NaN in a row of z, or in any code, makes the quantized row NaN.
    Returns quantized (N, Z), saved (with saved.codes (N,), int64).
    Raises ValueError if the shapes do not fit, TypeError for dtypes and devices.
    """
    z, codebook = check_floats(z=z, codebook=codebook)
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"z and codebook must be (N, Z) and (K, Z), got shapes {z.shape} and {codebook.shape}"
        )
    if codebook.shape[0] == 0:
        raise ValueError("codebook holds no code")
    quantized, codes = empty(z.shape, z), empty(z.shape[:1], z, np.int64)
    select(z, _nearest_code_numpy, _nearest_code_numba, _nearest_code_cuda)(
        contiguous(z), contiguous(codebook), quantized, codes
    )
    return quantized, CodebookSaved(codes, z.shape, z.dtype)


def nearest_code_backward(dout: Any, saved: CodebookSaved) -> tuple:
    """dz = dquantized, straight through      dcodebook: None.

    dout: dquantized (N, Z).  Returns dz (N, Z), None.
    """
    return check_dout(dout, saved.shape, saved.codes, saved.dtype), None


def _nearest_code_numpy(z, codebook, quantized, codes):
    step = max(1, BLOCK // max(1, codebook.size))  # the differences are (step, K, Z)
    for first in range(0, len(z), step):
        part = slice(first, first + step)
        distance = ((z[part, None] - codebook) ** 2).sum(axis=2)
        codes[part] = distance.argmin(axis=1)  # NaN counts as the smallest
        best = np.take_along_axis(distance, codes[part, None], axis=1)
        quantized[part] = np.where(np.isnan(best), np.nan, codebook[codes[part]])


@jit
def _distances_numba(vectors, columns, distance):
    """Minus the squared distances of two vectors to all codes.

    vectors: (2, 4 S); columns: (4 S, K), the codebook transposed: the inner loop runs over codes,
    so that equal codes get equal distances, bit for bit; distance: (2, K).
    Two vectors and four columns at once: fewer loads and stores for each product.
    """
    zero = distance.dtype.type(0)
    own, other = distance[0], distance[1]
    for k in range(own.shape[0]):
        own[k], other[k] = zero, zero
    for j in range(0, columns.shape[0], 4):
        a0, b0, c0, d0 = vectors[0, j], vectors[0, j + 1], vectors[0, j + 2], vectors[0, j + 3]
        a1, b1, c1, d1 = vectors[1, j], vectors[1, j + 1], vectors[1, j + 2], vectors[1, j + 3]
        a, b, c, d = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
        for k in range(own.shape[0]):
            p, q, r, s = a[k] - a0, b[k] - b0, c[k] - c0, d[k] - d0
            own[k] -= (p * p + q * q) + (r * r + s * s)
            p, q, r, s = a[k] - a1, b[k] - b1, c[k] - c1, d[k] - d1
            other[k] -= (p * p + q * q) + (r * r + s * s)


@jit
def _first_numba(row, value):
    """Where a number comes first that is in the row: as many at once as can be compared in SIMD."""
    for start in range(0, row.shape[0], 4 * LINE):
        found, part = False, row[start : start + 4 * LINE]
        for k in range(part.shape[0]):
            found |= part[k] >= value
        if found:
            while row[start] < value:
                start += 1
            return start
    return 0


@jit_rows.sharing("codebook", each=1, times="codebook")  # a part transposes all codes
def _nearest_code_numba(z, codebook, quantized, codes):
    # Measured on an EPYC, one thread, z (8192, 64), 512 codes: 9.0 ms. As fast there, and slower
    # for small Z, was a matrix product (6.2 ms) that leaves a few codes to decide between.
    (N, Z), K = z.shape, codebook.shape[0]
    wide, nan = (Z + 3) // 4 * 4, False
    columns, vectors = apart(wide * K, z.dtype).reshape(wide, K), np.zeros((2, wide), z.dtype)
    distance = apart(2 * K, z.dtype).reshape(2, K)
    columns[Z:] = 0
    for start in range(0, K, LINE):  # a line of the cache after the other is filled
        for j in range(Z):
            for k in range(start, min(start + LINE, K)):
                columns[j, k] = codebook[k, j]
    for number in codebook.reshape(-1):
        nan |= number != number
    for first in range(0, N, 2):
        for i in range(first, min(first + 2, N)):
            for j in range(Z):
                vectors[i - first, j] = z[i, j]
        _distances_numba(vectors, columns, distance)
        for i in range(first, min(first + 2, N)):
            near, code = distance[i - first], 0
            top, bad = row_max(near), nan
            for j in range(Z):
                bad |= z[i, j] != z[i, j]
            if bad:  # row_max may have overlooked the NaN
                while near[code] == near[code]:
                    code += 1
            if not bad:
                code = _first_numba(near, top)
            codes[i] = code
            for j in range(Z):
                quantized[i, j] = near[code] if bad else codebook[code, j]


def _nearest_code_cuda(z, codebook, quantized, codes):
    sizes = tuple(np.int64(n) for n in (*z.shape, len(codebook)))
    grid = min(-(-len(z) // TILE), 2**31 - 1)
    arguments = (z, codebook, quantized, codes, *sizes)
    launch("codebook.cu", typed("nearest_code_forward", z.dtype, 1), grid, 256, arguments)
