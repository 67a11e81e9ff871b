"""Convolution and its transpose, as patches and one matrix product.

Sizes: B batch, H W image, C input channels, R S filter, O output channels, P Q output image.
Images are channels-last (B, H, W, C); weights are (R, S, C, O), for the transposed one too.
Both ops are a matrix product between `im2col` / `col2im` of tinyvae_kernels, where the formulas of
the sizes stand; one is the other's adjoint.

The batch is done a few images at a time, and the patches are made again in the backward pass: they
stay in the cache, and 16 times the image is never in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyvae_kernels import (
    Geometry,
    col2im_backward,
    col2im_forward,
    geometry,
    im2col_backward,
    im2col_forward,
)

from .. import devices
from ..tensor import differentiable
from .dense import sum_rows

# Numbers in the patches of one part: 1 MB of float32, about a core's second-level cache.  On an
# EPYC a conv VAE's step (B = 128, one thread) takes 56.5 ms with it and 60.2 without parts.
PART = 2**18
PART_ON_GPU = 2**26  # 256 MB of float32: the fewer products the better, as long as there is memory


def _parts(x: Any, g: Geometry) -> Iterator[slice]:
    """Slices of x's batch whose patches hold about PART numbers."""
    part = PART_ON_GPU if devices.is_device_array(x) else PART
    step = max(1, part // max(1, g.P * g.Q * g.R * g.S * g.C))
    return (slice(start, start + step) for start in range(0, len(x), step))


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
    options: dict[str, Any] = {
        "kernel": (R, S),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }
    g = geometry(x.shape[1:], **options)
    matrix = weight.reshape(R * S * C, O)
    y = np.empty((len(x), g.P, g.Q, O), x.dtype, like=x)
    for part in _parts(x, g):
        patches, _ = im2col_forward(x[part], **options)
        y_part = y[part].reshape(-1, O)  # (b, P, Q, O) -> (b*P*Q, O), a view
        np.matmul(patches, matrix, out=y_part)
        if bias is not None:
            y_part += bias
    return y, (x, weight, g, options, bias is not None)


def conv2d_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)) -> tuple:
    """dx = col2im(dy W^T)      dW = im2col(x)^T dy      db = sum dy.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, weight, g, options, has_bias = saved
    matrix = weight.reshape(-1, weight.shape[3])  # (R, S, C, O) -> (R*S*C, O)
    dmatrix = np.zeros_like(matrix)
    dx = np.empty(x.shape, x.dtype, like=x) if needs[0] else None
    for part in _parts(x, g):
        patches, shapes = im2col_forward(x[part], **options)
        dy = dout[part].reshape(-1, weight.shape[3])  # (b, P, Q, O) -> (b*P*Q, O)
        dmatrix += patches.T @ dy
        if dx is not None:
            dpatches = np.matmul(dy, matrix.T, out=patches)  # patches are not needed any more
            (dx[part],) = im2col_backward(dpatches, shapes)
    dbias = sum_rows(dout.reshape(-1, dout.shape[3])) if has_bias else None
    return dx, dmatrix.reshape(weight.shape), dbias


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
    y = np.empty((B, P, Q, O), x.dtype, like=x)
    for part in _parts(x, g):
        rows = x[part].reshape(-1, C)  # (b, H, W, C) -> (b*H*W, C)
        y_part, _ = col2im_forward(rows @ matrix, batch=len(x[part]), geometry=g)
        if bias is not None:
            y_part += bias
        y[part] = y_part
    return y, (x, matrix, weight.shape, g, bias is not None)


def conv_transpose2d_backward(
    dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)
) -> tuple:
    """dx = im2col(dy) W^T      dW = x^T im2col(dy)      db = sum dy.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, matrix, (R, S, C, O), g, has_bias = saved  # noqa: E741
    dmatrix = np.zeros_like(matrix)
    dx = np.empty(x.shape, x.dtype, like=x) if needs[0] else None
    for part in _parts(x, g):
        rows = x[part].reshape(-1, C)  # (b, H, W, C) -> (b*H*W, C)
        (dpatches,) = col2im_backward(dout[part], (g, len(x[part])))  # (b*H*W, R*S*O)
        dmatrix += rows.T @ dpatches
        if dx is not None:
            np.matmul(dpatches, matrix.T, out=dx[part].reshape(-1, C))
    dweight = dmatrix.reshape(C, R, S, O).transpose(1, 2, 0, 3)  # (C, R, S, O) -> (R, S, C, O)
    dbias = sum_rows(dout.reshape(-1, dout.shape[3])) if has_bias else None
    return dx, dweight, dbias


conv2d = differentiable(conv2d_forward, conv2d_backward)
conv_transpose2d = differentiable(conv_transpose2d_forward, conv_transpose2d_backward)
