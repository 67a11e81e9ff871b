"""The diagonal Gaussian posterior: the reparameterized sample, and its KL to a prior.

Sizes: B batch, Z latent.  mu, logvar: (B, Z); logvar = log sigma^2, natural logarithm.
KL values are per row, in nats.  Nothing here modifies its arguments; the only function that draws
random numbers, `gaussian_sample`, takes their key and counter.

Storage in half precision (float16 and bfloat16, on a GPU): the arithmetic is float32, and so are
the KL values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import philox
from ._cuda import over_elements, over_rows
from ._dispatch import (
    arithmetic,
    check_dout,
    check_same_shape,
    check_weight,
    empty,
    jit_rows,
    kl_floor,
    rows,
    select,
)
from ._math import exp, expm1


# -------------------------------------------------------------------------------- reparameterize
def reparameterize_forward(mu: Any, logvar: Any, eps: Any) -> Any:
    """A sample of N(mu, sigma^2) as a function of mu and logvar.

    z = mu + exp(logvar / 2) eps                        Kingma and Welling 2014, section 2.4
    mu, logvar, eps: (B, Z), eps standard normal noise.
    Returns z (B, Z), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    mu, logvar, eps = check_same_shape(halves=True, mu=mu, logvar=logvar, eps=eps)
    z = empty(mu.shape, mu)
    mu2, logvar2, eps2 = rows(mu), rows(logvar), rows(eps)
    select(
        mu, _reparameterize_forward_numpy, _reparameterize_forward_numba,
        _reparameterize_forward_cuda,
    )(mu2, logvar2, eps2, rows(z))  # fmt: skip
    return z, (logvar2, eps2, mu.shape)


def reparameterize_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dz      dlogvar = dz eps exp(logvar / 2) / 2      deps: None, noise is data.

    dout: dz (B, Z).  Returns dmu, dlogvar (B, Z), None.
    """
    logvar, eps, shape = saved
    dz = check_dout(dout, shape, logvar)
    dlogvar = empty(shape, logvar)
    select(
        logvar, _reparameterize_backward_numpy, _reparameterize_backward_numba,
        _reparameterize_backward_cuda,
    )(rows(dz), logvar, eps, rows(dlogvar))  # fmt: skip
    return dz, dlogvar, None


def _reparameterize_forward_numpy(mu, logvar, eps, z):
    z[:] = mu + np.exp(logvar / 2) * eps


@jit_rows
def _reparameterize_forward_numba(mu, logvar, eps, z):
    half = z.dtype.type(0.5)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = mu[i, j] + exp(half * logvar[i, j]) * eps[i, j]


def _reparameterize_forward_cuda(mu, logvar, eps, z):
    over_elements("gaussian.cu", "reparameterize_forward", mu.size, mu, logvar, eps, z)


def _reparameterize_backward_numpy(dz, logvar, eps, dlogvar):
    dlogvar[:] = dz * eps * np.exp(logvar / 2) / 2


@jit_rows
def _reparameterize_backward_numba(dz, logvar, eps, dlogvar):
    half = dz.dtype.type(0.5)
    for i in range(dz.shape[0]):
        for j in range(dz.shape[1]):
            dlogvar[i, j] = dz[i, j] * eps[i, j] * half * exp(half * logvar[i, j])


def _reparameterize_backward_cuda(dz, logvar, eps, dlogvar):
    over_elements("gaussian.cu", "reparameterize_backward", dz.size, dz, logvar, eps, dlogvar)


# -------------------------------------------------------- the same, with the noise drawn inside
def gaussian_sample_forward(
    mu: Any, logvar: Any, *, seed: int, stream: int = 0, step: int = 0, offset: int = 0
) -> Any:
    """A sample of N(mu, sigma^2) whose noise is drawn in the kernel, and again in the backward.

    z = mu + exp(logvar / 2) eps,   eps = philox_normal(mu.shape, seed=seed, stream=stream, ...)
    mu, logvar: (B, Z).  Nothing of eps is stored: the backward makes the same numbers again.
    Returns z (B, Z), saved.
    Raises ValueError if the shapes differ or a number is out of range, TypeError for dtypes.
    """
    mu, logvar = check_same_shape(halves=True, mu=mu, logvar=logvar)
    numbers = philox.numbers(mu.size, seed, stream, step, offset)
    z, logvar2 = empty(mu.shape, mu), rows(logvar)
    select(
        mu, _gaussian_sample_forward_numpy, _gaussian_sample_forward_numba,
        _gaussian_sample_forward_cuda,
    )(rows(mu), logvar2, rows(z), *numbers)  # fmt: skip
    return z, (logvar2, numbers, mu.shape)


def gaussian_sample_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dz      dlogvar = dz eps exp(logvar / 2) / 2, with eps drawn again.

    dout: dz (B, Z).  Returns dmu, dlogvar (B, Z).
    """
    logvar, numbers, shape = saved
    dz = check_dout(dout, shape, logvar)
    dlogvar = empty(shape, logvar)
    select(
        logvar, _gaussian_sample_backward_numpy, _gaussian_sample_backward_numba,
        _gaussian_sample_backward_cuda,
    )(rows(dz), logvar, rows(dlogvar), *numbers)  # fmt: skip
    return dz, dlogvar


