"""The memory half of convolution: image -> patches, and its adjoint, patches -> image.

Sizes: B batch, H W image, C channels, R S filter, P Q number of positions down and across.

    P = (H + 2 padding - dilation (R - 1) - 1) // stride + 1      (Q likewise from W and S)
    patches[b, p, q, r, s, c] = x[b, h, w, c]
    h = p stride + r dilation - padding      w = q stride + s dilation - padding

with zeros outside the image.  Images are channels-last, so that a row of a patch is contiguous in
both places (measured: im2col then costs a tenth of its matrix product).  The two functions are
adjoint: each is the other's backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import launch_gather
from ._dispatch import as_array, check_dout, check_floats, contiguous, empty, jit_rows, select


class Geometry(NamedTuple):
    """One convolution's numbers: sizes of the image, the filter and the positions."""

    H: int
    W: int
    C: int
    R: int
    S: int
    P: int
    Q: int
    stride: int
    padding: int
    dilation: int


def geometry(
    image: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Geometry:
    """Sizes for an image (H, W, C) and a filter (R, S).

    Raises ValueError if an option is out of range or the filter does not fit the padded image.
    """
    (H, W, C), (R, S) = image, kernel
    if min(R, S, stride, dilation) < 1 or padding < 0:
        raise ValueError(
            "kernel, stride and dilation must be >= 1 and padding >= 0, got "
            f"kernel {(R, S)}, stride {stride}, dilation {dilation}, padding {padding}"
        )
    P = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1
    Q = (W + 2 * padding - dilation * (S - 1) - 1) // stride + 1
    if P < 1 or Q < 1:
        raise ValueError(
            f"a {R}x{S} filter with dilation {dilation} does not fit an image of {H}x{W} "
            f"with padding {padding}"
        )
    return Geometry(H, W, C, R, S, P, Q, stride, padding, dilation)


# ----------------------------------------------------------------------------------------- im2col
def im2col_forward(
    x: Any,
    *,
    kernel: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    out: Any = None,
) -> Any:
    """All patches of an image, one a row.

    x: (B, H, W, C); out: where the patches shall go, by default in new memory.
    Returns patches (B*P*Q, R*S*C), saved.
    Raises ValueError if x has not four axes or the filter does not fit.
    """
    (x,) = check_floats(x=x)
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got shape {x.shape}")
    g = geometry(x.shape[1:], kernel, stride, padding, dilation)
    patches = _target(out, (len(x) * g.P * g.Q, g.R * g.S * g.C), x)
    select(x, _im2col_numpy, _im2col_numba, _im2col_cuda)(contiguous(x), patches, g)
    return patches, (g, x.shape)


def im2col_backward(dout: Any, saved: tuple, *, out: Any = None) -> tuple:
    """dx = col2im(dpatches): every pixel sums the patches that it is in.

    dout: dpatches (B*P*Q, R*S*C); out: where dx shall go, by default in new memory.
    Returns dx (B, H, W, C), as a tuple of one.
    """
    g, shape = saved
    dpatches = check_dout(dout, (shape[0] * g.P * g.Q, g.R * g.S * g.C), as_array("dout", dout))
    dx = _target(out, shape, dpatches)
    select(dx, _col2im_numpy, _col2im_numba, _col2im_cuda)(dx, dpatches, g)
    return (dx,)


# ----------------------------------------------------------------------------------------- col2im
def col2im_forward(patches: Any, *, batch: int, geometry: Geometry, out: Any = None) -> Any:
    """The image in which overlapping patches are summed: the adjoint of im2col.

    patches: (B*P*Q, R*S*C); batch: B; geometry: of the image to make; out: where it shall go.
    Returns x (B, H, W, C), saved.
    Raises ValueError if the patches do not have the geometry's shape.
    """
    (patches,) = check_floats(patches=patches)
    g = geometry
    expected = (batch * g.P * g.Q, g.R * g.S * g.C)
    if patches.shape != expected:
        raise ValueError(f"patches have shape {patches.shape}, expected {expected}")
    (x,) = im2col_backward(patches, (g, (batch, g.H, g.W, g.C)), out=out)
    return x, (g, batch)


def col2im_backward(dout: Any, saved: tuple, *, out: Any = None) -> tuple:
    """dpatches = im2col(dx).

    dout: dx (B, H, W, C); out: where dpatches shall go, by default in new memory.
    Returns dpatches (B*P*Q, R*S*C), as a tuple of one.
    """
    g, batch = saved
    dx = check_dout(dout, (batch, g.H, g.W, g.C), as_array("dout", dout))
    dpatches = _target(out, (batch * g.P * g.Q, g.R * g.S * g.C), dx)
    select(dx, _im2col_numpy, _im2col_numba, _im2col_cuda)(dx, dpatches, g)
    return (dpatches,)


def _target(out: Any, shape: tuple[int, ...], like: Any) -> Any:
    """The memory that was given, if it fits, or new memory."""
    if out is None:
        return empty(shape, like)
    if out.shape != shape or out.dtype != like.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be C-contiguous {shape} of {like.dtype}, got {out.shape} of {out.dtype}"
        )
    return out


