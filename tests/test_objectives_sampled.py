"""objectives.py: any prior, flows, many samples, and the importance-weighted bound."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import Tensor, flows, gradcheck, ops, priors
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import IWAE, VAE, Parts
from tinyvae.models.vae import SampledVAE
from tinyvae.objectives import GRADIENTS, iwae, sampled_elbo, samples
from tinyvae.priors import StandardNormal
from tinyvae.spelling import parse
from tinyvae.tensor import no_grad

B, D, Z = 3, 5, 2
PRIORS = ("standard", "gaussian", "mixture:3", "vamp:4", "flow:coupling:2:hidden=3")


def network(rng, *, prior="standard", flow=None, model=VAE(kl="sampled"), size=0.3, **more):  # noqa: B008
    """A tiny model away from its start: every parameter is moved."""
    flow = None if flow is None else parse(flow, flows.KINDS, "flow")
    parts = Parts(
        (D,), Z, Bernoulli(), hidden=(4,), activation="tanh", flow=flow, rng=rng, dtype=np.float64,
        prior=parse(prior, priors.KINDS, "prior"), **more,
    )  # fmt: skip
    net = model.build(parts)
    for tensor in net.parameters():
        tensor.data = tensor.data + size * rng.standard_normal(tensor.shape)
    return net


def bits(rng, n=B):
    return rng.integers(0, 2, (n, D)).astype(float)


def gradient(net, loss):
    """Of all parameters, one long vector; and of the encoder's alone."""
    net.zero_grad()
    loss.backward()
    every = [
        (name, np.zeros(t.shape) if t.grad is None else t.grad)
        for name, t in net.named_parameters()
    ]
    encoder = [g.ravel() for name, g in every if name.startswith("encoder")]
    return np.concatenate([g.ravel() for _, g in every]), np.concatenate(encoder)


# ----------------------------------------------------------------------------------- gradients
PARTS = [
    (prior, flow)
    for prior in PRIORS
    for flow in (None, "planar:2", "iaf:2:hidden=5")
    if not (flow and prior.startswith("vamp"))  # refused
]


@pytest.mark.parametrize(("prior", "flow"), PARTS)
@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_gradient_of_every_parameter(bound, prior, flow, rng):
    net, x, eps = network(rng, prior=prior, flow=flow), bits(rng), rng.normal(size=(B, 3, Z))

    def loss(*_):
        if bound == "iwae":
            return iwae(net, x, net.base(x), eps, beta=0.7, batch=5).loss
        return sampled_elbo(net, x, net.base(x), eps, beta=0.7, batch=5).loss

    assert gradcheck(loss, *net.parameters()) < 1e-6


# --------------------------------------------------------------------------------- sampled ELBO
@pytest.mark.parametrize("prior", ["standard", "gaussian"])
def test_both_forms_of_the_kl_agree_in_expectation(prior, rng):
    net, x = network(rng, prior=prior, size=0.8), bits(rng)
    with no_grad():
        posterior, eps = net.base(x), rng.normal(size=(B, 20_000, Z))
        exact = sampled_elbo(net, x, posterior, eps)
        drawn = sampled_elbo(net, x, posterior, eps, closed=False)
        each = samples(net, x, posterior, eps).log_ratio.data
    np.testing.assert_array_equal(drawn.nll, exact.nll)
    error = each.std(axis=1) / np.sqrt(20_000)
    assert (np.abs(drawn.kl - exact.kl) < 4 * error).all()
    assert (exact.kl > 10 * error).all()


def test_one_sample_and_the_standard_prior_give_the_plain_vae(rng):
    net, x, eps = network(rng), bits(rng), rng.normal(size=(B, 1, Z))
    found = sampled_elbo(net, x, net.base(x), eps, beta=0.3)
    mu, logvar = net.encode(x)
    nll = net.likelihood.nll(net.decode(ops.reparameterize(mu, logvar, eps[:, 0])), x).data
    kl = ops.gaussian_kl(mu, logvar).data
    np.testing.assert_allclose(found.nll, nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-12)
    np.testing.assert_allclose(found.loss.item(), np.mean(nll + 0.3 * kl), rtol=1e-12)


def test_more_samples_are_the_mean_of_single_ones(rng):
    net, x, eps = network(rng, prior="mixture:3"), bits(rng), rng.normal(size=(B, 4, Z))
    whole = sampled_elbo(net, x, net.base(x), eps)
    single = [sampled_elbo(net, x, net.base(x), eps[:, k : k + 1]) for k in range(4)]
    for i in (1, 2, 3):
        np.testing.assert_allclose(whole[i], np.mean([s[i] for s in single], axis=0), rtol=1e-12)


