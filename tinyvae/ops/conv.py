"""Convolution and its transpose, made of three products with the patches of images.

Sizes: B batch, H W image, C input channels, R S filter, O output channels, P Q output image.
Images are channels-last (B, H, W, C); weights are (R, S, C, O), for the transposed one too.
`correlate`, `correlate_by` and `spread` of tinyvae_kernels say what they compute in terms of im2col
and col2im, where the formulas of the sizes stand; a convolution and its transpose are adjoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvae_kernels import correlate, correlate_by, empty, geometry, spread, transpose

from ..tensor import differentiable
from .dense import activate, activate_backward, promoted


def _check(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> None:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"x must be (B, H, W, C) and weight (R, S, C, O), got {x.shape} and {weight.shape}"
        )
    if weight.shape[2] != x.shape[3]:
        raise ValueError(f"weight has {weight.shape[2]} input channels, x has {x.shape[3]}")
    if bias is not None and bias.shape != weight.shape[3:]:
        raise ValueError(f"bias has shape {bias.shape}, weight has {weight.shape[3]} outputs")


# ----------------------------------------------------------------------------------------- conv2d
def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "identity",
) -> Any:
    """Cross-correlation of images with filters, as the field calls convolution.

    y[b,p,q,o] = bias[o] + sum_rsc x[b, p stride + r dilation - padding, q ..., c] weight[r,s,c,o]
    and then the activation, one of bias_activation's.
    x: (B, H, W, C), weight: (R, S, C, O), bias: (O,) or None.
    Returns y (B, P, Q, O), saved.
    Raises ValueError if the sizes do not fit.
    """
    _check(x, weight, bias)
    x, weight, bias = promoted(x, weight, bias)
    R, S, _, O = weight.shape  # noqa: E741
    g = geometry(x.shape[1:], (R, S), stride, padding, dilation)
    y = empty((len(x), g.P, g.Q, O), x)
    correlate(x, weight.reshape(-1, O), g, y.reshape(-1, O))  # (B, P, Q, O) -> (B*P*Q, O)
    y, kept = activate(y, bias, activation)
    return y, (x, weight, g, kept)


def conv2d_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)) -> tuple:
    """With du = dy activation'(u):  dx = col2im(du W^T)    dW = im2col(x)^T du    db = sum du.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, weight, g, kept = saved
    O = weight.shape[3]  # noqa: E741
    du, dbias = activate_backward(dout, kept)
    rows = du.reshape(-1, O)  # (B, P, Q, O) -> (B*P*Q, O)
    dweight = empty(weight.shape, weight)
    correlate_by(x, rows, g, dweight.reshape(-1, O))
    dx = spread(rows, weight.reshape(-1, O), g, empty(x.shape, x)) if needs[0] else None
    return dx, dweight, dbias


# ------------------------------------------------------------------------------- conv_transpose2d
def conv_transpose2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    output_size: tuple[int, int] | None = None,
    activation: str = "identity",
) -> Any:
    """The adjoint of conv2d: each input pixel stamps its filter on the output.

    y[b, h stride + r dilation - padding, w ..., o] += sum_c x[b,h,w,c] weight[r,s,c,o]; y += bias
    and then the activation, one of bias_activation's.
    x: (B, H, W, C), weight: (R, S, C, O), bias: (O,) or None.
    output_size: (P, Q), one of the sizes that conv2d with these options maps to (H, W); by default
    the smallest, P = (H - 1) stride - 2 padding + dilation (R - 1) + 1.
    Returns y (B, P, Q, O), saved.
    Raises ValueError if the sizes do not fit.
    """
    _check(x, weight, bias)
    x, weight, bias = promoted(x, weight, bias)
    (B, H, W, C), (R, S, _, O) = x.shape, weight.shape  # noqa: E741
    smallest = tuple(
        (n - 1) * stride - 2 * padding + dilation * (k - 1) + 1 for n, k in ((H, R), (W, S))
    )
    P, Q = output_size or smallest
    if min(P, Q) < 1:
        raise ValueError(f"the output would be {P}x{Q}: less padding or a larger filter is needed")
    g = geometry((P, Q, O), (R, S), stride, padding, dilation)
    if (g.P, g.Q) != (H, W):
        raise ValueError(
            f"output_size {(P, Q)} does not belong to an input of {H}x{W}: the smallest that does "
            f"is {smallest}, the largest {stride - 1} more each way"
        )
    w = transpose(weight, empty((R, S, O, C), x)).reshape(-1, C)  # (R*S*O, C)
    y = spread(x.reshape(-1, C), w, g, empty((B, P, Q, O), x))
    y, kept = activate(y, bias, activation)
    return y, (x, w, weight.shape, g, kept)


def conv_transpose2d_backward(
    dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)
) -> tuple:
    """With du = dy activation'(u):  dx = im2col(du) W^T    dW = x^T im2col(du)    db = sum du.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, w, (R, S, C, O), g, kept = saved  # noqa: E741
    du, dbias = activate_backward(dout, kept)
    dw = correlate_by(du, x.reshape(-1, C), g, empty(w.shape, w))
    dweight = transpose(dw.reshape(R, S, O, C), empty((R, S, C, O), w))
    dx = None
    if needs[0]:
        dx = empty(x.shape, x)
        correlate(du, w, g, dx.reshape(-1, C))
    return dx, dweight, dbias


conv2d = differentiable(conv2d_forward, conv2d_backward)
conv_transpose2d = differentiable(conv_transpose2d_forward, conv_transpose2d_backward)
