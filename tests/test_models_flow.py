"""Flows in the posterior of a VAE: against the VAE without, and against an exact likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import flows, gradcheck, likelihoods, nn
from tinyvae.batches import Batch
from tinyvae.models import Parts
from tinyvae.models.vae import VAE, SampledVAE
from tinyvae.ops.noise import Draw
from tinyvae.optim import Adam

B, D, Z = 5, 6, 3
SPECS = {
    "planar": flows.Planar(2),
    "radial": flows.Radial(2),
    "coupling": flows.Coupling(2, hidden=6),
    "iaf": flows.InverseAutoregressive(2, hidden=6),
    "householder": flows.Householder(2),
    "sylvester": flows.Sylvester(2, reflections=2),
}
each = pytest.mark.parametrize("kind", flows.KINDS)


def draw(n=B, seed=0):
    return Draw(n, seed=seed, dtype=np.float64)


def build(flow, *, seed=0, kl="sampled", samples=1):
    parts = Parts(
        (D,), Z, likelihoods.Bernoulli(), hidden=(7,), activation="tanh", flow=flow,
        rng=np.random.default_rng(seed), dtype=np.float64,
    )  # fmt: skip
    return VAE(samples=samples, kl=kl).build(parts)


def moved(model, rng, size=0.4):
    """The model with its flow far from the start."""
    for tensor in model.flow.parameters():
        tensor.data = tensor.data + size * rng.standard_normal(tensor.shape)
    return model


def bits(rng, n=B):
    return Batch((rng.random((n, D)) < 0.5).astype(np.float64))


def test_a_flow_that_is_the_identity_gives_the_plain_elbo(rng):
    """Couplings start at the identity: the same sampled terms, gradients and weights as without."""
    batch = bits(rng)
    plain, flowing = build(None), build(SPECS["coupling"])
    for name, array in plain.state_dict().items():
        np.testing.assert_array_equal(array, flowing.state_dict()[name])
    found = [model.loss(batch, draw(), beta=0.7, rows=B) for model in (plain, flowing)]
    for one, other in zip(*(terms[1:4] for terms in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for terms in found:
        terms.loss.backward()
    own = dict(flowing.named_parameters())
    for name, tensor in plain.named_parameters():
        np.testing.assert_allclose(own[name].grad, tensor.grad, rtol=1e-10, atol=1e-14)
    for one, other in zip(plain.encode(batch.x), flowing.encode(batch.x), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-12)
    weights = [model.log_weights(batch, draw()) for model in (plain, flowing)]
    np.testing.assert_allclose(*weights, rtol=1e-12)


@each
def test_gradients_of_the_whole_loss(kind, rng):
    """Through the encoder's features into the flow's parameters too."""
    model, batch = moved(build(SPECS[kind], samples=2), rng), bits(rng)

    def loss(*_):
        return model.loss(batch, draw(), beta=0.7, rows=B).loss

    assert gradcheck(loss, *model.parameters(), rtol=1e-5) < 1e-5


@each
def test_a_step_reaches_every_parameter_from_the_start(kind, rng):
    """Nothing starts where its gradient is zero for good; the last layer of a net may shadow it."""
    model, batch = build(SPECS[kind]), bits(rng)
    model.loss(batch, draw(), beta=1.0, rows=B).loss.backward()
    still = [n for n, t in model.flow.named_parameters() if t.grad is None or not t.grad.any()]
    shadowed = kind in ("coupling", "iaf")
    assert not still or shadowed
    adam = Adam(model.parameters())
    adam.step()
    model.zero_grad()
    model.loss(batch, draw(), beta=1.0, rows=B).loss.backward()
    for name, tensor in model.flow.named_parameters():
        assert tensor.grad.any(), name


# --------------------------------------------------------------------------- an exact likelihood
NOISE = 0.5


def linear(weight, bias, variance):
    """x -> mu = x W + b, logvar the same for all."""
    encoder = tv.models.networks.GaussianEncoder(lambda x: x, *weight.shape, dtype=np.float64)
    encoder.mu.weight.data[:], encoder.mu.bias.data[:] = weight, bias
    encoder.logvar.weight.data[:], encoder.logvar.bias.data[:] = 0, np.log(variance)
    return encoder


def linear_gaussian(loadings):
    """z ~ N(0, I), x = z W + N(0, NOISE): its decoder, posterior mean's weight and covariance."""
    z, x = loadings.shape
    decoder = nn.Linear(z, x, bias=False, dtype=np.float64)
    decoder.weight.data[:] = loadings
    covariance = np.linalg.inv(np.eye(z) + loadings @ loadings.T / NOISE)
    return decoder, loadings.T @ covariance / NOISE, covariance


def log_likelihood(x, loadings):
    covariance = loadings.T @ loadings + NOISE * np.eye(x.shape[1])
    quadratic = (x * np.linalg.solve(covariance, x.T).T).sum(axis=1)
    logdet = np.linalg.slogdet(covariance)[1]
    return -0.5 * (x.shape[1] * math.log(2 * math.pi) + logdet + quadratic)


def sampled(encoder, decoder, latent_dim, flow):
    return SampledVAE(
        encoder, decoder, latent_dim, flow=flow, likelihood=likelihoods.Gaussian(variance=NOISE)
    )


