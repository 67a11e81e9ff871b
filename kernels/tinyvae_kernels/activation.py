"""A layer's bias and activation in one pass, and their gradients in another.

Sizes: R rows (the axes of x before the last, flattened: (B, H, W, C) has R = B*H*W), C channels.
With u = x + bias:

    identity    u                                      leaky_relu  u where u > 0, else u / 100
    relu        max(u, 0)                              elu         u where u > 0, else e^u - 1
    sigmoid     1 / (1 + e^-u)                         tanh        tanh(u)
    silu        u sigmoid(u)                           softplus    log(1 + e^u)
    gelu        u sigmoid(2 g(u)),  g(u) = sqrt(2/pi) (u + 0.044715 u^3)

The last is u/2 (1 + tanh(g(u))), the tanh form of Hendrycks and Gimpel 2016, without its
cancellation for u << 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _threads
from ._cuda import device_of, launch, typed, vector_width
from ._dispatch import (
    apart,
    check_dout,
    check_floats,
    contiguous,
    empty,
    jit,
    jit_rows,
    known_dout,
    select,
)
from ._math import exp_negative, expm1, log1p01

ACTIVATIONS = (
    "identity", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "softplus", "silu", "gelu",
)  # fmt: skip
# Compiled code knows them by number, activation.cu too.
IDENTITY, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SOFTPLUS, SILU, GELU = range(len(ACTIVATIONS))
SLOPE = 0.01  # of leaky_relu below 0
SQRT_2_PI, CUBIC = math.sqrt(2 / math.pi), 0.044715
FAR = 10.0  # beyond, gelu's sigmoid is 0 or 1, and u^3 might overflow
BLOCK = 1024  # elements between two looks at the kind of activation


def bias_activation_forward(x: Any, bias: Any, *, activation: str = "relu") -> Any:
    """y = activation(x + bias), elementwise over the last axis of x.

    x: (..., C), bias: (C,); activation: one of ACTIVATIONS, formulas above.
    Returns y (..., C), saved (which holds y or x, whichever gives the derivative).
    Raises ValueError if the shapes do not fit or the activation is unknown, TypeError for dtypes
    and devices.
    """
    x, bias, code = _checked(x, bias, activation)
    y = empty(x.shape, x)
    select(
        x, _bias_activation_forward_numpy, _bias_activation_forward_numba,
        _bias_activation_forward_cuda,
    )(_by_rows(x), bias, _by_rows(y), code)  # fmt: skip
    return y, (x if code >= SILU else y, bias, code)


def bias_activation_backward(dout: Any, saved: tuple) -> tuple:
    """dx = dy activation'(x + bias)      dbias = sum of dx over all rows.

    From y:  relu, leaky_relu: 1 where y > 0, else 0 and 1/100     elu: 1 where y > 0, else y + 1
        sigmoid: y (1 - y)     tanh: 1 - y^2     softplus: 1 - e^-y
    From u = x + bias:  silu: s + u s (1 - s), s = sigmoid(u)
        gelu: s + 2 u s (1 - s) g'(u), s = sigmoid(2 g(u))
    The sum is made in float64 and in a fixed order.
    dout: dy (..., C).  Returns dx (..., C), dbias (C,).
    """
    kept, bias, code = saved
    dy = check_dout(dout, kept.shape, kept)
    dx, dbias = empty(kept.shape, kept), empty(bias.shape, bias)
    arguments = (_by_rows(dy), None, _by_rows(kept), bias, _by_rows(dx), dbias, code)
    select(kept, *_BIAS_ACTIVATION_BACKWARD)(*arguments)
    return dx, dbias


def bias_activation_value_and_grad(
    x: Any, bias: Any, dout: Any = 1.0, *, activation: str = "relu"
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: dy (..., C) or one number.  Returns y (..., C), (dx (..., C), dbias (C,)).
    """
    x, bias, code = _checked(x, bias, activation)
    dy, y = known_dout(dout, x.shape, x), empty(x.shape, x)
    dx, dbias = empty(x.shape, x), empty(bias.shape, x)
    arguments = (_by_rows(dy), _by_rows(x), _by_rows(y), bias, _by_rows(dx), dbias, code)
    select(x, *_BIAS_ACTIVATION_BACKWARD)(*arguments)
    return y, (dx, dbias)


