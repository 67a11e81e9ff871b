"""objectives.py: the loss of a step is the formula of the paper, and its gradient is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from tinyvae import gradcheck, ops, spelling
from tinyvae.batches import Batch
from tinyvae.likelihoods import Bernoulli, Gaussian
from tinyvae.models import vae
from tinyvae.objectives import (
    ESTIMATORS,
    FREE_BITS,
    Group,
    Total,
    Towards,
    aggregate_log_weights,
    elbo,
    free_bits,
    gaussian_log_prob,
    kl_terms,
    weighed,
    weighted,
)
from tinyvae.ops.noise import Draw
from tinyvae.tensor import Tensor

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


# ------------------------------------------------------------------------------ total correlation
N, Z = 7, 3


def posteriors(rng, rows=N):
    """mu, logvar, and a sample z of each row."""
    mu, logvar = rng.normal(size=(rows, Z)), 0.5 * rng.normal(size=(rows, Z)) - 1
    return mu, logvar, mu + np.exp(logvar / 2) * rng.normal(size=(rows, Z))


def by_hand(z, mu, logvar):
    """log q(z | x), log q(z) and sum_j log q(z_j) with q(z) the mean of all posteriors, (N,)."""
    each = norm.logpdf(z[:, None], mu, np.exp(logvar / 2))  # (N, N, Z)
    joint = np.log(np.exp(each.sum(axis=2)).mean(axis=1))
    return each.sum(axis=2).diagonal(), joint, np.log(np.exp(each).mean(axis=1)).sum(axis=1)


def terms_of(z, mu, logvar, log_weights, **more):
    log_p = norm.logpdf(z).sum(axis=1)
    found = kl_terms(z, mu, logvar, log_p=log_p, log_weights=log_weights, **more)
    return [term.data for term in found]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("total", [N, 60_000])
def test_three_terms_sum_to_the_sampled_kl(estimator, total, rng):
    mu, logvar, z = posteriors(rng)
    weights = aggregate_log_weights(N, total, estimator)
    log_ratio = norm.logpdf(z, mu, np.exp(logvar / 2)) - norm.logpdf(z)
    found = terms_of(z, mu, logvar, weights)
    np.testing.assert_allclose(sum(found), log_ratio.sum(axis=1), rtol=1e-11)


def test_stratified_weights_of_all_rows_give_the_aggregate_posterior(rng):
    mu, logvar, z = posteriors(rng)
    own, joint, each = by_hand(z, mu, logvar)
    expected = own - joint, joint - each, each - norm.logpdf(z).sum(axis=1)
    weights = aggregate_log_weights(N, N, "mss")
    np.testing.assert_allclose(terms_of(z, mu, logvar, weights), expected, rtol=1e-10)
    some = terms_of(z[:2], mu[:2], logvar[:2], np.full(N, -np.log(N)), among=(mu, logvar))
    np.testing.assert_allclose(some, [term[:2] for term in expected], rtol=1e-10)


def test_minibatch_weights_carry_the_constant_log_of_n_times_m(rng):
    """Libraries leave out N, M or both; the parts then do not mean what they are called."""
    mu, logvar, z = posteriors(rng)
    own, joint, each = by_hand(z, mu, logvar)
    np.testing.assert_allclose(aggregate_log_weights(4, 90, "mws"), -np.log(90 * 4))
    found = terms_of(z, mu, logvar, aggregate_log_weights(N, N, "mws"))
    low = np.log(N)
    expected = (
        own - joint + low, joint - each + (Z - 1) * low,
        each - norm.logpdf(z).sum(axis=1) - Z * low,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_stratified_estimate_of_q_is_unbiased(size, rng):
    """The mean over all batches that hold the row is q(z), for the joint and for the marginals."""
    mu, logvar, z = posteriors(rng)
    _, joint, _ = by_hand(z, mu, logvar)
    weights, found = aggregate_log_weights(size, N, "mss"), []
    for others in itertools.combinations(range(1, N), size - 1):
        batch = [0, *others]
        log_q = ops.mixture_log_prob(z[batch], weights, mu[batch], logvar[batch])
        found.append(np.exp(log_q.data[0]))
    np.testing.assert_allclose(np.mean(found), np.exp(joint[0]), rtol=1e-12)


def test_stratified_weights_are_the_papers_in_the_mean_over_orders():
    """Chen et al. 2018, appendix C.2: 1/N, then M - 1 times 1/M, then (N - M) / (N M)."""
    B, total = 5, 40
    M = B - 1
    paper = [1 / M] * (M - 1) + [(total - M) / (total * M)]
    weights = np.exp(aggregate_log_weights(B, total, "mss"))
    np.testing.assert_allclose(weights.diagonal(), 1 / total, rtol=1e-12)
    np.testing.assert_allclose(weights[0, 1:], np.mean(paper), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


def test_a_grid_of_posteriors_has_no_total_correlation(rng):
    mu = np.array(list(itertools.product([-1.0, 0.5], [0.0, 2.0, 3.0], [1.0])))
    logvar = np.full(mu.shape, -1.0)
    z = mu + 0.6 * rng.normal(size=mu.shape)
    mi, tc, _ = terms_of(z, mu, logvar, aggregate_log_weights(6, 6))
    np.testing.assert_allclose(tc, 0, atol=1e-12)
    assert mi.mean() < np.log(6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_the_kl_terms(estimator, rng):
    weights = aggregate_log_weights(N, 50, estimator)
    for name in ("mi", "tc", "dwkl"):

        def term(z, mu, logvar, name=name):
            log_p = -0.5 * ops.sum(z * z, axis=1)
            found = kl_terms(z, mu, logvar, log_p=log_p, log_weights=weights)
            return getattr(found, name)

        mu, logvar, z = posteriors(rng)
        assert gradcheck(term, z, mu, logvar) < 1e-6


def test_a_batch_of_one_row_has_finite_weights():
    np.testing.assert_allclose(aggregate_log_weights(1, 1, "mss"), 0)
    np.testing.assert_allclose(aggregate_log_weights(1, 9, "mss"), -np.log(9))


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match="unknown estimator 'msw': did you mean 'm"):
        aggregate_log_weights(3, 5, "msw")
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be from a data set of 5"):
        aggregate_log_weights(6, 5)


# --------------------------------------------------------------------- what the KL is pressed with
def pressed(cost, rng, likelihood=LIKELIHOODS[0]):
    """A network with that cost, three rows, and their KL by hand, (B, Z)."""
    plain, x = network(likelihood), batch(likelihood, rng)
    net = vae.VAENetwork(plain.encoder, plain.decoder, 2, likelihood=likelihood, free_bits=cost)
    mu, logvar = (t.data for t in net.encode(x))
    return net, Batch(x), 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)


def loss_of(net, rows, beta=1.0):
    return net.loss(rows, Draw(3, seed=0, dtype=np.float64), beta=beta, rows=3)


COSTS = [
    Group(0.001), Group(0.02, 2), Total(0.03), Group(5.0), Total(5.0), Towards(7.0), Towards(0.5),
]  # fmt: skip


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("cost", COSTS, ids=repr)
@pytest.mark.parametrize("beta", [0.004, 1.5])
def test_gradient_of_every_cost(cost, likelihood, beta, rng):
    net, rows, _ = pressed(cost, rng, likelihood)
    assert gradcheck(lambda *_: loss_of(net, rows, beta).loss, *net.parameters()) < 1e-6


def test_costs_are_those_of_the_papers(rng):
    net, rows, kl = pressed(Group(0.0), rng)
    nll = loss_of(net, rows).nll.mean()
    mean = kl.mean(axis=0)
    floor = mean.mean()  # above one of the two dimensions, below the other
    for cost, beta, expected in (
        (Group(0.0), 0.3, 0.3 * mean.sum()),
        (Group(floor), 0.3, 0.3 * np.maximum(mean, floor).sum()),
        (Group(0.1, 2), 0.3, 0.3 * max(mean.sum(), 0.1)),
        (Group(0.1, 9), 0.3, 0.3 * max(mean.sum(), 0.1)),
        (Total(0.1), 0.3, 0.3 * max(mean.sum(), 0.1)),
        (Towards(20.0), 0.5, 20 * abs(mean.sum() - 0.5)),
        (Towards(20.0), 0.0, 20 * mean.sum()),
    ):
        net.free_bits = cost
        found = loss_of(net, rows, beta)
        np.testing.assert_allclose(found.loss.item(), nll + expected, rtol=1e-12)
        np.testing.assert_allclose(found.loss.item(), -found.elbo.mean(), rtol=1e-12)
        np.testing.assert_allclose(found.kl, kl.sum(axis=1), rtol=1e-12)
        terms = net.evaluation(rows, Draw(3, seed=0, dtype=np.float64))
        np.testing.assert_allclose(terms.elbo, -(terms.nll + kl.sum(axis=1)), rtol=1e-12)


@pytest.mark.parametrize("cost", [Group(9.0), Group(9.0, 2), Total(9.0)], ids=repr)
def test_below_the_floor_the_kl_has_no_gradient(cost, rng):
    """The gradient is that of the reconstruction alone, exactly; above, the KL's comes to it."""
    net, rows, _ = pressed(cost, rng)

    def gradients(beta):
        net.zero_grad()
        loss_of(net, rows, beta).loss.backward()
        return [tensor.grad.copy() for tensor in net.parameters()]

    for one, other in zip(gradients(1.0), gradients(0.0), strict=True):
        np.testing.assert_array_equal(one, other)
    net.free_bits = Total(0.0)
    assert any((a != b).any() for a, b in zip(gradients(1.0), gradients(0.0), strict=True))


