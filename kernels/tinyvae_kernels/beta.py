"""Beta likelihood of numbers between 0 and 1: -log p(x), value and gradient in one pass.

Sizes: B batch, D data (further axes are flattened).  Values are sums over a row, in nats.  The
forward pass saves the gradients themselves; the backward scales their rows by `dout`.

With a = exp(log_alpha), b = exp(log_beta), n = a + b, p = a / n, q = b / n and Stirling's formula

    log Gamma(z) = z log z - z + log sqrt(2 pi) + T(z)

the products that cancel for large a and b leave the value, and what is left is small and exact:

    -log p(x) = a log(p / x) + b log(q / (1 - x)) + log x + log(1 - x)
                + log sqrt(2 pi) + T(a) + T(b) - T(n)

(the idea of Loader 2000).  T and its derivative, D(z) = z T'(z), stand in stirling.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._cuda import over_rows
from ._dispatch import apart, check_same_shape, empty, jit, jit_rows, rows, select
from ._math import exp, exp_negative, log, log1p, log1p01
from .likelihood import scale_rows
from .stirling import stirling, stirling_numba

LOG_SQRT_2PI = math.log(2 * math.pi) / 2
BLOCK = 256  # elements whose working space fits into the first cache


def beta_nll_forward(log_alpha: Any, log_beta: Any, x: Any) -> Any:
    """-log Beta(x; alpha, beta) of each row, in nats.

    nll = -sum_d (a - 1) log x + (b - 1) log(1 - x) - log B(a, b)      as it is computed: see above
    log_alpha, log_beta: (B, ...), the logarithms of a and b, meant for +-80, where float32 ends;
    x: (B, ...), normal numbers between 0 and 1 (neither 0 nor 1, where the density has no value).
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ or x is not between 0 and 1 (on a GPU, where reading x
    would halt the queue, the results there are infinite or NaN); TypeError for dtypes, devices.
    """
    log_alpha, log_beta, x = check_same_shape(log_alpha=log_alpha, log_beta=log_beta, x=x)
    _check_inside(x)
    nll, dlog_alpha, dlog_beta = empty(x.shape[:1], x), empty(x.shape, x), empty(x.shape, x)
    select(x, _beta_nll_numpy, _beta_nll_numba, _beta_nll_cuda)(
        rows(log_alpha), rows(log_beta), rows(x), nll, rows(dlog_alpha), rows(dlog_beta)
    )
    return nll, (dlog_alpha, dlog_beta)


def beta_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dlog_alpha = dnll a (digamma(a) - digamma(n) - log x), n = a + b      dx: None.

    dlog_beta = dnll b (digamma(b) - digamma(n) - log(1 - x))
    dout: dnll (B,).  Returns dlog_alpha, dlog_beta (B, ...), None.
    """
    dlog_alpha, dlog_beta = saved
    return scale_rows(dout, dlog_alpha), scale_rows(dout, dlog_beta), None


def _check_inside(x: Any) -> None:
    """On a CPU: every number of x is between 0 and 1, and none so small that it is denormal."""
    if isinstance(x, np.ndarray) and x.size:
        low, high = np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None)
        if low < np.finfo(x.dtype).tiny or high >= 1:
            value = high if high >= 1 else low
            raise ValueError(f"x holds {value}, a Beta likelihood needs 0 < x < 1")


