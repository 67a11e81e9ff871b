"""Elementwise ops: one number in, one number out; forward and backward side by side.

`out` is saved in place of `x` where the gradient is simpler in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyvae_kernels.likelihood import scale_rows

from .. import devices
from ..tensor import differentiable, unbroadcast


def exp_forward(x: np.ndarray) -> Any:
    """out = e^x."""
    out = np.exp(x)
    return out, (out,)


def exp_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout out."""
    return (dout * saved[0],)


def log_forward(x: np.ndarray) -> Any:
    """out = log x, natural."""
    return np.log(x), (x,)


def log_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout / x."""
    return (dout / saved[0],)


def log1p_forward(x: np.ndarray) -> Any:
    """out = log(1 + x), without cancellation near 0."""
    return np.log1p(x), (x,)


def log1p_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout / (1 + x)."""
    return (dout / (1 + saved[0]),)


def sqrt_forward(x: np.ndarray) -> Any:
    """out = sqrt(x)."""
    out = np.sqrt(x)
    return out, (out,)


def sqrt_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout / (2 out)."""
    return (dout / (2 * saved[0]),)


def relu_forward(x: np.ndarray) -> Any:
    """out = max(x, 0)."""
    out = np.maximum(x, 0)
    return out, (out,)


def relu_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout [x > 0]."""
    return (dout * (saved[0] > 0),)


def leaky_relu_forward(x: np.ndarray, slope: float = 0.01) -> Any:
    """out = x where x > 0, else slope x.     Maas, Hannun and Ng 2013."""
    return np.where(x > 0, x, slope * x), (x, slope)


def leaky_relu_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout where x > 0, else slope dout."""
    x, slope = saved
    return (np.where(x > 0, dout, slope * dout),)


def elu_forward(x: np.ndarray, alpha: float = 1.0) -> Any:
    """out = x where x > 0, else alpha (e^x - 1).     Clevert, Unterthiner and Hochreiter 2016."""
    out = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    return out, (out, alpha)


def elu_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout where x > 0, else dout (out + alpha)."""
    out, alpha = saved
    return (np.where(out > 0, dout, dout * (out + alpha)),)


GELU = math.sqrt(2 / math.pi)


def gelu_forward(x: np.ndarray) -> Any:
    """out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).     Hendrycks and Gimpel 2016.

    The tanh form (PyTorch: approximate="tanh"), within 5e-4 of x Phi(x).
    """
    near = np.clip(x, -10, 10)  # beyond, tanh is 1 and x^3 might overflow
    t = np.tanh(GELU * (near + 0.044715 * (near * near * near)))
    return 0.5 * x * (1 + t), (near, t)


def gelu_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout ((1 + t)/2 + x/2 (1 - t^2) sqrt(2/pi) (1 + 0.134145 x^2)), t the forward's tanh."""
    x, t = saved
    return (dout * 0.5 * ((1 + t) + x * (1 - t * t) * GELU * (1 + 0.134145 * (x * x))),)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) without overflow: e^-|x| is in (0, 1]."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def sigmoid_forward(x: np.ndarray) -> Any:
    """out = 1 / (1 + e^-x)."""
    out = _sigmoid(x)
    return out, (out,)


def sigmoid_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout out (1 - out)."""
    (out,) = saved
    return (dout * out * (1 - out),)


def silu_forward(x: np.ndarray) -> Any:
    """out = x sigmoid(x).     Elfwing, Uchibe and Doya 2018."""
    s = _sigmoid(x)
    return x * s, (x, s)


def silu_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout s (1 + x (1 - s)), s = sigmoid(x)."""
    x, s = saved
    return (dout * s * (1 + x * (1 - s)),)


def tanh_forward(x: np.ndarray) -> Any:
    """out = tanh(x)."""
    out = np.tanh(x)
    return out, (out,)


def tanh_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout (1 - out^2)."""
    (out,) = saved
    return (dout * (1 - out * out),)


def softplus_forward(x: np.ndarray) -> Any:
    """out = log(1 + e^x)."""
    return np.logaddexp(x, 0), (x,)


def softplus_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout sigmoid(x)."""
    return (dout * _sigmoid(saved[0]),)


def clip_forward(x: np.ndarray, low: float = -math.inf, high: float = math.inf) -> Any:
    """out = min(max(x, low), high).     Raises ValueError if low > high."""
    if low > high:
        raise ValueError(f"clip needs low <= high, got {low} and {high}")
    return np.clip(x, low, high), ((x >= low) & (x <= high),)


def clip_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = dout [low <= x <= high]."""
    return (dout * saved[0],)


def where_forward(condition: np.ndarray, a: Any, b: Any) -> Any:
    """out = a where the condition holds, else b, with broadcasting.     condition: bool array."""
    condition = devices.as_array(condition).astype(bool, copy=False)
    return np.where(condition, a, b), (condition, np.shape(a), np.shape(b))


def where_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dcondition: None      da = dout [condition]      db = dout [not condition]."""
    condition, a_shape, b_shape = saved
    zero = dout.dtype.type(0)
    da = unbroadcast(np.where(condition, dout, zero), a_shape)
    return None, da, unbroadcast(np.where(condition, zero, dout), b_shape)


def scale_gradient_forward(x: np.ndarray, rate: Any) -> Any:
    """out = x.

    rate: for each of x's first axes, (B,) or (B, K) say; or a function that returns it, which is
    called when the gradient comes: for numbers that only a later part of the forward pass gives.
    """
    return x, (rate,)


def scale_gradient_backward(dout: np.ndarray, saved: tuple) -> tuple:
    """dx = rate dout      drate: None.

    Not the derivative of the forward, but for a rate of ones.
    """
    rate = saved[0]() if callable(saved[0]) else saved[0]
    each = dout.size // max(rate.size, 1)
    wide = scale_rows(
        rate.reshape(rate.size), dout.reshape(rate.size, each)
    )  # (B, K, Z) -> (BK, Z)
    return wide.reshape(dout.shape), None


exp = differentiable(exp_forward, exp_backward)
log = differentiable(log_forward, log_backward)
log1p = differentiable(log1p_forward, log1p_backward)
sqrt = differentiable(sqrt_forward, sqrt_backward)
relu = differentiable(relu_forward, relu_backward)
leaky_relu = differentiable(leaky_relu_forward, leaky_relu_backward)
elu = differentiable(elu_forward, elu_backward)
gelu = differentiable(gelu_forward, gelu_backward)
sigmoid = differentiable(sigmoid_forward, sigmoid_backward)
silu = differentiable(silu_forward, silu_backward)
tanh = differentiable(tanh_forward, tanh_backward)
softplus = differentiable(softplus_forward, softplus_backward)
where = differentiable(where_forward, where_backward)
clip = differentiable(clip_forward, clip_backward)
scale_gradient = differentiable(scale_gradient_forward, scale_gradient_backward)