def test_without_a_floor_it_is_the_elbo(rng):
    net, rows, _ = pressed(Group(0.0), rng)
    eps = Draw(3, seed=0, dtype=np.float64).normal(2)
    expected = elbo(net, rows.x, eps, likelihood=net.likelihood, beta=0.7)
    np.testing.assert_allclose(
        loss_of(net, rows, 0.7).loss.item(), expected.loss.item(), rtol=1e-12
    )


def test_free_bits_as_text():
    assert free_bits("0.5") == free_bits(0.5) == 0.5
    assert free_bits("group:0.5:4") == Group(0.5, 4)
    assert free_bits("total:8") == Total(8.0)
    assert spelling.spell(Total(8.0), FREE_BITS) == "total:8.0"
    for text, message in (
        ("-1", "free_bits must be finite and >= 0, got '-1'"),
        ("nan", "free_bits must be finite and >= 0"),
        ("grup:1", "unknown free_bits 'grup': did you mean 'group'"),
        ("group:-1", "nats must be >= 0 and size >= 1"),
        ("group:1:0", "nats must be >= 0 and size >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            free_bits(text)


# ------------------------------------------------------------------------------ terms and weights
def test_a_loss_is_put_together_from_its_terms(rng):
    nll, kl = (Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
    found = weighted(nll, kl, beta=0.5, batch=6)
    assert found.loss.item() == pytest.approx((nll.data + 0.5 * kl.data).sum() / 6)
    np.testing.assert_array_equal(found.elbo, -(nll.data + 0.5 * kl.data))
    assert (found.nll == nll.data).all()
    assert (found.kl == kl.data).all()


@pytest.mark.parametrize("learned", [False, True])
def test_what_a_sample_weighs(learned, rng):
    mu, logvar, eps, mu_p, logvar_p = rng.standard_normal((5, 4, 3))
    prior = (mu_p, logvar_p) if learned else None
    z, log_ratio = weighed(mu, logvar, eps, prior)
    np.testing.assert_allclose(z, mu + np.exp(logvar / 2) * eps)
    log_p = gaussian_log_prob(Tensor(z), *(prior or (np.zeros_like(z), np.zeros_like(z))))
    expected = (log_p - gaussian_log_prob(Tensor(z), mu, logvar)).data
    np.testing.assert_allclose(log_ratio, expected, rtol=1e-10)
    assert weighed(*(a.astype(np.float32) for a in (mu, logvar, eps)))[0].dtype == np.float32
