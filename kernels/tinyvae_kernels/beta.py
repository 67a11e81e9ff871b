"""Beta likelihood of numbers between 0 and 1: -log p(x), value and gradient in one pass.

Sizes: B batch, D data (further axes are flattened).  Values are sums over a row, in nats.  The
forward pass saves the gradients themselves; the backward scales their rows by `dout`.

With a = exp(log_alpha), b = exp(log_beta), n = a + b, p = a / n, q = b / n and Stirling's formula

    log Gamma(z) = z log z - z + log sqrt(2 pi) + T(z)

the products that cancel for large a and b leave the value, and what is left is small and exact:

    -log p(x) = a log(p / x) + b log(q / (1 - x)) + log x + log(1 - x)
                + log sqrt(2 pi) + T(a) + T(b) - T(n)

(the idea of Loader 2000).  For z >= 8, T(z) is -log(z) / 2 + 1/(12 z) - 1/(360 z^3) + ...
(Abramowitz and Stegun 1965, 6.1.41); below, the recurrence Gamma(z + 1) = z Gamma(z) leads there.
Its derivative, z T'(z) = z (digamma(z) - log z), is called D(z) here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._cuda import over_rows
from ._dispatch import check_same_shape, empty, jit, jit_rows, rows, select
from ._math import exp, exp_negative, log, log1p, log1p01
from .likelihood import scale_rows

LOG_SQRT_2PI = math.log(2 * math.pi) / 2
SHIFT = 8  # from there on the seven terms below are exact to 2e-14
T_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
D_SERIES = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12)
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
    (Ta, Da), (Tb, Db) = _stirling_numpy(a, log_alpha), _stirling_numpy(b, log_beta)
    Tn, Dn = _stirling_numpy(n, log_n)
    each = a * ratio_a + b * ratio_b + (Ta + Tb - Tn) + (log_x + log_1x + LOG_SQRT_2PI)
    nll[:] = each.sum(axis=1)
    dlog_alpha[:] = a * ratio_a + (Da - p * Dn)
    dlog_beta[:] = b * ratio_b + (Db - q * Dn)


def _stirling_numpy(z, log_z):
    """T(z) and D(z)."""
    small = z < SHIFT
    w, near = np.where(small, z + SHIFT, z), np.minimum(z, SHIFT)
    T, D, square = np.zeros_like(z), np.zeros_like(z), (1 / w) ** 2
    for t, d in zip(T_SERIES[::-1], D_SERIES[::-1], strict=True):
        T, D = T * square + t, D * square + d
    log_w = np.where(small, np.log(w), log_z)
    T = T / w - log_w / 2
    D = (D / w - 1 / 2) * (z / w)
    # Gamma(w) / Gamma(z) = z Q, the product of z ... z + 7; Q' / Q is a part of digamma
    Q, dQ = np.ones_like(z), np.zeros_like(z)
    for i in range(1, SHIFT):
        Q, dQ = Q * (near + i), dQ * (near + i) + Q
    climb = log_w - log_z
    T += np.where(small, near * climb + np.log((near + SHIFT) ** SHIFT / Q) - log_z - SHIFT, 0)
    D += np.where(small, near * (climb - dQ / Q) - 1, 0)
    return T, D


@jit
def _stirling_numba(z, log_z, T, D):
    """T(z) and D(z) of each element, one formula for all: no branch, so that it vectorizes."""
    dtype = z.dtype.type
    zero, half, one, shift = dtype(0), dtype(0.5), dtype(1), dtype(SHIFT)
    t0, t1, t2, t3 = dtype(1 / 12), dtype(-1 / 360), dtype(1 / 1260), dtype(-1 / 1680)
    t4, t5, t6 = dtype(1 / 1188), dtype(-691 / 360360), dtype(1 / 156)
    d1, d2, d3 = dtype(1 / 120), dtype(-1 / 252), dtype(1 / 240)
    d4, d5 = dtype(-1 / 132), dtype(691 / 32760)
    for j in range(z.shape[0]):
        small = z[j] < shift
        near = z[j] if small else shift
        w = z[j] + shift if small else z[j]
        log_w = log(w) if small else log_z[j]
        inverse = one / w
        s = inverse * inverse
        series_t = t0 + s * (t1 + s * (t2 + s * (t3 + s * (t4 + s * (t5 + s * t6)))))
        series_d = -t0 + s * (d1 + s * (d2 + s * (d3 + s * (d4 + s * (d5 - s * t0)))))
        Q, dQ, factor = one, zero, near
        for _ in range(SHIFT - 1):
            factor += one
            dQ = dQ * factor + Q
            Q *= factor
        square = (near + shift) * (near + shift)
        inverse_Q = one / Q
        climb = log_w - log_z[j]
        t = near * climb + (log(square * square * (square * square) * inverse_Q) - log_z[j]) - shift
        d = near * (climb - dQ * inverse_Q) - one
        T[j] = (series_t * inverse - half * log_w) + (t if small else zero)
        D[j] = (series_d * inverse - half) * (z[j] * inverse) + (d if small else zero)


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
    work = np.empty((5, 3, min(D, BLOCK)), x.dtype)
    z, log_z, T, derivative, p = work[0], work[1], work[2], work[3], work[4]
    for i in range(x.shape[0]):
        nats = 0.0
        for first in range(0, D, BLOCK):
            end = min(first + BLOCK, D)
            _powers_numba(log_alpha[i, first:end], log_beta[i, first:end], z, log_z, p)
            for k in range(3):
                _stirling_numba(z[k, : end - first], log_z[k], T[k], derivative[k])
            nats += _beta_nll_each_numba(
                z, log_z, p, T, derivative,
                x[i, first:end], dlog_alpha[i, first:end], dlog_beta[i, first:end],
            )  # fmt: skip
        nll[i] = nats


def _beta_nll_cuda(log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta):
    arguments = (log_alpha, log_beta, x, nll, dlog_alpha, dlog_beta)
    over_rows("beta.cu", "beta_nll_forward", x.shape, *arguments)
