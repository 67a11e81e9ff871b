"""Negative log-likelihoods of a row, from raw parameters: value and gradient in one pass.

Sizes: B batch, D data (further axes are flattened: (B, H, W, C) counts as (B, H*W*C)).
Values are sums over a row, in nats, with all normalising constants.  The forward pass holds
everything that the gradient needs, so it saves the gradient itself; the backward scales its rows
by `dout`.  `x` is data: its gradient is None.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._dispatch import check_dout, check_same_shape, empty, jit, rows, select
from ._math import exp, log1p01

LOG_2PI = math.log(2 * math.pi)


def scale_rows(dout: np.ndarray, gradient: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """sign dout[i] gradient[i]: what is left to do once the forward saved the gradient."""
    dout = check_dout(dout, gradient.shape[:1], gradient.dtype)
    scaled = empty(gradient.shape, gradient)
    select(gradient, _scale_rows_numpy, _scale_rows_numba)(
        dout, rows(gradient), rows(scaled), gradient.dtype.type(sign)
    )
    return scaled


def _scale_rows_numpy(dout, gradient, scaled, sign):
    np.multiply((sign * dout)[:, None], gradient, out=scaled)


@jit
def _scale_rows_numba(dout, gradient, scaled, sign):
    for i in range(gradient.shape[0]):
        factor = sign * dout[i]
        for j in range(gradient.shape[1]):
            scaled[i, j] = factor * gradient[i, j]


# ------------------------------------------------------------------------------------- Bernoulli
def bernoulli_nll_forward(logits: np.ndarray, x: np.ndarray) -> Any:
    """-log p(x | logits) of each row under independent Bernoulli variables, in nats.

    nll = sum_d max(l, 0) - l x + log1p(exp(-|l|))      softplus(l) - l x, without overflow
    logits, x: (B, ...), x in {0, 1}; grey x in (0, 1) gives the cross-entropy, which is a loss
    and not a likelihood.
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes do.
    """
    check_same_shape(logits=logits, x=x)
    nll, dlogits = empty(logits.shape[:1], logits), empty(logits.shape, logits)
    select(logits, _bernoulli_nll_numpy, _bernoulli_nll_numba)(
        rows(logits), rows(x), nll, rows(dlogits)
    )
    return nll, (dlogits,)


def bernoulli_nll_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dlogits = dnll (sigmoid(logits) - x)      dx: None.

    dout: dnll (B,).  Returns dlogits (B, ...), None.
    """
    (dlogits,) = saved
    return scale_rows(dout, dlogits), None


def _bernoulli_nll_numpy(logits, x, nll, dlogits):
    nll[:] = (np.logaddexp(0, logits) - logits * x).sum(axis=1)
    dlogits[:] = np.exp(-np.logaddexp(0, -logits)) - x


@jit
def _bernoulli_nll_numba(logits, x, nll, dlogits):
    zero, one = logits.dtype.type(0), logits.dtype.type(1)
    for i in range(logits.shape[0]):
        total = zero
        for j in range(logits.shape[1]):
            l = logits[i, j]  # noqa: E741  (the formula's letter)
            e = exp(-abs(l))  # in (0, 1]: nothing overflows
            r = one / (one + e)
            total += max(l, zero) - l * x[i, j] + log1p01(e)
            dlogits[i, j] = (r if l >= zero else e * r) - x[i, j]
        nll[i] = total


# -------------------------------------------------------------------- Gaussian, learned variance
def gaussian_nll_forward(x_mu: np.ndarray, x_logvar: np.ndarray, x: np.ndarray) -> Any:
    """-log N(x; x_mu, exp(x_logvar)) of each row, in nats.

    nll = 1/2 sum_d log(2 pi) + x_logvar + (x - x_mu)^2 exp(-x_logvar)
    x_mu, x_logvar, x: (B, ...).
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes do.
    """
    check_same_shape(x_mu=x_mu, x_logvar=x_logvar, x=x)
    nll, dx_mu = empty(x_mu.shape[:1], x_mu), empty(x_mu.shape, x_mu)
    dx_logvar = empty(x_mu.shape, x_mu)
    select(x_mu, _gaussian_nll_numpy, _gaussian_nll_numba)(
        rows(x_mu), rows(x_logvar), rows(x), nll, rows(dx_mu), rows(dx_logvar)
    )
    return nll, (dx_mu, dx_logvar)


