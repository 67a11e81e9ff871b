"""estimators.py: every estimator's mean is the gradient of the enumerated bound.

The toy model: 3 bits (or 2 variables of 3 classes), a linear encoder and a linear decoder of 4
bits, a learned prior.  Its ELBO is a sum over 8 (9) states, whose gradient the engine knows; an
estimator's mean is the same sum over the states that it may draw, weighted by their probability.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyvae import Tensor, estimators, gradcheck, nn, ops
from tinyvae.estimators import (
    Baseline,
    bernoulli_kl,
    bernoulli_log_prob,
    categorical_kl,
    categorical_log_prob,
    enumerate_bits,
    enumerate_classes,
    expectation,
    gumbel_softmax,
    score_function,
    vimco,
)

X = np.array([1.0, 0.0, 0.0, 1.0])


class Bits:
    """p(z) p(x | z) and q(z | x) over 3 bits."""

    states = enumerate_bits(3, np.float64)
    log_prob = staticmethod(bernoulli_log_prob)
    sample = staticmethod(estimators.sample_bits)
    shape: tuple = (3,)

    def __init__(self, seed=0):
        rng, size = np.random.default_rng(seed), math.prod(self.shape)
        self.encoder, self.decoder, self.prior = (
            Tensor(rng.normal(size=s), True) for s in ((4, size), (size, 4), self.shape)
        )
        self.parameters = [self.encoder, self.decoder, self.prior]

    def log_q(self, z):
        logits = ops.reshape(X[None] @ self.encoder, self.shape)
        return self.log_prob(logits, z)

    def log_p(self, z):
        output = ops.reshape(z, (-1, math.prod(self.shape))) @ self.decoder
        nll = ops.sum(ops.softplus(output) - output * X, axis=-1)
        return self.log_prob(self.prior, z) - ops.reshape(nll, z.shape[: -len(self.shape)])

    def gradient(self, loss):
        """Of a scalar, with respect to all parameters, as one vector."""
        for tensor in self.parameters:
            tensor.grad = None
        loss.backward()
        grads = [np.zeros(t.shape) if t.grad is None else t.grad for t in self.parameters]
        return np.concatenate([grad.ravel() for grad in grads])

    def exact(self):
        """The gradient of the ELBO, summed over all states."""
        log_q = self.log_q(self.states)
        return self.gradient(ops.sum(ops.exp(log_q) * (self.log_p(self.states) - log_q)))


class Classes(Bits):
    states = enumerate_classes(2, 3, np.float64)
    log_prob = staticmethod(categorical_log_prob)
    sample = staticmethod(estimators.sample_classes)
    shape = (2, 3)


TOYS = [Bits, Classes]


def f_of(toy, z):
    return (toy.log_p(z).data) - toy.log_q(z).data


def f_tensor(toy, z):
    """log p(x, z) - log q(z | x), without log q's own gradient."""
    return toy.log_p(z) - toy.log_q(z).detach()


def vimco_of(toy, z):
    log_q = toy.log_q(z)
    return vimco(toy.log_p(z) - log_q, log_q)


# ---------------------------------------------------------------------------- exact expectations
BASELINES = [0.0, -3.7, Tensor(np.array(1.5))]


@pytest.mark.parametrize("baseline", BASELINES, ids=str)
@pytest.mark.parametrize("Toy", TOYS)
def test_the_score_function_is_right_in_expectation_whatever_the_baseline(Toy, baseline):
    toy = Toy()
    log_q = toy.log_q(toy.states)
    estimate = score_function(f_tensor(toy, toy.states), log_q, baseline)
    np.testing.assert_array_equal(estimate.data, f_of(toy, toy.states))
    mean = toy.gradient(ops.sum(estimate * np.exp(log_q.data)))
    np.testing.assert_allclose(mean, toy.exact(), rtol=1e-10, atol=1e-12)


def test_with_the_gradient_of_minus_log_q_it_is_right_too():
    toy = Bits()
    log_q = toy.log_q(toy.states)
    estimate = score_function(toy.log_p(toy.states) - log_q, log_q)
    mean = toy.gradient(ops.sum(estimate * np.exp(log_q.data)))
    np.testing.assert_allclose(mean, toy.exact(), rtol=1e-10, atol=1e-12)


