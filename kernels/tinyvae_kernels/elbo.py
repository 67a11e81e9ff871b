"""The fused ELBO: its value and all its gradients in one pass over the data.

    elbo_i = log p(x_i | z_i) - beta sum_j max(kl_ij, free_bits)          nats per row

    kl_ij = 1/2 (mu_ij^2 + expm1(logvar_ij) - logvar_ij)      KL(N(mu, sigma^2) || N(0, 1))

Sizes: B batch, Z latent, D data (further axes are flattened).  beta: Higgins et al. 2017.
free_bits: nats per latent dimension below which the KL earns nothing and gets no gradient, here
for each row on its own (Kingma et al. 2016, appendix C.8, average over the minibatch first).

The gradients are those of elbo with respect to the likelihood's parameters and to mu and logvar
*directly*; the path through the sample z belongs to `reparameterize`.  The forward pass saves the
gradients themselves, and the two terms, `saved.nll` and `saved.kl` (B,), without beta and
free_bits: -(nll + kl) is the evidence lower bound whatever was optimised.  The backward scales the
gradients' rows by `dout`; who knows `dout` beforehand calls `..._value_and_grad`, which saves that
second pass over the data.

Storage in half precision (float16 and bfloat16, on a GPU): the arithmetic is float32, and so are
the values of the rows and `dout`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import over_rows, varying
from ._dispatch import (
    arithmetic,
    check_floats,
    check_rate,
    check_same_shape,
    check_weight,
    empty,
    empty_gradient,
    jit_rows,
    kl_floor,
    rows,
    select,
)
from ._math import expm1
from ._program import scalar
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


class ElboSaved(NamedTuple):
    """What an ELBO's forward keeps: its two terms (B,), and its gradients."""

    nll: Any
    kl: Any
    dparameters: tuple
    dmu: Any
    dlogvar: Any

    def gradients(self) -> tuple:
        """One for each array argument: None for x."""
        return (*self.dparameters, None, self.dmu, self.dlogvar)


def _elbo(
    parameters: dict[str, Any],
    x: Any,
    mu: Any,
    logvar: Any,
    dout: Any,
    beta: float,
    free_bits: float,
    bodies: tuple,
    constants: tuple = (),
    gradient: bool = True,
) -> tuple[Any, ElboSaved]:
    """Check, allocate, run: all ELBOs differ by their likelihood alone.

    dout: what the gradients are multiplied by, (B,), a number, or None for 1.
    """
    *given, x = check_same_shape(halves=True, **parameters, x=x)
    mu, logvar = check_same_shape(halves=True, mu=mu, logvar=logvar)
    check_floats(halves=True, x=x, mu=mu)
    if len(mu) != len(x):
        raise ValueError(f"mu has {len(mu)} rows, x has {len(x)}")
    check_weight(beta=beta, free_bits=free_bits)
    number, rate = arithmetic(x.dtype), check_rate(dout, x)
    elbo, nll, kl = (empty(x.shape[:1], x, number) for _ in range(3))
    dparameters = tuple(empty_gradient(x, gradient) for _ in given)
    dmu, dlogvar = empty_gradient(mu, gradient), empty_gradient(mu, gradient)
    select(x, *bodies)(
        *(rows(p) for p in given), rows(x), rate, nll, *(rows(d) for d in dparameters),
        *constants, rows(mu), rows(logvar), kl, rows(dmu), rows(dlogvar), elbo,
        scalar(beta, number), kl_floor(free_bits, number),
    )  # fmt: skip
    return elbo, ElboSaved(nll, kl, dparameters, dmu, dlogvar)


def _backward(dout: Any, saved: ElboSaved) -> tuple:
    return tuple(None if g is None else scale_rows(dout, g) for g in saved.gradients())


def _elbo_cuda(kernel: str, parameter: Any, arguments: tuple) -> None:
    """One launch: value, terms and gradients."""
    *arrays, elbo, beta, free_bits = arguments
    arguments = (*arrays, elbo, varying(beta, elbo.dtype), free_bits)
    Z = arrays[-1].shape[1]  # dlogvar
    over_rows("elbo.cu", kernel, parameter.shape, parameter, *arguments, more=(Z,))


