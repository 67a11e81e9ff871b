"""_math.py and _numba.py: the float32 polynomials against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae_kernels import _math
from tinyvae_kernels._dispatch import jit
from tinyvae_kernels._math import (
    cos_turn,
    exp,
    expm1,
    log,
    log01,
    log1p,
    log1p01,
    row_max,
    sin_turn,
)


@jit
def numba_exp(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


@jit
def numba_expm1(x, out):
    for i in range(x.size):
        out[i] = expm1(x[i])


@jit
def numba_log1p01(x, out):
    for i in range(x.size):
        out[i] = log1p01(x[i])


@jit
def numba_log01(x, out):
    for i in range(x.size):
        out[i] = log01(x[i])


@jit
def numba_log(x, out):
    for i in range(x.size):
        out[i] = log(x[i])


@jit
def numba_log1p(x, out):
    for i in range(x.size):
        out[i] = log1p(x[i])


@jit
def numba_row_max(x, out):
    for i in range(x.shape[0]):
        out[i] = row_max(x[i])


@jit
def numba_sin_turn(x, out):
    for i in range(x.size):
        out[i] = sin_turn(x[i])


@jit
def numba_cos_turn(x, out):
    for i in range(x.size):
        out[i] = cos_turn(x[i])


def check(loop, x, rtol, atol=0.0):
    """Against the function of the same name in _math, which is NumPy's, in float64."""
    x = np.asarray(x, np.float32)
    expected = getattr(_math, loop.__name__.removeprefix("numba_"))(x.astype(np.float64))
    out = np.empty_like(x)
    loop(x, out)
    np.testing.assert_allclose(out, expected, rtol=rtol, atol=atol)
    double = np.empty(x.shape)
    loop(x.astype(np.float64), double)
    np.testing.assert_allclose(double, expected, rtol=1e-14, atol=1e-15)


def test_exp():
    check(numba_exp, np.linspace(-86.9, 88.7, 100_003), rtol=4e-7)  # 3 units in the last place
    check(numba_exp, [0.0, -0.0, 1e-20, -1e-8, 0.34657359, -0.34657359], rtol=4e-7)


def test_exp_ends():
    """Overflow is infinity; at the other end there are no denormal numbers, and NaN stays NaN."""
    out = np.empty(5, np.float32)
    numba_exp(np.array([89.0, 1e30, -88.0, -1e30, np.nan], np.float32), out)
    np.testing.assert_array_equal(out[:2], np.inf)
    assert (out[2:4] >= 0).all()
    assert (out[2:4] < 1.3e-38).all()
    assert np.isnan(out[4])


def test_expm1_does_not_cancel():
    check(numba_expm1, np.linspace(-87, 88.7, 100_003), rtol=4e-7)
    tiny = np.geomspace(1e-30, 1, 10_001)
    check(numba_expm1, np.concatenate([tiny, -tiny, [0.0]]), rtol=4e-7)


def test_expm1_ends():
    out = np.empty(4, np.float32)
    numba_expm1(np.array([89.0, -88.0, -1e30, np.nan], np.float32), out)
    np.testing.assert_array_equal(out, [np.inf, -1, -1, np.nan])


def test_logarithms():
    u = np.concatenate([np.linspace(2.0**-24, 1, 100_003), np.geomspace(2.0**-24, 1, 10_001)])
    check(numba_log1p01, u, rtol=3e-7)
    check(numba_log1p01, [0.0, 1e-20, 1.0], rtol=3e-7)
    # relative to log u, which is 0 at 1: what matters is that the root of it is exact to 1e-7
    check(numba_log01, u[u < 1], rtol=5e-7)
    check(numba_log01, [1.0, np.float32(1) - np.float32(2.0**-24)], rtol=5e-7)


@pytest.mark.parametrize("loop", [numba_sin_turn, numba_cos_turn])
def test_sine_and_cosine_of_a_turn(loop):
    check(loop, np.arange(2**16) / 2**16, rtol=0, atol=2e-7)
    check(loop, [0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24, 2.0**-24], rtol=0, atol=2e-7)


def test_logarithms_of_all_numbers():
    check(numba_log, np.geomspace(1.2e-38, 3e38, 100_003), rtol=3e-7)
    check(numba_log, np.concatenate([np.linspace(0.5, 2, 100_003), [1.0]]), rtol=3e-7)
    tiny = np.geomspace(1e-30, 0.999, 100_003)
    check(numba_log1p, np.concatenate([tiny, -tiny, np.geomspace(1, 3e38), [0.0]]), rtol=3e-7)


@pytest.mark.parametrize("loop", [numba_log, numba_log1p])
def test_logarithm_ends(loop):
    for dtype in (np.float32, np.float64):
        out = np.empty(3, dtype)
        loop(np.array([np.inf, np.nan, -np.nan], dtype), out)
        np.testing.assert_array_equal(out, [np.inf, np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 33, 300])
def test_row_max(size, dtype, rng):
    x = (10.0 ** rng.uniform(-30, 30, (50, size)) * rng.choice([-1, 1], (50, size))).astype(dtype)
    x[1], x[2], x[3], x[4, 0], x[5] = -abs(x[1]), 0, -np.inf, np.inf, -0.0
    out = np.empty(50, dtype)
    numba_row_max(x, out)
    np.testing.assert_array_equal(out, x.max(axis=1))
