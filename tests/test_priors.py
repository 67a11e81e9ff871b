"""priors.py: densities that integrate to one, and samples that are theirs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tinyvae import Tensor, flows, gradcheck, ops, priors
from tinyvae.nn import Linear, Module
from tinyvae.ops.noise import Draw, Stream
from tinyvae.spelling import parse, spell
from tinyvae.tensor import no_grad

SPECS = {
    "standard": priors.Standard(),
    "gaussian": priors.Gaussian(),
    "mixture": priors.Mixture(3),
    "vamp": priors.Vamp(4),
    "flow": priors.Flow("coupling:2:hidden=8"),
}
each = pytest.mark.parametrize("kind", priors.KINDS)
learned = pytest.mark.parametrize("kind", [kind for kind in priors.KINDS if kind != "standard"])


class Encoder(Module):
    """x (K, 5) -> mu, logvar (K, Z)."""

    def __init__(self, latent_dim, rng):
        self.mu, self.logvar = (Linear(5, latent_dim, rng=rng, dtype=np.float64) for _ in range(2))

    def __call__(self, x):
        return self.mu(x), self.logvar(x)


def build(spec, rng, latent_dim=2, size=0.2):
    """A prior away from its start: every parameter is moved."""
    encode = Encoder(latent_dim, rng)
    prior = spec.build(latent_dim, encode=encode, shape=(5,), rng=rng, dtype=np.float64)
    for tensor in prior.parameters():
        tensor.data = tensor.data + size * rng.standard_normal(tensor.shape)
    return prior


def noise(rows, step=0):
    return Draw(rows, seed=3, step=step, stream=Stream.SAMPLE, dtype=np.float64)


def density(prior, z):
    with no_grad():
        return np.exp(prior.log_prob(z).data)


def grid(reach=12.0, steps=401):
    """Points of a square, (steps^2, 2), and the area of one."""
    line = np.linspace(-reach, reach, steps)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), (line[1] - line[0]) ** 2


def test_every_kind_is_tested():
    assert {kind: type(spec) for kind, spec in SPECS.items()} == priors.KINDS


# ------------------------------------------------------------------------------- the base test
@each
def test_gradients(kind, rng):
    prior = build(SPECS[kind], rng)
    z = rng.normal(size=(6, 2))
    assert gradcheck(lambda z, *_: prior.log_prob(z), z, *prior.parameters()) < 1e-6


@each
def test_the_density_integrates_to_one(kind, rng):
    z, area = grid()
    total = density(build(SPECS[kind], rng), z).sum() * area
    assert total == pytest.approx(1, abs=2e-3 if kind == "flow" else 1e-6)  # relu: kinks in z


@pytest.mark.parametrize("kind", ["standard", "gaussian", "mixture", "vamp"])
def test_in_one_dimension_too(kind, rng):
    line = np.linspace(-12, 12, 4001)[:, None]
    total = density(build(SPECS[kind], rng, 1), line).sum() * (line[1, 0] - line[0, 0])
    assert total == pytest.approx(1, abs=1e-6)


@each
def test_samples_have_the_moments_of_the_density(kind, rng):
    prior, (z, area) = build(SPECS[kind], rng), grid()
    weights = density(prior, z) * area
    mean = weights @ z
    cov = (z - mean).T @ (weights[:, None] * (z - mean))
    sample = prior.sample(40_000, noise(40_000))
    assert sample.shape == (40_000, 2)
    np.testing.assert_allclose(sample.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(sample.T), cov, atol=0.06)


@each
def test_samples_do_not_depend_on_how_many_are_drawn_at_once(kind, rng):
    prior = build(SPECS[kind], rng)
    whole = prior.sample(7, noise(7))
    later = Draw(4, seed=3, first=3, stream=Stream.SAMPLE, dtype=np.float64)
    np.testing.assert_allclose(prior.sample(4, later), whole[3:], rtol=1e-12)


@each
def test_the_sampled_kl_agrees_with_the_closed_form_and_is_positive_in_the_mean(kind, rng):
    prior = build(SPECS[kind], rng)
    mu, logvar = rng.normal(size=(1, 2)), 0.5 * rng.normal(size=(1, 2))
    eps = noise(40_000).normal(2)
    z = mu + np.exp(logvar / 2) * eps
    log_q = multivariate_normal(mu[0], np.diag(np.exp(logvar[0]))).logpdf(z)
    with no_grad():
        estimate = log_q - prior.log_prob(z).data
    error = estimate.std() / 200  # of the mean
    assert estimate.mean() > -4 * error
    exact = prior.kl(Tensor(mu), Tensor(logvar))
    assert (exact is not None) == (kind in ("standard", "gaussian"))
    if exact is not None:
        assert abs(estimate.mean() - exact.item()) < 4 * error


# ---------------------------------------------------------------------------------- identities
def test_one_component_at_the_origin_is_the_standard_prior(rng):
    z, standard = rng.normal(size=(9, 3)), priors.StandardNormal(3)
    encode = Encoder(3, rng)
    for head in (encode.mu, encode.logvar):
        head.weight.data[:], head.bias.data[:] = 0, 0
    options = {"encode": encode, "shape": (5,), "rng": rng, "dtype": np.float64}
    for spec in (priors.Gaussian(), priors.Mixture(1), priors.Vamp(1), priors.Vamp(20),
                 priors.Flow("coupling:2")):  # fmt: skip
        prior = spec.build(3, **options)
        found, expected = prior.log_prob(z).data, standard.log_prob(z).data
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_gaussian_kl_is_the_formula(rng):
    prior = build(priors.Gaussian(), rng)
    mu, logvar = rng.normal(size=(2, 4, 2))
    found = prior.kl(Tensor(mu), Tensor(logvar))
    wide = np.zeros((4, 2))
    expected = ops.gaussian_kl_between(mu, logvar, prior.mu.data + wide, prior.logvar.data + wide)
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-12)
    mu, logvar = Tensor(mu, True), Tensor(logvar, True)
    assert gradcheck(lambda *_: prior.kl(mu, logvar), mu, logvar, *prior.parameters()) < 1e-6


def test_the_vamp_prior_is_the_mean_of_the_posteriors_of_its_inputs(rng):
    prior, z = build(priors.Vamp(4), rng), rng.normal(size=(9, 2))
    mu, logvar = (tensor.data for tensor in prior.encode(prior.u))
    each = [
        multivariate_normal(m, np.diag(np.exp(v))).pdf(z) for m, v in zip(mu, logvar, strict=True)
    ]
    np.testing.assert_allclose(density(prior, z), np.mean(each, axis=0), rtol=1e-12)


def test_the_vamp_prior_moves_the_encoder_and_owns_it_once(rng):
    prior = build(priors.Vamp(4), rng)
    prior.log_prob(rng.normal(size=(9, 2))).backward(rng.normal(size=9))
    assert {name for name, _ in prior.named_parameters()} == {
        "u", "encode.mu.weight", "encode.mu.bias", "encode.logvar.weight", "encode.logvar.bias",
    }  # fmt: skip
    assert all(np.abs(tensor.grad).max() > 0 for tensor in prior.parameters())


def test_weights_of_the_mixture_decide_how_often_a_component_is_drawn():
    prior = priors.MixtureOfGaussians(1, 3, dtype=np.float64)
    prior.logits.data[:] = np.log([0.2, 0.0001, 0.7999])
    prior.mu.data[:], prior.logvar.data[:] = [[-100], [0], [100]], -5
    z = prior.sample(10_000, noise(10_000))[:, 0]
    assert (z < 0).mean() == pytest.approx(0.2, abs=0.02)
    assert (z > 0).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("flow", flows.KINDS)
def test_every_flow_serves_as_a_prior(flow, rng):
    """log p of a sample is that of its noise, and the volume's change."""
    prior = build(priors.Flow(f"{flow}:2"), rng, 3)
    draw, again = noise(20), noise(20)
    z = prior.sample(20, draw)
    eps, logdet = prior.flow.forward(z)
    np.testing.assert_allclose(eps.data, again.normal(3), rtol=1e-7, atol=1e-7)
    expected = priors.StandardNormal(3).log_prob(eps).data + logdet.data
    np.testing.assert_allclose(prior.log_prob(z).data, expected, rtol=1e-9)


