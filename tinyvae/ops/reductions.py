"""Ops that reduce axes, and ops that change shape.

A full sum of float32 numbers is taken in float64: it is what a loss over a batch goes through.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import devices
from ..tensor import Tensor, differentiable

Axis = int | tuple[int, ...] | None


def _expand(reduced: np.ndarray, shape: tuple, axis: Axis, keepdims: bool) -> np.ndarray:
    """A reduced array with its axes back, of size one, so that it broadcasts against `shape`."""
    if axis is None:
        return np.reshape(reduced, (1,) * len(shape))
    return reduced if keepdims else np.expand_dims(reduced, axis)


def sum_forward(x: np.ndarray, axis: Axis = None, keepdims: bool = False) -> Any:
    """out = sum of x over the axes."""
    accumulator = np.float64 if axis is None or x.ndim == 1 else None
    total = x.sum(axis=axis, keepdims=keepdims, dtype=accumulator)
    return total.astype(x.dtype, copy=False), (x.shape, axis, keepdims)


def sum_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout, for every element that was summed."""
    shape, axis, keepdims = saved
    return (np.broadcast_to(_expand(dout, shape, axis, keepdims), shape),)


def mean_forward(x: np.ndarray, axis: Axis = None, keepdims: bool = False) -> Any:
    """out = mean of x over the axes."""
    total, saved = sum_forward(x, axis=axis, keepdims=keepdims)
    count = x.size // total.size if total.size else 0
    return total / x.dtype.type(count), (*saved, count)


def mean_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout / n, n the number of elements in one mean."""
    *saved_sum, count = saved
    return sum_backward(dout / dout.dtype.type(count), tuple(saved_sum))


def max_forward(x: np.ndarray, axis: Axis = None, keepdims: bool = False) -> Any:
    """out = largest x over the axes."""
    out = x.max(axis=axis, keepdims=keepdims)
    return out, (x, out, axis, keepdims)


def max_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout / k at each of the k elements that equal the maximum, else 0."""
    x, out, axis, keepdims = saved
    largest = x == _expand(out, x.shape, axis, keepdims)
    share = largest / largest.sum(axis=axis, keepdims=True, dtype=x.dtype)
    return (_expand(dout, x.shape, axis, keepdims) * share,)


def logsumexp_forward(x: np.ndarray, axis: Axis = None, keepdims: bool = False) -> Any:
    """out = log sum e^x over the axes: the maximum is taken out, so that nothing overflows."""
    largest = x.max(axis=axis, keepdims=True)
    out = largest + np.log(np.exp(x - largest).sum(axis=axis, keepdims=True))
    softmax = np.exp(x - out)
    if not keepdims:
        out = out.reshape(softmax.sum(axis=axis).shape)
    return out, (softmax, axis, keepdims)


def logsumexp_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout softmax(x)."""
    softmax, axis, keepdims = saved
    return (_expand(dout, softmax.shape, axis, keepdims) * softmax,)


def log_softmax_forward(x: np.ndarray, axis: int = -1) -> Any:
    """out = x - log sum e^x along one axis."""
    shifted = x - x.max(axis=axis, keepdims=True)
    out = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return out, (out, axis)


def log_softmax_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout - softmax(x) sum dout."""
    out, axis = saved
    return (dout - np.exp(out) * dout.sum(axis=axis, keepdims=True),)


def softmax_forward(x: np.ndarray, mask: Any = None, axis: int = -1) -> Any:
    """out = e^x / sum e^x along one axis, over the places where the mask holds; 0 elsewhere.

    mask: None or bools that broadcast against x; where nothing is left, all of out is 0.
    """
    if mask is None:
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        out = e / e.sum(axis=axis, keepdims=True)
        return out, (out, axis)
    # a hidden x stands at the lowest number, so that it cannot overflow what is left
    mask, zero = devices.as_array(mask).astype(bool, copy=False), x.dtype.type(0)
    seen = np.where(mask, x, np.finfo(x.dtype).min)
    e = np.where(mask, np.exp(seen - seen.max(axis=axis, keepdims=True)), zero)
    total = e.sum(axis=axis, keepdims=True)
    out = e / np.where(total > 0, total, x.dtype.type(1))
    return out, (out, axis)


def softmax_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = out (dout - sum dout out)      dmask: None."""
    out, axis = saved
    return out * (dout - (dout * out).sum(axis=axis, keepdims=True)), None


def reshape_forward(x: np.ndarray, shape: tuple[int, ...]) -> Any:
    """out = x with another shape, the same elements in the same order."""
    return x.reshape(shape), (x.shape,)


def reshape_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout with x's shape."""
    return (dout.reshape(saved[0]),)


def transpose_forward(x: np.ndarray, axes: tuple[int, ...] | None = None) -> Any:
    """out = x with its axes reordered (reversed by default)."""
    axes = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    return x.transpose(axes), (axes,)


def transpose_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout with its axes put back."""
    return (dout.transpose(tuple(saved[0].index(axis) for axis in range(dout.ndim))),)


def concatenate_forward(*arrays: np.ndarray, axis: int = -1) -> Any:
    """out = the arrays one after the other along an axis."""
    cuts = [*itertools.accumulate(a.shape[axis] for a in arrays)][:-1]
    return np.concatenate(arrays, axis=axis), (cuts, axis)


def concatenate_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """Each array gets its own part of dout."""
    cuts, axis = saved
    return tuple(np.split(dout, cuts, axis=axis))


sum = differentiable(sum_forward, sum_backward)
mean = differentiable(mean_forward, mean_backward)
max = differentiable(max_forward, max_backward)
logsumexp = differentiable(logsumexp_forward, logsumexp_backward)
log_softmax = differentiable(log_softmax_forward, log_softmax_backward)
softmax = differentiable(softmax_forward, softmax_backward)
reshape = differentiable(reshape_forward, reshape_backward)
transpose = differentiable(transpose_forward, transpose_backward)
_concatenate = differentiable(concatenate_forward, concatenate_backward)


def concatenate(tensors: Sequence[Any], axis: int = -1) -> Tensor:
    """The tensors one after the other along an axis."""
    return _concatenate(*tensors, axis=axis)


concatenate.pair = _concatenate.pair  # type: ignore[attr-defined]
