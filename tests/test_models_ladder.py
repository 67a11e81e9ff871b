"""models/ladder.py: hierarchies of latents, against exact values of a linear-Gaussian one."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinyvae as tv
from tinyvae import devices, gradcheck, likelihoods, nn
from tinyvae.batches import Batch
from tinyvae.models import Parts, ladder
from tinyvae.models.networks import GaussianEncoder
from tinyvae.ops.noise import Draw

B, D, SIZES = 6, 5, (3, 3, 2)
KINDS = {"bottomup": ladder.BottomUp, "ladder": ladder.Ladder}
each = pytest.mark.parametrize("kind", KINDS)


def draw(seed=0, n=B):
    return Draw(n, seed=seed, dtype=np.float64)


def build(kind, rng, *, free_bits=0.0, likelihood=None):
    parts = Parts(
        (D,), SIZES[0], likelihood or likelihoods.Bernoulli(), hidden=(7,), activation="tanh",
        free_bits=free_bits, rng=rng, dtype=np.float64,
    )  # fmt: skip
    return KINDS[kind](above=":".join(map(str, SIZES[1:]))).build(parts)


def bits(rng):
    return Batch((rng.random((B, D)) < 0.5).astype(np.float64))


# ------------------------------------------------------------------------------ the exact model
S1, S2, NOISE = np.array([0.5, 1.5]), np.array([0.8, 0.3]), 0.4
A1, A2 = np.array([0.7, -1.2]), np.array([0.9, 0.5])
W = np.array([[1.0, 1, 1, 1], [1, -1, 1, -1]])  # orthogonal rows: the posteriors are diagonal


def affine(weight, bias, variance, body=None):
    """x -> N(x W + b, diag(variance))."""
    encoder = GaussianEncoder(body or (lambda x: x), *weight.shape, dtype=np.float64)
    encoder.mu.weight.data[:], encoder.mu.bias.data[:] = weight, bias
    encoder.logvar.weight.data[:], encoder.logvar.bias.data[:] = 0, np.log(variance)
    return encoder


def exact(kind):
    """z3 ~ N(0, I), z2 = A2 z3 + N(0, S2), z1 = A1 z2 + N(0, S1), x = z1 W + 1 + N(0, NOISE).

    A1, A2 diagonal.  With it, q that are the exact posteriors of their kind.
    """
    gain, said = (W**2).sum(axis=1), W.T / (W**2).sum(axis=1)
    opinion = affine(said, -said.sum(axis=0), NOISE / gain)  # what x says of z1, as N(z1; ., .)
    if kind == "ladder":
        # what x says of z2 = (z1 - noise) / A1, and so on up
        v1 = NOISE / gain
        v2 = (v1 + S1) / A1**2
        v3 = (v2 + S2) / A2**2
        opinion.body, features = (lambda x: x), len(W.T)
        second = affine(said / A1, -said.sum(axis=0) / A1, v2, lambda x: x)
        # the top is q itself: opinion times N(0, I)
        third = affine(said / A1 / A2 / (1 + v3), -said.sum(axis=0) / A1 / A2 / (1 + v3),
                       v3 / (1 + v3), lambda x: x)  # fmt: skip
        assert second.mu.weight.shape[0] == features
        encoders = [opinion, second, third]
        model = ladder.LadderNetwork
    else:
        # marginal variances, then q(z1 | x), q(z2 | z1), q(z3 | z2) by Bayes
        m2 = A2**2 + S2
        m1 = A1**2 * m2 + S1
        v1 = 1 / (1 / m1 + gain / NOISE)
        first = affine(W.T * v1 / NOISE, -W.sum(axis=1) * v1 / NOISE, v1)
        v2 = 1 / (1 / m2 + A1**2 / S1)
        v3 = 1 / (1 + A2**2 / S2)
        encoders = [first, affine(np.diag(v2 * A1 / S1), 0, v2),
                    affine(np.diag(v3 * A2 / S2), 0, v3)]  # fmt: skip
        model = ladder.BottomUpNetwork
    generators = [affine(np.diag(A1), 0, S1), affine(np.diag(A2), 0, S2)]
    decoder = nn.Linear(2, 4, dtype=np.float64)
    decoder.weight.data[:], decoder.bias.data[:] = W, 1
    return model(encoders, generators, decoder, (2, 2, 2),
                 likelihood=likelihoods.Gaussian(variance=NOISE))  # fmt: skip


def exact_log_likelihood(x):
    covariance = W.T @ np.diag(A1**2 * (A2**2 + S2) + S1) @ W + NOISE * np.eye(4)
    centred = x - 1
    quadratic = (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
    return -0.5 * (4 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1] + quadratic)


@each
def test_with_exact_posteriors_every_weight_is_the_likelihood(kind, rng):
    """log p(x, z)/q(z | x) = log p(x), whatever z: no variance, no bias.  Merging is exact too."""
    model, x = exact(kind), 2 * rng.normal(size=(B, 4))
    for seed in range(3):
        weights = model.log_weights(Batch(x), draw(seed))
        np.testing.assert_allclose(weights, exact_log_likelihood(x), rtol=1e-10)


@each
def test_the_elbo_is_exact_in_the_mean(kind, rng):
    """Its closed-form terms have variance, but the right expectation."""
    model, x = exact(kind), 2 * rng.normal(size=(1, 4))
    n = 40_000
    many = Batch(np.repeat(x, n, axis=0))
    elbo = model.evaluation(many, draw(1, n)).elbo
    assert abs(elbo.mean() - exact_log_likelihood(x)[0]) < 5 * elbo.std() / math.sqrt(n)


@each
def test_a_wrong_posterior_gives_a_lower_bound(kind, rng):
    model, n = exact(kind), 20_000
    for encoder in model.encoders:
        encoder.mu.bias.data += 0.3
    x = rng.normal(size=(1, 4))
    many, goal = Batch(np.repeat(x, n, axis=0)), exact_log_likelihood(x)[0]
    assert model.evaluation(many, draw(1, n)).elbo.mean() < goal - 0.05
    weights = model.log_weights(many, draw(2, n))
    estimate = np.log(np.exp(weights - weights.max()).mean()) + weights.max()
    assert abs(estimate - goal) < 0.03  # importance weighting makes up for it


# ------------------------------------------------------------------------------------- the loss
@each
@pytest.mark.parametrize("free_bits", [0.0, 0.3])
def test_gradients_of_the_whole_loss(kind, free_bits, rng):
    model, batch = build(kind, rng, free_bits=free_bits), bits(rng)

    def loss(*_):
        return model.loss(batch, draw(), beta=0.7, rows=B).loss

    assert gradcheck(loss, *model.parameters(), rtol=1e-5) < 1e-5


@each
def test_the_terms_fit_together(kind, rng):
    model, batch = build(kind, rng), bits(rng)
    terms = model.loss(batch, draw(), beta=1.0, rows=B)
    shown = model.evaluation(batch, draw())
    assert list(terms.log) == ["kl_1", "kl_2", "kl_3"]
    np.testing.assert_allclose(sum(terms.log.values()), terms.kl, rtol=1e-12)
    np.testing.assert_allclose(terms.elbo, -(terms.nll + terms.kl), rtol=1e-12)
    np.testing.assert_allclose(terms.loss.item(), -terms.elbo.mean(), rtol=1e-12)
    for name in ("nll", "kl", "elbo"):
        np.testing.assert_allclose(getattr(shown, name), getattr(terms, name), rtol=1e-12)
    weighted = model.loss(batch, draw(), beta=3.0, rows=2 * B)
    expected = (terms.nll + 3 * terms.kl).sum() / (2 * B)
    np.testing.assert_allclose(weighted.loss.item(), expected, rtol=1e-12)


def test_closed_and_sampled_kl_agree_in_expectation(rng):
    n = 20_000
    model, x = build("ladder", rng), bits(rng).x[:1]
    batch = Batch(np.repeat(x, n, axis=0))
    sample = ladder._sampler(draw(3, n))
    for layer in model.layers(model.posterior(batch), sample):
        difference = (layer.log_ratio() - layer.kl()).data
        assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(n)


def test_the_ladder_merges_as_gaussians_multiply(rng):
    mu_a, mu_b = rng.normal(size=(2, B, 3))
    a, b = 3 * rng.normal(size=(2, B, 3))
    mu, logvar = ladder.merged((mu_a, a), (mu_b, b))
    precision = np.exp(-a) + np.exp(-b)
    np.testing.assert_allclose(np.exp(-logvar.data), precision, rtol=1e-10)
    expected = (mu_a * np.exp(-a) + mu_b * np.exp(-b)) / precision
    np.testing.assert_allclose(mu.data, expected, rtol=1e-10)
    mu, logvar = ladder.merged((mu_a, a * 0 + 900), (mu_b, b))  # no overflow: b alone counts
    np.testing.assert_allclose(mu.data, mu_b)
    np.testing.assert_allclose(logvar.data, b)


@each
def test_free_bits_hold_up_each_layer(kind, rng):
    """Below the floor a layer's KL has no gradient; above it all of it."""
    model, batch = build(kind, rng, free_bits=1e3), bits(rng)
    terms = model.loss(batch, draw(), beta=1.0, rows=B)
    np.testing.assert_allclose(terms.elbo, -(terms.nll + 3 * 1e3), rtol=1e-12)
    np.testing.assert_array_less(terms.kl, 1e3)  # the log tells the KL itself
    terms.loss.backward()
    if kind == "bottomup":  # z_2 and z_3 reach the loss by their KL alone
        for encoder in model.encoders[1:]:
            assert not np.any(encoder.mu.weight.grad)


