"""Discretized mixture of logistics: -log p(x) of pixels with few levels, value and gradient.

Sizes: B batch, P numbers in a row of x (its axes after the batch, flattened), K components, L
levels.  Values are sums over a row, in nats.  The forward pass saves the gradients themselves; the
backward scales their rows by `dout`.

    h = 1 / (L - 1), half of the distance of two levels in [-1, 1]
    a = (x + h - mu) / s      b = (x - h - mu) / s      s = exp(log_scale)
    P(x) = sum_k w_k (sigmoid(a_k) - sigmoid(b_k))       Salimans et al. 2017, equations 1 and 2

and the bins of x = -1 and x = 1 reach to infinity, so that the L probabilities sum to one.  There
is no autoregression over channels.  The difference of two sigmoids is taken without cancellation
and without a floor or a density in its place:

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))

Storage in half precision (float16 and bfloat16, on a GPU): the arithmetic is float32, and so are
the values of the rows and `dout`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._dispatch import (
    apart,
    arithmetic,
    check_floats,
    check_same_shape,
    contiguous,
    empty,
    jit,
    jit_rows,
    rows,
    select,
)
from ._math import exp, exp_negative, expm1, log
from .categorical import exp_below_top, over_positions
from .likelihood import scale_rows

BLOCK = 512  # components whose parameters, gradients and working space fit into the first cache
TINY = 1e-30  # a relative bin width below which 1 - exp(-width) is the width


def logistic_mixture_nll_forward(
    logit_weight: Any, x_mu: Any, log_scale: Any, x: Any, *, levels: int = 256
) -> Any:
    """-log p(x) of each row under a discretized mixture of logistics, in nats.

    nll = sum_p log sum_k e^l_k - log sum_k e^(l_k + log(sigmoid(a_k) - sigmoid(b_k)))
    logit_weight (l), x_mu, log_scale: (B, ..., K); x: (B, ...) in [-1, 1], rounded to the nearest
    of its levels, 2 i / (levels - 1) - 1.  log_scale is meant for +-80, where float32 ends.
    Returns nll (B,), saved.
    Raises ValueError if the shapes do not fit, levels < 2 or x is outside of [-1, 1] (on a GPU,
    where reading x would halt the queue, the results there are NaN); TypeError for dtypes, devices.
    """
    parameters = {"logit_weight": logit_weight, "x_mu": x_mu, "log_scale": log_scale}
    given = check_same_shape(halves=True, **parameters)
    _, x = check_floats(halves=True, logit_weight=given[0], x=x)
    _check_sizes(given[0], x, levels)
    x = rows(x)  # (B, H, W, C) -> (B, P)
    shape = (*x.shape, given[0].shape[-1])  # (B, H, W, C, K) -> (B, P, K)
    nll = empty(x.shape[:1], x, arithmetic(x.dtype))
    gradients = tuple(empty(array.shape, x) for array in given)
    select(x, _logistic_mixture_nll_numpy, _logistic_mixture_nll_numba, _logistic_mixture_nll_cuda)(
        *(contiguous(array).reshape(shape) for array in given), x, nll,
        *(gradient.reshape(shape) for gradient in gradients), *_constants(levels, nll.dtype.type),
    )  # fmt: skip
    return nll, gradients


def logistic_mixture_nll_backward(dout: Any, saved: tuple) -> tuple:
    """dlogit_weight = dnll (softmax(l) - r)      dx: None.

    dx_mu = dnll r (sigmoid(-a) - sigmoid(b)) / s
    dlog_scale = dnll r (a sigmoid(-a) - b sigmoid(b) + d / expm1(d)),     d = a - b = 2 h / s
    with r the components' shares in P(x); at x = -1 the terms of b and d are absent, at x = 1
    those of a and d.
    dout: dnll (B,).  Returns dlogit_weight, dx_mu, dlog_scale (B, ..., K), None.
    """
    return (*(scale_rows(dout, gradient) for gradient in saved), None)


def _check_sizes(parameter: Any, x: Any, levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if parameter.ndim < 2 or parameter.shape[-1] == 0:
        raise ValueError(
            f"logit_weight must be (B, ..., K) with K >= 1, got shape {parameter.shape}"
        )
    if x.shape != parameter.shape[:-1]:
        raise ValueError(
            f"x has shape {x.shape}, logit_weight without its components {parameter.shape[:-1]}"
        )
    if isinstance(x, np.ndarray) and x.size:
        edge = levels / (levels - 1)  # where the level beyond the last begins
        for value in (np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None)):
            if abs(value) >= edge:
                raise ValueError(f"x holds {value}, its levels lie in [-1, 1]")


def _constants(levels: int, number: Any) -> tuple:
    """(L - 1) / 2, h and log(2 h)."""
    return number((levels - 1) / 2), number(1 / (levels - 1)), number(math.log(2 / (levels - 1)))


def _logistic_mixture_nll_numpy(
    logit_weight, x_mu, log_scale, x, nll, dlogit_weight, dx_mu, dlog_scale, half, h, log_width
):
    level = np.floor((x + 1) * half + x.dtype.type(0.5))[:, :, None]
    center, above, below = level / half - 1, level < 2 * half, level > 0
    precision = np.exp(-log_scale)
    a, b, width = (
        (center + h - x_mu) * precision,
        (center - h - x_mu) * precision,
        2 * h * precision,
    )
    vanishes = width < TINY  # 1 - exp(-width) may be 0
    share = np.where(vanishes, 1, -np.expm1(-width))
    log_share = np.where(vanishes, log_width - log_scale, np.log(share))
    each = -np.logaddexp(0, -a) * above - np.logaddexp(0, b) * below + log_share * (above & below)
    sigmoid_a, sigmoid_b = np.exp(-np.logaddexp(0, a)) * above, np.exp(-np.logaddexp(0, -b)) * below
    weight, log_sum_weight = _softmax(logit_weight)
    part, log_sum = _softmax(logit_weight + each)
    nll[:] = (log_sum_weight - log_sum).sum(axis=1)
    dlogit_weight[:] = weight - part
    dx_mu[:] = part * (sigmoid_a - sigmoid_b) * precision
    ratio = np.where(vanishes, 1, width * (1 - share) / share) * (above & below)
    dlog_scale[:] = part * (a * sigmoid_a - b * sigmoid_b + ratio)


def _softmax(logits):
    """softmax(logits) and log sum exp(logits) over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / total, (top + np.log(total))[..., 0]