# ------------------------------------------------------------------------------------ KL, shared
def _latent_numpy(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits):
    kl_each = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    kl[:] = kl_each.sum(axis=1)
    rate = np.where(kl_each < free_bits, 0, -beta * dout[:, None])
    if dmu is not None:
        dmu[:] = rate * mu
        dlogvar[:] = rate * np.expm1(logvar) / 2
    elbo[:] = -nll - beta * np.maximum(kl_each, free_bits).sum(axis=1)


@jit_rows
def _latent_numba(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits):
    zero, half = mu.dtype.type(0), mu.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total, charged, given = zero, zero, -beta * dout[i]
        for j in range(mu.shape[1]):
            m, e = mu[i, j], expm1(logvar[i, j])
            kl_each = half * (m * m + (e - logvar[i, j]))
            total += kl_each
            charged += free_bits if kl_each < free_bits else kl_each
            rate = zero if kl_each < free_bits else given
            if dmu is not None:  # decided when the kernel is compiled
                dmu[i, j] = rate * m
                dlogvar[i, j] = rate * half * e
        kl[i] = total
        elbo[i] = -nll[i] - beta * charged


# ------------------------------------------------------------------------------------- Bernoulli
def bernoulli_elbo_forward(
    logits: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """ELBO of each row under a Bernoulli likelihood, in nats.

    elbo = sum_d l x - softplus(l) - beta sum_j max(kl_j, free_bits)
    logits, x: (B, ...), x in {0, 1}; mu, logvar: (B, Z); beta, free_bits >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes, a negative weight; TypeError for dtypes, devices.
    """
    parameters = {"logits": logits}
    return _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _BERNOULLI, gradient=gradient)


def bernoulli_elbo_backward(dout: Any, saved: ElboSaved) -> tuple:
    """dlogits = delbo (x - sigmoid(logits))      dmu = -delbo beta mu [kl >= free_bits].

    dlogvar = -delbo beta expm1(logvar) / 2 [kl >= free_bits]      dx: None
    dout: delbo (B,).  Returns dlogits (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def bernoulli_elbo_value_and_grad(
    logits: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    dout: Any = 1.0,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns elbo (B,), (dlogits (B, ...), None, dmu, dlogvar (B, Z)).
    """
    parameters = {"logits": logits}
    elbo, saved = _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _BERNOULLI)
    return elbo, saved.gradients()


