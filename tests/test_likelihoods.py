"""likelihoods.py: what a decoder's output means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import bernoulli, norm

from tinyvae import Tensor, gradcheck, ops
from tinyvae.likelihoods import LIKELIHOODS, Bernoulli, CrossEntropy, Gaussian, resolve

ALL = [Bernoulli(), CrossEntropy(), Gaussian(), Gaussian(variance=0.2), Gaussian("learned")]


def output_for(likelihood, rng, shape=(6, 4, 5, 3)):
    return rng.normal(size=(*shape[:-1], likelihood.outputs * shape[-1]))


def data_for(likelihood, rng, shape=(6, 4, 5, 3)):
    if isinstance(likelihood, Gaussian):
        return rng.normal(size=shape)
    return rng.integers(0, 2, shape).astype(float)


def log_prob(likelihood, output, x):
    """log p(x) of every value, from scipy."""
    if not isinstance(likelihood, Gaussian):
        return bernoulli.logpmf(x, expit(output))
    if not likelihood.learned:
        return norm.logpdf(x, output, np.sqrt(likelihood.variance))
    x_mu, raw = np.split(output, 2, axis=-1)
    x_logvar = np.log1p(np.exp(raw - likelihood.min_logvar)) + likelihood.min_logvar
    return norm.logpdf(x, x_mu, np.exp(x_logvar / 2))


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_nll_agrees_with_scipy(likelihood, rng):
    output, x = output_for(likelihood, rng), data_for(likelihood, rng)
    expected = -log_prob(likelihood, output, x).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(likelihood.nll(output, x).data, expected, rtol=1e-11)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_elbo_is_nll_and_kl(likelihood, rng):
    output, x = output_for(likelihood, rng), data_for(likelihood, rng)
    mu, logvar = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    bound = likelihood.elbo(output, x, mu, logvar, beta=0.5)
    nll, kl = likelihood.nll(output, x).data, ops.gaussian_kl(mu, logvar).data
    np.testing.assert_allclose(bound.data, -nll - 0.5 * kl, rtol=1e-12)
    np.testing.assert_allclose(bound.saved.nll, nll, rtol=1e-12)
    np.testing.assert_allclose(bound.saved.kl, kl, rtol=1e-12)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_gradients_reach_the_output(likelihood, rng):
    x = data_for(likelihood, rng)
    output, mu, logvar = output_for(likelihood, rng), rng.normal(size=(6, 2)), np.zeros((6, 2))
    assert gradcheck(lambda o: likelihood.nll(o, x), output) < 1e-6
    gradcheck(lambda o, m, v: likelihood.elbo(o, x, m, v, free_bits=0.01), output, mu, logvar)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_mean_and_variance_of_p(likelihood, dtype, rng):
    """100,000 draws of one output: 4 standard errors."""
    one = output_for(likelihood, rng, (1, 3))
    output = np.repeat(one, 100_000, axis=0).astype(dtype)
    x = likelihood.sample(output, seed=3)
    mean = likelihood.mean(one.astype(dtype))
    assert x.dtype == mean.dtype == dtype
    assert x.shape == (100_000, 3)
    if isinstance(likelihood, Gaussian):
        assert np.isfinite(x).all()
        half = (1 / np.sqrt(2 * np.pi)) / np.exp(log_prob(likelihood, one, mean))
        variance = half**2  # a normal density at its mean is 1 / sqrt(2 pi variance)
    else:
        assert set(np.unique(x)) == {0, 1}
        variance = mean * (1 - mean)
    error = np.abs(x.mean(axis=0, dtype=np.float64) - mean)
    assert (error < 4 * np.sqrt(variance / 100_000)).all()
    np.testing.assert_allclose(x.var(axis=0, dtype=np.float64)[None], variance, rtol=0.03)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_samples_are_decided_by_seed_and_step(likelihood, rng):
    output = output_for(likelihood, rng)
    first = likelihood.sample(output, seed=1)
    np.testing.assert_array_equal(likelihood.sample(output, seed=1), first)
    assert not np.array_equal(likelihood.sample(output, seed=2), first)
    assert not np.array_equal(likelihood.sample(output, seed=1, step=1), first)


def test_mean_of_a_gaussian_leaves_the_variance_out(rng):
    output = rng.normal(size=(2, 6))
    np.testing.assert_array_equal(Gaussian().mean(output), output)
    np.testing.assert_array_equal(Gaussian("learned").mean(output), output[:, :3])
    np.testing.assert_allclose(Bernoulli().mean(output), expit(output), rtol=1e-12)


def test_outputs_per_value():
    assert [likelihood.outputs for likelihood in ALL] == [1, 1, 1, 1, 2]
    assert [likelihood.name for likelihood in ALL[:3]] == ["bernoulli", "bce", "gaussian"]


def test_learned_variance_has_a_smooth_floor():
    """However low the decoder wants it, the log-variance stays above min_logvar."""
    output = np.array([[0.0, -1e4], [0.0, 30.0]])
    nll = Gaussian("learned", min_logvar=-6.0).nll(output, np.zeros((2, 1))).data
    floor = 0.5 * (np.log(2 * np.pi) - 6)
    np.testing.assert_allclose(nll, [floor, 0.5 * (np.log(2 * np.pi) + 30)], rtol=1e-12)
    raw = Tensor(np.array([[0.0, -5.0]]), True)
    Gaussian("learned").nll(raw, np.ones((1, 1))).backward(np.ones(1))
    assert raw.grad[0, 1] != 0


def test_check_of_bits_names_the_first_grey_value():
    x = np.array([[0.0, 1.0], [1.0, 0.25]])
    message = r"X has the grey value 0\.25 at .*binarize='dynamic' or 'static'.*likelihood='bce'"
    with pytest.raises(ValueError, match=message):
        Bernoulli().check(x)
    Bernoulli().check(np.array([[0.0, 1.0]]))
    Bernoulli().check(np.array([[0, 255]], np.uint8), scale=255)
    with pytest.raises(ValueError, match=r"grey value 0\.5019"):
        Bernoulli().check(np.array([[0, 128]], np.uint8), scale=255)


@pytest.mark.parametrize("likelihood", [Bernoulli(), CrossEntropy()], ids=str)
@pytest.mark.parametrize("bad", [-0.1, 1.5])
def test_check_of_the_range(likelihood, bad):
    with pytest.raises(ValueError, match=rf"pixels .*{bad}"):
        likelihood.check(np.array([[0.0, bad]]), "pixels")
    CrossEntropy().check(np.array([[0.0, 0.3, 1.0]]))
    Gaussian().check(np.array([[bad]]))


@pytest.mark.parametrize("variance", [0.0, -1.0, np.inf, np.nan])
def test_variance_must_be_positive_and_finite(variance):
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        Gaussian(variance=variance)


def test_unknown_names_get_the_nearest():
    assert [type(resolve(name)) for name in LIKELIHOODS] == [Bernoulli, Gaussian, CrossEntropy]
    assert resolve("gaussian", 0.3).variance == 0.3
    for likelihood in ALL:
        assert resolve(likelihood) is likelihood
    with pytest.raises(ValueError, match="unknown likelihood 'bernouli': did you mean 'bernoulli'"):
        resolve("bernouli")
    with pytest.raises(ValueError, match="unknown variance 'learnt': did you mean 'learned'"):
        Gaussian(variance="learnt")
