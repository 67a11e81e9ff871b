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
    check_rate,
    check_same_shape,
    check_weight,
    empty,
    jit_rows,
    kl_floor,
    known_dout,
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
    logvar2, eps2 = rows(logvar), rows(eps)
    select(mu, *_REPARAMETERIZE)(logvar2, eps2, rows(mu), None, rows(z), None)
    return z, (logvar2, eps2, mu.shape)


def reparameterize_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dz      dlogvar = dz eps exp(logvar / 2) / 2      deps: None, noise is data.

    dout: dz (B, Z).  Returns dmu, dlogvar (B, Z), None.
    """
    logvar, eps, shape = saved
    dz = check_dout(dout, shape, logvar)
    dlogvar = empty(shape, logvar)
    select(logvar, *_REPARAMETERIZE)(logvar, eps, None, rows(dz), None, rows(dlogvar))
    return dz, dlogvar, None


def reparameterize_value_and_grad(mu: Any, logvar: Any, eps: Any, dout: Any = 1.0) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: dz (B, Z) or one number.  Returns z (B, Z), (dmu, dlogvar (B, Z), None).
    """
    mu, logvar, eps = check_same_shape(halves=True, mu=mu, logvar=logvar, eps=eps)
    dz = known_dout(dout, mu.shape, mu)
    z, dlogvar = empty(mu.shape, mu), empty(mu.shape, mu)
    select(mu, *_REPARAMETERIZE)(
        rows(logvar), rows(eps), rows(mu), rows(dz), rows(z), rows(dlogvar)
    )
    return z, (dz, dlogvar, None)


# One body for all three: mu and z are None where z is not wanted, dz and dlogvar where no gradient.
def _reparameterize_numpy(logvar, eps, mu, dz, z, dlogvar):
    deviation = np.exp(logvar / 2) * eps
    if z is not None:
        z[:] = mu + deviation
    if dlogvar is not None:
        dlogvar[:] = dz * deviation / 2


@jit_rows
def _reparameterize_numba(logvar, eps, mu, dz, z, dlogvar):
    half = logvar.dtype.type(0.5)
    for i in range(logvar.shape[0]):
        for j in range(logvar.shape[1]):
            deviation = exp(half * logvar[i, j]) * eps[i, j]
            if z is not None:  # decided when the kernel is compiled, here and below
                z[i, j] = mu[i, j] + deviation
            if dlogvar is not None:
                dlogvar[i, j] = half * dz[i, j] * deviation


def _reparameterize_cuda(logvar, eps, mu, dz, z, dlogvar):
    name, n = f"reparameterize_{_wanted(z, dlogvar)}", logvar.size
    arrays = (a for a in (mu, dz, logvar, eps, z, dlogvar) if a is not None)
    over_elements("gaussian.cu", name, n, *arrays)


_REPARAMETERIZE = (_reparameterize_numpy, _reparameterize_numba, _reparameterize_cuda)


def _wanted(value: Any, gradient: Any) -> str:
    """Which of the three CUDA kernels of a pair writes what is not None."""
    if gradient is None:
        return "forward"
    return "backward" if value is None else "value_and_grad"


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
    _reparameterize_numba(logvar, eps, mu, None, z, None)


def _gaussian_sample_forward_cuda(mu, logvar, z, *numbers):
    philox.over_noise("gaussian.cu", "gaussian_sample_forward", z.size, mu, logvar, z, *numbers)


def _gaussian_sample_backward_numpy(dz, logvar, dlogvar, *numbers):
    philox._philox_normal_numpy(dlogvar.reshape(-1), *numbers)
    dlogvar[:] = dz * dlogvar * np.exp(logvar / 2) / 2


def _gaussian_sample_backward_numba(dz, logvar, dlogvar, *numbers):
    eps = empty(dz.shape, dz)
    philox.normal_in_parts(eps.reshape(-1), *numbers)
    _reparameterize_numba(logvar, eps, None, dz, None, dlogvar)


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
    mu, logvar, kl, free = _kl_arguments(mu, logvar, free_bits)
    mu2, logvar2 = rows(mu), rows(logvar)
    select(mu, *_GAUSSIAN_KL)(mu2, logvar2, None, kl, None, None, free)
    return kl, (mu2, logvar2, free, mu.shape)


