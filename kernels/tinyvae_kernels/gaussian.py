"""The diagonal Gaussian posterior: the reparameterized sample, and its KL to a prior.

Sizes: B batch, Z latent.  mu, logvar: (B, Z); logvar = log sigma^2, natural logarithm.
KL values are per row, in nats.  Nothing here modifies its arguments or draws random numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._dispatch import check_dout, check_same_shape, empty, jit, rows, select
from ._math import exp, expm1


# -------------------------------------------------------------------------------- reparameterize
def reparameterize_forward(mu: np.ndarray, logvar: np.ndarray, eps: np.ndarray) -> Any:
    """A sample of N(mu, sigma^2) as a function of mu and logvar.

    z = mu + exp(logvar / 2) eps                        Kingma and Welling 2014, section 2.4
    mu, logvar, eps: (B, Z), eps standard normal noise.
    Returns z (B, Z), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes do.
    """
    check_same_shape(mu=mu, logvar=logvar, eps=eps)
    z = empty(mu.shape, mu)
    mu2, logvar2, eps2 = rows(mu), rows(logvar), rows(eps)
    select(mu, _reparameterize_forward_numpy, _reparameterize_forward_numba)(
        mu2, logvar2, eps2, rows(z)
    )
    return z, (logvar2, eps2, mu.shape)


def reparameterize_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dmu = dz      dlogvar = dz eps exp(logvar / 2) / 2      deps: None, noise is data.

    dout: dz (B, Z).  Returns dmu, dlogvar (B, Z), None.
    """
    logvar, eps, shape = saved
    dz = check_dout(dout, shape, logvar.dtype)
    dlogvar = empty(shape, logvar)
    select(logvar, _reparameterize_backward_numpy, _reparameterize_backward_numba)(
        rows(dz), logvar, eps, rows(dlogvar)
    )
    return dz, dlogvar, None


def _reparameterize_forward_numpy(mu, logvar, eps, z):
    z[:] = mu + np.exp(logvar / 2) * eps


@jit
def _reparameterize_forward_numba(mu, logvar, eps, z):
    half = z.dtype.type(0.5)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = mu[i, j] + exp(half * logvar[i, j]) * eps[i, j]


def _reparameterize_backward_numpy(dz, logvar, eps, dlogvar):
    dlogvar[:] = dz * eps * np.exp(logvar / 2) / 2


@jit
def _reparameterize_backward_numba(dz, logvar, eps, dlogvar):
    half = dz.dtype.type(0.5)
    for i in range(dz.shape[0]):
        for j in range(dz.shape[1]):
            dlogvar[i, j] = dz[i, j] * eps[i, j] * half * exp(half * logvar[i, j])


# --------------------------------------------------------------------------- KL to N(0, I)
def gaussian_kl_forward(mu: np.ndarray, logvar: np.ndarray) -> Any:
    """KL(N(mu, sigma^2) || N(0, I)) of each row, in nats.

    kl = 1/2 sum_j mu_j^2 + expm1(logvar_j) - logvar_j      Kingma and Welling 2014, appendix B
    mu, logvar: (B, Z).
    Returns kl (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes do.
    """
    check_same_shape(mu=mu, logvar=logvar)
    mu2, logvar2, kl = rows(mu), rows(logvar), empty(mu.shape[:1], mu)
    select(mu, _gaussian_kl_forward_numpy, _gaussian_kl_forward_numba)(mu2, logvar2, kl)
    return kl, (mu2, logvar2, mu.shape)