def _beta_nll_numpy(log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta):
    a, b, log_n = np.exp(log_alpha), np.exp(log_beta), np.logaddexp(log_alpha, log_beta)
    n, e = a + b, np.exp(-np.abs(log_alpha - log_beta))
    larger = log_alpha >= log_beta
    p, q = np.where(larger, 1, e) / (1 + e), np.where(larger, e, 1) / (1 + e)  # a / n, b / n
    log_x, log_1x = np.log(x), np.log1p(-x)
    d = np.where(x < 0.5, p - x, (1 - x) - q)  # on the side where both are small and exact
    u, v = d / x, -d / (1 - x)
    # where p and x are close, the logarithm of their ratio without cancellation
    ratio_a = np.where(abs(u) < 0.5, np.log1p(np.clip(u, -0.5, 0.5)), log_alpha - log_n - log_x)
    ratio_b = np.where(abs(v) < 0.5, np.log1p(np.clip(v, -0.5, 0.5)), log_beta - log_n - log_1x)
    (Ta, Da), (Tb, Db) = stirling(a, log_alpha), stirling(b, log_beta)
    Tn, Dn = stirling(n, log_n)
    each = a * ratio_a + b * ratio_b + (Ta + Tb - Tn) + (log_x + log_1x + LOG_SQRT_2PI)
    nll[:] = each.sum(axis=1)
    dlog_alpha[:] = a * ratio_a + (Da - p * Dn)
    dlog_beta[:] = b * ratio_b + (Db - q * Dn)


@jit
def _powers_numba(log_alpha, log_beta, z, log_z, p):
    """a, b and n and their logarithms to the rows of z and log_z, a / n and b / n to those of p."""
    zero, one = p.dtype.type(0), p.dtype.type(1)
    for j in range(log_alpha.shape[0]):
        la, lb = log_alpha[j], log_beta[j]
        e = exp_negative(-abs(la - lb))
        a, b = exp(la), exp(lb)
        z[0, j], z[1, j], z[2, j] = a, b, a + b
        log_z[0, j], log_z[1, j] = la, lb
        log_z[2, j] = (la if la > lb else lb) + log1p01(e)
        larger, inverse = la - lb >= zero, one / (one + e)  # no overflow
        p[0, j], p[1, j] = (one if larger else e) * inverse, (e if larger else one) * inverse


@jit
def _beta_nll_each_numba(z, log_z, p, T, D, x, dlog_alpha, dlog_beta):
    """The gradients of each element; returns the sum of the nll."""
    dtype = x.dtype.type
    total, half, one, constant = dtype(0), dtype(0.5), dtype(1), dtype(LOG_SQRT_2PI)
    for j in range(x.shape[0]):
        log_x, log_1x, other = log(x[j]), log1p(-x[j]), one - x[j]
        d = p[0, j] - x[j] if x[j] < half else other - p[1, j]  # where both are small and exact
        u, v = d / x[j], -d / other
        near_a, near_b = log1p(u), log1p(v)  # where p and x are close: without cancellation
        ratio_a = near_a if abs(u) < half else (log_z[0, j] - log_z[2, j]) - log_x
        ratio_b = near_b if abs(v) < half else (log_z[1, j] - log_z[2, j]) - log_1x
        part_a, part_b = z[0, j] * ratio_a, z[1, j] * ratio_b
        total += (part_a + part_b) + (T[0, j] + T[1, j] - T[2, j]) + (log_x + log_1x + constant)
        dlog_alpha[j] = part_a + (D[0, j] - p[0, j] * D[2, j])
        dlog_beta[j] = part_b + (D[1, j] - p[1, j] * D[2, j])
    return total


@jit_rows
def _beta_nll_numba(log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta):
    D = x.shape[1]
    work = apart(15 * min(D, BLOCK), x.dtype).reshape(5, 3, min(D, BLOCK))
    z, log_z, T, derivative, p = work[0], work[1], work[2], work[3], work[4]
    for i in range(x.shape[0]):
        nats = 0.0
        for first in range(0, D, BLOCK):
            end = min(first + BLOCK, D)
            _powers_numba(log_alpha[i, first:end], log_beta[i, first:end], z, log_z, p)
            for k in range(3):
                stirling_numba(z[k, : end - first], log_z[k], T[k], derivative[k])
            nats += _beta_nll_each_numba(
                z, log_z, p, T, derivative,
                x[i, first:end], dlog_alpha[i, first:end], dlog_beta[i, first:end],
            )  # fmt: skip
        nll[i] = nats


def _beta_nll_cuda(log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta):
    arguments = (log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta)
    over_rows("beta.cu", "beta_nll_forward", x.shape, *arguments)