def gaussian_kl_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dkl mu      dlogvar = dkl expm1(logvar) / 2      and 0 where kl_j < free_bits.

    dout: dkl (B,).  Returns dmu, dlogvar (B, Z).
    """
    mu, logvar, free, shape = saved
    dkl = check_dout(dout, shape[:1], mu, free.dtype)
    dmu, dlogvar = empty(shape, mu), empty(shape, mu)
    select(mu, *_GAUSSIAN_KL)(mu, logvar, dkl, None, rows(dmu), rows(dlogvar), free)
    return dmu, dlogvar


def gaussian_kl_value_and_grad(
    mu: Any, logvar: Any, dout: Any = 1.0, *, free_bits: float = 0.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, beta/B for the mean of a loss.
    Returns kl (B,), (dmu, dlogvar (B, Z)).
    """
    mu, logvar, kl, free = _kl_arguments(mu, logvar, free_bits)
    dkl, dmu, dlogvar = check_rate(dout, mu), empty(mu.shape, mu), empty(mu.shape, mu)
    select(mu, *_GAUSSIAN_KL)(rows(mu), rows(logvar), dkl, kl, rows(dmu), rows(dlogvar), free)
    return kl, (dmu, dlogvar)


def _kl_arguments(mu: Any, logvar: Any, free_bits: float) -> tuple:
    """mu and logvar, checked; memory for kl; the floor of a latent's KL."""
    mu, logvar = check_same_shape(halves=True, mu=mu, logvar=logvar)
    check_weight(free_bits=free_bits)
    number = arithmetic(mu.dtype)
    return mu, logvar, empty(mu.shape[:1], mu, number), kl_floor(free_bits, number)


# One body for all three: kl is None where it is not wanted, dkl, dmu, dlogvar where no gradient is.
def _gaussian_kl_numpy(mu, logvar, dkl, kl, dmu, dlogvar, free_bits):
    kl_each = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    if kl is not None:
        kl[:] = np.maximum(kl_each, free_bits).sum(axis=1)
    if dmu is not None:
        rate = np.where(kl_each < free_bits, 0, dkl[:, None])
        dmu[:] = rate * mu
        dlogvar[:] = rate * np.expm1(logvar) / 2


@jit_rows
def _gaussian_kl_numba(mu, logvar, dkl, kl, dmu, dlogvar, free_bits):
    zero, half = mu.dtype.type(0), mu.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        if dmu is not None:  # decided when the kernel is compiled, here and below
            given = dkl[i]  # read once: else LLVM does not vectorize the loop
        for j in range(mu.shape[1]):
            m, e = mu[i, j], expm1(logvar[i, j])
            kl_each = half * (m * m + (e - logvar[i, j]))
            total += free_bits if kl_each < free_bits else kl_each
            if dmu is not None:
                rate = zero if kl_each < free_bits else given
                dmu[i, j] = rate * m
                dlogvar[i, j] = rate * half * e
        if kl is not None:
            kl[i] = total


def _gaussian_kl_cuda(mu, logvar, dkl, kl, dmu, dlogvar, free_bits):
    arrays = (a for a in (dkl, mu, logvar, kl, dmu, dlogvar) if a is not None)
    over_rows("gaussian.cu", f"gaussian_kl_{_wanted(kl, dmu)}", mu.shape, *arrays, free_bits)


_GAUSSIAN_KL = (_gaussian_kl_numpy, _gaussian_kl_numba, _gaussian_kl_cuda)


# --------------------------------------------------------------------------- KL to N(mu2, var2)
def gaussian_kl_between_forward(mu: Any, logvar: Any, mu2: Any, logvar2: Any) -> Any:
    """KL(N(mu, sigma^2) || N(mu2, sigma2^2)) of each row, in nats.

    kl = 1/2 sum_j (mu_j - mu2_j)^2 / sigma2_j^2 + expm1(d_j) - d_j,   d = logvar - logvar2
    mu, logvar, mu2, logvar2: (B, Z).
    Returns kl (B,), saved.
    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    arrays, shape, kl = _between_arguments(mu, logvar, mu2, logvar2)
    select(kl, *_GAUSSIAN_KL_BETWEEN)(*arrays, None, kl, None, None, None, None)
    return kl, (arrays, shape)


def gaussian_kl_between_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dkl m      dlogvar = dkl expm1(d) / 2      dmu2 = -dkl m.

    dlogvar2 = -dkl ((mu - mu2) m + expm1(d)) / 2,   m = (mu - mu2) / sigma2^2, d = logvar - logvar2
    dout: dkl (B,).  Returns dmu, dlogvar, dmu2, dlogvar2 (B, Z).
    """
    arrays, shape = saved
    dkl = check_dout(dout, shape[:1], arrays[0], arithmetic(arrays[0].dtype))
    gradients = tuple(empty(shape, arrays[0]) for _ in range(4))
    select(dkl, *_GAUSSIAN_KL_BETWEEN)(*arrays, dkl, None, *(rows(g) for g in gradients))
    return gradients


