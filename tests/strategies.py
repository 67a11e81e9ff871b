"""Hypothesis strategies: for every op and every kernel pair, calls of any legal shape and option.

`CASES[name]` draws a `Case`. Hypothesis draws the shapes, the options and a seed; the numbers come
from that seed, kept away from the places where the function has a kink. Sizes may be 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kernel_strategies
from gradcheck import Case
from kernel_strategies import GAP, SIZES, Draw, Values, geometries, normal, rngs
from tinyvae_kernels import geometry

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


def positive(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape)


def away_from_zero(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    x = rng.standard_normal(shape)
    return x + np.copysign(GAP, x)


def either_sign(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """A divisor: at least 1/2 from zero."""
    return positive(rng, shape) * rng.choice([-1.0, 1.0], shape)


def distinct(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """No two values closer than 0.1: the largest stays the largest."""
    size = math.prod(shape)
    return 0.1 * rng.permutation(size).reshape(shape) + rng.uniform(0, 0.05)


# ------------------------------------------------------------------------------------ elementwise
@st.composite
def unary(draw: Draw, values: Values, **options: st.SearchStrategy) -> Case:
    x = values(rngs(draw), draw(SHAPES))
    return Case((x,), {name: draw(strategy) for name, strategy in options.items()})


@st.composite
def powers(draw: Draw) -> Case:
    exponent = draw(st.sampled_from([-2, -0.5, 0, 1, 2, 3, 2.5]))
    values = either_sign if float(exponent).is_integer() else positive
    return Case((values(rngs(draw), draw(SHAPES)),), {"exponent": exponent})


@st.composite
def clipped(draw: Draw) -> Case:
    x = normal(rngs(draw), draw(SHAPES))
    low, high = draw(st.sampled_from([(-0.5, 0.5), (-1.0, 3.0), (-math.inf, 0.2), (0.0, math.inf)]))
    for edge in (low, high):
        x = np.where(np.abs(x - edge) < GAP, x + 3 * GAP, x)
    return Case((x,), {"low": low, "high": high})


@st.composite
def binary(draw: Draw, a: Values, b: Values) -> Case:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
    rng = rngs(draw)
    return Case((a(rng, shapes.input_shapes[0]), b(rng, shapes.input_shapes[1])))


@st.composite
def unscaled(draw: Draw) -> Case:
    """A rate of ones: with any other, the backward is not the derivative."""
    x = normal(rngs(draw), draw(SHAPES))
    return Case((x, np.ones(draw(st.sampled_from([x.shape, ()])))), data=(1,))


@st.composite
def wheres(draw: Draw) -> Case:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3))
    (condition, a, b), rng = shapes.input_shapes, rngs(draw)
    return Case((rng.random(condition) < 0.5, normal(rng, a), normal(rng, b)), data=(0,))


# ----------------------------------------------------------------------------- reductions, shapes
@st.composite
def axes(draw: Draw, ndim: int) -> Any:
    """None, one axis, or several; counted from either end."""
    if ndim == 0:
        return draw(st.sampled_from([None, ()]))
    one = st.integers(-ndim, ndim - 1)
    several = st.lists(one, max_size=ndim, unique_by=lambda axis: axis % ndim).map(tuple)
    return draw(st.none() | one | several)


def reduced_count(shape: tuple, axis: Any) -> int:
    """How many elements go into one element of the result."""
    if axis is None:
        return math.prod(shape)
    several = axis if isinstance(axis, tuple) else (axis,)
    return math.prod(shape[a] for a in several)


@st.composite
def reductions(draw: Draw, values: Values, *, of_nothing: bool) -> Case:
    """of_nothing: whether the result is defined when no element goes into it, as a sum's is."""
    shape = draw(SHAPES)
    axis = draw(axes(len(shape)))
    if not of_nothing and reduced_count(shape, axis) == 0:
        shape = tuple(max(n, 1) for n in shape)
    return Case((values(rngs(draw), shape),), {"axis": axis, "keepdims": draw(st.booleans())})


