"""Importance weights: the log of their mean over samples, and their normalised values.

Sizes: B batch, K samples.  log_w = log p(x, z_k) - log q(z_k | x) makes `log_mean_exp` the bound of
Burda, Grosse and Salakhutdinov 2016, in nats per row.  The weights stay in `saved.weights`, for
estimators that need them (Roeder, Wu and Duvenaud 2017; Tucker et al. 2019).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import over_rows
from ._dispatch import (
    apart,
    check_floats,
    check_rate,
    contiguous,
    empty,
    empty_gradient,
    jit,
    jit_rows,
    select,
)
from ._math import exp_negative, log, row_max
from .likelihood import scale_rows

BLOCK = 2048  # elements of some rows at once, which stay in the first cache


class ImportanceSaved(NamedTuple):
    """What `log_mean_exp_forward` keeps: the weights (B, K), which sum to one over K."""

    weights: Any


def log_mean_exp_forward(log_w: Any, *, gradient: bool = True) -> Any:
    """Log of the mean of the weights of each row, in nats.

    log_mean = log 1/K sum_k exp(log_w_k)                Burda et al. 2016, equation 8
    log_w: (B, K), K >= 1; -inf is a weight of zero.  A row of -inf alone has the mean -inf, and
    weights and a gradient of zero.
    Returns log_mean (B,), saved (with saved.weights (B, K), the softmax of log_w; None if it is
    said that no gradient is wanted).
    Raises ValueError for another number of axes or K = 0, TypeError for the dtype.
    """
    log_w = _checked(log_w)
    log_mean, weights = empty(log_w.shape[:1], log_w), empty_gradient(log_w, gradient)
    select(log_w, *_LOG_MEAN_EXP)(log_w, None, log_mean, weights)
    return log_mean, ImportanceSaved(weights)


def log_mean_exp_backward(dout: Any, saved: ImportanceSaved) -> tuple:
    """dlog_w = dlog_mean weights      the best samples get the most      Burda et al. 2016, eq. 13.

    dout: dlog_mean (B,).  Returns dlog_w (B, K).
    """
    return (scale_rows(dout, saved.weights),)


def log_mean_exp_value_and_grad(log_w: Any, dout: Any = 1.0) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of a loss.
    Returns log_mean (B,), (dlog_w (B, K),).
    """
    log_w = _checked(log_w)
    rate, log_mean, dlog_w = (
        check_rate(dout, log_w),
        empty(log_w.shape[:1], log_w),
        empty(log_w.shape, log_w),
    )
    select(log_w, *_LOG_MEAN_EXP)(log_w, rate, log_mean, dlog_w)
    return log_mean, (dlog_w,)


def _checked(log_w: Any) -> Any:
    """log_w, contiguous; ValueError or TypeError if it is not a (B, K) of floats with K >= 1."""
    (log_w,) = check_floats(log_w=log_w)
    if log_w.ndim != 2 or log_w.shape[1] == 0:
        raise ValueError(f"log_w must be (B, K) with K >= 1, got shape {log_w.shape}")
    return contiguous(log_w)


# rate: what each row's weights are multiplied by, (B,); None is 1.  weights: None if not wanted.
def _log_mean_exp_numpy(log_w, rate, log_mean, weights):
    top = log_w.max(axis=1, keepdims=True)
    e = np.exp(log_w - np.where(top == -np.inf, 0, top))
    total = e.sum(axis=1, keepdims=True)
    nothing = total == 0  # a row of -inf
    total = np.where(nothing, 1, total)
    if weights is not None:
        weights[:] = e / total if rate is None else rate[:, None] * (e / total)
    log_mean[:] = (top + np.log(total / log_w.shape[1]))[:, 0]


@jit
def exponentials(x, top, total, e):
    """e = exp(x - the largest of its row), each row's largest and its sum; 0 for a row of -inf.

    x, e: (R, K); top, total: (R,) or longer.  One loop over all exponentials is long whatever K is.
    """
    (R, K), zero = x.shape, e.dtype.type(0)
    for r in range(R):
        top[r] = row_max(x[r])
        shift = zero if top[r] == -np.inf else top[r]
        for k in range(K):
            e[r, k] = x[r, k] - shift
    flat = e.reshape(-1)
    for k in range(flat.shape[0]):
        flat[k] = exp_negative(flat[k])
    for r in range(R):
        row_total = zero
        for k in range(K):
            row_total += e[r, k]
        total[r] = row_total


@jit_rows
def _log_mean_exp_numba(log_w, rate, log_mean, weights):
    dtype = log_w.dtype.type
    zero, half, one, (B, K) = dtype(0), dtype(0.5), dtype(1), log_w.shape
    block = max(1, BLOCK // K)
    e = apart(block * K, log_w.dtype).reshape(block, K)
    top, total = apart(block, log_w.dtype), apart(block, log_w.dtype)
    for first in range(0, B, block):
        count = min(block, B - first)
        exponentials(log_w[first : first + count], top, total, e[:count])
        for r in range(count):  # a loop of its own: in SIMD
            nothing = total[r] < half  # a row of -inf: else the largest alone contributes 1
            log_mean[first + r] = top[r] if nothing else top[r] + log(total[r] / dtype(K))
            total[r] = zero if nothing else one / total[r]
        if weights is not None:  # decided when the kernel is compiled, here and below
            for r in range(count):
                scale = total[r]
                if rate is not None:
                    scale *= rate[first + r]
                for k in range(K):
                    weights[first + r, k] = scale * e[r, k]


def _log_mean_exp_cuda(log_w, rate, log_mean, weights):
    arguments = (log_w, rate, log_mean, weights)
    over_rows("importance.cu", "log_mean_exp_forward", log_w.shape, *arguments)


_LOG_MEAN_EXP = (_log_mean_exp_numpy, _log_mean_exp_numba, _log_mean_exp_cuda)
