"""Negative log-likelihoods of a row, from raw parameters: value and gradient in one pass.

Sizes: B batch, D data (further axes are flattened: (B, H, W, C) counts as (B, H*W*C)).
Values are sums over a row, in nats, with all normalising constants.  The forward pass holds
everything that the gradient needs, so it saves the gradient itself; the backward scales its rows
by `dout`.  Who knows `dout` beforehand calls `..._value_and_grad`, which saves that second pass.
Who wants values alone says `gradient=False`: `saved` then holds None in the gradient's place.
`x` is data: its gradient is None.

Storage in half precision (float16 and bfloat16, on a GPU): the arithmetic is float32, and so are
the values of the rows and `dout`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._cuda import over_rows
from ._dispatch import (
    arithmetic,
    check_dout,
    check_floats,
    check_rate,
    check_same_shape,
    empty,
    empty_gradient,
    jit_rows,
    rows,
    select,
)
from ._math import exp, exp_negative, log1p01_and_inverse

LOG_2PI = math.log(2 * math.pi)


def scale_rows(dout: Any, gradient: Any) -> Any:
    """dout[i] gradient[i]: what is left to do once the forward saved the gradient."""
    dout = check_dout(dout, gradient.shape[:1], gradient, arithmetic(gradient.dtype))
    scaled = empty(gradient.shape, gradient)
    select(gradient, _scale_rows_numpy, _scale_rows_numba, _scale_rows_cuda)(
        dout, rows(gradient), rows(scaled)
    )
    return scaled


def _scale_rows_numpy(dout, gradient, scaled):
    np.multiply(dout[:, None], gradient, out=scaled)


@jit_rows.moving
def _scale_rows_numba(dout, gradient, scaled):
    for i in range(gradient.shape[0]):
        factor = dout[i]
        for j in range(gradient.shape[1]):
            scaled[i, j] = factor * gradient[i, j]


def _scale_rows_cuda(dout, gradient, scaled):
    over_rows("likelihood.cu", "scale_rows", gradient.shape, dout, gradient, scaled)


def _nll(
    parameters: dict[str, Any],
    x: Any,
    dout: Any,
    bodies: tuple,
    constants: tuple = (),
    gradient: bool = True,
) -> tuple[Any, tuple]:
    """Check, allocate, run: the value of each row and the gradients times dout (None: 1)."""
    *given, x = check_same_shape(halves=True, **parameters, x=x)
    rate = check_rate(dout, x)
    nll = empty(x.shape[:1], x, arithmetic(x.dtype))
    gradients = tuple(empty_gradient(x, gradient) for _ in given)
    select(x, *bodies)(
        *(rows(p) for p in given), rows(x), rate, nll, *(rows(g) for g in gradients), *constants
    )
    return nll, gradients


# ------------------------------------------------------------------------------------- Bernoulli
def bernoulli_nll_forward(logits: Any, x: Any, *, gradient: bool = True) -> Any:
    """-log p(x | logits) of each row under independent Bernoulli variables, in nats.

    nll = sum_d max(l, 0) - l x + log1p(exp(-|l|))      softplus(l) - l x, without overflow
    logits, x: (B, ...), x in {0, 1}; grey x in (0, 1) gives the cross-entropy, which is a loss
    and not a likelihood.
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    return _nll({"logits": logits}, x, None, _BERNOULLI, gradient=gradient)


def bernoulli_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dlogits = dnll (sigmoid(logits) - x)      dx: None.

    dout: dnll (B,).  Returns dlogits (B, ...), None.
    """
    (dlogits,) = saved
    return scale_rows(dout, dlogits), None


def bernoulli_nll_value_and_grad(logits: Any, x: Any, dout: Any = 1.0) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number.  Returns nll (B,), (dlogits (B, ...), None).
    """
    nll, gradients = _nll({"logits": logits}, x, dout, _BERNOULLI)
    return nll, (*gradients, None)


def _bernoulli_nll_numpy(logits, x, rate, nll, dlogits):
    nll[:] = (np.logaddexp(0, logits) - logits * x).sum(axis=1)
    if dlogits is not None:
        dlogits[:] = rate[:, None] * (np.exp(-np.logaddexp(0, -logits)) - x)


@jit_rows
def _bernoulli_nll_numba(logits, x, rate, nll, dlogits):
    zero = logits.dtype.type(0)
    for i in range(logits.shape[0]):
        total, scale = zero, rate[i]
        b = i * x.shape[0] // logits.shape[0]  # i, or the row of x that several rows share
        for j in range(logits.shape[1]):
            l = logits[i, j]  # noqa: E741  (the formula's letter)
            e = exp_negative(-abs(l))  # in (0, 1]: nothing overflows
            log1p_e, r = log1p01_and_inverse(e)
            total += max(l, zero) - l * x[b, j] + log1p_e
            if dlogits is not None:  # decided when the kernel is compiled, here and below
                dlogits[i, j] = scale * ((r if l >= zero else e * r) - x[b, j])
        nll[i] = total


def _bernoulli_nll_cuda(logits, *arguments):
    over_rows("likelihood.cu", "bernoulli_nll", logits.shape, logits, *arguments)


_BERNOULLI = (_bernoulli_nll_numpy, _bernoulli_nll_numba, _bernoulli_nll_cuda)


