"""The fused importance-weighted bound: its value and all its gradients in one pass over the data.

    bound_b = log 1/K sum_k exp(log_w_bk)                   Burda et al. 2016, equation 8, in nats
    log_w_bk = log p(x_b | z_bk) - beta log_ratio_bk,       log_ratio = log q(z | x) - log p(z)

Sizes: B batch, K samples of z a row, D data (further axes are flattened).  The likelihood's
parameters have B K rows, the samples of a row one after the other; x has B: no row of it is copied.
The gradients are those of bound with respect to the likelihood's parameters and to log_ratio; the
path through z belongs to `reparameterize_samples`.

A row's weights are known after all its samples, and each sample's gradient is times its weight.
On the CPU a row is finished before the next begins, so that its gradient still lies in the cache
when the weights come.  The forward pass saves the gradients, the backward scales them by `dout`;
who knows `dout` beforehand calls `..._value_and_grad`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import launch, over_rows, typed, varying
from ._dispatch import (
    check_floats,
    check_rate,
    check_same_shape,
    check_weight,
    contiguous,
    empty,
    empty_gradient,
    jit,
    jit_rows,
    rows,
    select,
)
from ._program import scalar
from .importance import _log_mean_exp_numba, _log_mean_exp_numpy
from .likelihood import (
    _bernoulli_nll_numba,
    _bernoulli_nll_numpy,
    _gaussian_fixed_nll_numba,
    _gaussian_fixed_nll_numpy,
    _gaussian_nll_numba,
    _gaussian_nll_numpy,
    fixed_constants,
    scale_rows,
)


class IwaeSaved(NamedTuple):
    """What an importance-weighted bound's forward keeps.

    nll, kl: (B,), means of -log p(x | z) and of log_ratio over the samples: -(nll + kl) is an ELBO,
    below the bound.  weights: (B, K), which sum to one over K.  dparameters, dlog_ratio: gradients.
    """

    nll: Any
    kl: Any
    weights: Any
    dparameters: tuple
    dlog_ratio: Any

    def gradients(self) -> tuple:
        """One for each array argument: None for x."""
        return (*self.dparameters, None, self.dlog_ratio)


def _iwae(
    parameters: dict[str, Any],
    x: Any,
    log_ratio: Any,
    dout: Any,
    beta: float,
    bodies: tuple,
    constants: tuple = (),
    gradient: bool = True,
) -> tuple[Any, IwaeSaved]:
    """Check, allocate, run: all bounds differ by their likelihood alone.

    dout: what the gradients are multiplied by, (B,), a number, or None for 1.
    """
    given = check_same_shape(**parameters)
    x, log_ratio, _ = check_floats(x=x, log_ratio=log_ratio, parameters=given[0])
    _check_samples(next(iter(parameters)), given[0], x, log_ratio)
    check_weight(beta=beta)
    bound, nll, kl = (empty(x.shape[:1], x) for _ in range(3))
    ones, each, weights = (empty(log_ratio.shape, x) for _ in range(3))
    ones.fill(1)
    dlog_ratio = empty_gradient(log_ratio, gradient)
    dparameters = tuple(empty_gradient(p, gradient) for p in given)
    select(x, *bodies)(
        rows(x), *(rows(p) for p in given), ones, each, *(rows(d) for d in dparameters), *constants,
        contiguous(log_ratio), check_rate(dout, x), bound, nll, kl, weights, dlog_ratio,
        scalar(beta, x.dtype.type),
    )  # fmt: skip
    return bound, IwaeSaved(nll, kl, weights, dparameters, dlog_ratio)


def _check_samples(name: str, parameter: Any, x: Any, log_ratio: Any) -> None:
    """Raise ValueError unless there are K rows of parameters for each row of x."""
    if log_ratio.ndim != 2 or log_ratio.shape[1] == 0:
        raise ValueError(f"log_ratio must be (B, K) with K >= 1, got shape {log_ratio.shape}")
    B, K = log_ratio.shape
    if x.ndim == 0 or len(x) != B:
        raise ValueError(f"x has shape {x.shape}, log_ratio has {B} rows")
    if parameter.shape != (B * K, *x.shape[1:]):
        expected = (B * K, *x.shape[1:])
        raise ValueError(f"{name} has shape {parameter.shape}, expected {expected}: {B} x {K} rows")


def _backward(dout: Any, saved: IwaeSaved) -> tuple:
    """Rows times dout; the samples of a row lie side by side."""
    B = len(saved.weights)

    def scaled(gradient: Any) -> Any:
        size = gradient.size // max(B, 1)
        wide = scale_rows(dout, gradient.reshape(B, size))  # (B K, ...) -> (B, K ...)
        return wide.reshape(gradient.shape)

    return tuple(None if g is None else scaled(g) for g in saved.gradients())


# ------------------------------------------------------------------------- the weights, for all
def _importance_numpy(nll_body, x, parameters, ones, each, dparameters, constants, log_ratio, dout,
                      bound, nll, kl, weights, dlog_ratio, beta):  # fmt: skip
    wide = np.repeat(x, log_ratio.shape[1], axis=0)  # (B, D) -> (B K, D)
    nll_body(*parameters, wide, ones.reshape(-1), each.reshape(-1), *dparameters, *constants)
    nll[:], kl[:] = each.mean(axis=1), log_ratio.mean(axis=1)
    _log_mean_exp_numpy(-each - beta * log_ratio, None, bound, weights)
    if dlog_ratio is not None:
        rate = -dout[:, None] * weights
        dlog_ratio[:] = beta * rate
        for gradient in dparameters:
            gradient *= rate.reshape(-1, 1)


@jit
def _some_rows(array, first, last):
    if array is None:
        return None
    return array[first:last]


@jit
def _weigh_numba(b, each, log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta):
    """Row b's means, bound and weights; each, its nll at first, becomes log w."""
    K = each.shape[1]
    total, ratio = each.dtype.type(0), each.dtype.type(0)
    for k in range(K):
        total += each[b, k]
        ratio += log_ratio[b, k]
        each[b, k] = -each[b, k] - beta * log_ratio[b, k]
    nll[b], kl[b] = total / each.dtype.type(K), ratio / each.dtype.type(K)
    end = b + 1
    _log_mean_exp_numba(each[b:end], None, bound[b:end], weights[b:end])
    if dlog_ratio is not None:  # decided when the kernel is compiled, here and below
        rate = -beta * dout[b]
        for k in range(K):
            dlog_ratio[b, k] = rate * weights[b, k]


