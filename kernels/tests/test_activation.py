"""activation.py: bias and activation in one pass, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

import backends
import tinyvae_kernels as kernels
from gradcheck import Case, check_pair
from tinyvae_kernels.activation import (
    ACTIVATIONS,
    bias_activation_backward,
    bias_activation_forward,
)

ON = ["numpy", "numba", "cuda"]
G = np.sqrt(2 / np.pi)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

FORMULAS = {  # as PyTorch and tinyvae have them
    "identity": lambda u: u,
    "relu": lambda u: np.maximum(u, 0),
    "leaky_relu": lambda u: np.where(u > 0, u, 0.01 * u),
    "elu": lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))),
    "gelu": lambda u: u / 2 * (1 + np.tanh(G * (u + 0.044715 * u**3))),
    "silu": lambda u: u * expit(u),
    "tanh": np.tanh,
    "sigmoid": expit,
    "softplus": lambda u: np.logaddexp(u, 0),
}


def results(x, bias, on, activation, dout=None):
    """y, dx, dbias."""
    with backends.running_on(on) as (put, get):
        y, saved = bias_activation_forward(put(x), put(bias), activation=activation)
        dout = np.ones(x.shape, x.dtype) if dout is None else dout
        gradients = bias_activation_backward(put(dout), saved)
        return get(y), *map(get, gradients)


def test_every_activation_has_its_formula():
    assert FORMULAS.keys() == set(ACTIVATIONS)


@pytest.mark.parametrize("on", ON)
@every_activation
def test_agrees_with_the_formula(activation, on, rng):
    x, bias = rng.uniform(-12, 12, (50, 4, 7)), rng.normal(size=7)
    y, *_ = results(x, bias, on, activation)
    np.testing.assert_allclose(y, FORMULAS[activation](x + bias), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("on", ["numpy", "auto"])
@every_activation
def test_backward_agrees_with_finite_differences(activation, on, rng):
    u = rng.uniform(-4, 4, (5, 3, 4))
    u, bias = np.where(abs(u) < 0.01, 1, u), rng.normal(size=4)
    with kernels.backend(on):
        pair = (bias_activation_forward, bias_activation_backward)
        check_pair(pair, Case((u - bias, bias), {"activation": activation}))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@every_activation
def test_agrees_with_the_reference(activation, dtype, on, rng):
    x = np.where(rng.random((40, 33)) < 0.25, 30, 2) * rng.normal(size=(40, 33))
    arrays = [a.astype(dtype) for a in (x, rng.normal(size=33), rng.normal(size=(40, 33)))]
    found = results(*arrays[:2], on, activation, arrays[2])
    exact = [a.astype(float) for a in arrays]
    expected = results(*exact[:2], "numpy", activation, exact[2])
    rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (1e-10, 1e-14)
    for value, wanted, terms in zip(found, expected, (1, 1, 40), strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, wanted, rtol=rtol, atol=atol * terms)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3,), (5, 2, 3), (700, 1), (33, 31), (9, 64), (2, 1000), (3, 1028), (5, 2051), (0, 4),
     (4, 0), (3, 0, 2)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_any_number_of_channels(dtype, shape, on, rng):
    x, bias, dout = rng.normal(size=shape), rng.normal(size=shape[-1]), rng.normal(size=shape)
    x, bias, dout = (np.round(8 * a).astype(dtype) for a in (x, bias, dout))  # sums are exact
    y, dx, dbias = results(x, bias, on, "leaky_relu", dout)
    u = x + bias
    np.testing.assert_allclose(y, np.where(u > 0, u, 0.01 * u), rtol=1e-6)
    slope = np.where(u > 0, 1, 0.01)
    np.testing.assert_allclose(dx, dout * slope, rtol=1e-6)
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(dbias, (dout * slope).sum(axis=axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on", ["numpy", "numba"])
@pytest.mark.parametrize("C", [1, 3, 64])
def test_the_sum_over_a_large_batch_is_exact(C, on, rng):
    """In float32, 300,000 numbers of 0.1 one after another add up to 1e-3 too much."""
    x, dout = np.ones((300_000, C), np.float32), np.full((300_000, C), 0.1, np.float32)
    _, _, dbias = results(x, np.zeros(C, np.float32), on, "relu", dout)
    np.testing.assert_allclose(dbias, np.float32(0.1) * 300_000.0, rtol=1e-7)


def test_threads_change_nothing_but_the_rounding(rng):
    x, dout = rng.normal(size=(2, 20_000, 32)).astype(np.float32)
    bias = rng.normal(size=32).astype(np.float32)
    with kernels.threads(1):
        expected = results(x, bias, "numba", "gelu", dout)
    with kernels.threads(3):
        found, again = (results(x, bias, "numba", "gelu", dout) for _ in range(2))
    for value, other, wanted in zip(found, again, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@every_activation
def test_extreme_arguments_give_finite_results(activation, dtype, on):
    x = np.array([[0.0, -0.0, 80, -80, 1e-30, -1e-30, 1e15, -1e15, 1e30, -1e30]], dtype)
    y, dx, dbias = results(x, np.zeros(10, dtype), on, activation)
    for value in (y, dx, dbias):
        assert np.isfinite(value).all()
    known = {"sigmoid": [0.5, 0.5, 1, 0], "tanh": [0, 0, 1, -1], "softplus": [np.log(2)] * 2 + [80]}
    start = known.get(activation, [0, 0, 80])
    np.testing.assert_allclose(y[0, : len(start)], start, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@every_activation
def test_nan_shows(activation, dtype, on, rng):
    x, bias = rng.normal(size=(3, 20)).astype(dtype), rng.normal(size=20).astype(dtype)
    x[1, 5] = bias[7] = np.nan
    with np.errstate(invalid="ignore"):
        y, *_ = results(x, bias, on, activation)
    expected = np.zeros((3, 20), bool)
    expected[1, 5] = expected[:, 7] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def test_wrong_arguments_are_named():
    x, bias = np.ones((3, 2)), np.ones(2)
    with pytest.raises(ValueError, match=r"activation must be one of identity, .*, got 'swish'"):
        bias_activation_forward(x, bias, activation="swish")
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), x has \(3, 2\): expected"):
        bias_activation_forward(x, np.ones(3))
    with pytest.raises(ValueError, match=r"bias has shape \(1, 2\), x has \(3, 2\)"):
        bias_activation_forward(x, bias[None])
    with pytest.raises(ValueError, match=r"bias has shape \(2,\), x has \(\)"):
        bias_activation_forward(np.ones(()), bias)
    with pytest.raises(TypeError, match="bias is float32, x is float64"):
        bias_activation_forward(x, bias.astype(np.float32))


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on):
    for wrong in (np.ones(3), np.ones((4, 2)), np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3, 2\)"):
            results(np.ones((3, 2)), np.ones(2), on, "gelu", wrong)
