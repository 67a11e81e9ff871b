"""Products with the patches of images: all that a convolution and its transpose are made of.

    correlate:      out = im2col(x) w          (B*P*Q, R*S*C) (R*S*C, O)
    correlate_by:   out = im2col(x)^T y        (R*S*C, B*P*Q) (B*P*Q, O)
    spread:         out = col2im(y w^T)        the adjoint of correlate in x

im2col, col2im and the sizes are those of `patches.py`.  Only `spread` writes patches down, of a few
images at a time.  To copy them costs a tenth of the product, so the other two do without: a tile of
`_tile.py` reads its left factor number by number, from wherever a table says, and element
(b p q, r s c) lies at position(b, p, q) + offset(r, s, c) of an image with a margin of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _math
from ._dispatch import contiguous, empty, jit, jit_rows, select
from .arena import scratch
from .patches import Geometry, col2im_forward, im2col_forward
from .product import DEPTH, ROWS, _multiples, product, tiles, transpose

# Numbers in the patches of one part: 1 MB of float32, about a core's second-level cache.
PART = 2**18
PART_ON_GPU = 2**26  # 256 MB of float32: the fewer products the better, as long as there is memory
MARGIN = 2**15  # numbers in the images with margins of one part: 128 kB of float32


def correlate(x: Any, w: Any, g: Geometry, out: Any) -> Any:
    """out = im2col(x) w; returns out.

    x: (B, H, W, C), w: (R*S*C, O), out: (B*P*Q, O); out is C-contiguous; g: geometry of x.
    """
    body = select(x, _correlate_patches, _correlate_tables, _correlate_patches)
    body(contiguous(x), contiguous(w), g, out)
    return out


def correlate_by(x: Any, y: Any, g: Geometry, out: Any) -> Any:
    """out = im2col(x)^T y; returns out.

    x: (B, H, W, C), y: (B*P*Q, O), out: (R*S*C, O); out is C-contiguous; g: geometry of x.
    """
    if not len(x):
        out.fill(0)
        return out
    body = select(x, _correlate_by_patches, _correlate_by_tables, _correlate_by_patches)
    body(contiguous(x), contiguous(y), g, out)
    return out


def spread(y: Any, w: Any, g: Geometry, out: Any) -> Any:
    """out = col2im(y w^T); returns out.

    y: (B*P*Q, O), w: (R*S*C, O), out: (B, H, W, C); out is C-contiguous; g: geometry of out.
    """
    turned = transpose(w, empty(w.shape[::-1], w))
    for part in _parts(out, g):
        rows = y[part.start * g.P * g.Q : part.stop * g.P * g.Q]
        patches = product(rows, turned, scratch((len(rows), len(w)), y))
        col2im_forward(patches, batch=part.stop - part.start, geometry=g, out=out[part])
    return out


def _parts(x: Any, g: Geometry) -> Iterator[slice]:
    """Slices of the images whose patches hold about PART numbers."""
    part = PART if isinstance(x, np.ndarray) else PART_ON_GPU
    step = max(1, part // max(1, g.P * g.Q * g.R * g.S * g.C))
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))


# ------------------------------------------------------------------------------- with the patches
def _patches(x: Any, g: Geometry) -> Any:
    patches = scratch((len(x) * g.P * g.Q, g.R * g.S * g.C), x)
    return im2col_forward(
        x, kernel=(g.R, g.S), stride=g.stride, padding=g.padding, dilation=g.dilation, out=patches
    )[0]


def _correlate_patches(x, w, g, out):
    for part in _parts(x, g):
        product(_patches(x[part], g), w, out[part.start * g.P * g.Q : part.stop * g.P * g.Q])


def _correlate_by_patches(x, y, g, out):
    for part in _parts(x, g):
        rows = y[part.start * g.P * g.Q : part.stop * g.P * g.Q]
        product(_patches(x[part], g).T, rows, out, accumulate=part.start > 0)


# ---------------------------------------------------------------------------- without the patches
def _correlate_tables(x, w, g, out):
    if out.size:
        images = _images(x, g)
        tables = _tables(g, images, x.itemsize)
        _correlate_numba(x, out, w, _room(x, g), images, *tables, g, tiles(x.dtype))


def _correlate_by_tables(x, y, g, out):
    images = _images(x, g)
    tables = _tables(g, images, x.itemsize)
    _correlate_by_numba(out, x, y, _room(x, g), images, *tables, g, tiles(x.dtype))


def _sides(g: Geometry) -> tuple[int, int]:
    return g.H + 2 * g.padding, g.W + 2 * g.padding


def _images(x: np.ndarray, g: Geometry) -> int:
    """How many images with margins shall be there at a time."""
    H, W = _sides(g)
    return max(1, min(len(x), MARGIN // max(1, H * W * g.C)))


def _room(x: np.ndarray, g: Geometry) -> np.ndarray:
    """Memory for all images, so that each thread has a share; it uses the first few of that."""
    H, W = _sides(g)
    return scratch((len(x), H * W * g.C), x)


@functools.lru_cache(256)
def _tables(g: Geometry, images: int, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """In bytes: where the patches of images with margins begin; where the numbers of one lie."""
    H, W = _sides(g)
    b, p, q = np.ogrid[:images, : g.P, : g.Q]
    positions = ((b * H + p * g.stride) * W + q * g.stride) * (g.C * itemsize)
    r, s, c = np.ogrid[: g.R, : g.S, : g.C]
    offsets = ((r * W + s) * (g.dilation * g.C) + c) * itemsize
    return positions.reshape(-1), offsets.reshape(-1)


@jit
def _clear(room, images):
    for i in range(images):
        for k in range(room.shape[1]):
            room[i, k] = 0


@jit
def _put(x, first, count, room, g):
    """Some images into the middle of their margins; returns the address of the first."""
    if g.padding == 0:
        return np.int64(x.ctypes.data + first * x.strides[0])
    source, target = x.reshape(x.size), room.reshape(room.size)
    line, length = (g.W + 2 * g.padding) * g.C, np.uintp(g.W * g.C)
    for b in range(count):
        for h in range(g.H):
            start = np.uintp(((first + b) * g.H + h) * g.W * g.C)
            at = np.uintp(b * room.shape[1] + (h + g.padding) * line + g.padding * g.C)
            for k in range(length):
                target[at + k] = source[start + k]
    return np.int64(room.ctypes.data)


@jit_rows.sharing("w", "positions", "offsets", each=1)
def _correlate_numba(x, out, w, room, images, positions, offsets, g, tiles):
    (K, O), each = w.shape, g.P * g.Q  # noqa: E741
    images = min(images, len(x))  # a thread's share of the rows may be less, and so is its room
    below = _multiples(out.strides[0], len(positions), ROWS)
    _clear(room, images)
    for first in range(0, len(x), images):
        count = min(images, len(x) - first)
        a = _put(x, first, count, room, g)
        for k in range(0, K, DEPTH):
            for i in range(0, count * each, ROWS):
                _math.call(
                    tiles, x.dtype.type(0),
                    a, positions.ctypes.data + 8 * i, min(ROWS, count * each - i),
                    offsets.ctypes.data + 8 * k, min(DEPTH, K - k),
                    w.ctypes.data + k * w.strides[0], w.strides[0], O,
                    out.ctypes.data + (first * each + i) * out.strides[0], below.ctypes.data, k,
                )  # fmt: skip


@jit
def _correlate_by_numba(out, x, y, room, images, positions, offsets, g, tiles):
    (K, O), each = out.shape, g.P * g.Q  # noqa: E741
    below = _multiples(out.strides[0], K, K)
    _clear(room, images)
    for first in range(0, len(x), images):
        count = min(images, len(x) - first)
        a = _put(x, first, count, room, g)
        for k in range(0, count * each, DEPTH):
            _math.call(
                tiles, x.dtype.type(0), a, offsets.ctypes.data, K,
                positions.ctypes.data + 8 * k, min(DEPTH, count * each - k),
                y.ctypes.data + (first * each + k) * y.strides[0], y.strides[0], O,
                out.ctypes.data, below.ctypes.data, first + k,
            )  # fmt: skip