def gaussian_kl_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dmu = dkl mu      dlogvar = dkl expm1(logvar) / 2.

    dout: dkl (B,).  Returns dmu, dlogvar (B, Z).
    """
    mu, logvar, shape = saved
    dkl = check_dout(dout, shape[:1], mu.dtype)
    dmu, dlogvar = empty(shape, mu), empty(shape, mu)
    select(mu, _gaussian_kl_backward_numpy, _gaussian_kl_backward_numba)(
        dkl, mu, logvar, rows(dmu), rows(dlogvar)
    )
    return dmu, dlogvar


def _gaussian_kl_forward_numpy(mu, logvar, kl):
    kl[:] = 0.5 * (mu**2 + np.expm1(logvar) - logvar).sum(axis=1)


@jit
def _gaussian_kl_forward_numba(mu, logvar, kl):
    zero, half = kl.dtype.type(0), kl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        for j in range(mu.shape[1]):
            total += mu[i, j] * mu[i, j] + (expm1(logvar[i, j]) - logvar[i, j])
        kl[i] = half * total


def _gaussian_kl_backward_numpy(dkl, mu, logvar, dmu, dlogvar):
    dmu[:] = dkl[:, None] * mu
    dlogvar[:] = dkl[:, None] * np.expm1(logvar) / 2


@jit
def _gaussian_kl_backward_numba(dkl, mu, logvar, dmu, dlogvar):
    half = dkl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        for j in range(mu.shape[1]):
            dmu[i, j] = dkl[i] * mu[i, j]
            dlogvar[i, j] = dkl[i] * half * expm1(logvar[i, j])


# --------------------------------------------------------------------------- KL to N(mu2, var2)
def gaussian_kl_between_forward(
    mu: np.ndarray, logvar: np.ndarray, mu2: np.ndarray, logvar2: np.ndarray
) -> Any:
    """KL(N(mu, sigma^2) || N(mu2, sigma2^2)) of each row, in nats.

    kl = 1/2 sum_j (mu_j - mu2_j)^2 / sigma2_j^2 + expm1(d_j) - d_j,   d = logvar - logvar2
    mu, logvar, mu2, logvar2: (B, Z).
    Returns kl (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes do.
    """
    check_same_shape(mu=mu, logvar=logvar, mu2=mu2, logvar2=logvar2)
    arrays, kl = tuple(rows(a) for a in (mu, logvar, mu2, logvar2)), empty(mu.shape[:1], mu)
    select(mu, _gaussian_kl_between_forward_numpy, _gaussian_kl_between_forward_numba)(*arrays, kl)
    return kl, (arrays, mu.shape)


def gaussian_kl_between_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dmu = dkl m      dlogvar = dkl expm1(d) / 2      dmu2 = -dkl m.

    dlogvar2 = -dkl ((mu - mu2) m + expm1(d)) / 2,   m = (mu - mu2) / sigma2^2, d = logvar - logvar2
    dout: dkl (B,).  Returns dmu, dlogvar, dmu2, dlogvar2 (B, Z).
    """
    arrays, shape = saved
    dkl = check_dout(dout, shape[:1], arrays[0].dtype)
    gradients = tuple(empty(shape, dkl) for _ in range(4))
    select(dkl, _gaussian_kl_between_backward_numpy, _gaussian_kl_between_backward_numba)(
        dkl, *arrays, *(rows(g) for g in gradients)
    )
    return gradients


def _gaussian_kl_between_forward_numpy(mu, logvar, mu2, logvar2, kl):
    d = logvar - logvar2
    kl[:] = 0.5 * ((mu - mu2) ** 2 * np.exp(-logvar2) + np.expm1(d) - d).sum(axis=1)


@jit
def _gaussian_kl_between_forward_numba(mu, logvar, mu2, logvar2, kl):
    zero, half = kl.dtype.type(0), kl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        for j in range(mu.shape[1]):
            a, d = mu[i, j] - mu2[i, j], logvar[i, j] - logvar2[i, j]
            total += a * a * exp(-logvar2[i, j]) + (expm1(d) - d)
        kl[i] = half * total


def _gaussian_kl_between_backward_numpy(
    dkl, mu, logvar, mu2, logvar2, dmu, dlogvar, dmu2, dlogvar2
):
    dkl = dkl[:, None]
    a, d = mu - mu2, logvar - logvar2
    m = a * np.exp(-logvar2)
    dmu[:], dmu2[:] = dkl * m, -dkl * m
    dlogvar[:] = dkl * np.expm1(d) / 2
    dlogvar2[:] = -dkl * (a * m + np.expm1(d)) / 2


@jit
def _gaussian_kl_between_backward_numba(
    dkl, mu, logvar, mu2, logvar2, dmu, dlogvar, dmu2, dlogvar2
):
    half = dkl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        for j in range(mu.shape[1]):
            a, e = mu[i, j] - mu2[i, j], expm1(logvar[i, j] - logvar2[i, j])
            m = a * exp(-logvar2[i, j])
            dmu[i, j] = dkl[i] * m
            dmu2[i, j] = -dkl[i] * m
            dlogvar[i, j] = dkl[i] * half * e
            dlogvar2[i, j] = -dkl[i] * half * (a * m + e)
