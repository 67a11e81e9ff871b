"""The fused ELBO: its value and all its gradients in one pass over the data.

    elbo_i = log p(x_i | z_i) - beta sum_j max(kl_ij, free_bits)          nats per row

    kl_ij = 1/2 (mu_ij^2 + expm1(logvar_ij) - logvar_ij)      KL(N(mu, sigma^2) || N(0, 1))

Sizes: B batch, Z latent, D data (further axes are flattened).  beta: Higgins et al. 2017.
free_bits: nats per latent dimension below which the KL earns nothing and gets no gradient, here
for each row on its own (Kingma et al. 2016, appendix C.8, average over the minibatch first).

The gradients are those of elbo with respect to the likelihood's parameters and to mu and logvar
*directly*; the path through the sample z belongs to `reparameterize`.  The forward pass saves the
gradients themselves, and the two terms, `saved.nll` and `saved.kl` (B,), without beta and
free_bits: -(nll + kl) is the evidence lower bound whatever was optimised.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._dispatch import check_floats, check_same_shape, empty, jit, rows, select
from ._math import expm1
from .likelihood import (
    _bernoulli_nll_numba,
    _bernoulli_nll_numpy,
    _gaussian_fixed_nll_numba,
    _gaussian_fixed_nll_numpy,
    _gaussian_nll_numba,
    _gaussian_nll_numpy,
    check_variance,
    fixed_constants,
    scale_rows,
)


class ElboSaved(NamedTuple):
    """What an ELBO's forward keeps: its two terms (B,), and the gradients of the loss -elbo."""

    nll: np.ndarray
    kl: np.ndarray
    dparameters: tuple[np.ndarray, ...]
    dmu: np.ndarray
    dlogvar: np.ndarray


def _forward(
    parameters: dict[str, np.ndarray],
    x: np.ndarray,
    mu: np.ndarray,
    logvar: np.ndarray,
    beta: float,
    free_bits: float,
    bodies: tuple,
    constants: tuple = (),
) -> Any:
    """Check, allocate, run: all ELBOs differ by their likelihood alone."""
    check_same_shape(**parameters, x=x)
    check_same_shape(mu=mu, logvar=logvar)
    check_floats(x=x, mu=mu)
    if len(mu) != len(x):
        raise ValueError(f"mu has {len(mu)} rows, x has {len(x)}")
    if not 0 <= beta < math.inf or not 0 <= free_bits < math.inf:
        raise ValueError(f"beta and free_bits must be finite and >= 0, got {beta}, {free_bits}")
    elbo, nll, kl = (empty(x.shape[:1], x) for _ in range(3))
    dparameters = tuple(empty(x.shape, x) for _ in parameters)
    dmu, dlogvar = empty(mu.shape, mu), empty(mu.shape, mu)
    select(x, *bodies)(
        *(rows(p) for p in parameters.values()), rows(x), nll, *(rows(d) for d in dparameters),
        *constants, rows(mu), rows(logvar), kl, rows(dmu), rows(dlogvar), elbo,
        x.dtype.type(beta), x.dtype.type(free_bits),
    )  # fmt: skip
    return elbo, ElboSaved(nll, kl, dparameters, dmu, dlogvar)


def _backward(dout: np.ndarray, saved: ElboSaved) -> tuple:
    gradients = (*saved.dparameters, None, saved.dmu, saved.dlogvar)
    return tuple(None if g is None else scale_rows(dout, g, -1.0) for g in gradients)


# ------------------------------------------------------------------------------------ KL, shared
def _latent_numpy(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits):
    kl_each = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    kl[:] = kl_each.sum(axis=1)
    paid = kl_each > free_bits
    dmu[:] = beta * paid * mu
    dlogvar[:] = beta * paid * np.expm1(logvar) / 2
    elbo[:] = -nll - beta * np.maximum(kl_each, free_bits).sum(axis=1)


@jit
def _latent_numba(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits):
    zero, half = mu.dtype.type(0), mu.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total, charged = zero, zero
        for j in range(mu.shape[1]):
            m, e = mu[i, j], expm1(logvar[i, j])
            kl_each = half * (m * m + (e - logvar[i, j]))
            total += kl_each
            charged += max(kl_each, free_bits)
            rate = beta if kl_each > free_bits else zero
            dmu[i, j] = rate * m
            dlogvar[i, j] = rate * half * e
        kl[i] = total
        elbo[i] = -nll[i] - beta * charged