@jit
def _components_numba(
    logit_weight, x_mu, log_scale, center, joint, dx_mu, dlog_scale, h, log_width
):
    """Each component on its own: joint = l + log(sigmoid(a) - sigmoid(b)) and its derivatives."""
    dtype = x_mu.dtype.type
    zero, one, tiny = dtype(0), dtype(1), dtype(TINY)
    for j in range(center.shape[0]):
        # half a level before the ends: level / half may be rounded either way (fastmath's arcp)
        below = zero if center[j] < h - one else one
        above = zero if center[j] > one - h else one
        inside = below * above
        precision = exp(-log_scale[j])
        a, b = (center[j] + h - x_mu[j]) * precision, (center[j] - h - x_mu[j]) * precision
        width = (h + h) * precision
        ea, eb = exp_negative(-abs(a)), exp_negative(-abs(b))
        vanishes = width < tiny
        expm1_width = -expm1(-width)
        share = (one if vanishes else expm1_width) * inside + (one - inside)
        # one division for 1 / (1 + ea), 1 / (1 + eb) and 1 / share
        sa, sb = one + above * ea, one + below * eb
        inverse = one / (sa * sb * share)
        sigmoid_a = above * (ea if a >= zero else one) * (sb * share * inverse)  # sigmoid(-a)
        sigmoid_b = below * (one if b >= zero else eb) * (sa * share * inverse)
        each = above * (a if a < zero else zero) - below * (b if b > zero else zero)
        each += log(share * (share * inverse))
        each += inside * (log_width - log_scale[j]) if vanishes else zero
        ratio = width * (one - share) * (sa * sb * inverse)
        joint[j] = logit_weight[j] + each
        dx_mu[j] = (sigmoid_a - sigmoid_b) * precision
        dlog_scale[j] = a * sigmoid_a - b * sigmoid_b + inside * (one if vanishes else ratio)


@jit
def _shares_numba(weight, joint, tops, dlogit_weight, dx_mu, dlog_scale):
    """From unnormalised weights and joints to gradients; returns the nats of all positions."""
    nats, one = 0.0, weight.dtype.type(1)
    K = weight.shape[1]
    for p in range(weight.shape[0]):
        total, total_joint = one - one, one - one
        for k in range(K):
            total += weight[p, k]
            total_joint += joint[p, k]
        scale, scale_joint = one / total, one / total_joint
        for k in range(K):
            part = joint[p, k] * scale_joint
            dlogit_weight[p, k] = weight[p, k] * scale - part
            dx_mu[p, k] *= part
            dlog_scale[p, k] *= part
        nats += tops[0, p] - tops[1, p] + log(total * scale_joint)
    return nats


@jit_rows
def _logistic_mixture_nll_numba(
    logit_weight, x_mu, log_scale, x, nll, dlogit_weight, dx_mu, dlog_scale, half, h, log_width
):
    P, K = logit_weight.shape[1], logit_weight.shape[2]
    dtype = nll.dtype.type
    one, round_up = dtype(1), dtype(0.5)
    block = max(1, BLOCK // K)
    tops = np.empty((2, block), nll.dtype)
    work = apart(3 * block * K, nll.dtype).reshape(3, block, K)
    for i in range(logit_weight.shape[0]):
        nats = 0.0  # float64: a row may have thousands of positions
        for first in range(0, P, block):
            l, m, s = (  # noqa: E741  (the formula's letter)
                logit_weight[i, first : first + block],
                x_mu[i, first : first + block],
                log_scale[i, first : first + block],
            )
            dl, dm, ds = (
                dlogit_weight[i, first : first + block],
                dx_mu[i, first : first + block],
                dlog_scale[i, first : first + block],
            )
            n = l.shape[0]
            center, weight, spread = work[0, :n], work[1, :n], work[2, :n]
            for p in range(n):
                level = np.floor((x[i, first + p] + one) * half + round_up)
                for k in range(K):
                    center[p, k] = level / half - one
            _components_numba(
                l.reshape(-1), m.reshape(-1), s.reshape(-1), center.reshape(-1),
                dl.reshape(-1), dm.reshape(-1), ds.reshape(-1), h, log_width,
            )  # fmt: skip
            exp_below_top(l, tops[0], spread, weight)
            exp_below_top(dl, tops[1], spread, dl)
            nats += _shares_numba(weight, dl, tops, dl, dm, ds)
        nll[i] = nats


def _logistic_mixture_nll_cuda(
    logit_weight, x_mu, log_scale, x, nll, dlogit_weight, dx_mu, dlog_scale, half, h, log_width
):
    arrays = (logit_weight, x_mu, log_scale, x, nll, dlogit_weight, dx_mu, dlog_scale)
    over_positions(
        "logistic_mixture.cu", "logistic_mixture_nll_forward", logit_weight.shape, 1,
        *arrays, half, h, log_width,
    )  # fmt: skip
