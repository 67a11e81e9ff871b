"""objectives.py: the loss of a step is the formula of the paper, and its gradient is right."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import gradcheck, ops
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import vae
from tinyvae.objectives import elbo

LIKELIHOODS = [Bernoulli(), Gaussian(variance=0.5), Gaussian("learned")]


def network(likelihood, shape=(5,), architecture="mlp", **options):
    options = {"hidden": (4,), "channels": (2,), "activation": "tanh"} | options
    return vae.build(
        architecture, shape, 2, likelihood=likelihood, seed=0, dtype=np.float64, **options
    )


def batch(likelihood, rng, shape=(5,)):
    x = rng.normal(size=(3, *shape)) if isinstance(likelihood, Gaussian) else None
    return rng.integers(0, 2, (3, *shape)).astype(float) if x is None else x


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_loss_is_minus_the_mean_of_the_bound(likelihood, rng):
    net, x, eps = network(likelihood), batch(likelihood, rng), rng.normal(size=(3, 2))
    mu, logvar = net.encode(x)
    nll = likelihood.nll(net.decode(ops.reparameterize(mu, logvar, eps)), x).data
    kl = ops.gaussian_kl(mu, logvar).data
    found = elbo(net, x, eps, likelihood=likelihood, beta=0.3)
    np.testing.assert_allclose(found.loss.item(), np.mean(nll + 0.3 * kl), rtol=1e-12)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-12)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-12)
    assert found.loss.shape == ()


@pytest.mark.parametrize("free_bits", [0.0, 0.02])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize(("architecture", "shape"), [("mlp", (5,)), ("conv", (5, 4, 1))])
def test_gradient_of_every_parameter(likelihood, architecture, shape, free_bits, rng):
    net = network(likelihood, shape, architecture)
    x, eps = batch(likelihood, rng, shape), rng.normal(size=(3, 2))

    def loss(*parameters):
        weights = {"beta": 1.5, "free_bits": free_bits}
        return elbo(net, x, eps, likelihood=likelihood, **weights).loss

    assert gradcheck(loss, *net.parameters()) < 1e-6


def test_free_bits_count_for_every_row_and_dimension(rng):
    likelihood, eps = Bernoulli(), rng.normal(size=(3, 2))
    net, x = network(likelihood), batch(likelihood, rng)
    kl = elbo(net, x, eps, likelihood=likelihood).kl
    assert (kl < 4).all()  # so 2 nats for each of 2 dimensions are more than there are
    found = elbo(net, x, eps, likelihood=likelihood, free_bits=2.0, beta=0.5)
    np.testing.assert_allclose(found.loss.item(), found.nll.mean() + 0.5 * 4, rtol=1e-12)
    found.loss.backward()
    np.testing.assert_array_equal(found.kl, kl)


def test_the_bound_is_below_the_log_likelihood_in_the_mean(rng):
    """E[elbo] <= log p(x): here with p(x) in closed form, a decoder that ignores z."""
    likelihood = Gaussian(variance=1.0)
    net = network(likelihood, hidden=())
    decoder = net.decoder.layers[0]
    decoder.weight.data[:] = 0
    x = batch(likelihood, rng)
    exact = -likelihood.nll(np.broadcast_to(decoder.bias.data, x.shape), x).data
    found = elbo(net, x, rng.normal(size=(3, 2)), likelihood=likelihood)
    np.testing.assert_allclose(-found.nll, exact, rtol=1e-12)
    assert (found.kl > 0).all()
    assert -found.loss.item() < exact.mean()
