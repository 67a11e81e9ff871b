"""iwae.py: the importance-weighted bound is its parts, put together, and no row of x is copied."""

from __future__ import annotations

import numpy as np
import pytest

import backends
import tinyvae_kernels as kernels

NAMES = ["bernoulli_iwae", "gaussian_iwae", "gaussian_fixed_iwae"]
ON = ["numpy", "numba", "cuda"]
each = pytest.mark.parametrize("name", NAMES)


def example(name, rng, B=7, K=50, D=66):
    """Parameters (B K, D), x (B, D), log_ratio (B, K); and the likelihood's options."""
    parameters = rng.standard_normal((2 if name == "gaussian_iwae" else 1, B * K, D))
    x = (rng.random((B, D)) < 0.5).astype(float)
    options = {"variance": 0.7} if "fixed" in name else {}
    return (*parameters, x, 3 * rng.standard_normal((B, K))), options


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("beta", [1.0, 0.25, 0.0])
@each
def test_is_the_likelihood_and_log_mean_exp(name, beta, on, rng):
    """Values, terms, weights and gradients, of rows that are copied for it."""
    arrays, options = example(name, rng)
    *parameters, x, log_ratio = arrays
    B, K = log_ratio.shape
    dout = rng.normal(size=B)
    forward, backward = kernels.PAIRS[name.replace("iwae", "nll")]
    with kernels.backend("numpy"):
        nll, saved = forward(*parameters, np.repeat(x, K, axis=0), **options)
        bound, weights = kernels.log_mean_exp_forward(-nll.reshape(B, K) - beta * log_ratio)
        (dlog_w,) = kernels.log_mean_exp_backward(dout, weights)
        expected = [*backward(-dlog_w.reshape(-1), saved)[:-1], None, -beta * dlog_w]
    with backends.running_on(on) as (put, get):
        found, saved = kernels.PAIRS[name][0](*map(put, arrays), beta=beta, **options)
        gradients = kernels.PAIRS[name][1](put(dout), saved)
        np.testing.assert_allclose(get(found), bound, rtol=1e-12)
        np.testing.assert_allclose(get(saved.nll), nll.reshape(B, K).mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(get(saved.kl), log_ratio.mean(axis=1), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(get(saved.weights), weights.weights, rtol=1e-10, atol=1e-300)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert (gradient is None) == (wanted is None)
            if wanted is not None:
                np.testing.assert_allclose(get(gradient), wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@each
def test_one_sample_is_the_elbo_with_a_sampled_kl(name, dtype, on, rng):
    """K = 1: bound = -(nll + kl), weights of one, the nll's own gradient."""
    arrays, options = example(name, rng, K=1)
    arrays = tuple(a.astype(dtype) for a in arrays)
    *likelihood, log_ratio = arrays
    with backends.running_on(on) as (put, get):
        nll, gradients = getattr(kernels, f"{name.replace('iwae', 'nll')}_value_and_grad")(
            *map(put, likelihood), -1.0, **options
        )
        bound, saved = kernels.PAIRS[name][0](*map(put, arrays), **options)
        rtol = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(get(bound), -(get(nll) + log_ratio[:, 0]), rtol=rtol)
        np.testing.assert_array_equal(get(saved.weights), np.ones_like(log_ratio))
        np.testing.assert_allclose(get(saved.nll), get(nll), rtol=rtol)
        np.testing.assert_array_equal(get(saved.kl), log_ratio[:, 0])
        for found, expected in zip(saved.dparameters, gradients[:-1], strict=True):
            np.testing.assert_allclose(get(found), get(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_samples_of_no_weight(dtype, on):
    """A log_ratio of +inf: weight 0; in all samples of a row: bound -inf, and no gradient."""
    logits, x = np.zeros((6, 2), dtype), np.ones((2, 2), dtype)
    log_ratio = np.array([[np.inf, 0, 0], [np.inf] * 3], dtype)
    with backends.running_on(on) as (put, get), np.errstate(invalid="ignore"):
        bound, (dlogits, _, _) = kernels.bernoulli_iwae_value_and_grad(
            *map(put, (logits, x, log_ratio)), 1.0
        )
        nll = 2 * np.log(2)
        np.testing.assert_allclose(get(bound), [np.log(2 / 3) - nll, -np.inf], rtol=1e-6)
        expected = np.repeat([0, 0.25, 0.25, 0, 0, 0], 2).reshape(6, 2)
        np.testing.assert_allclose(get(dlogits), expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    logits = np.array([[80.0, -80.0, 1e30], [-1e30, 80.0, 0.0]], dtype)
    x, log_ratio = np.array([[0.0, 1.0, 1.0]], dtype), np.array([[1e20, -1e20]], dtype)
    with backends.running_on(on) as (put, get):
        bound, saved = kernels.bernoulli_iwae_forward(*map(put, (logits, x, log_ratio)))
        for value in (bound, saved.nll, saved.kl, saved.weights, *saved.dparameters):
            assert np.isfinite(get(value)).all()


@each
def test_rows_may_be_images(name, rng):
    arrays, options = example(name, rng, B=3, K=4, D=12)
    images = tuple(a.reshape(len(a), 2, 3, 2) for a in arrays[:-1])
    flat, images = (
        getattr(kernels, f"{name}_value_and_grad")(*a, -0.5, **options)
        for a in (arrays, (*images, arrays[-1]))
    )
    np.testing.assert_array_equal(images[0], flat[0])
    assert images[1][0].shape == (12, 2, 3, 2)
    np.testing.assert_array_equal(images[1][0].reshape(12, 12), flat[1][0])


@each
def test_wrong_arguments_are_named(name, rng):
    forward = kernels.PAIRS[name][0]
    first = "logits" if name == "bernoulli_iwae" else "x_mu"
    (*parameters, x, log_ratio), options = example(name, rng, B=3, K=4, D=5)
    with pytest.raises(ValueError, match=r"log_ratio must be \(B, K\) with K >= 1, got shape \(3,"):
        forward(*parameters, x, log_ratio[:, 0], **options)
    with pytest.raises(ValueError, match=r"with K >= 1, got shape \(3, 0\)"):
        forward(*parameters, x, log_ratio[:, :0], **options)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\), log_ratio has 3 rows"):
        forward(*parameters, x[:2], log_ratio, **options)
    with pytest.raises(
        ValueError, match=rf"{first} has shape \(12, 4\), expected \(12, 5\): 3 x 4 rows"
    ):
        forward(*(p[:, :4] for p in parameters), x, log_ratio, **options)
    with pytest.raises(ValueError, match=r"expected \(9, 5\): 3 x 3 rows"):
        forward(*parameters, x, log_ratio[:, :3], **options)
    with pytest.raises(TypeError, match="log_ratio is float32, x is float64"):
        forward(*parameters, x, log_ratio.astype(np.float32), **options)
    with pytest.raises(ValueError, match="beta must be finite and >= 0, got -1"):
        forward(*parameters, x, log_ratio, beta=-1.0, **options)
    _, saved = forward(*parameters, x, log_ratio, **options)
    with pytest.raises(ValueError, match=r"dout has shape \(2,\), the output has \(3,\)"):
        kernels.PAIRS[name][1](np.ones(2), saved)