def test_a_baseline_that_has_seen_the_sample_would_bias_it():
    """The check above can fail: f itself as the baseline leaves the encoder without gradient."""
    toy = Bits()
    log_q = toy.log_q(toy.states)
    estimate = score_function(f_tensor(toy, toy.states), log_q, 0.5 * f_of(toy, toy.states))
    mean = toy.gradient(ops.sum(estimate * np.exp(log_q.data)))
    assert np.abs(mean - toy.exact()).max() > 0.1


def tuples(toy, K):
    """All K samples that can be drawn: z (S^K, K, ...) and their probabilities."""
    S = len(toy.states)
    index = np.stack(np.meshgrid(*[np.arange(S)] * K, indexing="ij"), axis=-1).reshape(-1, K)
    z = toy.states[index]
    return z, np.exp(toy.log_q(z).data.sum(axis=1))


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("Toy", TOYS)
def test_vimco_is_right_in_expectation(Toy, K):
    """The bound of K samples is a sum over all S^K of them."""
    toy = Toy()
    z, weights = tuples(toy, K)
    np.testing.assert_allclose(weights.sum(), 1)
    log_q = toy.log_q(z)
    bound = ops.log_mean_exp(toy.log_p(z) - log_q)
    exact = toy.gradient(ops.sum(ops.exp(ops.sum(log_q, axis=1)) * bound))
    estimate = vimco_of(toy, z)
    np.testing.assert_allclose(estimate.data, bound.data, rtol=1e-12)
    mean = toy.gradient(ops.sum(estimate * weights))
    np.testing.assert_allclose(mean, exact, rtol=1e-10, atol=1e-12)


def test_vimco_needs_the_gradient_of_the_weights_whole():
    """Unlike the ELBO's, -grad log q has no mean of zero under the weights."""
    toy = Bits()
    z, weights = tuples(toy, 2)
    exact = toy.gradient(ops.sum(vimco_of(toy, z) * weights))
    log_q = toy.log_q(z)
    wrong = toy.gradient(ops.sum(vimco(toy.log_p(z) - log_q.detach(), log_q) * weights))
    assert np.abs(wrong - exact).max() > 1e-2


def test_leave_one_out_is_the_bound_with_the_others_mean(rng):
    log_w = rng.normal(size=(5, 4))
    found = estimators.leave_one_out(log_w)
    for k in range(4):
        swapped = log_w.copy()
        swapped[:, k] = np.delete(log_w, k, axis=1).mean(axis=1)
        np.testing.assert_allclose(found[:, k], np.log(np.exp(swapped).mean(axis=1)), rtol=1e-12)


def test_more_samples_give_a_higher_bound():
    """E[L_1] <= E[L_2] <= E[L_3] <= log p(x), each by enumeration."""
    toy = Bits()
    means = [f_of(toy, toy.states) @ np.exp(toy.log_q(toy.states).data)]
    for K in (2, 3):
        z, weights = tuples(toy, K)
        means.append(float(vimco_of(toy, z).data @ weights))
    log_p = np.log(np.exp(toy.log_p(toy.states).data).sum())
    assert means[0] < means[1] < means[2] < log_p


# ----------------------------------------------------------------------------------- many draws
ROWS, BATCHES = 200, 200


def drawn(toy, estimate, K=None):
    """Mean and standard error of an estimator's gradient over many batches of fresh samples."""
    rng, found = np.random.default_rng(1), []
    for _ in range(BATCHES):
        lead = (ROWS,) if K is None else (ROWS, K)
        logits = ops.reshape(X[None] @ toy.encoder, toy.shape)
        u = rng.random((*lead, *toy.shape))
        z = toy.sample(logits, u)
        found.append(toy.gradient(ops.sum(estimate(toy, z)) * (1 / ROWS)))
    found = np.array(found)
    return found.mean(axis=0), found.std(axis=0, ddof=1) / math.sqrt(BATCHES)


def running_mean():
    """The baseline as training has it: compared first, updated then."""
    baseline = Baseline(dtype=np.float64)

    def estimate(toy, z):
        out = score_function(f_tensor(toy, z), toy.log_q(z), baseline(X[None]))
        baseline.update(out.data)
        return out

    return estimate


def nvil():
    network = nn.Linear(4, 1, rng=np.random.default_rng(2), dtype=np.float64)
    baseline = Baseline(network, dtype=np.float64)

    def estimate(toy, z):
        b = baseline(np.broadcast_to(X, (len(z), 4)))
        return score_function(f_tensor(toy, z), toy.log_q(z), b)

    return estimate