@st.composite
def log_softmaxes(draw: Draw) -> Case:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return Case((normal(rngs(draw), shape),), {"axis": axis})


@st.composite
def softmaxes(draw: Draw) -> Case:
    """Without a mask, with one, and with one that leaves nothing in some rows."""
    case = draw(log_softmaxes())
    (x,), rng = case.arrays, rngs(draw)
    if draw(st.booleans()):
        return Case((x,), case.options)
    return Case((x, rng.random(x.shape) < 0.6), case.options, data=(1,))


@st.composite
def reshapes(draw: Draw) -> Case:
    shape = draw(SHAPES)
    size = math.prod(shape)
    targets = [(size,), shape[::-1], (1, *shape), (*shape, 1)]
    if size:
        targets += [(-1,), (1, -1), (*shape[:1], -1)]
    return Case((normal(rngs(draw), shape),), {"shape": draw(st.sampled_from(targets))})


@st.composite
def transposes(draw: Draw) -> Case:
    shape = draw(SHAPES)
    order = draw(st.none() | st.permutations(range(len(shape))).map(tuple))
    if order and draw(st.booleans()):
        order = tuple(axis - len(shape) for axis in order)
    return Case((normal(rngs(draw), shape),), {"axes": order})


@st.composite
def concatenations(draw: Draw) -> Case:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axis, rng = draw(st.integers(-len(shape), len(shape) - 1)), rngs(draw)
    arrays = []
    for size in draw(st.lists(SIZES, min_size=1, max_size=3)):
        sizes = list(shape)
        sizes[axis] = size
        arrays.append(normal(rng, tuple(sizes)))
    return Case(tuple(arrays), {"axis": axis})


@st.composite
def indexings(draw: Draw) -> Case:
    """Basic indices, integer arrays that take elements twice, masks, and mixtures."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    x, rng = normal(rngs(draw), shape), rngs(draw)
    several = np.array([0, -1, 0])  # negative and twice the same
    fancy = [several, [0, 0], (several, Ellipsis), (several, *(np.int64(0),) * (x.ndim - 1))]
    fancy += [rng.random(shape) < 0.5, rng.random(shape[0]) < 0.5, (None, several)]
    fancy += [(Ellipsis, several), (slice(None, None, -1), several)][: x.ndim]
    basic = hnp.basic_indices(shape, allow_newaxis=True)
    index = draw(basic | hnp.integer_array_indices(shape) | st.sampled_from(fancy))
    return Case((x,), {"index": index})


# ---------------------------------------------------------------------------- products of matrices
@st.composite
def matmuls(draw: Draw) -> Case:
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3))
    (a, b), (n, k, m) = shapes.input_shapes, (draw(SIZES) for _ in range(3))
    rng = rngs(draw)
    return Case((normal(rng, (*a, n, k)), normal(rng, (*b, k, m))))


def with_bias(draw: Draw, rng: np.random.Generator, x: np.ndarray, weight: np.ndarray) -> tuple:
    return (x, weight, normal(rng, weight.shape[-1:])) if draw(st.booleans()) else (x, weight)


@st.composite
def linears(draw: Draw) -> Case:
    rng, inputs, outputs = rngs(draw), draw(SIZES), draw(st.integers(1, 5))
    leading = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    x, weight = normal(rng, (*leading, inputs)), normal(rng, (inputs, outputs))
    return Case(with_bias(draw, rng, x, weight))


# --------------------------------------------------------------------------------------- sequences
@st.composite
def embeddings(draw: Draw) -> Case:
    rng, V = rngs(draw), draw(st.integers(1, 5))
    index = rng.integers(0, V, draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)))
    return Case((normal(rng, (V, draw(SIZES))), index), data=(1,))


@st.composite
def layer_norms(draw: Draw) -> Case:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5))
    rng, size = rngs(draw), shape[-1:]
    options = {"epsilon": draw(st.sampled_from([1e-5, 0.1]))}
    # a row of nearly equal numbers bends too sharply for finite differences
    return Case((distinct(rng, shape), normal(rng, size), normal(rng, size)), options)


@st.composite
def grus(draw: Draw) -> Case:
    rng, (B, T, inputs), H = rngs(draw), (draw(SIZES) for _ in range(3)), draw(st.integers(1, 3))
    shapes = [(B, T, inputs), (B, H), (inputs, 3 * H), (H, 3 * H), (3 * H,), (3 * H,)]
    arrays = tuple(normal(rng, shape) for shape in shapes)
    if draw(st.booleans()):
        return Case(arrays)
    return Case((*arrays, rng.random((B, T)) < 0.6), data=(6,))  # gaps count as padding too


# ------------------------------------------------------------------------------------ convolutions
@st.composite
def convolutions(draw: Draw) -> Case:
    image, kernel, options = draw(geometries())
    rng, batch, (channels, filters) = rngs(draw), draw(st.integers(0, 2)), draw_channels(draw)
    x = normal(rng, (batch, *image, channels))
    return Case(with_bias(draw, rng, x, normal(rng, (*kernel, channels, filters))), options)


def draw_channels(draw: Draw) -> tuple[int, int]:
    return draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))


@st.composite
def transposed_convolutions(draw: Draw) -> Case:
    """The image is the output here: every size that maps to the input's may be asked for."""
    image, kernel, options = draw(geometries())
    rng, batch, (channels, filters) = rngs(draw), draw(st.integers(0, 2)), draw_channels(draw)
    g = geometry((*image, filters), kernel, **options)
    x = normal(rng, (batch, g.P, g.Q, channels))
    smallest = [
        (n - 1) * g.stride - 2 * g.padding + g.dilation * (k - 1) + 1
        for n, k in zip((g.P, g.Q), kernel, strict=True)
    ]
    options["output_size"] = image
    if min(smallest) >= 1 and draw(st.booleans()):
        options["output_size"] = None
    return Case(with_bias(draw, rng, x, normal(rng, (*kernel, channels, filters))), options)


