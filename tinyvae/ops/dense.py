"""The fully connected layer.  Sizes: B rows (any leading axes), I inputs, O outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyvae_kernels import empty, product
from tinyvae_kernels.activation import bias_activation_backward, bias_activation_forward

from ..tensor import differentiable


def linear_forward(x: Any, weight: Any, bias: Any = None, *, activation: str = "identity") -> Any:
    """Affine map of each row, and an activation that costs no pass of its own.

    y = activation(x W + b)
    x: (..., I), weight: (I, O), bias: (O,) or None; activation: a name of bias_activation's.
    Returns y (..., O), saved.
    Raises ValueError if the sizes do not fit.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"weight has shape {weight.shape}, x has {x.shape}: x's last axis must be "
                         "weight's first")  # fmt: skip
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias has shape {bias.shape}, weight has {weight.shape[1]} outputs")
    x, weight, bias = promoted(x, weight, bias)
    rows = x.reshape(_row_count(x), x.shape[-1])  # (..., I) -> (B, I)
    y = product(rows, weight, empty((len(rows), weight.shape[1]), rows))
    y, kept = activate(y, bias, activation)
    return y.reshape(*x.shape[:-1], weight.shape[1]), (rows, weight, kept, x.shape)


def linear_backward(dout: Any, saved: tuple, *, needs: tuple = (True, True, True)) -> tuple:
    """With du = dy activation'(x W + b):   dx = du W^T      dW = x^T du      db = sum_rows du.

    dout: dy (..., O).  Returns dx (..., I), dweight (I, O), dbias (O,) or None.
    """
    rows, weight, kept, shape = saved
    du, dbias = activate_backward(dout.reshape(len(rows), weight.shape[1]), kept)
    dx = None
    if needs[0]:
        dx = product(du, weight.T, empty(rows.shape, rows)).reshape(shape)
    return dx, product(rows.T, du, empty(weight.shape, weight)), dbias


def promoted(x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """All three in one type: float64 data may meet a float32 network, as in NumPy's products."""
    if x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype):
        return x, weight, bias
    dtype = np.result_type(x, weight)
    bias = None if bias is None else bias.astype(dtype, copy=False)
    return x.astype(dtype, copy=False), weight.astype(dtype, copy=False), bias


def _row_count(x: Any) -> int:
    return math.prod(x.shape[:-1])


def activate(x: Any, bias: Any, activation: str) -> tuple[Any, Any]:
    """activation(x + bias), and what its backward needs; x itself if there is nothing to do.

    x: (..., C), bias: (C,) or None.
    """
    if bias is None and activation == "identity":
        return x, None
    has_bias = bias is not None
    bias = bias if has_bias else np.zeros_like(x, shape=x.shape[-1:])
    y, kept = bias_activation_forward(x, bias, activation=activation)
    return y, (kept, has_bias)


def activate_backward(dout: Any, kept: Any) -> tuple[Any, Any]:
    """dx (..., C), dbias (C,) or None."""
    if kept is None:
        return dout, None
    kept, has_bias = kept
    dx, dbias = bias_activation_backward(dout, kept)
    return dx, dbias if has_bias else None


linear = differentiable(linear_forward, linear_backward)