def plain(toy, z):
    return score_function(f_tensor(toy, z), toy.log_q(z))


@pytest.mark.parametrize("Toy", TOYS)
@pytest.mark.parametrize("make", [lambda: plain, running_mean, nvil], ids=["none", "mean", "nvil"])
def test_means_of_many_draws_agree_with_the_exact_gradient(Toy, make):
    toy = Toy()
    mean, error = drawn(toy, make())
    gap = np.abs(mean - toy.exact())
    assert (gap <= 4.5 * error + 1e-12).all()
    assert error.max() < 0.1  # so that the bound means something


def test_vimco_agrees_in_many_draws():
    toy = Bits()
    z, weights = tuples(toy, 3)
    exact = toy.gradient(ops.sum(vimco_of(toy, z) * weights))
    mean, error = drawn(toy, vimco_of, K=3)
    assert (np.abs(mean - exact) <= 4.5 * error + 1e-12).all()
    assert error.max() < 0.05


def test_a_baseline_lowers_the_variance():
    toy = Bits()
    _, without = drawn(toy, plain)
    _, with_mean = drawn(toy, running_mean())
    assert (with_mean**2).sum() < 0.5 * (without**2).sum()


@pytest.mark.parametrize("Toy", TOYS)
def test_samples_have_the_probabilities_of_their_logits(Toy, rng):
    toy = Toy()
    logits = ops.reshape(X[None] @ toy.encoder, toy.shape)
    z = toy.sample(logits, rng.random((40_000, *toy.shape)))
    assert set(np.unique(z)) == {0.0, 1.0}
    p = np.exp(toy.log_q(toy.states).data)
    counts = np.array([(z == state).reshape(len(z), -1).all(axis=1).sum() for state in toy.states])
    assert (np.abs(counts / len(z) - p) <= 4.5 * np.sqrt(p / len(z))).all()


# --------------------------------------------------------------------------------------- Gumbel
def logistic_grid(n):
    """Uniforms (n, 2) whose Gumbel difference runs over a Logistic's quantiles.

    Two classes see only the difference of their noise; so a grid replaces random draws.
    """
    u = (np.arange(n) + 0.5) / n
    difference = np.log(u) - np.log1p(-u)
    noise = np.stack([np.maximum(difference, 0), np.maximum(-difference, 0)], axis=1)
    return np.exp(-np.exp(-noise))


def gumbel_error(temperature, hard=False):
    """|mean of the relaxed gradient - exact gradient| for E[f(z)], f curved, z of two classes."""
    logits = np.array([0.3, -0.4])
    target = np.array([0.9, -0.7])

    def f(z):
        return ops.sum((z - target) ** 2 + ops.exp(z * target), axis=-1)

    exact = Tensor(logits.copy(), True)
    ops.sum(ops.exp(ops.log_softmax(exact)) * f(np.eye(2)).data).backward()
    relaxed = Tensor(logits.copy(), True)
    u = logistic_grid(100_000)
    z = gumbel_softmax(relaxed + np.zeros((len(u), 1)), u, temperature=temperature, hard=hard)
    ops.mean(f(z)).backward()
    return float(np.abs(relaxed.grad - exact.grad).max())


def test_gumbel_softmax_converges_to_the_exact_gradient_as_the_temperature_falls():
    errors = [gumbel_error(t) for t in (1.0, 0.5, 0.1, 0.02, 0.01)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 0.0025
    np.testing.assert_allclose(errors[-2], 2 * errors[-1], rtol=0.02)  # in proportion


def test_straight_through_stays_biased_at_any_temperature():
    assert gumbel_error(0.02, hard=True) > 0.02
    assert gumbel_error(0.01, hard=True) > 0.02


def test_many_draws_of_gumbel_softmax_agree_at_a_low_temperature(rng):
    logits, f = Tensor(np.array([0.5, -0.2, 0.1]), True), np.array([1.0, -2.0, 0.5])
    exact = Tensor(logits.data.copy(), True)
    ops.sum(ops.exp(ops.log_softmax(exact)) * f).backward()
    found = []
    for _ in range(200):
        logits.grad, u = None, rng.random((500, 3))
        z = gumbel_softmax(logits + np.zeros((500, 1)), u, temperature=0.1)
        ops.mean(ops.sum(z * f, axis=-1)).backward()
        found.append(logits.grad)
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(mean - exact.grad) <= 4.5 * error + 0.01).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_straight_through_is_one_hot_forward_and_soft_backward(dtype, rng):
    logits = rng.normal(size=(50, 4, 3)).astype(dtype)
    u = rng.uniform(0.01, 0.99, size=logits.shape).astype(dtype)
    soft_in, hard_in = Tensor(logits, True), Tensor(logits, True)
    soft = gumbel_softmax(soft_in, u, temperature=0.7)
    hard = gumbel_softmax(hard_in, u, temperature=0.7, hard=True)
    assert hard.dtype == soft.dtype == dtype
    assert set(np.unique(hard.data)) == {0.0, 1.0}  # not 0.99999994: exactly
    np.testing.assert_array_equal(hard.data.sum(axis=-1), 1)
    np.testing.assert_array_equal(hard.data.argmax(-1), soft.data.argmax(-1))
    np.testing.assert_array_equal(hard.data, estimators.sample_classes(logits, u))
    np.testing.assert_allclose(soft.data.sum(axis=-1), 1, rtol=1e-5)
    dout = rng.normal(size=logits.shape).astype(dtype)
    soft.backward(dout)
    hard.backward(dout)
    np.testing.assert_array_equal(hard_in.grad, soft_in.grad)


