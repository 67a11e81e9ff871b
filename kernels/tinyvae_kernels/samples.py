"""Several samples of z a row: reparameterized, and what the KL is the mean of.

Sizes: B batch, K samples of a row, Z latent.  mu, logvar: (B, Z), eps and z: (B, K, Z); a row's mu
and logvar are read K times, not copied.  With K = 1 it is `reparameterize` of gaussian.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cuda import device_of, launch, over_rows, typed
from ._dispatch import (
    check_dout,
    check_floats,
    check_same_shape,
    contiguous,
    empty,
    jit_rows,
    select,
)
from ._math import exp


def _check_samples(name: str, samples: Any, logvar: Any) -> None:
    """Raise ValueError unless they are (B, K, Z) where logvar is (B, Z)."""
    shape = samples.shape
    if logvar.ndim != 2 or len(shape) != 3 or (shape[0], shape[2]) != logvar.shape:
        raise ValueError(
            f"{name} must be (B, K, Z) and logvar (B, Z), got shapes {shape} and {logvar.shape}"
        )


# -------------------------------------------------------------------------------- reparameterize
def reparameterize_samples_forward(mu: Any, logvar: Any, eps: Any) -> Any:
    """K samples of each row's N(mu, sigma^2), as functions of mu and logvar.

    z_k = mu + exp(logvar / 2) eps_k                        Kingma and Welling 2014, section 2.4
    mu, logvar: (B, Z); eps: (B, K, Z), standard normal noise.
    Returns z (B, K, Z), saved.
    Raises ValueError if the shapes do not fit, TypeError if the dtypes or devices do not.
    """
    mu, logvar = check_same_shape(mu=mu, logvar=logvar)
    mu, eps = check_floats(mu=mu, eps=eps)
    _check_samples("eps", eps, logvar)
    mu, logvar, eps = contiguous(mu), contiguous(logvar), contiguous(eps)
    z = empty(eps.shape, mu)
    select(
        z, _reparameterize_samples_forward_numpy, _reparameterize_samples_forward_numba,
        _reparameterize_samples_forward_cuda,
    )(mu, logvar, eps, z)  # fmt: skip
    return z, (logvar, eps)


def reparameterize_samples_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = sum_k dz_k      dlogvar = exp(logvar / 2) / 2 sum_k dz_k eps_k      deps: None.

    dout: dz (B, K, Z).  Returns dmu, dlogvar (B, Z), None.
    """
    logvar, eps = saved
    dz = check_dout(dout, eps.shape, eps)
    dmu, dlogvar = empty(logvar.shape, logvar), empty(logvar.shape, logvar)
    select(
        dz, _reparameterize_samples_backward_numpy, _reparameterize_samples_backward_numba,
        _reparameterize_samples_backward_cuda,
    )(logvar, dz, eps, dmu, dlogvar)  # fmt: skip
    return dmu, dlogvar, None


def _reparameterize_samples_forward_numpy(mu, logvar, eps, z):
    z[:] = mu[:, None] + np.exp(logvar / 2)[:, None] * eps


@jit_rows
def _reparameterize_samples_forward_numba(mu, logvar, eps, z):
    half = z.dtype.type(0.5)
    for b in range(z.shape[0]):
        for k in range(z.shape[1]):
            for j in range(z.shape[2]):
                z[b, k, j] = mu[b, j] + exp(half * logvar[b, j]) * eps[b, k, j]


def _reparameterize_samples_forward_cuda(mu, logvar, eps, z):
    _over_each("reparameterize_samples_forward", z.size, mu, logvar, eps, z)


def _reparameterize_samples_backward_numpy(logvar, dz, eps, dmu, dlogvar):
    dmu[:] = dz.sum(axis=1)
    dlogvar[:] = np.exp(logvar / 2) / 2 * (dz * eps).sum(axis=1)


@jit_rows
def _reparameterize_samples_backward_numba(logvar, dz, eps, dmu, dlogvar):
    zero, half = dz.dtype.type(0), dz.dtype.type(0.5)
    for b in range(dz.shape[0]):
        for j in range(dz.shape[2]):
            dmu[b, j], dlogvar[b, j] = zero, zero
        for k in range(dz.shape[1]):
            for j in range(dz.shape[2]):
                dmu[b, j] += dz[b, k, j]
                dlogvar[b, j] += dz[b, k, j] * eps[b, k, j]
        for j in range(dz.shape[2]):
            dlogvar[b, j] *= half * exp(half * logvar[b, j])


def _reparameterize_samples_backward_cuda(logvar, dz, eps, dmu, dlogvar):
    _over_each("reparameterize_samples_backward", logvar.size, logvar, dz, eps, dmu, dlogvar)


