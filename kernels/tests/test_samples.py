"""samples.py: several samples a row are single ones, side by side."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import backends
import tinyvae_kernels as kernels

ON = ["numpy", "numba", "cuda"]
B, K, Z = 5, 6, 8


@pytest.fixture
def posterior(rng):
    """mu, logvar (B, Z), eps (B, K, Z), and the samples (B, K, Z)."""
    mu, logvar, eps = (*rng.normal(size=(2, B, Z)), rng.normal(size=(B, K, Z)))
    return mu, logvar, eps, mu[:, None] + np.exp(logvar / 2)[:, None] * eps


@pytest.mark.parametrize("on", ON)
def test_samples_are_single_ones(on, posterior, rng):
    mu, logvar, eps, z = posterior
    dz = rng.normal(size=z.shape)
    with backends.running_on(on) as (put, get):
        found, saved = kernels.reparameterize_samples_forward(*map(put, (mu, logvar, eps)))
        dmu, dlogvar, none = kernels.reparameterize_samples_backward(put(dz), saved)
        assert none is None
        np.testing.assert_allclose(get(found), z, rtol=1e-14)
        found = get(dmu), get(dlogvar)
    expected = np.zeros((2, B, Z))
    for k in range(K):
        _, saved = kernels.reparameterize_forward(mu, logvar, eps[:, k])
        expected += kernels.reparameterize_backward(dz[:, k].copy(), saved)[:2]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_log_ratio_is_that_of_the_densities(on, posterior):
    mu, logvar, eps, z = posterior
    log_q = norm.logpdf(z, mu[:, None], np.exp(logvar / 2)[:, None])
    with backends.running_on(on) as (put, get):
        found = get(kernels.gaussian_log_ratio_forward(*map(put, (z, logvar, eps)))[0])
    np.testing.assert_allclose(found, (log_q - norm.logpdf(z)).sum(axis=2), rtol=1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_a_posterior_that_is_the_prior_has_no_log_ratio(dtype, on, rng):
    eps, zero = rng.normal(size=(B, K, Z)).astype(dtype), np.zeros((B, Z), dtype)
    with backends.running_on(on) as (put, get):
        z, _ = kernels.reparameterize_samples_forward(*map(put, (zero, zero, eps)))
        found, _ = kernels.gaussian_log_ratio_forward(z, put(zero), put(eps))
        np.testing.assert_array_equal(get(found), np.zeros((B, K), dtype))


@pytest.mark.parametrize("on", ON)
def test_a_still_posterior_has_a_gradient_by_z_alone(on, posterior, rng):
    """That of log N(z; mu, sigma^2) - log N(z; 0, I) with mu and sigma held."""
    mu, logvar, eps, z = posterior
    dout = rng.normal(size=(B, K))
    with backends.running_on(on) as (put, get):
        moving, _ = kernels.gaussian_log_ratio_forward(*map(put, (z, logvar, eps)))
        value, saved = kernels.gaussian_log_ratio_forward(*map(put, (z, logvar, eps)), still=True)
        dz, dlogvar, _ = kernels.gaussian_log_ratio_backward(put(dout), saved)
        np.testing.assert_array_equal(get(value), get(moving))
        np.testing.assert_array_equal(get(dlogvar), np.zeros((B, Z)))
        found = get(dz)

    def log_ratio(z):
        log_q = norm.logpdf(z, mu[:, None], np.exp(logvar / 2)[:, None])
        return (log_q - norm.logpdf(z)).sum(axis=2)

    v, h = rng.normal(size=z.shape), 1e-6
    slope = ((log_ratio(z + h * v) - log_ratio(z - h * v)) * dout).sum() / (2 * h)
    np.testing.assert_allclose((found * v).sum(), slope, rtol=1e-7)


def test_wrong_arguments_are_named():
    mu, eps = np.ones((3, 2)), np.ones((3, 4, 2))
    for wrong in (eps[:2], eps[:, :, :1], mu):
        with pytest.raises(
            ValueError, match=r"eps must be \(B, K, Z\) and logvar \(B, Z\), got sh"
        ):
            kernels.reparameterize_samples_forward(mu, mu, wrong)
        with pytest.raises(ValueError, match=r"z must be \(B, K, Z\) and logvar \(B, Z\), got sha"):
            kernels.gaussian_log_ratio_forward(wrong, mu, wrong)
    with pytest.raises(ValueError, match=r"logvar has shape \(2, 2\), mu has \(3, 2\)"):
        kernels.reparameterize_samples_forward(mu, mu[:2], eps)
    with pytest.raises(ValueError, match=r"eps has shape \(2, 4, 2\), z has \(3, 4, 2\)"):
        kernels.gaussian_log_ratio_forward(eps, mu, eps[:2])
    with pytest.raises(TypeError, match="eps is float32, mu is float64"):
        kernels.reparameterize_samples_forward(mu, mu, eps.astype(np.float32))
    _, saved = kernels.gaussian_log_ratio_forward(eps, mu, eps)
    with pytest.raises(ValueError, match=r"dout has shape \(3,\), the output has \(3, 4\)"):
        kernels.gaussian_log_ratio_backward(np.ones(3), saved)