def test_a_reflection_makes_the_posterior_exact(rng):
    """q is N(m, U diag U^T) then: log p(x, z) / q(z | x) is log p(x), at every z."""
    v = np.array([1.0, 0.4])
    U = np.eye(2) - 2 * np.outer(v, v) / (v @ v)
    loadings = U @ np.diag([3.0, 0.5]) @ np.linalg.qr(rng.normal(size=(4, 4)))[0][:2]
    decoder, gain, covariance = linear_gaussian(loadings)
    assert abs(covariance[0, 1]) > 0.1
    spread = np.diag(U.T @ covariance @ U)
    flow = flows.Flows(flows.HouseholderFlow(v, None, rng, np.float64))
    model = sampled(linear(gain @ U, 0, spread), decoder, 2, flow)
    x = 2 * rng.normal(size=(B, 4))
    for seed in range(3):
        weights = model.log_weights(Batch(x), draw(seed=seed))
        np.testing.assert_allclose(weights, log_likelihood(x, loadings), rtol=1e-10)


def test_a_scaling_makes_the_posterior_exact(rng):
    """Here the logdet counts, its sign too: a coupling that only scales and shifts."""
    loadings = np.diag([3.0, 0.5]) @ np.linalg.qr(rng.normal(size=(4, 4)))[0][:2]
    decoder, gain, covariance = linear_gaussian(loadings)
    flow = flows.CouplingFlow(2, None, rng, np.float64)
    s, t = 0.8, 0.3
    flow.network.layers[-1].bias.data[:] = 3 * np.arctanh(s / 3), t
    scale, shift = np.array([1, math.exp(s)]), np.array([0, t])
    encoder = linear(gain / scale, -shift / scale, np.diag(covariance) / scale**2)
    model = sampled(encoder, decoder, 2, flow)
    x = 2 * rng.normal(size=(B, 4))
    weights = model.log_weights(Batch(x), draw())
    np.testing.assert_allclose(weights, log_likelihood(x, loadings), rtol=1e-10)


@each
def test_the_estimate_approaches_the_exact_likelihood(kind, rng):
    """Whatever the flow does to q, importance weighting makes up for it, if log q is right."""
    n, loadings = 40_000, 0.7 * rng.normal(size=(2, 4))
    decoder, gain, covariance = linear_gaussian(loadings)
    spec = SPECS[kind]
    flow = spec.build(2, 4, rng, np.float64)
    model = moved(sampled(linear(gain, 0, 2 * np.diag(covariance)), decoder, 2, flow), rng, 0.1)
    x = rng.normal(size=(1, 4))
    many = Batch(np.repeat(x, n, axis=0))
    weights = model.log_weights(many, draw(n))
    estimate = np.log(np.exp(weights - weights.max()).mean()) + weights.max()
    assert abs(estimate - log_likelihood(x, loadings)[0]) < 0.05
    bound = model.evaluation(many, draw(n, 1)).elbo
    assert bound.mean() < estimate
    assert weights.std() > 0.05  # else the test above shows nothing


@pytest.mark.parametrize("kind", ["householder", "iaf", "sylvester"])
def test_a_flow_fits_what_a_diagonal_cannot(kind, rng):
    """The best diagonal q of a correlated posterior is off by a known KL; the flow comes nearer."""
    loadings = np.array([[2.0, 1.0, 0.5], [1.6, 1.4, -0.5]])
    decoder, gain, covariance = linear_gaussian(loadings)
    precision = np.linalg.inv(covariance)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert gap > 0.4
    x = rng.multivariate_normal(np.zeros(3), loadings.T @ loadings + NOISE * np.eye(3), size=500)
    exact = log_likelihood(x, loadings).mean()
    flow = flows.KINDS[kind](4).build(2, None, rng, np.float64)
    encoder = linear(gain, 0, 1 / np.diag(precision))
    model = sampled(encoder, decoder, 2, flow)
    adam = Adam([*encoder.parameters(), *flow.parameters()], learning_rate=0.02)
    for step in range(300):
        model.zero_grad()
        model.loss(Batch(x), draw(len(x), step), beta=1.0, rows=len(x)).loss.backward()
        adam.step()
    reached = np.mean([model.evaluation(Batch(x), draw(len(x), s)).elbo for s in range(20)])
    assert exact - reached < 0.5 * gap
    assert reached < exact + 0.02


# ----------------------------------------------------------------------------------- the estimator
@each
def test_it_learns_and_is_saved(kind, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.random((300, 3)) < 0.5).repeat(4, axis=1).astype(np.float32)
    vae = tv.VAE(
        3, flow=SPECS[kind], hidden=(16,), epochs=30, batch_size=50, learning_rate=1e-2,
        random_state=0,
    ).fit(x)  # fmt: skip
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"] + 1
    estimate = vae.log_likelihood(x[:20], samples=50, random_state=1).mean()
    assert vae.elbo(x[:20]).mean() - 0.5 < estimate < -1.5
    assert vae.sample(5, random_state=0).shape == (5, 12)
    codes = vae.transform(x[:5])
    np.testing.assert_allclose(vae.reconstruct(x[:5]), vae.inverse_transform(codes), rtol=1e-5)
    vae.save(tmp_path / "flow.safetensors")
    again = tv.load(tmp_path / "flow.safetensors")
    np.testing.assert_array_equal(again.elbo(x), vae.elbo(x))
