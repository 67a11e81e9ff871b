"""Gradients against finite differences, along one random direction.

    <dout, f(x + h v)> - <dout, f(x - h v)>
    ---------------------------------------  =  <df/dx^T dout, v>  + O(h^2)
                     2 h

Two forward passes check a gradient of any size; v and dout are random, so that an error in any
element shows.  `CASES` holds one small example of every op, for `tinyvae gradcheck` and the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .tensor import Tensor, no_grad

STEP = 1e-6


class GradientError(AssertionError):
    """A gradient that differs from finite differences."""


def gradcheck(
    f: Callable[..., Tensor], *inputs: Any, rtol: float = 1e-6, seed: int = 0, step: float = STEP
) -> float:
    """The largest relative error of f's gradients with respect to its float64 inputs.

    error = |finite difference - analytic| / sum_i |gradient_i v_i|, input by input: the sum of
    absolute values does not cancel, so that a direction of small slope is no false alarm.
    f: takes the inputs as tensors and returns one tensor of any shape; smooth near them, and the
    same function at every call (fix its noise).
    inputs: float64 arrays are checked; tensors that require a gradient too, in place, so that f
    may also close over them (a module's parameters); anything else is passed on.  All on the CPU:
    a GPU's kernels are compared with the CPU's, which are checked here.
    Returns the largest error.  Raises GradientError if it is above rtol, TypeError for float32.
    """
    arguments = [Tensor(a, True) if _is_float64(a) else a for a in inputs]
    checked = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    if not checked:
        raise TypeError("gradcheck needs at least one float64 array or tensor with requires_grad")
    for tensor in checked:
        if tensor.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64, got {tensor.dtype}: differences drown in it")
        tensor.grad = None
    rng = np.random.default_rng(seed)
    out = f(*arguments)
    dout = rng.standard_normal(out.shape)  # never ones: a backward that ignores dout must fail
    out.backward(dout)
    errors = [_error(f, arguments, tensor, dout, rng, step) for tensor in checked]
    worst = int(np.argmax([error for error, _ in errors]))
    if not errors[worst][0] <= rtol:
        raise GradientError(f"gradient {worst} (shape {checked[worst].shape}): {errors[worst][1]}")
    return errors[worst][0]


def _is_float64(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype == np.float64


def _error(
    f: Callable, arguments: list, tensor: Tensor, dout: np.ndarray, rng: Any, step: float
) -> tuple[float, str]:
    """Relative error for one input, and a sentence about it."""
    gradient = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad
    v, x = rng.standard_normal(tensor.shape), tensor.data
    try:
        with no_grad():
            tensor.data = x + step * v
            above = f(*arguments).data
            tensor.data = x - step * v
            below = f(*arguments).data
    finally:
        tensor.data = x
    difference = float(np.sum(dout * (above - below)) / (2 * step))
    analytic = float(np.sum(gradient * v))
    scale = max(float(np.sum(np.abs(gradient * v))), abs(difference))
    error = 0.0 if scale == 0 else abs(difference - analytic) / scale
    return error, f"finite difference {difference:.9g}, backward {analytic:.9g}, error {error:.1e}"


# ------------------------------------------------------------------------------ one case an op
Case = tuple[tuple, dict]


def _normal(rng: Any, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def _positive(rng: Any, *shape: int) -> np.ndarray:
    return 0.5 + rng.random(shape)


def _away_from_zero(rng: Any, *shape: int) -> np.ndarray:
    """At least 0.1 from zero: no step crosses the kink of relu."""
    x = rng.standard_normal(shape)
    return x + np.copysign(0.1, x)


def _bits(rng: Any, *shape: int) -> np.ndarray:
    return (rng.random(shape) < 0.4).astype(np.float64)


def _mixture(rng: Any, *shape: int) -> tuple[np.ndarray, ...]:
    """Weights, means and log-scales from 0.5: a narrow component magnifies float32's rounding."""
    return _normal(rng, *shape), _normal(rng, *shape), _positive(rng, *shape)


def _gaussians(rng: Any, *weights: int) -> tuple[np.ndarray, ...]:
    """Five rows, and a mixture of four Gaussians with weights of that shape."""
    return (_normal(rng, 5, 3), _normal(rng, *weights), _normal(rng, 4, 3), _normal(rng, 4, 3))


def _elbo_case(rng: Any, parameters: int, x: Any, **options: Any) -> Case:
    free = {"beta": 1.7, "free_bits": 0.05} | options
    given = tuple(_normal(rng, 5, 7) for _ in range(parameters))
    return (*given, Tensor(x), _normal(rng, 5, 3), _normal(rng, 5, 3)), free


def _iwae_case(rng: Any, parameters: int, x: Any, **options: Any) -> Case:
    given = tuple(_normal(rng, 5 * 4, 7) for _ in range(parameters))
    return (*given, Tensor(x), _normal(rng, 5, 4)), {"beta": 1.7} | options


CASES: dict[str, Callable[[Any], Case]] = {
    "add": lambda rng: ((_normal(rng, 3, 4), _normal(rng, 4)), {}),
    "sub": lambda rng: ((_normal(rng, 3, 1), _normal(rng, 3, 4)), {}),
    "mul": lambda rng: ((_normal(rng, 3, 4), _normal(rng, 1, 4)), {}),
    "div": lambda rng: ((_normal(rng, 3, 4), _positive(rng, 4)), {}),
    "neg": lambda rng: ((_normal(rng, 5),), {}),
    "pow": lambda rng: ((_positive(rng, 3, 4), 2.5), {}),
    "matmul": lambda rng: ((_normal(rng, 2, 3, 4), _normal(rng, 4, 5)), {}),
    "getitem": lambda rng: ((_normal(rng, 5, 4), (np.array([0, 2, 2]), slice(1, 3))), {}),
    "exp": lambda rng: ((_normal(rng, 3, 4),), {}),
    "log": lambda rng: ((_positive(rng, 3, 4),), {}),
    "log1p": lambda rng: ((_positive(rng, 3, 4),), {}),
    "log_gamma_ratio": lambda rng: ((_positive(rng, 3, 4), 5 * _positive(rng, 4)), {}),
    "sqrt": lambda rng: ((_positive(rng, 3, 4),), {}),
    "relu": lambda rng: ((_away_from_zero(rng, 3, 4),), {}),
    "leaky_relu": lambda rng: ((_away_from_zero(rng, 3, 4),), {"slope": 0.2}),
    "elu": lambda rng: ((_away_from_zero(rng, 3, 4),), {"alpha": 1.3}),
    "gelu": lambda rng: ((_normal(rng, 3, 4),), {}),
    "silu": lambda rng: ((_normal(rng, 3, 4),), {}),
    "tanh": lambda rng: ((_normal(rng, 3, 4),), {}),
    "sigmoid": lambda rng: ((_normal(rng, 3, 4),), {}),
    "softplus": lambda rng: ((_normal(rng, 3, 4),), {}),
    "clip": lambda rng: ((_away_from_zero(rng, 3, 4),), {"low": 0.0, "high": 1e3}),
    "scale_gradient": lambda rng: ((_normal(rng, 3, 4), Tensor(np.ones(3))), {}),
    "where": lambda rng: ((_bits(rng, 3, 4) > 0, _normal(rng, 3, 4), _normal(rng, 4)), {}),
    "sum": lambda rng: ((_normal(rng, 3, 4, 2),), {"axis": (0, 2)}),
    "mean": lambda rng: ((_normal(rng, 3, 4),), {"axis": 1, "keepdims": True}),
    "total": lambda rng: ((_normal(rng, 5),), {}),
    "max": lambda rng: ((_normal(rng, 3, 4),), {"axis": 1}),
    "logsumexp": lambda rng: ((_normal(rng, 3, 4),), {"axis": 1}),
    "log_softmax": lambda rng: ((_normal(rng, 3, 4),), {}),
    "softmax": lambda rng: ((_normal(rng, 3, 5), np.arange(5) < 4), {}),
    "reshape": lambda rng: ((_normal(rng, 3, 4),), {"shape": (2, -1)}),
    "transpose": lambda rng: ((_normal(rng, 2, 3, 4),), {"axes": (2, 0, 1)}),
    "concatenate": lambda rng: (([_normal(rng, 3, 2), _normal(rng, 3, 4)],), {}),
    "linear": lambda rng: ((_normal(rng, 5, 3), _normal(rng, 3, 4), _normal(rng, 4)), {}),
    "embedding": lambda rng: ((_normal(rng, 4, 3), np.array([[0, 2], [2, 2]])), {}),
    "layer_norm": lambda rng: (tuple(_normal(rng, *s) for s in ((3, 2, 4), (4,), (4,))), {}),
    "gru": lambda rng: (
        (
            *(_normal(rng, *s) for s in ((3, 4, 2), (3, 5), (2, 15), (5, 15), (15,), (15,))),
            np.arange(4) < np.array([[4], [2], [0]]),
        ),
        {},
    ),
    "conv2d": lambda rng: (
        (_normal(rng, 2, 7, 6, 3), _normal(rng, 3, 2, 3, 4), _normal(rng, 4)),
        {"stride": 2, "padding": 1, "dilation": 2},
    ),
    "conv_transpose2d": lambda rng: (
        (_normal(rng, 2, 4, 3, 3), _normal(rng, 4, 3, 3, 2), _normal(rng, 2)),
        {"stride": 2, "padding": 1, "output_size": (9, 5)},
    ),
    "im2col": lambda rng: ((_normal(rng, 2, 6, 5, 3),), {"kernel": (3, 2), "padding": 1}),
    "col2im": lambda rng: (
        (_normal(rng, 50, 18),),
        {"batch": 2, "geometry": ops.conv_geometry((5, 4, 3), (3, 2), padding=1, stride=1)},
    ),
    "reparameterize": lambda rng: (
        (_normal(rng, 5, 3), _normal(rng, 5, 3), Tensor(_normal(rng, 5, 3))),
        {},
    ),
    "gaussian_sample": lambda rng: ((_normal(rng, 5, 3), _normal(rng, 5, 3)), {"seed": 1}),
    "gaussian_kl": lambda rng: ((_normal(rng, 5, 3), _normal(rng, 5, 3)), {}),
    "gaussian_kl_total": lambda rng: ((_normal(rng, 5, 3), _normal(rng, 5, 3)), {}),
    "gaussian_kl_between": lambda rng: (tuple(_normal(rng, 5, 3) for _ in range(4)), {}),
    "bernoulli_nll": lambda rng: ((_normal(rng, 5, 7), Tensor(_bits(rng, 5, 7))), {}),
    "gaussian_nll": lambda rng: (
        (_normal(rng, 5, 7), _normal(rng, 5, 7), Tensor(_normal(rng, 5, 7))),
        {},
    ),
    "gaussian_fixed_nll": lambda rng: (
        (_normal(rng, 5, 7), Tensor(_normal(rng, 5, 7))),
        {"variance": 0.3},
    ),
    "bernoulli_elbo": lambda rng: _elbo_case(rng, 1, _bits(rng, 5, 7)),
    "gaussian_elbo": lambda rng: _elbo_case(rng, 2, _normal(rng, 5, 7)),
    "gaussian_fixed_elbo": lambda rng: _elbo_case(rng, 1, _normal(rng, 5, 7), variance=0.3),
    "categorical_nll": lambda rng: (
        (_normal(rng, 5, 3, 4), Tensor(rng.integers(0, 4, (5, 3)))),
        {},
    ),
    "beta_nll": lambda rng: (
        (_normal(rng, 5, 7), _normal(rng, 5, 7), Tensor(rng.uniform(0.1, 0.9, (5, 7)))),
        {},
    ),
    "logistic_mixture_nll": lambda rng: (
        (*_mixture(rng, 5, 3, 4), Tensor(rng.integers(0, 8, (5, 3)) / 3.5 - 1)),
        {"levels": 8},
    ),
    "mixture_log_prob": lambda rng: (_gaussians(rng, 4), {}),
    "mixture_marginal_log_prob": lambda rng: (_gaussians(rng, 5, 4), {}),
    "log_mean_exp": lambda rng: ((_normal(rng, 5, 4),), {}),
    "reparameterize_samples": lambda rng: (
        (_normal(rng, 5, 3), _normal(rng, 5, 3), Tensor(_normal(rng, 5, 4, 3))),
        {},
    ),
    "gaussian_log_ratio": lambda rng: (
        (_normal(rng, 5, 4, 3), _normal(rng, 5, 3), Tensor(_normal(rng, 5, 4, 3))),
        {},
    ),
    "bernoulli_iwae": lambda rng: _iwae_case(rng, 1, _bits(rng, 5, 7)),
    "gaussian_iwae": lambda rng: _iwae_case(rng, 2, _normal(rng, 5, 7)),
    "gaussian_fixed_iwae": lambda rng: _iwae_case(rng, 1, _normal(rng, 5, 7), variance=0.3),
    "bias_activation": lambda rng: (
        (_normal(rng, 5, 3, 4), _normal(rng, 4)),
        {"activation": "silu"},
    ),
    "elbo_loss": lambda rng: _elbo_case(rng, 1, _bits(rng, 5, 7), elbo="bernoulli_elbo", batch=8),
}


def check_op(name: str, *, seed: int = 0, rtol: float = 1e-6) -> float:
    """gradcheck of one op on its row of CASES; returns the error, raises GradientError."""
    inputs, options = CASES[name](np.random.default_rng(seed))
    op = getattr(ops, name)
    if isinstance(inputs[0], list):  # a list of arrays is one argument of concatenate
        return gradcheck(lambda *a: op(list(a), **options), *inputs[0], rtol=rtol, seed=seed)
    return gradcheck(lambda *a: op(*a, **options), *inputs, rtol=rtol, seed=seed)


def formula(name: str) -> tuple[str, str]:
    """The first lines of the docstrings of an op's forward and of its backward."""
    forward, backward = getattr(ops, name).pair
    return tuple((f.__doc__ or "").strip().splitlines()[0] for f in (forward, backward))  # type: ignore[return-value]
