"""gaussian.py: the reparameterized sample and the two KL divergences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import backends
import tinyvae_kernels as kernels

NAMES = ["reparameterize", "gaussian_kl", "gaussian_kl_between"]
ON = ["numpy", "numba"]


@pytest.mark.parametrize("on", ON)
def test_kl_by_hand(on):
    """1/2 (4 + .25 - log .25 - 1 + 4 - log 4 - 1): the two logarithms cancel."""
    mu, logvar = np.array([[2.0, 0.0]]), np.log([[0.25, 4.0]])
    with kernels.backend(on):
        kl, _ = kernels.gaussian_kl_forward(mu, logvar)
    np.testing.assert_allclose(kl, [3.125], rtol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_kl_between_is_the_integral_of_q_log_q_over_p(on):
    mu, logvar, mu2, logvar2 = 0.7, -0.8, -0.4, 0.5
    q, p = norm(mu, np.exp(logvar / 2)), norm(mu2, np.exp(logvar2 / 2))
    expected, _ = quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -8, 8)
    with kernels.backend(on):
        kl, _ = kernels.gaussian_kl_between_forward(
            *(np.array([[number]]) for number in (mu, logvar, mu2, logvar2))
        )
    np.testing.assert_allclose(kl, [expected], rtol=1e-8)


@pytest.mark.parametrize("on", ON)
def test_kl_between_to_the_standard_normal_is_the_kl(on, rng):
    mu, logvar, zero = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), np.zeros((9, 4))
    dout = rng.normal(size=9)
    with kernels.backend(on):
        kl, saved = kernels.gaussian_kl_forward(mu, logvar)
        between, saved_between = kernels.gaussian_kl_between_forward(mu, logvar, zero, zero)
        gradients = kernels.gaussian_kl_backward(dout, saved)
        gradients_between = kernels.gaussian_kl_between_backward(dout, saved_between)
    np.testing.assert_allclose(between, kl, rtol=1e-13)
    for gradient, other in zip(gradients, gradients_between[:2], strict=True):
        np.testing.assert_allclose(other, gradient, rtol=1e-13)


def test_kl_agrees_with_monte_carlo(rng):
    mu, logvar = np.array([[0.8, -0.3]]), np.array([[-0.5, 0.4]])
    z = rng.normal(mu, np.exp(logvar / 2), size=(200_000, 2))
    log_ratio = norm.logpdf(z, mu, np.exp(logvar / 2)) - norm.logpdf(z)
    samples = log_ratio.sum(axis=1)
    kl, _ = kernels.gaussian_kl_forward(mu, logvar)
    assert abs(samples.mean() - kl[0]) < 4 * samples.std() / np.sqrt(len(samples))


@pytest.mark.parametrize("on", ON)
def test_kl_is_zero_at_the_prior_and_never_negative(on, rng):
    mu = np.concatenate([np.zeros((1, 3)), 1e-4 * rng.normal(size=(50, 3))]).astype(np.float32)
    logvar = np.concatenate([np.zeros((1, 3)), 1e-4 * rng.normal(size=(50, 3))]).astype(np.float32)
    with kernels.backend(on):
        kl, _ = kernels.gaussian_kl_forward(mu, logvar)
    assert kl[0] == 0
    assert (kl >= 0).all()


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("logvar", [1e-2, -1e-2, 1e-3, -1e-3])
def test_kl_near_the_prior_does_not_cancel(on, logvar):
    """e^logvar - 1 - logvar in float32: with exp(x) - 1 an error of 6e-8, with expm1 of 1e-9."""
    exact = 0.5 * (np.expm1(np.float32(logvar).astype(float)) - np.float32(logvar).astype(float))
    zero, array = np.zeros((1, 1), np.float32), np.full((1, 1), logvar, np.float32)
    with kernels.backend(on):
        kl, saved = kernels.gaussian_kl_forward(zero, array)
        _, dlogvar = kernels.gaussian_kl_backward(np.ones(1, np.float32), saved)
        between, _ = kernels.gaussian_kl_between_forward(zero, array, zero, zero)
        _, elbo = kernels.bernoulli_elbo_forward(zero, zero, zero, array)
    for found in (kl, between, elbo.kl):
        np.testing.assert_allclose(found, [exact], rtol=0, atol=1e-9)
    np.testing.assert_allclose(dlogvar, [[np.expm1(logvar) / 2]], rtol=1e-6)


@pytest.mark.parametrize("on", ON)
def test_sample_has_the_posteriors_mean_and_variance(on):
    eps = kernels.philox_normal((200_000, 1), seed=3, dtype=np.float64)
    mu, logvar = np.full_like(eps, 1.5), np.full_like(eps, np.log(0.25))
    with kernels.backend(on):
        z, _ = kernels.reparameterize_forward(mu, logvar, eps)
    assert abs(z.mean() - 1.5) < 0.005
    assert abs(z.var() - 0.25) < 0.005


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    """expm1(80) is 5e34, which float32 still holds."""
    mu = np.array([[1e15, 0.0, -3.0, 1.0]], dtype)
    logvar = np.array([[-1e30, 80.0, -80.0, -300.0]], dtype)
    ones = np.ones_like(mu)
    calls = {
        "reparameterize": (mu, logvar, ones),
        "gaussian_kl": (mu, logvar),
        "gaussian_kl_between": (mu, logvar, ones, np.full_like(mu, -5)),
    }
    for name, arrays in calls.items():
        forward, backward = kernels.PAIRS[name]
        with kernels.backend(on):
            out, saved = forward(*arrays)
            gradients = backward(np.full_like(out, 0.5), saved)
        for value in (out, *(g for g in gradients if g is not None)):
            assert np.isfinite(value).all(), (name, value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_named(name):
    forward, _ = kernels.PAIRS[name]
    arrays = [np.ones((3, 2)) for _ in range(4 if name.endswith("between") else 2)]
    arrays += [np.ones((3, 2))] if name == "reparameterize" else []
    with pytest.raises(ValueError, match=r"logvar has shape \(3, 1\), mu has \(3, 2\)"):
        forward(arrays[0], np.ones((3, 1)), *arrays[2:])
    with pytest.raises(TypeError, match="logvar is float32, mu is float64"):
        forward(arrays[0], np.ones((3, 2), np.float32), *arrays[2:])
    with pytest.raises(TypeError, match="logvar must be float32 or float64, got int64"):
        forward(arrays[0], np.ones((3, 2), np.int64), *arrays[2:])
    with pytest.raises(TypeError, match="logvar must be an array, got list"):
        forward(arrays[0], [[1.0]], *arrays[2:])
    with pytest.raises(ValueError, match="mu needs a batch axis"):
        forward(*(np.ones(()) for _ in arrays))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_dout_is_refused(name, on):
    """A Numba loop would read past the end of an array."""
    forward, backward = kernels.PAIRS[name]
    case, dout = backends.example(name, 5, 4, "float64")
    with kernels.backend(on):
        _, saved = forward(*case.arrays)
        for wrong in (dout[:-1], np.ones((50, *dout.shape[1:])), np.ones((*dout.shape, 3))):
            with pytest.raises(ValueError, match=r"dout has shape .*, the output has"):
                backward(wrong, saved)