@each
def test_noise_does_not_depend_on_the_shards(kind, rng):
    model, batch = build(kind, rng), bits(rng)
    whole = model.loss(batch, draw(), beta=1.0, rows=B)
    halves = [
        model.loss(batch[part], Draw(3, seed=0, first=part.start, dtype=np.float64), beta=1.0,
                   rows=B)
        for part in (slice(0, 3), slice(3, 6))
    ]  # fmt: skip
    np.testing.assert_allclose(
        np.concatenate([half.elbo for half in halves]), whole.elbo, rtol=1e-10
    )
    total = sum(half.loss.item() for half in halves)
    np.testing.assert_allclose(total, whole.loss.item(), rtol=1e-10)


@each
def test_the_same_on_a_gpu(kind, gpu, rng):
    model, x = build(kind, rng, free_bits=0.1), bits(rng).x

    def results(device):
        model.to(device).zero_grad()
        there = devices.move(x, device)
        noise = [Draw(B, seed=seed, dtype=np.float64, like=there) for seed in range(3)]
        terms = model.loss(Batch(there), noise[0], beta=1.0, rows=B)
        terms.loss.backward()
        found = [terms.elbo, model.log_weights(Batch(there), noise[1]), model.generate(B, noise[2])]
        return [devices.to_host(a) for a in found + [t.grad for t in model.parameters()]]

    expected = results("cpu")
    for one, other in zip(results("cuda"), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------ the generative way
@each
def test_samples_follow_the_model(kind):
    model, n = exact(kind), 50_000
    means = model.generate(n, draw(5, n))
    covariance = W.T @ np.diag(A1**2 * (A2**2 + S2) + S1) @ W
    np.testing.assert_allclose(means.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(np.cov(means.T), covariance, atol=0.1)


@each
def test_codes_are_those_of_the_lowest_layer(kind, rng):
    """With exact posteriors: the mean of p(z1 | x)."""
    model, x = exact(kind), rng.normal(size=(B, 4))
    mu, _ = model.encode(x)
    prior = np.diag(A1**2 * (A2**2 + S2) + S1)
    gain = prior @ W @ np.linalg.inv(W.T @ prior @ W + NOISE * np.eye(4))
    np.testing.assert_allclose(mu.data, (x - 1) @ gain.T, rtol=1e-9)
    raw = model.reconstruct(Batch(x))
    np.testing.assert_allclose(raw, mu.data @ W + 1, rtol=1e-9)


# ----------------------------------------------------------------------------------- the estimator
@each
def test_it_learns_and_is_saved(kind, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.random((300, 3)) < 0.5).repeat(4, axis=1).astype(np.float32)  # 2.08 nats of entropy
    vae = tv.VAE(
        4, model=f"{kind}:3:2", hidden=(16,), epochs=15, batch_size=50, learning_rate=1e-2,
        random_state=0,
    ).fit(x)  # fmt: skip
    assert vae.history_[-1]["elbo"] > vae.history_[0]["elbo"] + 1
    result = vae.evaluate(x)
    assert set(result.log) == {"kl_1", "kl_2", "kl_3"}
    np.testing.assert_allclose(sum(result.log.values()), result.kl, rtol=1e-4)
    estimate = vae.log_likelihood(x[:20], samples=50, random_state=1).mean()
    assert vae.elbo(x[:20]).mean() - 0.5 < estimate < -1.5
    assert vae.sample(5, random_state=0).shape == (5, 12)
    assert vae.reconstruct(x[:5]).shape == (5, 12)
    assert vae.transform(x[:5]).shape == (5, 4)
    vae.save(tmp_path / "ladder.safetensors")
    again = tv.load(tmp_path / "ladder.safetensors")
    np.testing.assert_array_equal(again.elbo(x), vae.elbo(x))
    np.testing.assert_array_equal(again.sample(3, 1), vae.sample(3, 1))


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="sizes of layers must be whole numbers >= 1, got '0'"):
        ladder.Ladder("0")
    with pytest.raises(ValueError, match="whole numbers >= 1, got 'ten'"):
        tv.VAE(model="ladder:ten").fit(np.zeros((4, 3), np.float32))
    assert ladder.Ladder("10:5").sizes == [10, 5]


def test_what_it_does_not_take_is_refused():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="model='ladder' does not take flow"):
        tv.VAE(model="ladder:5", flow="planar:2").fit(x)
