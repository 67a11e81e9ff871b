"""likelihood.py: -log p(x) from raw parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import bernoulli, norm

import backends
import tinyvae_kernels as kernels
from tinyvae_kernels.likelihood import scale_rows

NAMES = ["bernoulli_nll", "gaussian_nll", "gaussian_fixed_nll"]
ON = ["numpy", "numba"]


def nll(name, *arrays, on="numpy", **options):
    with kernels.backend(on):
        return kernels.PAIRS[name][0](*arrays, **options)[0]


@pytest.mark.parametrize("on", ON)
def test_bernoulli_agrees_with_scipy(on, rng):
    logits, x = rng.normal(0, 3, (20, 6)), rng.integers(0, 2, (20, 6)).astype(float)
    expected = -bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(axis=1)
    np.testing.assert_allclose(nll("bernoulli_nll", logits, x, on=on), expected, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_bernoulli_sums_to_one_over_all_rows_of_bits(on, rng):
    x = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    logits = np.broadcast_to(rng.normal(0, 2, 6), x.shape)
    probability = np.exp(-nll("bernoulli_nll", logits, x, on=on))
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_gaussian_agrees_with_scipy(on, rng):
    x_mu, x_logvar, x = rng.normal(size=(3, 20, 6))
    expected = -norm.logpdf(x, x_mu, np.exp(x_logvar / 2)).sum(axis=1)
    np.testing.assert_allclose(nll("gaussian_nll", x_mu, x_logvar, x, on=on), expected, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("variance", [0.01, 1.0, 25.0])
def test_gaussian_with_fixed_variance_agrees_with_scipy(variance, on, rng):
    x_mu, x = rng.normal(size=(2, 20, 6))
    expected = -norm.logpdf(x, x_mu, np.sqrt(variance)).sum(axis=1)
    found = nll("gaussian_fixed_nll", x_mu, x, on=on, variance=variance)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_gaussian_densities_integrate_to_one(on):
    def learned(x):
        return np.exp(-nll("gaussian_nll", *np.array([0.3, -1.0, x]).reshape(3, 1, 1), on=on)[0])

    def fixed(x):
        arrays = np.array([0.3, x]).reshape(2, 1, 1)
        return np.exp(-nll("gaussian_fixed_nll", *arrays, on=on, variance=0.4)[0])

    for density in (learned, fixed):
        np.testing.assert_allclose(quad(density, -8, 8, points=[0.3])[0], 1, rtol=1e-8)


@pytest.mark.parametrize("on", ON)
def test_learned_variance_held_constant_is_the_fixed_variance(on, rng):
    x_mu, x = rng.normal(size=(2, 7, 5))
    learned = nll("gaussian_nll", x_mu, np.full_like(x, np.log(0.3)), x, on=on)
    fixed = nll("gaussian_fixed_nll", x_mu, x, on=on, variance=0.3)
    np.testing.assert_allclose(fixed, learned, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_grey_values_give_the_cross_entropy(on, rng):
    logits, x = rng.normal(size=(5, 8)), rng.random((5, 8))
    p = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(nll("bernoulli_nll", logits, x, on=on), expected, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_axes_of_an_image_are_summed(on, rng):
    logits, x = rng.normal(size=(3, 4, 5, 2)), rng.integers(0, 2, (3, 4, 5, 2)).astype(float)
    flat = nll("bernoulli_nll", logits.reshape(3, -1), x.reshape(3, -1), on=on)
    found = nll("bernoulli_nll", logits, x, on=on)
    assert found.shape == (3,)
    np.testing.assert_array_equal(found, flat)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    big = np.array([[80.0, -80.0, 1e30, -1e30]], dtype)
    x = np.array([[0.0, 1.0, 0.0, 1.0]], dtype)
    logvar = np.array([[-60.0, 80.0, 1e30, 3000.0]], dtype)  # e^60 is 1e26
    mean = np.array([[10.0, -1e15, 1e15, 1.0]], dtype)
    calls = {
        "bernoulli_nll": (big, x),
        "gaussian_nll": (mean, logvar, x),
        "gaussian_fixed_nll": (mean, x),
    }
    for name, arrays in calls.items():
        forward, backward = kernels.PAIRS[name]
        with kernels.backend(on):
            out, saved = forward(*arrays)
            gradients = backward(np.full_like(out, 0.5), saved)
        for value in (out, *(g for g in gradients if g is not None)):
            assert np.isfinite(value).all(), (name, value)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_a_large_wrong_logit_costs_its_size(dtype, on):
    logits, x = np.array([[80.0], [-80.0]], dtype), np.array([[0.0], [1.0]], dtype)
    np.testing.assert_allclose(nll("bernoulli_nll", logits, x, on=on), [80, 80], rtol=1e-6)


@pytest.mark.parametrize("on", ON)
def test_scale_rows(on, rng):
    dout, gradient = rng.normal(size=3), rng.normal(size=(3, 2, 5))
    with kernels.backend(on):
        scaled = scale_rows(dout, gradient)
    np.testing.assert_allclose(scaled, dout[:, None, None] * gradient, rtol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_named(name):
    forward, _ = kernels.PAIRS[name]
    first = {"bernoulli_nll": "logits"}.get(name, "x_mu")
    arrays = [np.ones((3, 2)) for _ in range(3 if name == "gaussian_nll" else 2)]
    with pytest.raises(ValueError, match=rf"x has shape \(3, 1\), {first} has \(3, 2\)"):
        forward(*arrays[:-1], np.ones((3, 1)))
    with pytest.raises(TypeError, match=f"x is float32, {first} is float64"):
        forward(*arrays[:-1], np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="x must be float32 or float64, got uint8"):
        forward(*arrays[:-1], np.ones((3, 2), np.uint8))


@pytest.mark.parametrize("variance", [0.0, -1.0, np.inf, np.nan])
def test_variance_must_be_positive_and_finite(variance):
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        kernels.gaussian_fixed_nll_forward(np.ones((2, 2)), np.ones((2, 2)), variance=variance)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_dout_is_refused(name, on):
    forward, backward = kernels.PAIRS[name]
    case, dout = backends.example(name, 5, 4, "float64")
    with kernels.backend(on):
        _, saved = forward(*case.arrays, **case.options)
        for wrong in (dout[:-1], np.ones((5, 4)), np.ones(())):
            with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(5,\)"):
                backward(wrong, saved)