def test_gradient_of_gumbel_softmax(rng):
    u = rng.uniform(0.05, 0.95, size=(3, 2, 4))
    relax = lambda logits: gumbel_softmax(logits, u, temperature=0.8)  # noqa: E731
    assert gradcheck(relax, rng.normal(size=(3, 2, 4))) < 1e-6


def test_the_temperature_must_be_positive():
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive"):
            gumbel_softmax(np.zeros((1, 2)), np.full((1, 2), 0.5), temperature=wrong)


# --------------------------------------------------------------------- log-probabilities and KL
def test_log_probs_sum_to_one_and_are_differentiable(rng):
    bits, classes = rng.normal(size=(3,)) * 3, rng.normal(size=(2, 3)) * 3
    for log_prob, logits, z in (
        (bernoulli_log_prob, bits, Bits.states),
        (categorical_log_prob, classes, Classes.states),
    ):
        assert math.isclose(np.exp(log_prob(logits, z).data).sum(), 1, rel_tol=1e-12)
        assert gradcheck(lambda t, f=log_prob, z=z: f(t, z), logits) < 1e-6


def test_log_prob_agrees_with_the_likelihood_kernels(rng):
    logits, z = rng.normal(size=(5, 3)), rng.integers(0, 2, (5, 3)).astype(float)
    expected = -ops.bernoulli_nll(logits, z).data
    np.testing.assert_allclose(bernoulli_log_prob(logits, z).data, expected, rtol=1e-12)
    logits, codes = rng.normal(size=(5, 2, 4)), rng.integers(0, 4, (5, 2))
    z = estimators.one_hot(codes, 4, like=logits)
    expected = -ops.categorical_nll(logits, codes).data
    np.testing.assert_allclose(categorical_log_prob(logits, z).data, expected, rtol=1e-12)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("Toy", TOYS)
def test_kl_is_the_sum_over_all_states(Toy, prior, rng):
    toy, kl = Toy(), bernoulli_kl if Toy is Bits else categorical_kl
    logits, prior_logits = rng.normal(size=toy.shape), np.zeros(toy.shape)
    if prior:
        prior_logits = rng.normal(size=toy.shape)
    log_q, log_p = (toy.log_prob(l, toy.states).data for l in (logits, prior_logits))  # noqa: E741
    given = (prior_logits,) if prior else ()
    found = kl(Tensor(logits), *given)
    assert found.shape == toy.shape[:1]
    np.testing.assert_allclose(found.data.sum(), np.exp(log_q) @ (log_q - log_p), rtol=1e-10)
    assert gradcheck(lambda *tensors: kl(*tensors), logits, *given) < 1e-6