# -------------------------------------------------------------------- Gaussian, learned variance
def gaussian_nll_forward(x_mu: Any, x_logvar: Any, x: Any, *, gradient: bool = True) -> Any:
    """-log N(x; x_mu, exp(x_logvar)) of each row, in nats.

    nll = 1/2 sum_d log(2 pi) + x_logvar + (x - x_mu)^2 exp(-x_logvar)
    x_mu, x_logvar, x: (B, ...).
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    return _nll(parameters, x, None, _GAUSSIAN, gradient=gradient)


def gaussian_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dx_mu = dnll (x_mu - x) / var      dx_logvar = dnll (1 - (x - x_mu)^2 / var) / 2.

    dout: dnll (B,).  Returns dx_mu, dx_logvar (B, ...), None.
    """
    dx_mu, dx_logvar = saved
    return scale_rows(dout, dx_mu), scale_rows(dout, dx_logvar), None


def gaussian_nll_value_and_grad(x_mu: Any, x_logvar: Any, x: Any, dout: Any = 1.0) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number.  Returns nll (B,), (dx_mu, dx_logvar (B, ...), None).
    """
    nll, gradients = _nll({"x_mu": x_mu, "x_logvar": x_logvar}, x, dout, _GAUSSIAN)
    return nll, (*gradients, None)


def _gaussian_nll_numpy(x_mu, x_logvar, x, rate, nll, dx_mu, dx_logvar):
    a, precision = x_mu - x, np.exp(-x_logvar)
    nll[:] = 0.5 * (LOG_2PI + x_logvar + a**2 * precision).sum(axis=1)
    if dx_mu is not None:
        dx_mu[:] = rate[:, None] * a * precision
        dx_logvar[:] = 0.5 * rate[:, None] * (1 - a**2 * precision)


@jit_rows
def _gaussian_nll_numba(x_mu, x_logvar, x, rate, nll, dx_mu, dx_logvar):
    dtype = x.dtype.type
    zero, half, one, log_2pi = dtype(0), dtype(0.5), dtype(1), dtype(LOG_2PI)
    for i in range(x_mu.shape[0]):
        total, scale = zero, rate[i]
        b = i * x.shape[0] // x_mu.shape[0]
        for j in range(x.shape[1]):
            a = x_mu[i, j] - x[b, j]
            scaled = a * exp(-x_logvar[i, j])
            square = a * scaled
            total += log_2pi + x_logvar[i, j] + square
            if dx_mu is not None:
                dx_mu[i, j] = scale * scaled
                dx_logvar[i, j] = scale * half * (one - square)
        nll[i] = half * total


def _gaussian_nll_cuda(x_mu, *arguments):
    over_rows("likelihood.cu", "gaussian_nll", x_mu.shape, x_mu, *arguments)


_GAUSSIAN = (_gaussian_nll_numpy, _gaussian_nll_numba, _gaussian_nll_cuda)


# ---------------------------------------------------------------------- Gaussian, fixed variance
def gaussian_fixed_nll_forward(
    x_mu: Any, x: Any, *, variance: float = 1.0, gradient: bool = True
) -> Any:
    """-log N(x; x_mu, variance) of each row, in nats, with one fixed variance.

    nll = 1/2 sum_d log(2 pi variance) + (x - x_mu)^2 / variance
    x_mu, x: (B, ...); variance > 0.
    Returns nll (B,), saved.
    Raises ValueError if the shapes differ or variance <= 0, TypeError if dtypes or devices differ.
    """
    constants = fixed_constants(variance, x_mu)
    return _nll({"x_mu": x_mu}, x, None, _GAUSSIAN_FIXED, constants, gradient)


def gaussian_fixed_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dx_mu = dnll (x_mu - x) / variance      dx: None.

    dout: dnll (B,).  Returns dx_mu (B, ...), None.
    """
    (dx_mu,) = saved
    return scale_rows(dout, dx_mu), None


def gaussian_fixed_nll_value_and_grad(
    x_mu: Any, x: Any, dout: Any = 1.0, *, variance: float = 1.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number.  Returns nll (B,), (dx_mu (B, ...), None).
    """
    constants = fixed_constants(variance, x_mu)
    nll, gradients = _nll({"x_mu": x_mu}, x, dout, _GAUSSIAN_FIXED, constants)
    return nll, (*gradients, None)


def fixed_constants(variance: float, x_mu: Any) -> tuple:
    """1 / variance and log(2 pi variance), in the type in which x_mu's kernel computes.

    Raises ValueError unless variance is positive and finite.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance must be positive and finite, got {variance}")
    (x_mu,) = check_floats(halves=True, x_mu=x_mu)
    number = arithmetic(x_mu.dtype)
    return number(1 / variance), number(LOG_2PI + math.log(variance))


def _gaussian_fixed_nll_numpy(x_mu, x, rate, nll, dx_mu, precision, constant):
    if dx_mu is not None:
        dx_mu[:] = rate[:, None] * precision * (x_mu - x)
    nll[:] = 0.5 * (constant + precision * (x_mu - x) ** 2).sum(axis=1)


@jit_rows
def _gaussian_fixed_nll_numba(x_mu, x, rate, nll, dx_mu, precision, constant):
    zero, half = x.dtype.type(0), x.dtype.type(0.5)
    for i in range(x_mu.shape[0]):
        total, scale = zero, rate[i] * precision
        b = i * x.shape[0] // x_mu.shape[0]
        for j in range(x.shape[1]):
            a = x_mu[i, j] - x[b, j]
            total += constant + precision * a * a
            if dx_mu is not None:
                dx_mu[i, j] = scale * a
        nll[i] = half * total


def _gaussian_fixed_nll_cuda(x_mu, *arguments):
    over_rows("likelihood.cu", "gaussian_fixed_nll", x_mu.shape, x_mu, *arguments)


_GAUSSIAN_FIXED = (_gaussian_fixed_nll_numpy, _gaussian_fixed_nll_numba, _gaussian_fixed_nll_cuda)