def gaussian_kl_between_value_and_grad(
    mu: Any, logvar: Any, mu2: Any, logvar2: Any, dout: Any = 1.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: (B,) or one number, beta/B for the mean of a loss.
    Returns kl (B,), (dmu, dlogvar, dmu2, dlogvar2 (B, Z)).
    """
    arrays, shape, kl = _between_arguments(mu, logvar, mu2, logvar2)
    dkl, gradients = check_rate(dout, arrays[0]), tuple(empty(shape, arrays[0]) for _ in range(4))
    select(kl, *_GAUSSIAN_KL_BETWEEN)(*arrays, dkl, kl, *(rows(g) for g in gradients))
    return kl, gradients


def _between_arguments(mu: Any, logvar: Any, mu2: Any, logvar2: Any) -> tuple:
    """The arrays as rows, checked; their shape; memory for kl."""
    arrays = check_same_shape(halves=True, mu=mu, logvar=logvar, mu2=mu2, logvar2=logvar2)
    first, shape = arrays[0], arrays[0].shape
    return tuple(rows(a) for a in arrays), shape, empty(shape[:1], first, arithmetic(first.dtype))


# One body for all three: kl is None where it is not wanted, dkl and the others where no gradient.
def _gaussian_kl_between_numpy(
    mu, logvar, mu2, logvar2, dkl, kl, dmu, dlogvar, dmu2, dlogvar2
):  # fmt: skip
    a, d = mu - mu2, logvar - logvar2
    m = a * np.exp(-logvar2)
    if kl is not None:
        kl[:] = 0.5 * (a * m + np.expm1(d) - d).sum(axis=1)
    if dmu is not None:
        dkl = dkl[:, None]
        dmu[:], dmu2[:] = dkl * m, -dkl * m
        dlogvar[:] = dkl * np.expm1(d) / 2
        dlogvar2[:] = -dkl * (a * m + np.expm1(d)) / 2


@jit_rows
def _gaussian_kl_between_numba(
    mu, logvar, mu2, logvar2, dkl, kl, dmu, dlogvar, dmu2, dlogvar2
):  # fmt: skip
    zero, half = mu.dtype.type(0), mu.dtype.type(0.5)
    for i in range(mu.shape[0]):
        total = zero
        if dmu is not None:  # decided when the kernel is compiled, here and below
            given = dkl[i]
        for j in range(mu.shape[1]):
            a, d = mu[i, j] - mu2[i, j], logvar[i, j] - logvar2[i, j]
            m, e = a * exp(-logvar2[i, j]), expm1(d)
            total += a * m + (e - d)
            if dmu is not None:
                dmu[i, j] = given * m
                dmu2[i, j] = -given * m
                dlogvar[i, j] = given * half * e
                dlogvar2[i, j] = -given * half * (a * m + e)
        if kl is not None:
            kl[i] = half * total


def _gaussian_kl_between_cuda(
    mu, logvar, mu2, logvar2, dkl, kl, dmu, dlogvar, dmu2, dlogvar2
):  # fmt: skip
    arrays = (dkl, mu, logvar, mu2, logvar2, kl, dmu, dlogvar, dmu2, dlogvar2)
    name = f"gaussian_kl_between_{_wanted(kl, dmu)}"
    over_rows("gaussian.cu", name, mu.shape, *(a for a in arrays if a is not None))


_GAUSSIAN_KL_BETWEEN = (
    _gaussian_kl_between_numpy,
    _gaussian_kl_between_numba,
    _gaussian_kl_between_cuda,
)