def _gaussian_sample_forward_numpy(mu, logvar, z, *numbers):
    philox._philox_normal_numpy(z.reshape(-1), *numbers)
    z[:] = mu + np.exp(logvar / 2) * z


def _gaussian_sample_forward_numba(mu, logvar, z, *numbers):
    eps = empty(z.shape, z)  # not z itself: a loop whose output is an input is not vectorized
    philox.normal_in_parts(eps.reshape(-1), *numbers)
    _reparameterize_forward_numba(mu, logvar, eps, z)


def _gaussian_sample_forward_cuda(mu, logvar, z, *numbers):
    philox.over_noise("gaussian.cu", "gaussian_sample_forward", z.size, mu, logvar, z, *numbers)


def _gaussian_sample_backward_numpy(dz, logvar, dlogvar, *numbers):
    philox._philox_normal_numpy(dlogvar.reshape(-1), *numbers)
    dlogvar[:] = dz * dlogvar * np.exp(logvar / 2) / 2


def _gaussian_sample_backward_numba(dz, logvar, dlogvar, *numbers):
    eps = empty(dz.shape, dz)
    philox.normal_in_parts(eps.reshape(-1), *numbers)
    _reparameterize_backward_numba(dz, logvar, eps, dlogvar)


def _gaussian_sample_backward_cuda(dz, logvar, dlogvar, *numbers):
    philox.over_noise(
        "gaussian.cu", "gaussian_sample_backward", dz.size, dz, logvar, dlogvar, *numbers
    )


# --------------------------------------------------------------------------- KL to N(0, I)
def gaussian_kl_forward(mu: Any, logvar: Any, *, free_bits: float = 0.0) -> Any:
    """KL(N(mu, sigma^2) || N(0, I)) of each row, in nats.

    kl = sum_j max(kl_j, free_bits)                         Kingma et al. 2016, appendix C.8
    kl_j = 1/2 (mu_j^2 + expm1(logvar_j) - logvar_j)        Kingma and Welling 2014, appendix B
    mu, logvar: (B, Z); free_bits >= 0: nats of each latent that are charged in any case.
    Returns kl (B,), saved.
    Raises ValueError if the shapes differ or free_bits is negative, TypeError for dtypes, devices.
    """
    mu, logvar = check_same_shape(halves=True, mu=mu, logvar=logvar)
    check_weight(free_bits=free_bits)
    number = arithmetic(mu.dtype)
    mu2, logvar2, kl = rows(mu), rows(logvar), empty(mu.shape[:1], mu, number)
    free = kl_floor(free_bits, number)
    select(mu, _gaussian_kl_forward_numpy, _gaussian_kl_forward_numba, _gaussian_kl_forward_cuda)(
        mu2, logvar2, kl, free
    )
    return kl, (mu2, logvar2, free, mu.shape)