CASES: dict[str, st.SearchStrategy[Case]] = {
    name: case for name, case in kernel_strategies.CASES.items() if name != "nearest_code"
} | {
    "add": binary(normal, normal),
    "sub": binary(normal, normal),
    "mul": binary(normal, normal),
    "div": binary(normal, either_sign),
    "neg": unary(normal),
    "pow": powers(),
    "matmul": matmuls(),
    "getitem": indexings(),
    "exp": unary(normal),
    "log": unary(positive),
    "log1p": unary(positive),
    "log_gamma_ratio": binary(positive, positive),
    "sqrt": unary(positive),
    "relu": unary(away_from_zero),
    "leaky_relu": unary(away_from_zero, slope=st.sampled_from([0.01, 0.3, 1.5])),
    "elu": unary(away_from_zero, alpha=st.sampled_from([0.1, 1.0, 2.0])),
    "gelu": unary(normal),
    "silu": unary(normal),
    "tanh": unary(normal),
    "sigmoid": unary(normal),
    "softplus": unary(normal),
    "clip": clipped(),
    "scale_gradient": unscaled(),
    "where": wheres(),
    "sum": reductions(normal, of_nothing=True),
    "mean": reductions(normal, of_nothing=False),
    "max": reductions(distinct, of_nothing=False),
    "logsumexp": reductions(normal, of_nothing=False),
    "log_softmax": log_softmaxes(),
    "softmax": softmaxes(),
    "reshape": reshapes(),
    "transpose": transposes(),
    "concatenate": concatenations(),
    "linear": linears(),
    "embedding": embeddings(),
    "layer_norm": layer_norms(),
    "gru": grus(),
    "conv2d": convolutions(),
    "conv_transpose2d": transposed_convolutions(),
    "elbo_loss": kernel_strategies.elbos(
        normal, kernel_strategies.bits, elbo=st.just("bernoulli_elbo"), batch=st.integers(1, 9)
    ),
}