@jit
def _scale_numba(b, gradient, weights, dout):
    """The gradients of row b's samples times their weights, in place."""
    if gradient is not None:
        K = weights.shape[1]
        for k in range(K):
            factor = -dout[b] * weights[b, k]
            for j in range(gradient.shape[1]):
                gradient[b * K + k, j] *= factor


def _iwae_cuda(kernel, x, parameters, each, dparameters, constants, log_ratio, dout, *others):
    """Three launches: each sample's nll and gradient, the weights, the gradients times these."""
    (B, K), (n, D) = log_ratio.shape, parameters[0].shape
    *outputs, weights, dlog_ratio, beta = others
    more = varying(beta, x.dtype), np.int64(B), np.int64(K)
    over_rows("iwae.cu", kernel, (n, D), *parameters, x, each.reshape(-1), *dparameters, *constants,
              more=(K,))  # fmt: skip
    launch(
        "iwae.cu", typed("importance_weights", x.dtype, 1), B,
        min(256, max(32, 1 << (K - 1).bit_length())),
        (each, log_ratio, dout, *outputs, weights, dlog_ratio, *more),
    )  # fmt: skip
    for gradient in dparameters:
        over_rows("iwae.cu", "weigh_rows", (n, D), dout, weights.reshape(-1), gradient, more=(K,))