def gaussian_kl_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dkl mu      dlogvar = dkl expm1(logvar) / 2      and 0 where kl_j < free_bits.

    dout: dkl (B,).  Returns dmu, dlogvar (B, Z).
    """
    mu, logvar, free, shape = saved
    dkl = check_dout(dout, shape[:1], mu, free.dtype)
    dmu, dlogvar = empty(shape, mu), empty(shape, mu)
    select(
        mu, _gaussian_kl_backward_numpy, _gaussian_kl_backward_numba, _gaussian_kl_backward_cuda
    )(dkl, mu, logvar, rows(dmu), rows(dlogvar), free)
    return dmu, dlogvar


def _gaussian_kl_forward_numpy(mu, logvar, kl, free_bits):
    kl_each = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    kl[:] = np.maximum(kl_each, free_bits).sum(axis=1)


@jit_rows
def _gaussian_kl_forward_numba(mu, logvar, kl, free_bits):
    zero, half = kl.dtype.type(0), kl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        for j in range(mu.shape[1]):
            kl_each = half * (mu[i, j] * mu[i, j] + (expm1(logvar[i, j]) - logvar[i, j]))
            total += free_bits if kl_each < free_bits else kl_each
        kl[i] = total


def _gaussian_kl_forward_cuda(mu, logvar, kl, free_bits):
    over_rows("gaussian.cu", "gaussian_kl_forward", mu.shape, mu, logvar, kl, free_bits)


def _gaussian_kl_backward_numpy(dkl, mu, logvar, dmu, dlogvar, free_bits):
    kl_each = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    rate = np.where(kl_each < free_bits, 0, dkl[:, None])
    dmu[:] = rate * mu
    dlogvar[:] = rate * np.expm1(logvar) / 2


@jit_rows
def _gaussian_kl_backward_numba(dkl, mu, logvar, dmu, dlogvar, free_bits):
    zero, half = dkl.dtype.type(0), dkl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        given = dkl[i]  # read once: else LLVM does not vectorize the loop
        for j in range(mu.shape[1]):
            m, e = mu[i, j], expm1(logvar[i, j])
            rate = zero if half * (m * m + (e - logvar[i, j])) < free_bits else given
            dmu[i, j] = rate * m
            dlogvar[i, j] = rate * half * e


def _gaussian_kl_backward_cuda(dkl, mu, logvar, dmu, dlogvar, free_bits):
    arguments = (dkl, mu, logvar, dmu, dlogvar, free_bits)
    over_rows("gaussian.cu", "gaussian_kl_backward", mu.shape, *arguments)


# --------------------------------------------------------------------------- KL to N(mu2, var2)
def gaussian_kl_between_forward(mu: Any, logvar: Any, mu2: Any, logvar2: Any) -> Any:
    """KL(N(mu, sigma^2) || N(mu2, sigma2^2)) of each row, in nats.

    kl = 1/2 sum_j (mu_j - mu2_j)^2 / sigma2_j^2 + expm1(d_j) - d_j,   d = logvar - logvar2
    mu, logvar, mu2, logvar2: (B, Z).
    Returns kl (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    arrays = check_same_shape(halves=True, mu=mu, logvar=logvar, mu2=mu2, logvar2=logvar2)
    shape, number = arrays[0].shape, arithmetic(arrays[0].dtype)
    kl, flat = empty(shape[:1], arrays[0], number), tuple(rows(a) for a in arrays)
    select(
        kl, _gaussian_kl_between_forward_numpy, _gaussian_kl_between_forward_numba,
        _gaussian_kl_between_forward_cuda,
    )(*flat, kl)  # fmt: skip
    return kl, (flat, shape)


def gaussian_kl_between_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dkl m      dlogvar = dkl expm1(d) / 2      dmu2 = -dkl m.

    dlogvar2 = -dkl ((mu - mu2) m + expm1(d)) / 2,   m = (mu - mu2) / sigma2^2, d = logvar - logvar2
    dout: dkl (B,).  Returns dmu, dlogvar, dmu2, dlogvar2 (B, Z).
    """
    arrays, shape = saved
    dkl = check_dout(dout, shape[:1], arrays[0], arithmetic(arrays[0].dtype))
    gradients = tuple(empty(shape, arrays[0]) for _ in range(4))
    select(
        dkl, _gaussian_kl_between_backward_numpy, _gaussian_kl_between_backward_numba,
        _gaussian_kl_between_backward_cuda,
    )(dkl, *arrays, *(rows(g) for g in gradients))  # fmt: skip
    return gradients


def _gaussian_kl_between_forward_numpy(mu, logvar, mu2, logvar2, kl):
    d = logvar - logvar2
    kl[:] = 0.5 * ((mu - mu2) ** 2 * np.exp(-logvar2) + np.expm1(d) - d).sum(axis=1)


@jit_rows
def _gaussian_kl_between_forward_numba(mu, logvar, mu2, logvar2, kl):
    zero, half = kl.dtype.type(0), kl.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        for j in range(mu.shape[1]):
            a, d = mu[i, j] - mu2[i, j], logvar[i, j] - logvar2[i, j]
            total += a * a * exp(-logvar2[i, j]) + (expm1(d) - d)
        kl[i] = half * total


def _gaussian_kl_between_forward_cuda(mu, logvar, mu2, logvar2, kl):
    arguments = (mu, logvar, mu2, logvar2, kl)
    over_rows("gaussian.cu", "gaussian_kl_between_forward", mu.shape, *arguments)


def _gaussian_kl_between_backward_numpy(
    dkl, mu, logvar, mu2, logvar2, dmu, dlogvar, dmu2, dlogvar2
):
    dkl = dkl[:, None]
    a, d = mu - mu2, logvar - logvar2
    m = a * np.exp(-logvar2)
    dmu[:], dmu2[:] = dkl * m, -dkl * m
    dlogvar[:] = dkl * np.expm1(d) / 2
    dlogvar2[:] = -dkl * (a * m + np.expm1(d)) / 2


@jit_rows
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


def _gaussian_kl_between_backward_cuda(dkl, mu, *arguments):
    over_rows("gaussian.cu", "gaussian_kl_between_backward", mu.shape, dkl, mu, *arguments)