def test_a_flow_at_the_identity_changes_nothing(rng):
    """Reflections that undo each other: the same z, the same density."""
    net, x, eps = network(rng), bits(rng), rng.normal(size=(B, 3, Z))
    plain = sampled_elbo(net, x, net.base(x), eps, closed=False)
    net.flow = flows.Flows(flows.Reverse(), flows.Reverse())
    moved = sampled_elbo(net, x, (*net.encoder(x),), eps)
    np.testing.assert_allclose(moved.elbo, plain.elbo, rtol=1e-12)


@pytest.mark.parametrize("flow", ["planar:3", "coupling:2:hidden=5", "sylvester:2"])
def test_the_density_of_a_flowed_posterior_is_normalized(flow, rng):
    """E_q[p(z) / q(z)] = 1 for any normalized q and p with the same support."""
    net, x = network(rng, flow=flow, size=0.2), bits(rng, 1)
    with no_grad():
        ratio = samples(net, x, net.base(x), rng.normal(size=(1, 40_000, Z))).log_ratio.data
    weights = np.exp(-ratio)
    assert abs(weights.mean() - 1) < 5 * weights.std() / 200
    assert weights.std() < 20  # else the test would say nothing


# ----------------------------------------------------------------------------------------- IWAE
@pytest.mark.parametrize("gradient_of", GRADIENTS)
def test_one_sample_is_the_elbo(gradient_of, rng):
    net, x, eps = network(rng, prior="mixture:3"), bits(rng), rng.normal(size=(B, 1, Z))
    plain = sampled_elbo(net, x, net.base(x), eps)
    found = iwae(net, x, net.base(x), eps, gradient=gradient_of)
    np.testing.assert_allclose(found.elbo, plain.elbo, rtol=1e-12)
    np.testing.assert_allclose(found.loss.item(), plain.loss.item(), rtol=1e-12)
    np.testing.assert_allclose(-(found.nll + found.kl), found.elbo, rtol=1e-12)


def test_the_bound_does_not_fall_in_the_number_of_samples(rng):
    net, x = network(rng, size=0.8), bits(rng)
    with no_grad():
        nll, ratio = samples(net, x, net.base(x), rng.normal(size=(B, 64_000, Z)))
    log_w = -(nll.data + ratio.data)
    means = []
    for K in (1, 2, 8, 64):
        parts = log_w.reshape(B, -1, K)  # the same samples, in groups of K
        means.append(np.logaddexp.reduce(parts, axis=2).mean(axis=1) - np.log(K))
    assert (np.diff(means, axis=0) > 0).all()
    exact = np.logaddexp.reduce(log_w, axis=1) - np.log(64_000)
    assert (means[-1] < exact + 1e-3).all()


def linear_gaussian(rng):
    """p(x | z) = N(W z + b, 0.5), and an encoder that gives the exact posterior's mean.

    It has one variance for all rows: Sigma = (I + W^T W / 0.5)^-1, diagonal as W is orthogonal.
    """
    W = np.linalg.qr(rng.normal(size=(D, Z)))[0] * [1.5, 0.7]
    b, variance = rng.normal(size=D), 0.5
    sigma2 = 1 / (1 + (W**2).sum(axis=0) / variance)
    head = Tensor((W * sigma2 / variance), requires_grad=True)
    logvar = Tensor(np.log(sigma2), requires_grad=True)

    def encoder(x):
        return (x - b) @ head, ops.reshape(logvar, (1, Z)) + np.zeros((len(x), Z))

    net = SampledVAE(
        encoder, lambda z: z @ W.T + b, Z, likelihood=Gaussian(variance=variance),
        prior=StandardNormal(Z),
    )  # fmt: skip
    x = rng.normal(size=(B, D))
    covariance = W @ W.T + variance * np.eye(D)
    away = x - b
    log_p = -0.5 * (
        np.einsum("bi,ij,bj->b", away, np.linalg.inv(covariance), away)
        + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )
    return net, x, log_p, (head, logvar)


@pytest.mark.parametrize("gradient_of", GRADIENTS)
def test_with_the_exact_posterior_the_bound_is_log_p(gradient_of, rng):
    """All weights are equal then, whatever z; and stl and dreg have no variance: they are zero."""
    net, x, log_p, parameters = linear_gaussian(rng)
    found = iwae(net, x, net.base(x), rng.normal(size=(B, 7, Z)), gradient=gradient_of)
    np.testing.assert_allclose(found.elbo, log_p, rtol=1e-10)
    found.loss.backward()
    sizes = [np.abs(t.grad).max() for t in parameters]
    assert max(sizes) > 1e-3 if gradient_of == "iwae" else max(sizes) < 1e-12


