"""Categorical likelihood: -log p(labels) from logits, value and gradient in one pass.

Sizes: B batch, P positions (the axes between batch and classes, flattened: (B, H, W, C) has
P = H*W, (B, C) has one), C classes.  Values are sums over the positions of a row, in nats.  The
forward pass saves the gradient itself; the backward scales its rows by `dout`.

Storage in half precision (float16 and bfloat16, on a GPU): the arithmetic is float32, and so are
the values of the rows and `dout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cuda import launch, typed, vector_width
from ._dispatch import (
    apart,
    arithmetic,
    as_array,
    check_floats,
    contiguous,
    empty,
    jit,
    jit_rows,
    place,
    rows,
    select,
)
from ._math import exp_negative, log, row_max
from .likelihood import scale_rows

BLOCK = 1024  # logits


def categorical_nll_forward(logits: Any, labels: Any) -> Any:
    """-log p(labels | logits) of each row, summed over its positions, in nats.

    nll = sum_p log sum_c exp(l_pc) - l_p,label         the cross-entropy of softmax(logits)
    logits: (B, ..., C); labels: (B, ...), integers from 0 to C - 1.
    A logit of -inf is a class of probability zero; each position needs a class above that.
    Returns nll (B,), saved.
    Raises ValueError if the shapes do not fit or a label is out of range, TypeError for dtypes and
    devices.  On a GPU, where reading a label would halt the queue, a label that is out of range
    makes the row's nll NaN.
    """
    (logits,) = check_floats(halves=True, logits=logits)
    labels = _check_labels(labels, logits)
    B, C = logits.shape[0], logits.shape[-1]
    nll, dlogits = empty((B,), logits, arithmetic(logits.dtype)), empty(logits.shape, logits)
    labels = rows(labels)  # (B, H, W) -> (B, P)
    shape = (*labels.shape, C)  # (B, H, W, C) -> (B, P, C)
    select(logits, _categorical_nll_numpy, _categorical_nll_numba, _categorical_nll_cuda)(
        contiguous(logits).reshape(shape), labels, nll, dlogits.reshape(shape)
    )
    return nll, (dlogits,)


def categorical_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dlogits = dnll (softmax(logits) - onehot(labels))      dlabels: None.

    dout: dnll (B,).  Returns dlogits (B, ..., C), None.
    """
    (dlogits,) = saved
    return scale_rows(dout, dlogits), None


def _check_labels(labels: Any, logits: Any) -> Any:
    """The labels beside the logits; on a CPU each from 0 to C - 1, on a GPU as int64."""
    labels = as_array("labels", labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if place(labels) != place(logits):
        raise TypeError(
            f"labels lies on {place(labels)}, logits on {place(logits)}: move them to one device"
        )
    if logits.ndim < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (B, ..., C) with C >= 1, got shape {logits.shape}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {labels.shape}, logits without their classes {logits.shape[:-1]}"
        )
    if not isinstance(labels, np.ndarray):
        return labels.astype(np.int64, copy=False)
    last = logits.shape[-1] - 1
    for label in (labels.min(), labels.max()) if labels.size else ():
        if not 0 <= label <= last:
            raise ValueError(f"labels holds {label}, logits has classes 0 to {last}")
    return labels


def _categorical_nll_numpy(logits, labels, nll, dlogits):
    top = logits.max(axis=2, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(axis=2, keepdims=True)
    at = labels[:, :, None]
    # top - l first: the logarithm would drown in large logits
    nll[:] = (np.log(total) + (top - np.take_along_axis(logits, at, 2)))[:, :, 0].sum(axis=1)
    dlogits[:] = e / total
    np.put_along_axis(dlogits, at, np.take_along_axis(dlogits, at, 2) - 1, 2)


@jit
def exp_below_top(x, tops, spread, e):
    """For each row of x: its largest number to tops, and e = exp(x - largest).

    x, spread, e: (P, C).  The exponentials are one flat loop: rows of ten would fill no vector.
    """
    for p in range(x.shape[0]):
        tops[p] = row_max(x[p])
        for c in range(x.shape[1]):
            spread[p, c] = tops[p]
    flat, flat_e, below = x.reshape(-1), e.reshape(-1), spread.reshape(-1)
    for j in range(flat.shape[0]):
        flat_e[j] = exp_negative(flat[j] - below[j])


@jit_rows
def _categorical_nll_numba(logits, labels, nll, dlogits):
    P, C = logits.shape[1], logits.shape[2]
    zero, one = nll.dtype.type(0), nll.dtype.type(1)
    block = max(1, BLOCK // C)  # positions whose logits stay in the first cache
    tops, spread = np.empty(block, nll.dtype), apart(block * C, nll.dtype).reshape(block, C)
    for i in range(logits.shape[0]):
        nats = 0.0  # float64: a row may have thousands of positions
        for first in range(0, P, block):
            l, d = logits[i, first : first + block], dlogits[i, first : first + block]  # noqa: E741
            exp_below_top(l, tops, spread[: l.shape[0]], d)
            for p in range(l.shape[0]):
                total = zero
                for c in range(C):
                    total += d[p, c]
                scale = one / total
                for c in range(C):
                    d[p, c] *= scale
                label = labels[i, first + p]
                if not 0 <= label < C:  # labels that changed after the check
                    nats += np.nan
                    continue
                d[p, label] -= one
                # the comparison keeps the compiler from adding large logits to the sum first
                gap = tops[p] - l[p, label]
                nats += log(total) + (gap if gap > zero else zero)
        nll[i] = nats


def _categorical_nll_cuda(logits, labels, nll, dlogits):
    width = vector_width(logits.dtype, logits.shape[2], (logits, dlogits))
    arrays = (logits, labels, nll, dlogits)
    over_positions("categorical.cu", "categorical_nll_forward", logits.shape, width, *arrays)


def over_positions(
    file: str, kernel: str, shape: tuple[int, int, int], width: int, *arguments: Any
) -> None:
    """kernel(arguments..., B, P, C, lanes): one block a row, `lanes` neighbours a position.

    The lanes are as many, 1 to 32, as it takes to read C elements, `width` at a time; the kernel
    is compiled for the type of the first array.
    """
    B, P, C = shape
    lanes = min(32, 1 << (-(-C // width) - 1).bit_length())
    threads = min(256, max(32, 1 << (P * lanes - 1).bit_length())) if P else 32
    sizes = tuple(np.int64(n) for n in (B, P, C, lanes))
    name = typed(kernel, arguments[0].dtype, width)
    launch(file, name, min(B, 2**31 - 1), threads, (*arguments, *sizes))