def gaussian_nll_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx_mu = dnll (x_mu - x) / var      dx_logvar = dnll (1 - (x - x_mu)^2 / var) / 2.

    dout: dnll (B,).  Returns dx_mu, dx_logvar (B, ...), None.
    """
    dx_mu, dx_logvar = saved
    return scale_rows(dout, dx_mu), scale_rows(dout, dx_logvar), None


def _gaussian_nll_numpy(x_mu, x_logvar, x, nll, dx_mu, dx_logvar):
    a, precision = x_mu - x, np.exp(-x_logvar)
    nll[:] = 0.5 * (LOG_2PI + x_logvar + a**2 * precision).sum(axis=1)
    dx_mu[:] = a * precision
    dx_logvar[:] = 0.5 * (1 - a**2 * precision)


@jit
def _gaussian_nll_numba(x_mu, x_logvar, x, nll, dx_mu, dx_logvar):
    dtype = x.dtype.type
    zero, half, one, log_2pi = dtype(0), dtype(0.5), dtype(1), dtype(LOG_2PI)
    for i in range(x.shape[0]):
        total = zero
        for j in range(x.shape[1]):
            a, precision = x_mu[i, j] - x[i, j], exp(-x_logvar[i, j])
            square = a * a * precision
            total += log_2pi + x_logvar[i, j] + square
            dx_mu[i, j] = a * precision
            dx_logvar[i, j] = half * (one - square)
        nll[i] = half * total


# ---------------------------------------------------------------------- Gaussian, fixed variance
def gaussian_fixed_nll_forward(x_mu: np.ndarray, x: np.ndarray, *, variance: float = 1.0) -> Any:
    """-log N(x; x_mu, variance) of each row, in nats, with one fixed variance.

    nll = 1/2 sum_d log(2 pi variance) + (x - x_mu)^2 / variance
    x_mu, x: (B, ...); variance > 0.
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ or variance <= 0, TypeError if the dtypes differ.
    """
    check_same_shape(x_mu=x_mu, x=x)
    check_variance(variance)
    nll, dx_mu = empty(x_mu.shape[:1], x_mu), empty(x_mu.shape, x_mu)
    select(x_mu, _gaussian_fixed_nll_numpy, _gaussian_fixed_nll_numba)(
        rows(x_mu), rows(x), nll, rows(dx_mu), *fixed_constants(variance, x_mu.dtype)
    )
    return nll, (dx_mu,)


def gaussian_fixed_nll_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx_mu = dnll (x_mu - x) / variance      dx: None.

    dout: dnll (B,).  Returns dx_mu (B, ...), None.
    """
    (dx_mu,) = saved
    return scale_rows(dout, dx_mu), None


def check_variance(variance: float) -> None:
    """Raise ValueError unless variance is positive and finite."""
    if not 0 < variance < math.inf:
        raise ValueError(f"variance must be positive and finite, got {variance}")


def fixed_constants(variance: float, dtype: np.dtype) -> tuple:
    """1 / variance and log(2 pi variance), in the arrays' dtype."""
    return dtype.type(1 / variance), dtype.type(LOG_2PI + math.log(variance))


def _gaussian_fixed_nll_numpy(x_mu, x, nll, dx_mu, precision, constant):
    dx_mu[:] = precision * (x_mu - x)
    nll[:] = 0.5 * (constant + precision * (x_mu - x) ** 2).sum(axis=1)


@jit
def _gaussian_fixed_nll_numba(x_mu, x, nll, dx_mu, precision, constant):
    zero, half = x.dtype.type(0), x.dtype.type(0.5)
    for i in range(x.shape[0]):
        total = zero
        for j in range(x.shape[1]):
            a = x_mu[i, j] - x[i, j]
            total += constant + precision * a * a
            dx_mu[i, j] = precision * a
        nll[i] = half * total