# ------------------------------------------------------------------------------------- Bernoulli
def bernoulli_elbo_forward(
    logits: np.ndarray,
    x: np.ndarray,
    mu: np.ndarray,
    logvar: np.ndarray,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """ELBO of each row under a Bernoulli likelihood, in nats.

    elbo = sum_d l x - softplus(l) - beta sum_j max(kl_j, free_bits)
    logits, x: (B, ...), x in {0, 1}; mu, logvar: (B, Z); beta, free_bits >= 0.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes, negative beta or free_bits; TypeError for dtypes.
    """
    bodies = (_bernoulli_elbo_numpy, _bernoulli_elbo_numba)
    return _forward({"logits": logits}, x, mu, logvar, beta, free_bits, bodies)


def bernoulli_elbo_backward(dout: np.ndarray, saved: ElboSaved) -> tuple:
    """dlogits = delbo (x - sigmoid(logits))      dmu = -delbo beta mu [kl > free_bits].

    dlogvar = -delbo beta expm1(logvar) / 2 [kl > free_bits]      dx: None
    dout: delbo (B,).  Returns dlogits (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def _bernoulli_elbo_numpy(
    logits, x, nll, dlogits, mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits
):
    _bernoulli_nll_numpy(logits, x, nll, dlogits)
    _latent_numpy(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit
def _bernoulli_elbo_numba(
    logits, x, nll, dlogits, mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits
):
    _bernoulli_nll_numba(logits, x, nll, dlogits)
    _latent_numba(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


# -------------------------------------------------------------------- Gaussian, learned variance
def gaussian_elbo_forward(
    x_mu: np.ndarray,
    x_logvar: np.ndarray,
    x: np.ndarray,
    mu: np.ndarray,
    logvar: np.ndarray,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """ELBO of each row under a Gaussian likelihood with learned variance, in nats.

    elbo = sum_d log N(x; x_mu, exp(x_logvar)) - beta sum_j max(kl_j, free_bits)
    x_mu, x_logvar, x: (B, ...); mu, logvar: (B, Z); beta, free_bits >= 0.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes, negative beta or free_bits; TypeError for dtypes.
    """
    parameters = {"x_mu": x_mu, "x_logvar": x_logvar}
    bodies = (_gaussian_elbo_numpy, _gaussian_elbo_numba)
    return _forward(parameters, x, mu, logvar, beta, free_bits, bodies)


def gaussian_elbo_backward(dout: np.ndarray, saved: ElboSaved) -> tuple:
    """dx_mu = delbo (x - x_mu) / var      dx_logvar = delbo ((x - x_mu)^2 / var - 1) / 2.

    dmu = -delbo beta mu [kl > free_bits]
    dlogvar = -delbo beta expm1(logvar) / 2 [kl > free_bits]      dx: None
    dout: delbo (B,).  Returns dx_mu, dx_logvar (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def _gaussian_elbo_numpy(
    x_mu, x_logvar, x, nll, dx_mu, dx_logvar,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_nll_numpy(x_mu, x_logvar, x, nll, dx_mu, dx_logvar)
    _latent_numpy(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit
def _gaussian_elbo_numba(
    x_mu, x_logvar, x, nll, dx_mu, dx_logvar,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_nll_numba(x_mu, x_logvar, x, nll, dx_mu, dx_logvar)
    _latent_numba(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


# ---------------------------------------------------------------------- Gaussian, fixed variance
def gaussian_fixed_elbo_forward(
    x_mu: np.ndarray,
    x: np.ndarray,
    mu: np.ndarray,
    logvar: np.ndarray,
    *,
    variance: float = 1.0,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Any:
    """ELBO of each row under a Gaussian likelihood with one fixed variance, in nats.

    elbo = sum_d log N(x; x_mu, variance) - beta sum_j max(kl_j, free_bits)
    x_mu, x: (B, ...); mu, logvar: (B, Z); variance > 0; beta, free_bits >= 0.
    Returns elbo (B,), saved (with saved.nll and saved.kl, (B,)).
    Raises ValueError for differing shapes or an option out of range; TypeError for dtypes.
    """
    check_floats(x_mu=x_mu)
    check_variance(variance)
    bodies = (_gaussian_fixed_elbo_numpy, _gaussian_fixed_elbo_numba)
    constants = fixed_constants(variance, x_mu.dtype)
    return _forward({"x_mu": x_mu}, x, mu, logvar, beta, free_bits, bodies, constants)


def gaussian_fixed_elbo_backward(dout: np.ndarray, saved: ElboSaved) -> tuple:
    """dx_mu = delbo (x - x_mu) / variance      dmu = -delbo beta mu [kl > free_bits].

    dlogvar = -delbo beta expm1(logvar) / 2 [kl > free_bits]      dx: None
    dout: delbo (B,).  Returns dx_mu (B, ...), None, dmu, dlogvar (B, Z).
    """
    return _backward(dout, saved)


def _gaussian_fixed_elbo_numpy(
    x_mu, x, nll, dx_mu, precision, constant,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_fixed_nll_numpy(x_mu, x, nll, dx_mu, precision, constant)
    _latent_numpy(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)


@jit
def _gaussian_fixed_elbo_numba(
    x_mu, x, nll, dx_mu, precision, constant,
    mu, logvar, kl, dmu, dlogvar, elbo, beta, free_bits,
):  # fmt: skip
    _gaussian_fixed_nll_numba(x_mu, x, nll, dx_mu, precision, constant)
    _latent_numba(mu, logvar, kl, dmu, dlogvar, elbo, nll, beta, free_bits)
