"""What hypothesis draws for the gradient check of each kernel: valid calls, away from kinks.

Sizes may be 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import more_cases
from gradcheck import Case
from tinyvae_kernels import geometry

Draw = Callable[[st.SearchStrategy], Any]
Values = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SIZES = st.sampled_from([0, 1, 2, 3, 5])
SEEDS = st.integers(0, 2**32 - 1)
GAP = 0.01  # distance to a kink: no step of 1e-6 crosses it


def rngs(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(SEEDS))


# ----------------------------------------------------------------------------------------- values
def normal(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    return rng.standard_normal(shape)


def bits(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(np.float64)


# ---------------------------------------------------------------------------------------- patches
@st.composite
def geometries(draw: Draw) -> tuple[tuple[int, int], tuple[int, int], dict[str, int]]:
    """Image (H, W) and filter (R, S) that fit each other, and the options."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    options = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
    }
    smallest = [max(1, options["dilation"] * (k - 1) + 1 - 2 * options["padding"]) for k in kernel]
    image = tuple(draw(st.integers(n, n + 4)) for n in smallest)
    return image, kernel, options


@st.composite
def im2cols(draw: Draw) -> Case:
    image, kernel, options = draw(geometries())
    shape = (draw(st.integers(0, 2)), *image, draw(st.integers(0, 3)))
    return Case((normal(rngs(draw), shape),), {"kernel": kernel, **options})


@st.composite
def col2ims(draw: Draw) -> Case:
    image, kernel, options = draw(geometries())
    batch, g = (
        draw(st.integers(0, 2)),
        geometry((*image, draw(st.integers(0, 3))), kernel, **options),
    )
    patches = normal(rngs(draw), (batch * g.P * g.Q, g.R * g.S * g.C))
    return Case((patches,), {"batch": batch, "geometry": g})


# ------------------------------------------------------------------ kernels over (B, D) and (B, Z)
@st.composite
def rowwise(draw: Draw, *values: Values, data: tuple[int, ...] = (), **options: Any) -> Case:
    """Arrays of one shape (B, ...)."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3))
    rng = rngs(draw)
    arrays = tuple(v(rng, shape) for v in values)
    return Case(arrays, {name: draw(strategy) for name, strategy in options.items()}, data)


@st.composite
def totals(draw: Draw) -> Case:
    return Case((normal(rngs(draw), (draw(SIZES),)),))


def away_from(free_bits: float, mu: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """mu, moved where the KL of a latent lies near the free bits."""
    kl = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    return np.where(np.abs(kl - free_bits) < GAP, np.sqrt(2 * free_bits + 1) + mu**2, mu)


@st.composite
def gaussian_kls(draw: Draw) -> Case:
    mu, logvar = draw(rowwise(normal, normal)).arrays
    free_bits = draw(FREE_BITS)
    return Case((away_from(free_bits, mu, logvar), logvar), {"free_bits": free_bits})


@st.composite
def elbos(draw: Draw, *values: Values, **options: Any) -> Case:
    """Parameters and x (B, ...), mu and logvar (B, Z), beta and free_bits."""
    likelihood = draw(rowwise(*values, **options))
    shape = (likelihood.arrays[0].shape[0], draw(SIZES))
    rng, beta = rngs(draw), draw(st.sampled_from([0.0, 0.3, 1.0, 4.0]))
    free_bits = draw(FREE_BITS)
    mu, logvar = normal(rng, shape), normal(rng, shape)
    arrays = (*likelihood.arrays, away_from(free_bits, mu, logvar), logvar)
    weights = {"beta": beta, "free_bits": free_bits}
    return Case(arrays, likelihood.options | weights, data=(len(values) - 1,))


FREE_BITS = st.sampled_from([0.0, 0.1, 0.5, 100.0])
VARIANCES = st.sampled_from([0.1, 1.0, 3.0])

CASES: dict[str, st.SearchStrategy[Case]] = {
    "total": totals(),
    "im2col": im2cols(),
    "col2im": col2ims(),
    "reparameterize": rowwise(normal, normal, normal, data=(2,)),
    "gaussian_sample": rowwise(
        normal, normal, seed=st.integers(0, 2**64 - 1), step=st.integers(0, 9), offset=SIZES
    ),
    "gaussian_kl": gaussian_kls(),
    "gaussian_kl_total": gaussian_kls(),
    "gaussian_kl_between": rowwise(normal, normal, normal, normal),
    "bernoulli_nll": rowwise(normal, bits, data=(1,)),
    "gaussian_nll": rowwise(normal, normal, normal, data=(2,)),
    "gaussian_fixed_nll": rowwise(normal, normal, data=(1,), variance=VARIANCES),
    "bernoulli_elbo": elbos(normal, bits),
    "gaussian_elbo": elbos(normal, normal, normal),
    "gaussian_fixed_elbo": elbos(normal, normal, variance=VARIANCES),
} | more_cases.STRATEGIES