# ------------------------------------------------------------------------------------- Bernoulli
def bernoulli_iwae_forward(
    logits: Any,
    x: Any,
    log_ratio: Any,
    *,
    beta: float = 1.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """Importance-weighted bound of each row under a Bernoulli likelihood, in nats.

    bound = log 1/K sum_k exp(sum_d l_k x - softplus(l_k) - beta log_ratio_k)
    logits: (B K, ...); x: (B, ...) in {0, 1}; log_ratio: (B, K), K >= 1; beta >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns bound (B,), saved (with saved.nll and saved.kl, (B,), and saved.weights, (B, K)).
    Raises ValueError for shapes that do not fit, a negative beta; TypeError for dtypes, devices.
    """
    return _iwae({"logits": logits}, x, log_ratio, dout, beta, _BERNOULLI, gradient=gradient)


def bernoulli_iwae_backward(dout: Any, saved: IwaeSaved) -> tuple:
    """dlogits_k = dbound w_k (x - sigmoid(logits_k))      dlog_ratio = -dbound beta w.

    w = exp(log_w) / sum_k exp(log_w_k)      dx: None
    dout: dbound (B,).  Returns dlogits (B K, ...), None, dlog_ratio (B, K).
    """
    return _backward(dout, saved)


def bernoulli_iwae_value_and_grad(
    logits: Any, x: Any, log_ratio: Any, dout: Any = 1.0, *, beta: float = 1.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns bound (B,), (dlogits (B K, ...), None, dlog_ratio (B, K)).
    """
    bound, saved = _iwae({"logits": logits}, x, log_ratio, dout, beta, _BERNOULLI)
    return bound, saved.gradients()


def _bernoulli_iwae_numpy(x, logits, ones, each, dlogits, *others):
    _importance_numpy(_bernoulli_nll_numpy, x, (logits,), ones, each, (dlogits,), (), *others)


@jit_rows
def _bernoulli_iwae_numba(
    x, logits, ones, each, dlogits, log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta
):
    K = each.shape[1]
    for b in range(x.shape[0]):
        first, last = b * K, b * K + K
        dl = _some_rows(dlogits, first, last)
        _bernoulli_nll_numba(logits[first:last], x[b : b + 1], ones[b], each[b], dl)
        _weigh_numba(b, each, log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta)
        _scale_numba(b, dlogits, weights, dout)


def _bernoulli_iwae_cuda(x, logits, ones, each, dlogits, *others):
    _iwae_cuda("bernoulli_iwae", x, (logits,), each, (dlogits,), (), *others)


_BERNOULLI = (_bernoulli_iwae_numpy, _bernoulli_iwae_numba, _bernoulli_iwae_cuda)


# -------------------------------------------------------------------- Gaussian, learned variance
def gaussian_iwae_forward(
    x_mu: Any,
    x_logvar: Any,
    x: Any,
    log_ratio: Any,
    *,
    beta: float = 1.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """Importance-weighted bound of each row under a Gaussian of learned variance, in nats.

    bound = log 1/K sum_k exp(sum_d log N(x; x_mu_k, exp(x_logvar_k)) - beta log_ratio_k)
    x_mu, x_logvar: (B K, ...); x: (B, ...); log_ratio: (B, K), K >= 1; beta >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns bound (B,), saved (with saved.nll and saved.kl, (B,), and saved.weights, (B, K)).
    Raises ValueError for shapes that do not fit, a negative beta; TypeError for dtypes, devices.
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    return _iwae(parameters, x, log_ratio, dout, beta, _GAUSSIAN, gradient=gradient)


def gaussian_iwae_backward(dout: Any, saved: IwaeSaved) -> tuple:
    """dx_mu_k = dbound w_k (x - x_mu_k) / var_k      dlog_ratio = -dbound beta w.

    dx_logvar_k = dbound w_k ((x - x_mu_k)^2 / var_k - 1) / 2      dx: None
    dout: dbound (B,).  Returns dx_mu, dx_logvar (B K, ...), None, dlog_ratio (B, K).
    """
    return _backward(dout, saved)


def gaussian_iwae_value_and_grad(
    x_mu: Any, x_logvar: Any, x: Any, log_ratio: Any, dout: Any = 1.0, *, beta: float = 1.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns bound (B,), (dx_mu, dx_logvar (B K, ...), None, dlog_ratio (B, K)).
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    bound, saved = _iwae(parameters, x, log_ratio, dout, beta, _GAUSSIAN)
    return bound, saved.gradients()


def _gaussian_iwae_numpy(x, x_mu, x_logvar, ones, each, dx_mu, dx_logvar, *others):
    given, gradients = (x_mu, x_logvar), (dx_mu, dx_logvar)
    _importance_numpy(_gaussian_nll_numpy, x, given, ones, each, gradients, (), *others)


@jit_rows
def _gaussian_iwae_numba(
    x, x_mu, x_logvar, ones, each, dx_mu, dx_logvar,
    log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta,
):  # fmt: skip
    K = each.shape[1]
    for b in range(x.shape[0]):
        first, last = b * K, b * K + K
        dm, dl = _some_rows(dx_mu, first, last), _some_rows(dx_logvar, first, last)
        _gaussian_nll_numba(
            x_mu[first:last], x_logvar[first:last], x[b : b + 1], ones[b], each[b], dm, dl
        )
        _weigh_numba(b, each, log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta)
        _scale_numba(b, dx_mu, weights, dout)
        _scale_numba(b, dx_logvar, weights, dout)


def _gaussian_iwae_cuda(x, x_mu, x_logvar, ones, each, dx_mu, dx_logvar, *others):
    given, gradients = (x_mu, x_logvar), (dx_mu, dx_logvar)
    _iwae_cuda("gaussian_iwae", x, given, each, gradients, (), *others)


_GAUSSIAN = (_gaussian_iwae_numpy, _gaussian_iwae_numba, _gaussian_iwae_cuda)


# ---------------------------------------------------------------------- Gaussian, fixed variance
def gaussian_fixed_iwae_forward(
    x_mu: Any,
    x: Any,
    log_ratio: Any,
    *,
    variance: float = 1.0,
    beta: float = 1.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """Importance-weighted bound of each row under a Gaussian of one fixed variance, in nats.

    bound = log 1/K sum_k exp(sum_d log N(x; x_mu_k, variance) - beta log_ratio_k)
    x_mu: (B K, ...); x: (B, ...); log_ratio: (B, K), K >= 1; variance > 0; beta >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns bound (B,), saved (with saved.nll and saved.kl, (B,), and saved.weights, (B, K)).
    Raises ValueError for shapes that do not fit, a bad option; TypeError for dtypes, devices.
    """
    constants = fixed_constants(variance, x_mu)
    return _iwae({"x_mu": x_mu}, x, log_ratio, dout, beta, _FIXED, constants, gradient)


def gaussian_fixed_iwae_backward(dout: Any, saved: IwaeSaved) -> tuple:
    """dx_mu_k = dbound w_k (x - x_mu_k) / variance      dlog_ratio = -dbound beta w.

    dout: dbound (B,).  Returns dx_mu (B K, ...), None, dlog_ratio (B, K).
    """
    return _backward(dout, saved)


def gaussian_fixed_iwae_value_and_grad(
    x_mu: Any,
    x: Any,
    log_ratio: Any,
    dout: Any = 1.0,
    *,
    variance: float = 1.0,
    beta: float = 1.0,
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns bound (B,), (dx_mu (B K, ...), None, dlog_ratio (B, K)).
    """
    constants = fixed_constants(variance, x_mu)
    bound, saved = _iwae({"x_mu": x_mu}, x, log_ratio, dout, beta, _FIXED, constants)
    return bound, saved.gradients()


def _gaussian_fixed_iwae_numpy(x, x_mu, ones, each, dx_mu, precision, constant, *others):
    constants = (precision, constant)
    _importance_numpy(
        _gaussian_fixed_nll_numpy, x, (x_mu,), ones, each, (dx_mu,), constants, *others
    )


@jit_rows
def _gaussian_fixed_iwae_numba(
    x, x_mu, ones, each, dx_mu, precision, constant,
    log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta,
):  # fmt: skip
    K = each.shape[1]
    for b in range(x.shape[0]):
        first, last = b * K, b * K + K
        dm = _some_rows(dx_mu, first, last)
        _gaussian_fixed_nll_numba(
            x_mu[first:last], x[b : b + 1], ones[b], each[b], dm, precision, constant
        )
        _weigh_numba(b, each, log_ratio, dout, bound, nll, kl, weights, dlog_ratio, beta)
        _scale_numba(b, dx_mu, weights, dout)


def _gaussian_fixed_iwae_cuda(x, x_mu, ones, each, dx_mu, precision, constant, *others):
    constants = (precision, constant)
    _iwae_cuda("gaussian_fixed_iwae", x, (x_mu,), each, (dx_mu,), constants, *others)


_FIXED = (_gaussian_fixed_iwae_numpy, _gaussian_fixed_iwae_numba, _gaussian_fixed_iwae_cuda)