def _bernoulli_elbo_numpy(
    logits, x, dout, nll, dlogits,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _bernoulli_nll_numpy(logits, x, -dout, nll, dlogits)
    _latent_numpy(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit_rows
def _bernoulli_elbo_numba(
    logits, x, dout, nll, dlogits,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _bernoulli_nll_numba(logits, x, -dout, nll, dlogits)
    _latent_numba(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


def _bernoulli_elbo_cuda(logits, *arguments):
    _elbo_cuda("bernoulli_elbo", logits, arguments)


_BERNOULLI = (_bernoulli_elbo_numpy, _bernoulli_elbo_numba, _bernoulli_elbo_cuda)


# -------------------------------------------------------------------- Gaussian, learned variance
def gaussian_elbo_forward(
    x_mu: Any,
    x_logvar: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """ELBO of each row under a Gaussian likelihood with learned variance, in nats.

    elbo = sum_d log N(x; x_mu, exp(x_logvar)) - beta sum_j max(kl_j, free_bits)
    x_mu, x_logvar, x: (B, ...); mu, logvar: (B, Z); beta, free_bits >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes, a negative weight; TypeError for dtypes, devices.
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    return _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _GAUSSIAN, gradient=gradient)


def gaussian_elbo_backward(dout: Any, saved: ElboSaved) -> tuple:
    """dx_mu = delbo (x - x_mu) / var      dx_logvar = delbo ((x - x_mu)^2 / var - 1) / 2.

    dmu = -delbo beta mu [kl >= free_bits]
    dlogvar = -delbo beta expm1(logvar) / 2 [kl >= free_bits]      dx: None
    dout: delbo (B,).  Returns dx_mu, dx_logvar (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def gaussian_elbo_value_and_grad(
    x_mu: Any,
    x_logvar: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    dout: Any = 1.0,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns elbo (B,), (dx_mu, dx_logvar (B, ...), None, dmu, dlogvar (B, Z)).
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    elbo, saved = _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _GAUSSIAN)
    return elbo, saved.gradients()


def _gaussian_elbo_numpy(
    x_mu, x_logvar, x, dout, nll, dx_mu, dx_logvar,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_nll_numpy(x_mu, x_logvar, x, -dout, nll, dx_mu, dx_logvar)
    _latent_numpy(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit_rows
def _gaussian_elbo_numba(
    x_mu, x_logvar, x, dout, nll, dx_mu, dx_logvar,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_nll_numba(x_mu, x_logvar, x, -dout, nll, dx_mu, dx_logvar)
    _latent_numba(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


def _gaussian_elbo_cuda(x_mu, *arguments):
    _elbo_cuda("gaussian_elbo", x_mu, arguments)


_GAUSSIAN = (_gaussian_elbo_numpy, _gaussian_elbo_numba, _gaussian_elbo_cuda)


# ---------------------------------------------------------------------- Gaussian, fixed variance
def gaussian_fixed_elbo_forward(
    x_mu: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    *,
    variance: float = 1.0,
    beta: float = 1.0,
    free_bits: float = 0.0,
    dout: Any = None,
    gradient: bool = True,
) -> Any:
    """ELBO of each row under a Gaussian likelihood with one fixed variance, in nats.

    elbo = sum_d log N(x; x_mu, variance) - beta sum_j max(kl_j, free_bits)
    x_mu, x: (B, ...); mu, logvar: (B, Z); variance > 0; beta, free_bits >= 0.
    dout: if it is known beforehand, (B,) or one number: saved.gradients() are then times it.
    gradient: False if values alone are wanted; saved.gradients() are then None.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes, a bad option; TypeError for dtypes, devices.
    """
    parameters = {"x_mu": x_mu}
    constants = fixed_constants(variance, x_mu)
    return _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _FIXED, constants, gradient)


def gaussian_fixed_elbo_backward(dout: Any, saved: ElboSaved) -> tuple:
    """dx_mu = delbo (x - x_mu) / variance      dmu = -delbo beta mu [kl >= free_bits].

    dlogvar = -delbo beta expm1(logvar) / 2 [kl >= free_bits]      dx: None
    dout: delbo (B,).  Returns dx_mu (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def gaussian_fixed_elbo_value_and_grad(
    x_mu: Any,
    x: Any,
    mu: Any,
    logvar: Any,
    dout: Any = 1.0,
    *,
    variance: float = 1.0,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, -1/B for the mean of the loss.
    Returns elbo (B,), (dx_mu (B, ...), None, dmu, dlogvar (B, Z)).
    """
    parameters = {"x_mu": x_mu}
    constants = fixed_constants(variance, x_mu)
    elbo, saved = _elbo(parameters, x, mu, logvar, dout, beta, free_bits, _FIXED, constants)
    return elbo, saved.gradients()


def _gaussian_fixed_elbo_numpy(
    x_mu, x, dout, nll, dx_mu, precision, constant,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_fixed_nll_numpy(x_mu, x, -dout, nll, dx_mu, precision, constant)
    _latent_numpy(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit_rows
def _gaussian_fixed_elbo_numba(
    x_mu, x, dout, nll, dx_mu, precision, constant,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_fixed_nll_numba(x_mu, x, -dout, nll, dx_mu, precision, constant)
    _latent_numba(mu, logvar, dout, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


def _gaussian_fixed_elbo_cuda(x_mu, *arguments):
    _elbo_cuda("gaussian_fixed_elbo", x_mu, arguments)


_FIXED = (
    _gaussian_fixed_elbo_numpy,
    _gaussian_fixed_elbo_numba,
    _gaussian_fixed_elbo_cuda,
)
