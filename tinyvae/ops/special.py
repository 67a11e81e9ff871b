"""The Gamma function's logarithm, in the one form that likelihoods need: a ratio of two.

log Gamma(a + x) - log Gamma(a) as a difference of two calls drowns in float32: for a = 1e8 both are
1.7e9, to which float32 cannot add 100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvae_kernels.stirling import stirling

from .. import devices
from ..tensor import differentiable, unbroadcast


def log_gamma_ratio_forward(a: Any, x: Any) -> Any:
    """out = log Gamma(a + x) - log Gamma(a), so log x! for a = 1; with broadcasting.

    out = a log(1 + x / a) + x log(a + x) - x + T(a + x) - T(a)     T: tinyvae_kernels/stirling.py
    a > 0, x >= 0: arrays or numbers.
    """
    n = devices.as_array(a + x)
    a, x = (np.asarray(value, n.dtype, like=n) for value in (a, x))
    log_n, climb = np.log(n), np.log1p(x / a)
    (T_a, D_a), (T_n, D_n) = stirling(a, np.log(a)), stirling(n, log_n)
    out = a * climb + (x * log_n - x) + (T_n - T_a)
    digamma_n = D_n / n
    return out, (climb + (digamma_n - D_a / a), log_n + digamma_n, a.shape, x.shape)


def log_gamma_ratio_backward(
    dout: Any, saved: tuple, *, needs: tuple[bool, ...] = (True, True)
) -> tuple:
    """da = dout (digamma(a + x) - digamma(a))      dx = dout digamma(a + x)."""
    slope_a, slope_x, a_shape, x_shape = saved
    da = unbroadcast(dout * slope_a, a_shape) if needs[0] else None
    return da, unbroadcast(dout * slope_x, x_shape) if needs[1] else None


log_gamma_ratio = differentiable(log_gamma_ratio_forward, log_gamma_ratio_backward)
