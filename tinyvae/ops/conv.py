"""Convolution and its transpose, as patches and one matrix product.

Sizes: B batch, H W image, C input channels, R S filter, O output channels, P Q output image.
Images are channels-last (B, H, W, C); weights are (R, S, C, O), for the transposed one too.
Both ops are a matrix product between `im2col` / `col2im` of tinyvae_kernels, where the formulas of
the sizes stand; one is the other's adjoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tinyvae_kernels import (
    col2im_backward,
    col2im_forward,
    geometry,
    im2col_backward,
    im2col_forward,
)

from ..tensor import differentiable


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
) -> Any:
    """Cross-correlation of images with filters, as the field calls convolution.

    y[b,p,q,o] = bias[o] + sum_rsc x[b, p stride + r dilation - padding, q ..., c] weight[r,s,c,o]
    x: (B, H, W, C), weight: (R, S, C, O), bias: (O,) or None.
    Returns y (B, P, Q, O), saved.
    Raises ValueError if the sizes do not fit.
    """
    _check(x, weight, bias)
    R, S, C, O = weight.shape  # noqa: E741
    patches, shapes = im2col_forward(
        x, kernel=(R, S), stride=stride, padding=padding, dilation=dilation
    )
    y = patches @ weight.reshape(R * S * C, O)  # (B*P*Q, R*S*C) @ (R*S*C, O)
    if bias is not None:
        y += bias
    g = shapes[0]
    saved = (patches, weight, shapes, bias is not None)
    return y.reshape(len(x), g.P, g.Q, O), saved  # (B*P*Q, O) -> (B, P, Q, O)


def conv2d_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)) -> tuple:
    """dx = col2im(dy W^T)      dW = im2col(x)^T dy      db = sum dy.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    patches, weight, shapes, has_bias = saved
    dy = dout.reshape(-1, weight.shape[3])  # (B, P, Q, O) -> (B*P*Q, O)
    dweight = (patches.T @ dy).reshape(weight.shape)  # (R*S*C, O) -> (R, S, C, O)
    dbias = dy.sum(axis=0) if has_bias else None
    dx = None
    if needs[0]:
        dpatches = dy @ weight.reshape(-1, weight.shape[3]).T  # (B*P*Q, O) @ (O, R*S*C)
        (dx,) = im2col_backward(dpatches, shapes)
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
) -> Any:
    """The adjoint of conv2d: each input pixel stamps its filter on the output.

    y[b, h stride + r dilation - padding, w ..., o] += sum_c x[b,h,w,c] weight[r,s,c,o]; y += bias
    x: (B, H, W, C), weight: (R, S, C, O), bias: (O,) or None.
    output_size: (P, Q), one of the sizes that conv2d with these options maps to (H, W); by default
    the smallest, P = (H - 1) stride - 2 padding + dilation (R - 1) + 1.
    Returns y (B, P, Q, O), saved.
    Raises ValueError if the sizes do not fit.
    """
    _check(x, weight, bias)
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
    matrix = weight.transpose(2, 0, 1, 3).reshape(C, R * S * O)  # (R, S, C, O) -> (C, R*S*O)
    patches = x.reshape(B * H * W, C) @ matrix  # (B*H*W, C) @ (C, R*S*O)
    y, shapes = col2im_forward(patches, batch=B, geometry=g)
    if bias is not None:
        y += bias
    return y, (x, matrix, weight.shape, shapes, bias is not None)


def conv_transpose2d_backward(
    dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)
) -> tuple:
    """dx = im2col(dy) W^T      dW = x^T im2col(dy)      db = sum dy.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, matrix, (R, S, C, O), shapes, has_bias = saved  # noqa: E741
    (dpatches,) = col2im_backward(dout, shapes)  # (B*H*W, R*S*O)
    dx = (dpatches @ matrix.T).reshape(x.shape) if needs[0] else None
    dmatrix = x.reshape(-1, C).T @ dpatches  # (C, R*S*O)
    dweight = dmatrix.reshape(C, R, S, O).transpose(1, 2, 0, 3)  # (C, R, S, O) -> (R, S, C, O)
    dbias = dout.sum(axis=(0, 1, 2)) if has_bias else None
    return dx, dweight, dbias


conv2d = differentiable(conv2d_forward, conv2d_backward)
conv_transpose2d = differentiable(conv_transpose2d_forward, conv_transpose2d_backward)