@learned
def test_a_prior_learns_the_distribution_of_its_data(kind, rng):
    """Two groups, which no Gaussian fits: the mean log-density rises, and the flexible ones win."""
    from tinyvae.optim import Adam

    prior = build(SPECS[kind], rng, size=0.01)
    side = rng.choice([-2.0, 2.0], (400, 1))
    z = np.concatenate([side, side], 1) + 0.3 * rng.normal(size=(400, 2))
    optimizer = Adam(prior.parameters(), learning_rate=0.03)
    before = prior.log_prob(z).data.mean()
    for _ in range(150):
        ops.mean(-prior.log_prob(z)).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = prior.log_prob(z).data.mean()
    assert after > before + 0.5
    sigma = np.sqrt(4.09)
    gaussian = -2 * np.log(sigma * np.sqrt(2 * np.pi)) - 1  # with independent dimensions
    assert (after > gaussian + 0.5) == (kind != "gaussian")


# ------------------------------------------------------------------------------------- spelling
@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("standard", priors.Standard()),
        ("gaussian", priors.Gaussian()),
        ("mixture:7", priors.Mixture(7)),
        ("vamp:components=9", priors.Vamp(9)),
        ("flow:iaf:2:hidden=8", priors.Flow("iaf:2:hidden=8")),
    ],
)
def test_spelling(text, spec):
    assert parse(text, priors.KINDS, "prior") == spec
    assert parse(spell(spec, priors.KINDS), priors.KINDS, "prior") == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixtur:3", "unknown prior 'mixtur': did you mean 'mixture'"),
        ("mixture:0", "prior 'mixture:0': components must be >= 1, got 0"),
        ("vamp:-1", "components must be >= 1, got -1"),
        ("flow:plana:3", "unknown flow 'plana': did you mean 'planar'"),
    ],
)
def test_errors_name_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, priors.KINDS, "prior")


def test_components_are_counted():
    with pytest.raises(TypeError, match=r"components must be a whole number, got 2\.5"):
        priors.Mixture(2.5)


def test_float32_stays_float32(rng):
    for spec in SPECS.values():
        encode = Encoder(2, rng).astype(np.float32)
        prior = spec.build(2, encode=encode, shape=(5,), rng=rng, dtype=np.float32)
        z = prior.sample(5, Draw(5, seed=1))
        assert z.dtype == np.float32
        assert prior.log_prob(z).dtype == np.float32