# ----------------------------------------------------------------------------------------- bodies
def _positions(g, r, s):
    """The pixels of the padded image that filter element (r, s) meets, as two slices."""
    top, left = r * g.dilation, s * g.dilation
    return (
        slice(top, top + (g.P - 1) * g.stride + 1, g.stride),
        slice(left, left + (g.Q - 1) * g.stride + 1, g.stride),
    )


def _im2col_numpy(x, patches, g):
    p = g.padding
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    out = patches.reshape(len(x), g.P, g.Q, g.R, g.S, g.C)
    for r in range(g.R):
        for s in range(g.S):
            down, across = _positions(g, r, s)
            out[:, :, :, r, s] = padded[:, down, across]


def _col2im_numpy(x, patches, g):
    p = g.padding
    padded = np.zeros((len(x), g.H + 2 * p, g.W + 2 * p, g.C), x.dtype)
    source = patches.reshape(len(x), g.P, g.Q, g.R, g.S, g.C)
    for r in range(g.R):
        for s in range(g.S):
            down, across = _positions(g, r, s)
            padded[:, down, across] += source[:, :, :, r, s]
    x[:] = padded[:, p : p + g.H, p : p + g.W]


# The indices of the inner loops are unsigned: they cannot be negative, so Numba leaves out its
# wrap-around test, and LLVM makes wide copies of the loops (EPYC, im2col of 128 x 14 x 14 x 32 into
# new memory, 4x4/2: 5.0 ms with signed ones, 2.3 with these).
@jit_rows.moving
def _im2col_numba(x, patches, g):
    source, target, zero = x.reshape(x.size), patches.reshape(patches.size), x.dtype.type(0)
    length, channels = np.uintp(g.S * g.C), np.uintp(g.C)
    for b in range(x.shape[0]):
        for p in range(g.P):
            for r in range(g.R):
                h = p * g.stride + r * g.dilation - g.padding
                for q in range(g.Q):
                    left = q * g.stride - g.padding
                    at = np.uintp((((b * g.P + p) * g.Q + q) * g.R + r) * g.S * g.C)
                    if h < 0 or h >= g.H:
                        for k in range(length):
                            target[at + k] = zero
                    elif g.dilation == 1 and left >= 0 and left + g.S <= g.W:
                        # a row of the patch is one contiguous piece of the image
                        start = np.uintp(((b * g.H + h) * g.W + left) * g.C)
                        for k in range(length):
                            target[at + k] = source[start + k]
                    else:
                        for s in range(g.S):
                            w, pixel = left + s * g.dilation, at + np.uintp(s * g.C)
                            if 0 <= w < g.W:
                                start = np.uintp(((b * g.H + h) * g.W + w) * g.C)
                                for c in range(channels):
                                    target[pixel + c] = source[start + c]
                            else:
                                for c in range(channels):
                                    target[pixel + c] = zero


@jit_rows.moving
def _col2im_numba(x, patches, g):
    source, target = patches.reshape(patches.size), x.reshape(x.size)
    length, channels = np.uintp(g.S * g.C), np.uintp(g.C)
    target[:] = x.dtype.type(0)
    for b in range(x.shape[0]):
        for p in range(g.P):
            for r in range(g.R):
                h = p * g.stride + r * g.dilation - g.padding
                if h < 0 or h >= g.H:
                    continue
                for q in range(g.Q):
                    left = q * g.stride - g.padding
                    at = np.uintp((((b * g.P + p) * g.Q + q) * g.R + r) * g.S * g.C)
                    if g.dilation == 1 and left >= 0 and left + g.S <= g.W:
                        start = np.uintp(((b * g.H + h) * g.W + left) * g.C)
                        for k in range(length):
                            target[start + k] += source[at + k]
                    else:
                        for s in range(g.S):
                            w, pixel = left + s * g.dilation, at + np.uintp(s * g.C)
                            if 0 <= w < g.W:
                                start = np.uintp(((b * g.H + h) * g.W + w) * g.C)
                                for c in range(channels):
                                    target[start + c] += source[pixel + c]


def _im2col_cuda(x, patches, g):
    B, packs = x.shape[0], patches.size
    launch_gather("patches.cu", "im2col", packs, g.C, x, patches, np.int64(B), *_numbers(g))


def _col2im_cuda(x, patches, g):
    B, packs = x.shape[0], x.size
    launch_gather("patches.cu", "col2im", packs, g.C, x, patches, np.int64(B), *_numbers(g))


def _numbers(g: Geometry) -> tuple:
    return tuple(np.int32(number) for number in g)