def gradients(net, x, K, gradient_of, rng, draws):
    """The encoder's gradient, from fresh noise each time: (draws, parameters)."""
    found = []
    for _ in range(draws):
        eps = rng.normal(size=(len(x), K, Z))
        loss = iwae(net, x, net.base(x), eps, gradient=gradient_of).loss
        found.append(gradient(net, loss)[1])
    return np.stack(found)


def agree(one, other):
    """Whether two means are apart by no more than chance explains; z-scores of every parameter."""
    error = np.sqrt(one.var(axis=0) / len(one) + other.var(axis=0) / len(other))
    z = (one.mean(axis=0) - other.mean(axis=0)) / np.maximum(error, 1e-15)
    return np.sqrt(np.mean(z**2)) < 1.5


@pytest.mark.parametrize(("K", "gradient_of"), [(1, "stl"), (1, "dreg"), (4, "dreg")])
def test_gradients_agree_in_expectation(K, gradient_of, rng):
    net, x = network(rng, size=0.8), np.repeat(bits(rng, 1), 200, axis=0)  # 200 draws at once
    plain = gradients(net, x, K, "iwae", rng, 60)
    other = gradients(net, x, K, gradient_of, rng, 60)
    assert agree(plain, other)
    assert not agree(plain, 1.1 * other)  # the test can tell


def test_near_the_exact_posterior_dreg_has_less_variance(rng):
    net, x, _, parameters = linear_gaussian(rng)
    for tensor in parameters:
        tensor.data = tensor.data + 0.05 * rng.normal(size=tensor.shape)
    spread = {}
    for gradient_of in ("iwae", "dreg"):
        found = []
        for _ in range(200):
            for tensor in parameters:
                tensor.grad = None
            eps = rng.normal(size=(B, 16, Z))
            iwae(net, x, net.base(x), eps, gradient=gradient_of).loss.backward()
            found.append(np.concatenate([tensor.grad.ravel() for tensor in parameters]))
        spread[gradient_of] = np.var(found, axis=0).sum()
    assert spread["dreg"] < 0.1 * spread["iwae"]


def test_the_decoder_and_the_prior_get_the_gradient_of_the_bound_from_all(rng):
    net, x, eps = network(rng, prior="mixture:3"), bits(rng), rng.normal(size=(B, 6, Z))
    found = []
    for gradient_of in GRADIENTS:
        net.zero_grad()
        iwae(net, x, net.base(x), eps, gradient=gradient_of).loss.backward()
        found.append({n: t.grad for n, t in net.named_parameters() if "encoder" not in n})
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-10, err_msg=name)
    assert any("prior" in name for name in found[0])


def test_dreg_is_its_formula(rng):
    """sum_k w~_k^2 dlog w_k/dz dz/dphi, with dlog w/dz taken at z as a leaf."""
    net, x, eps = network(rng), bits(rng), rng.normal(size=(B, 6, Z))
    _, found = gradient(net, iwae(net, x, net.base(x), eps, gradient="dreg").loss)
    mu, logvar = net.base(x)
    q = [Tensor(np.repeat(t.data, 6, axis=0)) for t in (mu, logvar)]
    z = Tensor(q[0].data + np.exp(q[1].data / 2) * eps.reshape(-1, Z), requires_grad=True)
    nll = net.likelihood.nll(net.decode(z), np.repeat(x, 6, axis=0))
    away = (z - q[0]) * ops.exp(q[1] * -0.5)
    log_q = -0.5 * ops.sum(away * away + q[1] + np.log(2 * np.pi), axis=1)
    log_w = net.prior.log_prob(z) - nll - log_q
    w = np.exp(log_w.data.reshape(B, 6))
    w /= w.sum(axis=1, keepdims=True)
    log_w.backward(np.ones(B * 6))
    push = (w.reshape(-1, 1) ** 2 * z.grad).reshape(B, 6, Z)
    path = ops.reshape(mu, (B, 1, Z)) + ops.exp(ops.reshape(logvar, (B, 1, Z)) * 0.5) * eps
    _, expected = gradient(net, ops.sum(path * push) * (-1 / B))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


def test_unknown_gradients_get_the_nearest(rng):
    net, x = network(rng), bits(rng)
    with pytest.raises(ValueError, match="unknown gradient 'drag': did you mean 'dreg'"):
        iwae(net, x, net.base(x), rng.normal(size=(B, 2, Z)), gradient="drag")
    with pytest.raises(ValueError, match="unknown gradient 'drag': did you mean 'dreg'"):
        IWAE(gradient="drag")