def _over_each(kernel: str, n: int, *arguments: Any) -> None:
    """A thread for each of n results; arguments[2] is eps (B, K, Z)."""
    eps = arguments[2]
    device = device_of(eps)
    assert device is not None
    grid = min(-(-n // 256), device.blocks())
    sizes = tuple(np.int64(size) for size in (n, *eps.shape[1:]))
    launch("samples.cu", typed(kernel, eps.dtype, 1), grid, 256, (*arguments, *sizes))


# ------------------------------------------------------------------------- log q(z | x) - log p(z)
def gaussian_log_ratio_forward(z: Any, logvar: Any, eps: Any, *, still: bool = False) -> Any:
    """log N(z; mu, sigma^2) - log N(z; 0, I) of each sample z = mu + sigma eps, in nats.

    log_ratio = 1/2 sum_j (z_j - eps_j) (z_j + eps_j) - logvar_j        the 2 pi cancel
    Its mean over many samples is the KL.
    z, eps: (B, K, Z); logvar: (B, Z).
    still: take mu and logvar in log N(z; mu, sigma^2) for constants; see the backward.
    Returns log_ratio (B, K), saved.
    Raises ValueError if the shapes do not fit, TypeError if the dtypes or devices do not.
    """
    z, eps = check_same_shape(z=z, eps=eps)
    logvar, z = check_floats(logvar=logvar, z=z)
    _check_samples("z", z, logvar)
    logvar, z, eps = contiguous(logvar), contiguous(z), contiguous(eps)
    log_ratio = empty(z.shape[:2], z)
    select(
        z, _gaussian_log_ratio_forward_numpy, _gaussian_log_ratio_forward_numba,
        _gaussian_log_ratio_forward_cuda,
    )(logvar, z, eps, log_ratio)  # fmt: skip
    return log_ratio, (logvar, z, eps, np.int64(still))


def gaussian_log_ratio_backward(dout: Any, saved: tuple) -> tuple:
    """dz_k = dlog_ratio_k z_k      dlogvar = -1/2 sum_k dlog_ratio_k      deps: None.

    For z moves with mu and sigma, log N(z; mu, sigma^2) depends on eps and logvar alone.  If they
    are still, it depends on z: dz_k = dlog_ratio_k (z_k - eps_k / sigma) and dlogvar = 0, the
    gradient without the score of q (Roeder, Wu and Duvenaud 2017).
    dout: dlog_ratio (B, K).  Returns dz (B, K, Z), dlogvar (B, Z), None.
    """
    logvar, z, eps, still = saved
    dlog_ratio = check_dout(dout, z.shape[:2], z)
    dz, dlogvar = empty(z.shape, z), empty(logvar.shape, z)
    select(
        z, _gaussian_log_ratio_backward_numpy, _gaussian_log_ratio_backward_numba,
        _gaussian_log_ratio_backward_cuda,
    )(logvar, z, eps, dlog_ratio, dz, dlogvar, still)  # fmt: skip
    return dz, dlogvar, None


def _gaussian_log_ratio_forward_numpy(logvar, z, eps, log_ratio):
    log_ratio[:] = 0.5 * ((z - eps) * (z + eps) - logvar[:, None]).sum(axis=2)


@jit_rows
def _gaussian_log_ratio_forward_numba(logvar, z, eps, log_ratio):
    zero, half = z.dtype.type(0), z.dtype.type(0.5)
    for b in range(z.shape[0]):
        for k in range(z.shape[1]):
            total = zero
            for j in range(z.shape[2]):
                total += (z[b, k, j] - eps[b, k, j]) * (z[b, k, j] + eps[b, k, j]) - logvar[b, j]
            log_ratio[b, k] = half * total


def _gaussian_log_ratio_forward_cuda(logvar, z, eps, log_ratio):
    B, K, Z = z.shape
    flat = logvar, z.reshape(B * K, Z), eps.reshape(B * K, Z), log_ratio.reshape(B * K)
    over_rows("samples.cu", "gaussian_log_ratio_forward", (B * K, Z), *flat, more=(K,))


def _gaussian_log_ratio_backward_numpy(logvar, z, eps, dlog_ratio, dz, dlogvar, still):
    dz[:] = dlog_ratio[:, :, None] * (z - still * eps * np.exp(-logvar / 2)[:, None])
    dlogvar[:] = 0 if still else -0.5 * dlog_ratio.sum(axis=1, keepdims=True)


@jit_rows
def _gaussian_log_ratio_backward_numba(logvar, z, eps, dlog_ratio, dz, dlogvar, still):
    zero, half = z.dtype.type(0), z.dtype.type(0.5)
    for b in range(z.shape[0]):
        total = zero
        for k in range(z.shape[1]):
            rate = dlog_ratio[b, k]
            total += rate
            if still:
                for j in range(z.shape[2]):
                    dz[b, k, j] = rate * (z[b, k, j] - eps[b, k, j] * exp(-half * logvar[b, j]))
            else:
                for j in range(z.shape[2]):
                    dz[b, k, j] = rate * z[b, k, j]
        for j in range(z.shape[2]):
            dlogvar[b, j] = zero if still else -half * total


def _gaussian_log_ratio_backward_cuda(logvar, z, eps, dlog_ratio, dz, dlogvar, still):
    arguments = (logvar, z, eps, dlog_ratio, dz, dlogvar, still)
    B, K, Z = z.shape
    sizes = tuple(np.int64(size) for size in (B, K, Z))
    name = typed("gaussian_log_ratio_backward", z.dtype, 1)
    launch("samples.cu", name, B, 128, (*arguments, *sizes))
