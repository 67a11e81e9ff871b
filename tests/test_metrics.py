"""metrics.py: the ELBO, the importance-weighted bound, and the use of the latents."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from tinyvae import metrics, ops
from tinyvae.batches import Rows
from tinyvae.likelihoods import Gaussian
from tinyvae.models import vae
from tinyvae.ops import noise
from tinyvae.ops.noise import Stream
from tinyvae.tensor import Tensor

D, Z, S2 = 4, 2, 0.3  # data, latent, the likelihood's variance


@pytest.fixture
def bits(rng):
    return Rows(rng.integers(0, 2, (37, D)).astype(float), (D,), dtype=np.float64)


@pytest.fixture
def network():
    options = {"hidden": (5,), "channels": (), "activation": "tanh"}
    return vae.build("mlp", (D,), Z, seed=1, dtype=np.float64, **options)


def noise_of_rows(n, *, seed, step=0):
    shape = (n, Z)
    return noise.normal(shape, seed=seed, stream=Stream.EVALUATE, step=step, dtype=np.float64)


# ------------------------------------------------------------------------------------------ ELBO
def test_terms_is_the_formula(network, bits):
    mu, logvar = network.encode(bits.array)
    z = mu + ops.exp(logvar / 2) * noise_of_rows(37, seed=5)
    logits = network.decode(z).data
    expected_nll = (np.logaddexp(0, logits) - logits * bits.array).sum(axis=1)
    expected_kl = 0.5 * (mu.data**2 + np.exp(logvar.data) - 1 - logvar.data).sum(axis=1)
    nll, kl, log, (found_mu, found_logvar) = metrics.terms(network, bits, seed=5)
    assert log == {}
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-11)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-11)
    np.testing.assert_allclose(found_mu, mu.data, rtol=1e-12)
    np.testing.assert_allclose(found_logvar, logvar.data, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 1000])
def test_batch_size_makes_no_difference(network, bits, batch_size):
    """Noise belongs to the row, not to its place in a batch. (BLAS may round differently.)"""
    (*whole, _, codes) = metrics.terms(network, bits, seed=5)
    (*parts, _, codes_of_parts) = metrics.terms(network, bits, seed=5, batch_size=batch_size)
    whole, parts = [*whole, *codes], [*parts, *codes_of_parts]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)
    options = {"samples": 3, "seed": 5}
    np.testing.assert_allclose(
        metrics.log_likelihood_rows(network, bits, **options),
        metrics.log_likelihood_rows(network, bits, batch_size=batch_size, **options),
        rtol=1e-11,
    )
    for one, other in zip(
        metrics.encode(network, bits), metrics.encode(network, bits, batch_size=batch_size),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=1e-11)


def test_evaluate_averages_over_rows(network, bits):
    nll, kl, _, (mu, logvar) = metrics.terms(network, bits, seed=2)
    found = metrics.evaluate(network, bits, seed=2)
    np.testing.assert_allclose(found.nll, nll.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.kl, kl.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.elbo, -(nll + kl).mean(), rtol=1e-12)
    np.testing.assert_allclose(sum(found.kl_per_dimension), kl.mean(), rtol=1e-12)
    assert found.kl_per_dimension == pytest.approx(metrics.kl_per_dimension(mu, logvar))
    assert found.rows == 37
    assert found.active_units == metrics.active_units(mu)
    logged = found.as_dict("test_")
    assert logged["test_elbo"] == found.elbo
    assert logged["test_kl_per_dimension"] == list(found.kl_per_dimension)
    with pytest.raises(ValueError, match="there are no rows to evaluate"):
        metrics.evaluate(network, bits.head(0))


def test_nothing_is_recorded(network, bits):
    metrics.evaluate(network, bits)
    assert all(tensor.grad is None for tensor in network.parameters())


# ------------------------------------------------------------------- importance-weighted bound
def test_one_importance_sample_is_the_elbo_of_the_same_noise(network, bits):
    """log p(x, z) - log q(z | x) at the very z that terms draws."""
    mu, logvar = (t.data for t in network.encode(bits.array))
    sigma = np.exp(logvar / 2)
    z = mu + sigma * noise_of_rows(37, seed=5)
    log_ratio = (norm.logpdf(z) - norm.logpdf(z, mu, sigma)).sum(axis=1)
    nll, *_ = metrics.terms(network, bits, seed=5)
    found = metrics.log_likelihood_rows(network, bits, samples=1, seed=5)
    np.testing.assert_allclose(found, -nll + log_ratio, rtol=1e-11)


def test_one_importance_sample_is_the_elbo_in_the_mean(network, bits):
    rows, many = bits.head(1), 20_000
    repeated = Rows(np.repeat(rows.array, many, axis=0), (D,), dtype=np.float64)
    single = metrics.log_likelihood_rows(network, repeated, samples=1, batch_size=many)
    nll, kl, *_ = metrics.terms(network, repeated, seed=1, batch_size=many)
    bound = -(nll + kl)
    error = np.sqrt((single.var() + bound.var()) / many)
    assert abs(single.mean() - bound.mean()) < 4 * error


def test_several_samples_are_averaged_as_weights(network, bits):
    """log of the mean of exp, over the noise of steps 0 .. K - 1."""
    mu, logvar = (t.data for t in network.encode(bits.array))
    sigma, log_w = np.exp(logvar / 2), []
    for step in range(4):
        z = mu + sigma * noise_of_rows(37, seed=3, step=step)
        nll = ops.bernoulli_nll(network.decode(z), bits.array).data
        log_w.append(-nll + (norm.logpdf(z) - norm.logpdf(z, mu, sigma)).sum(axis=1))
    expected = np.log(np.mean(np.exp(log_w), axis=0))
    found = metrics.log_likelihood_rows(network, bits, samples=4, seed=3)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def linear_gaussian(rng, *, posterior="exact"):
    """x = W z + b + noise: p(x) is known, and with orthogonal columns the posterior is diagonal."""
    W = np.linalg.qr(rng.normal(size=(D, Z)))[0] * [1.5, 0.7]
    b = rng.normal(size=D)
    precision = (W**2).sum(axis=0) / S2 + 1

    def encoder(x):
        mu = (x - b) @ W / S2 / precision
        logvar = np.broadcast_to(-np.log(precision), mu.shape)
        if posterior == "wrong":
            mu, logvar = 0.8 * mu, logvar + 0.4
        return Tensor(mu), Tensor(logvar)

    net = vae.VAENetwork(
        encoder, lambda z: Tensor(np.asarray(getattr(z, "data", z)) @ W.T + b), Z,
        likelihood=Gaussian(variance=S2),
    )  # fmt: skip
    x = rng.normal(size=(20, Z)) @ W.T + b + np.sqrt(S2) * rng.normal(size=(20, D))
    log_p = multivariate_normal(b, W @ W.T + S2 * np.eye(D)).logpdf(x)
    return net, Rows(x, (D,), dtype=np.float64), log_p


def test_with_the_exact_posterior_one_sample_gives_log_p(rng):
    """All weights are equal then: the estimate has no variance."""
    net, rows, log_p = linear_gaussian(rng)
    found = metrics.log_likelihood_rows(net, rows, samples=1)
    np.testing.assert_allclose(found, log_p, rtol=1e-10)


def test_with_many_samples_the_bound_approaches_log_p(rng):
    net, rows, log_p = linear_gaussian(rng, posterior="wrong")
    gaps = []
    for samples in (1, 10, 100, 3000):
        found = metrics.log_likelihood_rows(net, rows, samples=samples, seed=1)
        gaps.append(np.abs(found - log_p).mean())
    assert gaps[-1] < 0.02
    assert gaps == sorted(gaps, reverse=True)


def test_the_bound_does_not_fall_with_more_samples(rng):
    """In the mean over 3,000 draws of noise a row."""
    net, rows, log_p = linear_gaussian(rng, posterior="wrong")
    repeated = Rows(np.repeat(rows.array, 3000, axis=0), (D,), dtype=np.float64)
    bounds = []
    for samples in (1, 2, 4, 8):
        found = metrics.log_likelihood_rows(net, repeated, samples=samples, batch_size=100_000)
        bounds.append(found.mean())
    assert bounds == sorted(bounds)
    assert bounds[-1] < log_p.mean()
    nll, kl, *_ = metrics.terms(net, repeated, seed=0)
    assert abs(bounds[0] + (nll + kl).mean()) < 0.02


def test_weights_of_very_unlikely_rows_do_not_overflow(network):
    rows = Rows(np.full((3, D), 1e3), (D,), dtype=np.float64)
    network.likelihood = Gaussian(variance=1e-3)
    found = metrics.log_likelihood_rows(network, rows, samples=5)
    assert np.isfinite(found).all()
    assert (found < -1e6).all()


def test_samples_must_be_positive(network, bits):
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        metrics.log_likelihood_rows(network, bits, samples=0)


# ----------------------------------------------------------------------------- use of the latents
def test_bits_per_dimension():
    assert metrics.bits_per_dimension(-np.log(2) * 784, 784) == pytest.approx(1)
    assert metrics.bits_per_dimension(-90.0, 784) == pytest.approx(90 / 784 / np.log(2))


def test_active_units_have_means_that_vary(rng):
    """The border is a variance of 0.01, a deviation of 0.1."""
    mu = rng.normal(3, [1.0, 0.15, 0.07, 0.0], (500, 4))
    assert metrics.active_units(mu) == 2
    assert metrics.active_units(mu.astype(np.float32)) == 2
    assert metrics.active_units(10 * mu) == 3


def test_kl_per_dimension_by_hand():
    mu, logvar = np.array([[2.0, 0.0]] * 3), np.log([[0.25, 4.0]] * 3)
    expected = [0.5 * (4 + 0.25 - np.log(0.25) - 1), 0.5 * (4 - np.log(4) - 1)]
    np.testing.assert_allclose(metrics.kl_per_dimension(mu, logvar), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("kl", "active", "warned"),
    [([0, 0.001], 0, True), ([0, 0.001], 1, False), ([0, 0.5], 0, False), ([2, 3], 2, False)],
)
def test_collapse_is_warned_of_with_the_remedies(kl, active, warned):
    text = metrics.collapse_warning(kl, active)
    assert (text is not None) == warned
    if warned:
        for word in ("beta < 1", "annealing", "free_bits", "weaker decoder"):
            assert word in text


# --------------------------------------------------------------------------------- disentanglement
@pytest.mark.parametrize("batch_size", [5, 37, 1000])
def test_kl_decomposition_is_that_of_the_whole_data_set(network, bits, batch_size):
    mu, logvar = (t.data for t in network.encode(bits.array))
    z = mu + np.exp(logvar / 2) * noise_of_rows(37, seed=5)
    each = norm.logpdf(z[:, None], mu, np.exp(logvar / 2))  # (N, N, Z)
    joint = np.log(np.exp(each.sum(axis=2)).mean(axis=1))
    marginal = np.log(np.exp(each).mean(axis=1)).sum(axis=1)
    own, log_p = each.sum(axis=2).diagonal(), norm.logpdf(z).sum(axis=1)
    found = metrics.kl_decomposition(network, bits, seed=5, batch_size=batch_size)
    assert found == pytest.approx({
        "mi": (own - joint).mean(), "tc": (joint - marginal).mean(),
        "dwkl": (marginal - log_p).mean(),
    }, rel=1e-9)  # fmt: skip
    network.gaussian = False
    with pytest.raises(ValueError, match="VAENetwork has no Gaussian posterior"):
        metrics.kl_decomposition(network, bits)


def test_the_gap_is_one_for_the_factors_themselves_and_nothing_for_copies(rng):
    factors = np.stack([rng.integers(0, 3, 4000), rng.integers(0, 10, 4000)], axis=1)
    real = rng.random((4000, 2))
    gap = metrics.mutual_information_gap
    np.testing.assert_allclose(gap(factors[:, ::-1] * -2.5, factors), 1, atol=0.02)
    np.testing.assert_allclose(gap(real, real), 1, atol=0.05)
    np.testing.assert_allclose(gap(np.repeat(factors, 2, axis=1), factors), 0, atol=1e-12)
    turned = (real - 0.5) @ np.array([[1, 1], [-1, 1]])
    assert gap(turned, real).max() < 0.05
    assert gap(rng.normal(size=(4000, 3)), factors).max() < 0.02


def test_the_gap_by_hand():
    """v is fair; z_1 tells it all, z_2 nothing, z_3 for half of the rows."""
    v = np.array([[0], [0], [1], [1]])
    z = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1]])
    known = np.log(2) - 0.75 * (np.log(3) - 2 / 3 * np.log(2))
    np.testing.assert_allclose(metrics.mutual_information_gap(z, v), 1 - known / np.log(2))


def test_the_gap_refuses_what_has_none(rng):
    with pytest.raises(ValueError, match=r"codes must be \(N, Z\), Z >= 2"):
        metrics.mutual_information_gap(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="factor 1 has one value only"):
        metrics.mutual_information_gap(rng.normal(size=(9, 2)), np.eye(9)[:, :2] * [1, 0])