def test_kl_to_itself_is_zero_and_of_a_sure_code_log_c():
    logits = np.array([[[0.3, -1.0, 2.0]]])
    np.testing.assert_allclose(categorical_kl(Tensor(logits), logits).data, 0, atol=1e-15)
    sure = Tensor(np.array([[[60.0, 0.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(categorical_kl(sure).data, math.log(4), rtol=1e-12)
    np.testing.assert_allclose(bernoulli_kl(Tensor(np.array([60.0]))).data, math.log(2), rtol=1e-12)


def test_one_class_carries_nothing(rng):
    """C = 1: log q = 0, KL = 0, and the sample is always that class."""
    logits = rng.normal(size=(4, 2, 1))
    assert not categorical_kl(Tensor(logits)).data.any()
    assert (estimators.sample_classes(logits, rng.random((4, 2, 1))) == 1).all()


# ---------------------------------------------------------------------------------- enumeration
def test_all_states_are_there_once():
    assert enumerate_bits(3).shape == (8, 3)
    assert len(np.unique(enumerate_bits(5), axis=0)) == 32
    states = enumerate_classes(3, 4)
    assert states.shape == (64, 3, 4)
    assert len(np.unique(states.reshape(64, -1), axis=0)) == 64
    assert (states.sum(axis=-1) == 1).all()
    assert states.dtype == np.float32


def test_too_many_states_are_refused():
    assert enumerate_bits(16).shape == (2**16, 16)
    with pytest.raises(ValueError, match=r"10\^20 states are too many"):
        enumerate_classes(20, 10)
    with pytest.raises(ValueError, match="must be >= 1, got 0 and 3"):
        enumerate_classes(0, 3)


def test_gradient_of_an_expectation(rng):
    states = enumerate_classes(2, 3, np.float64)[:, None]  # (S, 1, N, C)
    f = rng.normal(size=(9, 4))

    def bound(logits, f):
        return expectation(categorical_log_prob(logits, states), f)

    assert gradcheck(bound, rng.normal(size=(4, 2, 3)), f) < 1e-6


# ------------------------------------------------------------------------------------- baseline
def test_the_running_mean_follows_its_recursion(rng):
    baseline, mean = Baseline(decay=0.9, dtype=np.float64), None
    for _ in range(5):
        f = rng.normal(5, 1, size=7)
        mean = f.mean() if mean is None else 0.9 * mean + 0.1 * f.mean()
        baseline.update(f)
        np.testing.assert_allclose(baseline(None).data, mean, rtol=1e-12)


def test_the_network_learns_what_is_left_of_f(rng):
    """NVIL: (f - mean - network(x))^2, and no gradient of it for anything else."""
    x, f = rng.normal(size=(6, 4)), rng.normal(size=6)
    baseline = Baseline(nn.Linear(4, 1, rng=rng, dtype=np.float64), dtype=np.float64)
    baseline.update(np.array([2.0]))
    expected = (f - 2.0 - baseline.network(x).data[:, 0]) ** 2
    np.testing.assert_allclose(baseline.loss(f, baseline(x)).data, expected, rtol=1e-12)
    loss = lambda *_: ops.mean(baseline.loss(f, baseline(x)))  # noqa: E731
    assert gradcheck(loss, *baseline.parameters()) < 1e-6


def test_the_estimate_gives_the_baseline_no_gradient(rng):
    network = nn.Linear(4, 1, rng=rng, dtype=np.float64)
    toy, baseline = Bits(), Baseline(network, dtype=np.float64)
    z = toy.states
    b = baseline(np.broadcast_to(X, (len(z), 4)))
    ops.sum(score_function(f_tensor(toy, z), toy.log_q(z), b)).backward()
    assert network.weight.grad is None


def test_wrong_arguments_are_named():
    log_q = Tensor(np.zeros(3), True)
    with pytest.raises(ValueError, match=r"a number or \(3,\), got shape \(3, 1\)"):
        score_function(np.zeros(3), log_q, np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"\(B, K\), K >= 2, got \(3, 1\)"):
        vimco(np.zeros((3, 1)), Tensor(np.zeros((3, 1))))
    with pytest.raises(ValueError, match="decay must be in"):
        Baseline(decay=1.0)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 3\), got 0 to 3"):
        estimators.one_hot(np.array([0, 3]), 3, like=np.zeros(1))


def test_float32_stays_float32(rng):
    z = enumerate_bits(3)
    log_q = bernoulli_log_prob(Tensor(np.zeros(3, np.float32), True), z)
    log_p = Tensor(rng.normal(size=8).astype(np.float32))
    assert score_function(log_p, log_q).dtype == np.float32
    assert score_function(log_p, log_q, Baseline()(None)).dtype == np.float32
    pair = ops.reshape(log_q, (4, 2))
    assert vimco(ops.reshape(log_p, (4, 2)), pair).dtype == np.float32
    logits = Tensor(np.zeros((2, 3), np.float32))
    assert categorical_kl(logits).dtype == bernoulli_kl(logits).dtype == np.float32