def _checked(x: Any, bias: Any, activation: str) -> tuple:
    """x and bias, contiguous, and the activation's number."""
    x, bias = check_floats(x=x, bias=bias)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if x.ndim == 0 or bias.shape != x.shape[-1:]:
        raise ValueError(f"bias has shape {bias.shape}, x has {x.shape}: expected its last axis")
    return contiguous(x), contiguous(bias), ACTIVATIONS.index(activation)


def _by_rows(array: Any) -> Any:
    """(..., C) -> (R, C), of a contiguous array."""
    C = array.shape[-1]
    return array.reshape(array.size // C if C else 0, C)


# ------------------------------------------------------------------------------------------ NumPy
def _sigmoid(u):
    e = np.exp(-np.abs(u))
    return np.where(u >= 0, 1, e) / (1 + e)


def _g(u):
    return SQRT_2_PI * (u + CUBIC * (u * u * u))


def _bias_activation_forward_numpy(x, bias, y, code):
    u = x + bias
    if code == IDENTITY:
        y[:] = u
    elif code == RELU:
        y[:] = np.maximum(u, 0)
    elif code == LEAKY_RELU:
        y[:] = np.where(u > 0, u, SLOPE * u)
    elif code == ELU:
        y[:] = np.where(u > 0, u, np.expm1(np.minimum(u, 0)))
    elif code == SIGMOID:
        y[:] = _sigmoid(u)
    elif code == TANH:
        y[:] = np.tanh(u)
    elif code == SOFTPLUS:
        y[:] = np.logaddexp(u, 0)
    elif code == SILU:
        y[:] = u * _sigmoid(u)
    elif code == GELU:
        y[:] = u * _sigmoid(2 * _g(np.clip(u, -FAR, FAR)))


# kept: what the forward saved; where x is not None, that is computed first: y, in kept's place
def _bias_activation_backward_numpy(dy, x, kept, bias, dx, dbias, code):
    if x is not None:
        _bias_activation_forward_numpy(x, bias, kept, code)
        kept = x if code >= SILU else kept
    slope: Any = 1  # IDENTITY
    if code == RELU:
        slope = kept > 0
    elif code == LEAKY_RELU:
        slope = np.where(kept > 0, 1, kept.dtype.type(SLOPE))
    elif code == ELU:
        slope = np.where(kept > 0, 1, kept + 1)
    elif code == SIGMOID:
        slope = kept * (1 - kept)
    elif code == TANH:
        slope = 1 - kept * kept
    elif code == SOFTPLUS:
        slope = -np.expm1(-kept)
    elif code == SILU:
        u = kept + bias
        slope = _sigmoid(u) * (1 + u * _sigmoid(-u))
    elif code == GELU:
        u = np.clip(kept + bias, -FAR, FAR)
        dg = SQRT_2_PI * (1 + 3 * CUBIC * (u * u))
        slope = _sigmoid(2 * _g(u)) * (1 + 2 * u * dg * _sigmoid(-2 * _g(u)))
    dx[:] = dy * slope
    dbias[:] = dx.sum(axis=0, dtype=np.float64)


# ------------------------------------------------------------------------------------------ Numba
@jit
def _tiled(bias):
    """(T, C), bias again and again, so that the inner loops are long whatever C is."""
    C = bias.shape[0]
    count = max(1, BLOCK // max(1, C))
    tile = apart(count * C, bias.dtype).reshape(count, C)
    for i in range(tile.shape[0]):
        for j in range(C):
            tile[i, j] = bias[j]
    return tile


def _more(code: int) -> int | None:
    """None for the two kinds that most networks have: the loops of all others take 2 s to compile.

    Whether an argument is None is decided when a kernel is compiled.
    """
    return None if code in (IDENTITY, RELU) else code


@jit
def _activate(x, tile, y, code, more):
    """y = activation(x + tile), one loop for each kind."""
    zero = y.dtype.type(0)
    if code == RELU:
        for k in range(x.shape[0]):
            u = x[k] + tile[k]
            y[k] = zero if u < zero else u  # NaN stays
        return
    for k in range(x.shape[0]):
        y[k] = x[k] + tile[k]
    if more is not None:
        _bend(y, code)


@jit
def _bend(y, code):
    """y = activation(y), of the other kinds."""
    dtype = y.dtype.type
    zero, one, two, slope, far = dtype(0), dtype(1), dtype(2), dtype(SLOPE), dtype(FAR)
    factor, cubic = dtype(SQRT_2_PI), dtype(CUBIC)
    if code == LEAKY_RELU:
        for k in range(y.shape[0]):
            y[k] = y[k] if y[k] > zero else slope * y[k]
    elif code == ELU:
        for k in range(y.shape[0]):
            below = expm1(zero if y[k] > zero else y[k])  # NaN stays
            y[k] = y[k] if y[k] > zero else below
    elif code == SIGMOID:
        for k in range(y.shape[0]):
            e = exp_negative(-abs(y[k]))
            y[k] = (one if y[k] >= zero else e) / (one + e)
    elif code == TANH:
        for k in range(y.shape[0]):
            m = expm1(-abs(y[k] + y[k]))  # tanh|u| = -m / (2 + m), nothing cancels
            t = -m / (two + m)
            y[k] = t if y[k] >= zero else -t
    elif code == SOFTPLUS:
        for k in range(y.shape[0]):
            y[k] = (y[k] if y[k] > zero else zero) + log1p01(exp_negative(-abs(y[k])))
    elif code == SILU:
        for k in range(y.shape[0]):
            e = exp_negative(-abs(y[k]))
            y[k] *= (one if y[k] >= zero else e) / (one + e)
    elif code == GELU:
        for k in range(y.shape[0]):
            u = min(max(y[k], -far), far)
            g = two * factor * (u + cubic * (u * u * u))
            e = exp_negative(-abs(g))
            y[k] *= (one if g >= zero else e) / (one + e)


@jit_rows.sharing("bias")
def _bias_activation_forward_rows(x, bias, y, code, more):
    tile, flat, flat_y = _tiled(bias).reshape(-1), x.reshape(-1), y.reshape(-1)
    for start in range(0, flat.shape[0], max(1, tile.shape[0])):
        stop = start + tile.shape[0]
        _activate(flat[start:stop], tile, flat_y[start:stop], code, more)


def _bias_activation_forward_numba(x, bias, y, code):
    _bias_activation_forward_rows(x, bias, y, code, _more(code))


@jit
def _slopes(dy, kept, tile, dx, code):
    """dx = dy activation'(x + tile), one loop for each of the other kinds."""
    dtype = dx.dtype.type
    zero, one, two, slope, far = dtype(0), dtype(1), dtype(2), dtype(SLOPE), dtype(FAR)
    factor, cubic = dtype(SQRT_2_PI), dtype(CUBIC)
    if code == LEAKY_RELU:
        for k in range(dy.shape[0]):
            dx[k] = dy[k] * (one if kept[k] > zero else slope)
    elif code == ELU:
        for k in range(dy.shape[0]):
            dx[k] = dy[k] * (one if kept[k] > zero else kept[k] + one)
    elif code == SIGMOID:
        for k in range(dy.shape[0]):
            dx[k] = dy[k] * (kept[k] * (one - kept[k]))
    elif code == TANH:
        for k in range(dy.shape[0]):
            dx[k] = dy[k] * (one - kept[k] * kept[k])
    elif code == SOFTPLUS:
        for k in range(dy.shape[0]):
            dx[k] = -dy[k] * expm1(-kept[k])
    elif code == SILU:
        for k in range(dy.shape[0]):
            u = kept[k] + tile[k]
            e = exp_negative(-abs(u))
            r = one / (one + e)
            dx[k] = dy[k] * ((r if u >= zero else e * r) + u * (e * r * r))
    elif code == GELU:
        for k in range(dy.shape[0]):
            u = min(max(kept[k] + tile[k], -far), far)
            g = two * factor * (u + cubic * (u * u * u))
            dg = two * factor * (one + (two + one) * cubic * (u * u))
            e = exp_negative(-abs(g))
            r = one / (one + e)
            dx[k] = dy[k] * ((r if g >= zero else e * r) + u * dg * (e * r * r))


@jit
def _relu_slopes(dy, x, y, tile, dx, sums):
    """dx and its sums in one loop, and y = max(x + tile, 0) in the same if x is not None.

    Loop after loop on blocks in the first cache, as for the other kinds, waits for memory at the
    beginning of each: value and gradients of 2048 x 784 took 1,280 us, now 700 (one thread, EPYC).
    """
    zero = dx.dtype.type(0)
    for k in range(dy.shape[0]):
        if x is not None:
            u = x[k] + tile[k]
            y[k] = zero if u < zero else u  # NaN stays
        else:
            u = y[k]
        d = dy[k]  # loaded in any case: else the loop is not vectorized
        d = d if u > zero else zero
        dx[k] = d
        sums[k] += d


@jit
def _bias_activation_backward_rows(dy, x, kept, bias, dx, total, code, more):
    """dx of some rows, and their sum, float64, to total (C,); y first if x is not None."""
    wide = _tiled(bias)
    tile, sums = wide.reshape(-1), apart(wide.size, np.float64)
    wide_sums = sums.reshape(wide.shape)
    sums[:] = 0
    flat_dy, flat, flat_dx = dy.reshape(-1), kept.reshape(-1), dx.reshape(-1)
    for start in range(0, flat.shape[0], max(1, tile.shape[0])):
        part = flat_dx[start : start + tile.shape[0]]
        stop = start + part.shape[0]
        given, near = None, flat[start:stop]
        if x is not None:  # decided when the kernel is compiled
            given = x.reshape(-1)[start:stop]
        if code == RELU:
            _relu_slopes(flat_dy[start:stop], given, near, tile, part, sums)
            continue
        if x is not None:
            _activate(given, tile, near, code, more)
            near = given if code >= SILU else near
        if more is not None:
            _slopes(flat_dy[start:stop], near, tile, part, code)
        else:
            for k in range(part.shape[0]):  # a loop: NumPy's way takes 2 s to compile
                part[k] = flat_dy[start + k]
        for k in range(part.shape[0]):
            sums[k] += part[k]
    total[:] = 0
    for i in range(wide.shape[0]):
        for j in range(wide.shape[1]):
            total[j] += wide_sums[i, j]


@jit
def _add_parts(totals, dbias):
    for j in range(dbias.shape[0]):
        total = 0.0
        for part in range(totals.shape[0]):
            total += totals[part, j]
        dbias[j] = total


@jit_rows.sharing("cuts", "dy", "x", "kept", "bias", "dx")
def _bias_activation_backward_parts(parts, cuts, dy, x, kept, bias, dx, totals, code, more):
    """Those of all parts that have these numbers, each with a row of totals."""
    for i in range(parts.shape[0]):
        rows = slice(cuts[parts[i]], cuts[parts[i] + 1])
        given = None if x is None else x[rows]
        _bias_activation_backward_rows(
            dy[rows], given, kept[rows], bias, dx[rows], totals[i], code, more
        )  # fmt: skip


def _bias_activation_backward_numba(dy, x, kept, bias, dx, dbias, code):
    count = _threads.parts((dy,))
    cuts, totals = len(dy) * np.arange(count + 1) // count, np.empty((count, len(bias)))
    arrays = (dy, x, kept, bias, dx, totals)
    _bias_activation_backward_parts(np.arange(count), cuts, *arrays, code, _more(code))
    _add_parts(totals, dbias)


# ------------------------------------------------------------------------------------------- CUDA
def _layout(x: Any, arrays: tuple) -> tuple[int, int, int, tuple]:
    """(width, tiles, groups, sizes): 256 threads a block, of which each keeps to its columns.

    A row is cut into tiles of `across` threads, `width` columns each; `groups` of blocks share the
    rows.
    """
    R, C = x.shape
    width = vector_width(x.dtype, C, arrays)
    tiles = -(-C // (width * 256))
    across = -(-C // (width * max(1, tiles))) or 1
    device = device_of(x)
    assert device is not None
    groups = min(-(-R // (256 // across)), max(1, device.blocks() // max(1, tiles)))
    return width, tiles, groups, tuple(np.int64(n) for n in (R, C, across, groups))


def _bias_activation_forward_cuda(x, bias, y, code):
    width, tiles, groups, sizes = _layout(x, (x, bias, y))
    name = typed("bias_activation_forward", x.dtype, width, code)
    launch("activation.cu", name, tiles * groups, 256, (x, bias, y, *sizes))


def _bias_activation_backward_cuda(dy, x, kept, bias, dx, dbias, code):
    arrays = tuple(a for a in (dy, x, kept, bias, dx) if a is not None)
    width, tiles, groups, sizes = _layout(dy, arrays)
    totals = empty((groups, len(bias)), dy, np.float64)
    kernel = f"bias_activation_{'backward' if x is None else 'value_and_grad'}"
    name = typed(kernel, dy.dtype, width, code)
    launch("activation.cu", name, tiles * groups, 256, (*arrays, totals, *sizes))
    sizes = (np.int64(groups), np.int64(len(bias)))
    name = typed("column_sums", dy.dtype, 1)
    launch("activation.cu", name, -(-len(bias) // 32), 256, (totals, dbias, *sizes))


_BIAS_ACTIVATION_BACKWARD = (
    _bias_activation_backward_numpy,
    _bias_activation_backward_numba,
    _bias_activation_backward_cuda,
)
