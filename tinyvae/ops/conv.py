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
    empty,
    geometry,
    im2col_backward,
    im2col_forward,
    product,
    scratch,
    swap_axes,
)

from .. import devices
from ..tensor import differentiable
from .dense import activate, activate_backward, promoted

# Numbers in the patches of one part: 1 MB of float32, about a core's second-level cache.  On an
# EPYC a conv VAE's step (B = 128, one thread) takes 56.5 ms with it and 60.2 without parts.
PART = 2**18
PART_ON_GPU = 2**26  # 256 MB of float32: the fewer products the better, as long as there is memory


def _parts(x: Any, g: Geometry) -> Iterator[slice]:
    """Slices of x's batch whose patches hold about PART numbers."""
    part = PART_ON_GPU if devices.is_device_array(x) else PART
    step = max(1, part // max(1, g.P * g.Q * g.R * g.S * g.C))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _patches(x: Any, g: Geometry) -> Any:
    """Memory for the patches of some images, used again by the next part."""
    return scratch((len(x) * g.P * g.Q, g.R * g.S * g.C), x)


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
    R, S, C, O = weight.shape  # noqa: E741
    options: dict[str, Any] = {
        "kernel": (R, S),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }
    g = geometry(x.shape[1:], **options)
    matrix = weight.reshape(R * S * C, O)
    y = empty((len(x), g.P, g.Q, O), x)
    for part in _parts(x, g):
        patches, _ = im2col_forward(x[part], **options, out=_patches(x[part], g))
        product(patches, matrix, y[part].reshape(-1, O))  # (b, P, Q, O) -> (b*P*Q, O), a view
    y, kept = activate(y, bias, activation)
    return y, (x, weight, g, options, kept)


def conv2d_backward(dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)) -> tuple:
    """With du = dy activation'(u):  dx = col2im(du W^T)    dW = im2col(x)^T du    db = sum du.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, weight, g, options, kept = saved
    du, dbias = activate_backward(dout, kept)
    matrix = weight.reshape(-1, weight.shape[3])  # (R, S, C, O) -> (R*S*C, O)
    dweight = empty(weight.shape, weight)
    dmatrix = dweight.reshape(matrix.shape)
    dx = empty(x.shape, x) if needs[0] else None
    for i, part in enumerate(_parts(x, g)):
        patches, shapes = im2col_forward(x[part], **options, out=_patches(x[part], g))
        du_part = du[part].reshape(-1, weight.shape[3])  # (b, P, Q, O) -> (b*P*Q, O)
        product(patches.T, du_part, dmatrix, accumulate=i > 0)
        if dx is not None:
            product(du_part, matrix.T, patches)  # patches are not needed any more
            im2col_backward(patches, shapes, out=dx[part])
    if not len(x):
        dweight.fill(0)
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
    y = empty((B, P, Q, O), x)
    matrix = swap_axes(weight.reshape(R * S, C, O)).reshape(C, R * S * O)
    for part in _parts(x, g):
        rows = x[part].reshape(-1, C)  # (b, H, W, C) -> (b*H*W, C)
        patches = product(rows, matrix, scratch((len(rows), R * S * O), x))
        col2im_forward(patches, batch=len(x[part]), geometry=g, out=y[part])
    y, kept = activate(y, bias, activation)
    return y, (x, matrix, weight.shape, g, kept)


def conv_transpose2d_backward(
    dout: np.ndarray, saved: tuple, *, needs: tuple = (True, True, True)
) -> tuple:
    """With du = dy activation'(u):  dx = im2col(du) W^T    dW = x^T im2col(du)    db = sum du.

    dout: dy (B, P, Q, O).  Returns dx (B, H, W, C), dweight (R, S, C, O), dbias (O,) or None.
    """
    x, matrix, (R, S, C, O), g, kept = saved  # noqa: E741
    du, dbias = activate_backward(dout, kept)
    dmatrix = empty(matrix.shape, matrix)
    dx = empty(x.shape, x) if needs[0] else None
    for i, part in enumerate(_parts(x, g)):
        rows = x[part].reshape(-1, C)  # (b, H, W, C) -> (b*H*W, C)
        patches = scratch((len(rows), R * S * O), x)
        (dpatches,) = col2im_backward(du[part], (g, len(x[part])), out=patches)
        product(rows.T, dpatches, dmatrix, accumulate=i > 0)
        if dx is not None:
            product(dpatches, matrix.T, dx[part].reshape(-1, C))
    if not len(x):
        dmatrix.fill(0)
    dweight = empty((R, S, C, O), x)
    swap_axes(dmatrix.reshape(C, R * S, O), out=dweight.reshape(R * S, C, O))
    return dx, dweight, dbias


conv2d = differentiable(conv2d_forward, conv2d_backward)
conv_transpose2d = differentiable(conv_transpose2d_forward, conv_transpose2d_backward)
