"""Every op: functions of tensors, each made of a forward and a backward on plain arrays.

`op.pair` is that pair. Where to read them: arithmetic and indexing in tensor.py; elementwise.py;
reductions.py (and shapes); dense.py (linear); conv.py; the fused ones in tinyvae_kernels.
"""

from tinyvae_kernels import geometry as conv_geometry

from ..tensor import add, div, getitem, matmul, mul, neg, pow, sub
from .conv import conv2d, conv_transpose2d
from .dense import linear
from .elementwise import (
    clip,
    elu,
    exp,
    gelu,
    leaky_relu,
    log,
    relu,
    sigmoid,
    silu,
    softplus,
    sqrt,
    tanh,
    where,
)
from .fused import (
    bernoulli_elbo,
    bernoulli_nll,
    col2im,
    elbo_loss,
    gaussian_elbo,
    gaussian_fixed_elbo,
    gaussian_fixed_nll,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_total,
    gaussian_nll,
    im2col,
    total,
)
from .reductions import (
    concatenate,
    log_softmax,
    logsumexp,
    max,
    mean,
    reshape,
    sum,
    transpose,
)
from .sampling import gaussian_sample, reparameterize

__all__ = [
    "add",
    "bernoulli_elbo",
    "bernoulli_nll",
    "clip",
    "col2im",
    "concatenate",
    "conv2d",
    "conv_geometry",
    "conv_transpose2d",
    "div",
    "elbo_loss",
    "elu",
    "exp",
    "gaussian_elbo",
    "gaussian_fixed_elbo",
    "gaussian_fixed_nll",
    "gaussian_kl",
    "gaussian_kl_between",
    "gaussian_kl_total",
    "gaussian_nll",
    "gaussian_sample",
    "gelu",
    "getitem",
    "im2col",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "mean",
    "mul",
    "neg",
    "pow",
    "relu",
    "reparameterize",
    "reshape",
    "sigmoid",
    "silu",
    "softplus",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "total",
    "transpose",
    "where",
]
