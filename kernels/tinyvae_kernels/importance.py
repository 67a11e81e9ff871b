"""Importance weights: the log of their mean over samples, and their normalised values.

Sizes: B batch, K samples.  log_w = log p(x, z_k) - log q(z_k | x) makes `log_mean_exp` the bound of
Burda, Grosse and Salakhutdinov 2016, in nats per row.  The weights stay in `saved.weights`, for
estimators that need them (Roeder, Wu and Duvenaud 2017; Tucker et al. 2019).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import over_rows
from ._dispatch import check_floats, contiguous, empty, empty_gradient, jit_rows, select
from ._math import exp_negative, log, row_max
from .likelihood import scale_rows


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
    (log_w,) = check_floats(log_w=log_w)
    if log_w.ndim != 2 or log_w.shape[1] == 0:
        raise ValueError(f"log_w must be (B, K) with K >= 1, got shape {log_w.shape}")
    log_mean, weights = empty(log_w.shape[:1], log_w), empty_gradient(log_w, gradient)
    select(log_w, _log_mean_exp_numpy, _log_mean_exp_numba, _log_mean_exp_cuda)(
        contiguous(log_w), log_mean, weights
    )
    return log_mean, ImportanceSaved(weights)


def log_mean_exp_backward(dout: Any, saved: ImportanceSaved) -> tuple:
    """dlog_w = dlog_mean weights      the best samples get the most      Burda et al. 2016, eq. 13.

    dout: dlog_mean (B,).  Returns dlog_w (B, K).
    """
    return (scale_rows(dout, saved.weights),)


def _log_mean_exp_numpy(log_w, log_mean, weights):
    top = log_w.max(axis=1, keepdims=True)
    e = np.exp(log_w - np.where(top == -np.inf, 0, top))
    total = e.sum(axis=1, keepdims=True)
    nothing = total == 0  # a row of -inf
    total = np.where(nothing, 1, total)
    if weights is not None:
        weights[:] = e / total
    log_mean[:] = (top + np.log(total / log_w.shape[1]))[:, 0]


@jit_rows
def _log_mean_exp_numba(log_w, log_mean, weights):
    dtype = log_w.dtype.type
    zero, half, one, K = dtype(0), dtype(0.5), dtype(1), dtype(log_w.shape[1])
    for i in range(log_w.shape[0]):
        top = row_max(log_w[i])
        shift = zero if top == -np.inf else top
        total = zero
        for k in range(log_w.shape[1]):
            e = exp_negative(log_w[i, k] - shift)
            if weights is not None:  # decided when the kernel is compiled
                weights[i, k] = e
            total += e
        nothing = total < half  # a row of -inf: else the largest alone contributes 1
        log_mean[i] = top if nothing else top + log(total / K)
        scale = zero if nothing else one / total
        if weights is not None:
            for k in range(log_w.shape[1]):
                weights[i, k] *= scale


def _log_mean_exp_cuda(log_w, log_mean, weights):
    over_rows("importance.cu", "log_mean_exp_forward", log_w.shape, log_w, log_mean, weights)
