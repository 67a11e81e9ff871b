"""likelihoods/: what a decoder's output means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, softmax

import tinyvae as tv
from tinyvae import Tensor, gradcheck, likelihoods, nn, ops
from tinyvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Beta,
    Categorical,
    CrossEntropy,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    LogisticMixture,
    NegativeBinomial,
    Poisson,
    StudentT,
    resolve,
)
from tinyvae.likelihoods.base import GAIN

ALL = [
    Bernoulli(), CrossEntropy(), Gaussian(), Gaussian(variance=0.2), Gaussian("learned"),
    Gaussian("shared"), Laplace(), Laplace(0.3), Laplace("learned"), Laplace("shared"), StudentT(),
    StudentT(7.5, 0.4), StudentT("learned", "learned"), StudentT("learned", "shared"),
    StudentT("shared", "learned"), StudentT("shared", "shared"), Beta(), DiscretizedLogistic(17),
    DiscretizedLogistic(), LogisticMixture(3, 17), LogisticMixture(2), Categorical(4), Poisson(),
    NegativeBinomial(), NegativeBinomial("learned"), NegativeBinomial(0.5),
]  # fmt: skip
DISCRETE = (Bernoulli, Categorical, DiscretizedLogistic, LogisticMixture, Poisson, NegativeBinomial)
KINDS = {likelihood.name: likelihood for likelihood in ALL}  # one of each
SHAPE = (6, 4, 5, 3)


def output_for(likelihood, rng, shape=SHAPE):
    """Shared parameters included, which would be the same everywhere, and are not here."""
    return rng.normal(size=(*shape[:-1], likelihood.blocks * shape[-1]))


def data_for(likelihood, rng, shape=SHAPE):
    if isinstance(likelihood, Bernoulli):
        return rng.integers(0, 2, shape).astype(float)
    if isinstance(likelihood, (DiscretizedLogistic, LogisticMixture)):
        return rng.integers(0, likelihood.levels, shape) / (likelihood.levels - 1)
    if isinstance(likelihood, Categorical):
        return rng.integers(0, likelihood.classes, shape).astype(float)
    if isinstance(likelihood, Beta):
        return rng.uniform(0.01, 0.99, shape)
    if isinstance(likelihood, (Poisson, NegativeBinomial)):
        return rng.poisson(2.0, shape).astype(float)
    return rng.normal(size=shape)


def softplus(x):
    return np.logaddexp(x, 0)


def free(value, blocks, transform):
    """A fixed number, or the next block, transformed."""
    return transform(blocks.pop(0)) if isinstance(value, str) else value


class Levels:
    """A distribution over few values, as scipy would have it."""

    def __init__(self, values, probabilities):
        self.values, self.p = np.asarray(values, float), probabilities

    def logpmf(self, x):
        at = np.abs(self.values - x[..., None]).argmin(axis=-1)[..., None]
        return np.log(np.take_along_axis(self.p, at, -1)[..., 0])

    def mean(self):
        return (self.p * self.values).sum(axis=-1)

    def var(self):
        return (self.p * self.values**2).sum(axis=-1) - self.mean() ** 2


def logistic_levels(likelihood, blocks):
    """The shares of the bins, by scipy's distribution function."""
    L, K = likelihood.levels, likelihood.components
    stacked = np.stack(blocks, axis=-1)
    logits = stacked[..., :K] if K > 1 else np.zeros((*stacked.shape[:-1], 1))
    m, raw = stacked[..., -2 * K : -K], stacked[..., -K:]
    s = np.exp(softplus(raw + 7) - 7)
    edges = (2 * np.arange(L - 1) + 1) / (L - 1) - 1
    zero, one = np.zeros((*m.shape, 1)), np.ones((*m.shape, 1))
    below, above = (
        f(edges, m[..., None], s[..., None]) for f in (stats.logistic.cdf, stats.logistic.sf)
    )
    below, above = np.concatenate([zero, below, one], -1), np.concatenate([one, above, zero], -1)
    left = below[..., 1:] < above[..., :-1]  # where the smaller numbers are exact
    shares = np.where(left, np.diff(below), -np.diff(above))
    shares = (softmax(logits, axis=-1)[..., None] * shares).sum(axis=-2)
    return Levels(np.arange(L) / (L - 1), shares)


def distribution(likelihood, output):
    """p(x | z) of every value, from scipy."""
    blocks = np.split(output, likelihood.blocks, axis=-1)
    if isinstance(likelihood, (DiscretizedLogistic, LogisticMixture)):
        return logistic_levels(likelihood, blocks)
    if isinstance(likelihood, Categorical):
        p = softmax(np.stack(blocks, axis=-1), axis=-1)
        return Levels(np.arange(likelihood.classes), p)
    first = blocks.pop(0)
    if isinstance(likelihood, Bernoulli):
        return stats.bernoulli(expit(first))
    if isinstance(likelihood, Beta):
        return stats.beta(*(np.exp(20 * np.tanh(b / 20)) for b in (first, blocks[0])))
    if isinstance(likelihood, Gaussian):
        variance = free(likelihood.variance, blocks, lambda raw: np.exp(softplus(raw + 6) - 6))
        return stats.norm(first, np.sqrt(variance))
    if isinstance(likelihood, Poisson):
        return stats.poisson(np.exp(20 - softplus(20 - first)))
    if isinstance(likelihood, NegativeBinomial):
        m = np.exp(20 - softplus(20 - first))
        a = free(likelihood.dispersion, blocks, lambda raw: np.exp(20 * np.tanh(raw / 20)))
        return stats.nbinom(1 / a, 1 / (1 + a * m))
    if isinstance(likelihood, StudentT) and likelihood.freedom == "shared":
        blocks = blocks[::-1] if likelihood.scale == "learned" else blocks  # the shared come last
    if isinstance(likelihood, StudentT):
        v = free(likelihood.freedom, blocks, lambda raw: 2 + np.exp(20 - softplus(20 - raw)))
    s = free(likelihood.scale, blocks, lambda raw: np.exp(softplus(raw + 3) - 3))
    return stats.t(v, first, s) if isinstance(likelihood, StudentT) else stats.laplace(first, s)


def log_prob(likelihood, output, x):
    found = distribution(likelihood, output)
    return found.logpmf(x) if isinstance(likelihood, DISCRETE) else found.logpdf(x)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_nll_agrees_with_scipy(likelihood, rng):
    output, x = output_for(likelihood, rng), data_for(likelihood, rng)
    expected = -log_prob(likelihood, output, x)
    total = expected.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(likelihood.nll(output, x).data, total, rtol=1e-9)
    np.testing.assert_allclose(likelihood.nll_each(output, x).data, expected, rtol=1e-7, atol=1e-9)
    single = likelihood.nll(output.astype(np.float32), x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.data, total, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_sums_or_integrates_to_one(likelihood, rng):
    if isinstance(likelihood, CrossEntropy):
        return  # a loss, which over [0, 1] does not
    output = output_for(likelihood, rng, (1, 1))

    def density(x):
        x = np.atleast_1d(x).astype(float)[:, None]
        return np.exp(-likelihood.nll(np.repeat(output, len(x), axis=0), x).data)

    if isinstance(likelihood, DISCRETE):
        support = np.arange(getattr(likelihood, "levels", getattr(likelihood, "classes", 2)))
        if isinstance(likelihood, (Poisson, NegativeBinomial)):
            support = np.arange(2000)
        scale = likelihood.levels - 1 if hasattr(likelihood, "levels") else 1
        total = density(support / scale).sum()
    else:
        ends = (0, 1) if isinstance(likelihood, Beta) else (-np.inf, np.inf)
        total, _ = quad(lambda x: density(x)[0], *ends, limit=200)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_elbo_is_nll_and_kl(likelihood, rng):
    output, x = output_for(likelihood, rng), data_for(likelihood, rng)
    mu, logvar = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    bound = likelihood.elbo(output, x, mu, logvar, beta=0.5)
    nll, kl = likelihood.nll(output, x).data, ops.gaussian_kl(mu, logvar).data
    np.testing.assert_allclose(bound.data, -nll - 0.5 * kl, rtol=1e-12)
    loss = likelihood.loss(output, x, mu, logvar, beta=0.5, batch=7)
    np.testing.assert_allclose(loss.item(), (nll + 0.5 * kl).sum() / 7, rtol=1e-12)
    np.testing.assert_allclose(loss.saved.elbo, bound.data, rtol=1e-12)
    for saved in (bound.saved, loss.saved):
        np.testing.assert_allclose(saved.nll, nll, rtol=1e-12)
        np.testing.assert_allclose(saved.kl, kl, rtol=1e-12)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_iwae_loss_is_log_mean_exp_of_nll_and_log_ratio(likelihood, rng):
    """In one pass or op by op; what is missing counts in neither."""
    K, (B, *row) = 4, SHAPE
    output, x = output_for(likelihood, rng, (B * K, *row)), data_for(likelihood, rng)
    log_ratio, wide = rng.normal(size=(B, K)), np.repeat(x, K, axis=0)
    for mask in (None, rng.random(SHAPE) < 0.6):
        wide_mask = None if mask is None else np.repeat(mask, K, axis=0)
        nll = likelihood.nll(output, wide, wide_mask).data.reshape(B, K)
        bound = np.logaddexp.reduce(-nll - 0.7 * log_ratio, axis=1) - np.log(K)
        loss = likelihood.iwae_loss(output, x, log_ratio, beta=0.7, batch=9, mask=mask)
        np.testing.assert_allclose(loss.item(), -bound.sum() / 9, rtol=1e-10)
        np.testing.assert_allclose(loss.saved.elbo, bound, rtol=1e-10)
        np.testing.assert_allclose(loss.saved.nll, nll.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose(loss.saved.kl, log_ratio.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose(loss.saved.weights.sum(axis=1), 1, rtol=1e-10)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_gradients_reach_the_output(likelihood, rng):
    x = data_for(likelihood, rng)
    mask = rng.random(x.shape) < 0.7
    output, (mu, logvar) = output_for(likelihood, rng), rng.normal(size=(2, 6, 2))
    assert gradcheck(lambda o: likelihood.nll(o, x), output) < 1e-6
    assert gradcheck(lambda o: likelihood.nll(o, x, mask), output) < 1e-6
    gradcheck(lambda o, m, v: likelihood.elbo(o, x, m, v, free_bits=0.01), output, mu, logvar)
    gradcheck(
        lambda o, m, v: likelihood.loss(o, x, m, v, mask=mask, beta=2.0, batch=7),
        output, mu, logvar,
    )  # fmt: skip


@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_mean_and_variance_of_p(likelihood, dtype, rng):
    """100,000 draws of one output: 4.5 standard errors."""
    one = output_for(likelihood, rng, (1, 3))
    if isinstance(likelihood, StudentT) and isinstance(likelihood.freedom, str):
        one += 3  # far from v = 4, below which a variance has no standard error
    output = np.repeat(one, 100_000, axis=0).astype(dtype)
    x = likelihood.sample(output, seed=3)
    mean = likelihood.mean(one.astype(dtype))
    assert x.dtype == mean.dtype == dtype
    assert x.shape == (100_000, 3)
    if likelihood.name != "bce":
        likelihood.check(x)
    expected = distribution(likelihood, one)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-3, atol=1e-3)
    variance = expected.var()
    error = np.abs(x.mean(axis=0, dtype=np.float64) - expected.mean())
    assert (error < 4.5 * np.sqrt(variance / 100_000)).all()
    rtol = 0.3 if isinstance(likelihood, StudentT) and likelihood.freedom == 4 else 0.06
    np.testing.assert_allclose(x.var(axis=0, dtype=np.float64)[None], variance, rtol=rtol)


@pytest.mark.parametrize("likelihood", [StudentT(1.0, 0.5), StudentT(4.0), Laplace(0.3)], ids=str)
def test_samples_have_the_distribution_function_of_p(likelihood):
    """Kolmogorov and Smirnov: where moments say little."""
    x = likelihood.sample(np.full((20_000, 1), 0.7), seed=1)[:, 0]
    expected = distribution(likelihood, np.full((1, 1), 0.7))
    assert stats.kstest(x, lambda x: expected.cdf(x)[0]).pvalue > 0.01


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_samples_are_decided_by_seed_and_step(likelihood, rng):
    output = output_for(likelihood, rng)
    first = likelihood.sample(output, seed=1)
    np.testing.assert_array_equal(likelihood.sample(output, seed=1), first)
    assert not np.array_equal(likelihood.sample(output, seed=2), first)
    assert not np.array_equal(likelihood.sample(output, seed=1, step=1), first)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
@pytest.mark.parametrize("size", [80.0, 1e4])
def test_extreme_outputs_give_finite_values_and_gradients(likelihood, size, rng):
    x = data_for(likelihood, rng, (40, 3)).astype(np.float32)
    values = size * rng.choice([-1.0, 1.0], (40, 3 * likelihood.blocks))
    output = Tensor(values.astype(np.float32), True)
    nll = likelihood.nll(output, x)
    nll.backward(np.ones(40))
    assert np.isfinite(nll.data).all()
    assert np.isfinite(output.grad).all()


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_missing_values_change_nothing_and_get_no_gradient(likelihood, rng):
    x, output = data_for(likelihood, rng), output_for(likelihood, rng)
    mask = (rng.random(SHAPE) < 0.6).astype(float)
    expected = likelihood.nll_each(output, x).data
    results, dout = [], rng.normal(size=6)
    for missing in (x, np.nan, -1e3, 0.3):
        leaf = Tensor(output.copy(), True)
        nll = likelihood.nll(leaf, np.where(mask == 1, x, missing), mask)
        nll.backward(dout)
        results.append((nll.data, leaf.grad))
        for block in np.split(leaf.grad, likelihood.blocks, axis=-1):
            assert (block[mask == 0] == 0).all()
        np.testing.assert_allclose(nll.data, (expected * mask).sum(axis=(1, 2, 3)), rtol=1e-10)
    for nll, gradient in results[1:]:
        np.testing.assert_array_equal(nll, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])
    whole = likelihood.nll(output, x, np.ones(SHAPE)).data
    np.testing.assert_allclose(whole, likelihood.nll(output, x).data, rtol=1e-10)


def test_mean_of_a_gaussian_leaves_the_variance_out(rng):
    output = rng.normal(size=(2, 6))
    np.testing.assert_array_equal(Gaussian().mean(output), output)
    np.testing.assert_array_equal(Gaussian("learned").mean(output), output[:, :3])
    np.testing.assert_array_equal(Gaussian("shared").mean(output), output[:, :3])
    np.testing.assert_allclose(Bernoulli().mean(output), expit(output), rtol=1e-12)


def test_outputs_per_value():
    outputs = {str(likelihood): likelihood.outputs for likelihood in ALL}
    assert outputs == {
        str(likelihood): n
        for likelihood, n in zip(
            ALL,
            [1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 3, 2, 2, 1, 2, 2, 2, 9, 6, 4, 1, 1, 2, 1],
            strict=True,
        )
    }
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


# ------------------------------------------------------------------------------ limits of families
def test_a_mixture_of_one_is_its_component(rng):
    x = data_for(DiscretizedLogistic(), rng)
    output = rng.normal(size=(*SHAPE[:-1], 6))
    both = np.concatenate([rng.normal(size=SHAPE), output], axis=-1)  # one logit more
    mixture = np.concatenate([both[..., :3], both[..., :3], *[output[..., i : i + 3]
                              for i in (0, 0, 3, 3)]], axis=-1)  # fmt: skip
    expected = DiscretizedLogistic().nll(output, x).data
    np.testing.assert_allclose(LogisticMixture(2).nll(mixture, x).data, expected, rtol=1e-10)


def test_student_with_much_freedom_is_gaussian(rng):
    output, x = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    found = StudentT(1e9, 0.5).nll(output, x).data
    np.testing.assert_allclose(found, Gaussian(0.25).nll(output, x).data, rtol=1e-7)
    single = StudentT(1e9, 0.5).nll(output.astype(np.float32), x.astype(np.float32)).data
    np.testing.assert_allclose(single, found, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_negative_binomial_without_dispersion_is_poisson(dtype, rtol, rng):
    """In float32 too, where log Gamma of 1e8 leaves no digit for the counts."""
    output, x = rng.normal(size=(6, 3)).astype(dtype), rng.poisson(3.0, (6, 3)).astype(dtype)
    found = NegativeBinomial(1e-8).nll(output, x).data
    np.testing.assert_allclose(found, Poisson().nll(output, x).data, rtol=rtol)


def test_two_levels_of_a_logistic_are_a_bernoulli(rng):
    """P(x = 1) = sigmoid(m / s)."""
    m, x = rng.normal(size=(6, 3)), rng.integers(0, 2, (6, 3)).astype(float)
    output = np.concatenate([m, np.full((6, 3), np.log(0.5))], axis=1)
    found = DiscretizedLogistic(2, min_log_scale=-40.0).nll(output, x).data
    np.testing.assert_allclose(found, Bernoulli().nll(2 * m, x).data, rtol=1e-10)


def test_two_classes_are_a_bernoulli(rng):
    logit, x = rng.normal(size=(6, 3)), rng.integers(0, 2, (6, 3)).astype(float)
    output = np.concatenate([np.zeros((6, 3)), logit], axis=1)
    expected = Bernoulli().nll(logit, x).data
    np.testing.assert_allclose(Categorical(2).nll(output, x).data, expected, rtol=1e-10)


# ------------------------------------------------------------------------------ shared parameters
def test_a_shared_parameter_is_one_number_for_all_values(rng):
    likelihood = StudentT("shared", "shared")
    head = likelihood.head(np.float64)
    head.raw.data[:] = np.array([0.3, -0.2]) / GAIN
    output, x = rng.normal(size=(6, 4, 3)), rng.normal(size=(6, 4, 3))
    raw = head(output)
    assert raw.shape == (6, 4, 9)
    np.testing.assert_array_equal(raw.data[..., :3], output)
    np.testing.assert_allclose(raw.data[..., 3:6], 0.3, rtol=1e-15)
    np.testing.assert_allclose(raw.data[..., 6:], -0.2, rtol=1e-15)
    fixed = StudentT(2 + np.exp(0.3), np.exp(softplus(2.8) - 3))
    np.testing.assert_allclose(likelihood.nll(raw, x).data, fixed.nll(output, x).data, rtol=1e-9)
    gradcheck(lambda o, _: likelihood.nll(head(o), x), output, head.raw)


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_only_shared_parameters_need_a_head(likelihood):
    assert (likelihood.head() is not None) == (likelihood.blocks > likelihood.outputs)


def test_the_best_shared_variance_is_the_mean_square(rng):
    """Rybkin et al. 2021, equation 5: at the maximum sigma^2 = MSE, so the gradient is zero."""
    likelihood, x = Gaussian("shared"), 0.7 * rng.normal(size=(6, 5))
    head = likelihood.head(np.float64)
    mse = np.mean(x**2)
    head.raw.data[:] = (
        np.log(np.expm1(np.log(mse) + 6)) - 6
    ) / GAIN  # softplus(raw + 6) - 6 = log mse
    ops.sum(likelihood.nll(head(np.zeros((6, 5))), x)).backward()
    np.testing.assert_allclose(head.raw.grad, 0, atol=1e-12)


# -------------------------------------------------------------------------------------- the checks
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
    for likelihood in (Gaussian(), Laplace(), StudentT()):
        likelihood.check(np.array([[bad]]))


@pytest.mark.parametrize(
    ("likelihood", "bad", "message"),
    [
        (Beta(), 0.0, r"pixels has 0 at row 1, column 2, but a Beta .* neither 0 nor 1"),
        (Beta(), 1.0, r"pixels has 1 at row 1, column 2, but"),
        (DiscretizedLogistic(), 1.1, r"pixels has 1\.1 at row 1, column 2, outside \[0, 1\]"),
        (DiscretizedLogistic(), 0.3, r"pixels has 0\.3 at row 1, column 2, but .* 256 levels"),
        (LogisticMixture(3, 17), 0.3, r"pixels has 0\.3 at .*17 levels is for i / 16, i = 0 .. 16"),
        (Categorical(3), 3.0, r"pixels has 3 at .*3 classes is for whole numbers 0 to 2"),
        (Categorical(3), -1.0, r"pixels has -1 at"),
        (Categorical(3), 0.5, r"pixels has 0\.5 at"),
        (Poisson(), -1.0, r"pixels has -1 at .*poisson likelihood is for counts"),
        (NegativeBinomial(), 2.5, r"pixels has 2\.5 at .*negative_binomial likelihood is for"),
        (Poisson(), np.nan, r"pixels has nan at"),
    ],
)
def test_check_names_the_bad_value_and_its_place(likelihood, bad, message, rng):
    x = data_for(likelihood, rng, (3, 4))
    likelihood.check(x)
    x[1, 2] = bad
    with pytest.raises(ValueError, match=message):
        likelihood.check(x, "pixels")


def test_bytes_are_pixels_or_counts():
    x = np.array([[0, 51, 255]], np.uint8)
    DiscretizedLogistic().check(x, scale=255.0)
    Poisson().check(x)
    DiscretizedLogistic(6).check(x, scale=255.0)  # 51 is a fifth
    with pytest.raises(ValueError, match="3 levels"):
        DiscretizedLogistic(3).check(x, scale=255.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_parameters_must_be_positive_and_finite(bad):
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        Gaussian(variance=bad)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        Laplace(bad)
    with pytest.raises(ValueError, match="freedom must be positive and finite"):
        StudentT(bad)
    with pytest.raises(ValueError, match="dispersion must be positive and finite"):
        NegativeBinomial(bad)


def test_sizes_must_be_whole_numbers():
    with pytest.raises(ValueError, match="classes must be a whole number >= 2, got 1"):
        Categorical(1)
    with pytest.raises(ValueError, match="components must be a whole number >= 1, got 0"):
        LogisticMixture(0)
    with pytest.raises(ValueError, match="levels must be a whole number >= 2, got 1"):
        DiscretizedLogistic(1)


# ---------------------------------------------------------------------------------------- the texts
@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_text_and_back(likelihood):
    assert resolve(likelihood) is likelihood
    assert resolve(*likelihoods.spell(likelihood)) == likelihood


@pytest.mark.parametrize(
    ("text", "likelihood"),
    [
        ("bernoulli", Bernoulli()),
        ("bce", CrossEntropy()),
        ("gaussian", Gaussian()),
        ("gaussian:0.3", Gaussian(0.3)),
        ("gaussian:learned", Gaussian("learned")),
        ("gaussian:variance=shared", Gaussian("shared")),
        ("gaussian:learned:min_logvar=-4", Gaussian("learned", -4.0)),
        ("laplace", Laplace()),
        ("student:7", StudentT(7.0)),
        ("student:learned:scale=shared", StudentT("learned", "shared")),
        ("beta", Beta()),
        ("logistic:17", DiscretizedLogistic(17)),
        ("mixture_logistic:3:levels=17", LogisticMixture(3, 17)),
        ("categorical:10", Categorical(10)),
        ("poisson", Poisson()),
        ("negative_binomial", NegativeBinomial("shared")),
        ("negative_binomial:learned", NegativeBinomial("learned")),
    ],
)
def test_texts(text, likelihood):
    assert resolve(text) == likelihood


def test_names_and_the_variance_beside_them():
    assert set(LIKELIHOODS) == {*KINDS, "tokens"}  # tokens: test_likelihoods_tokens.py
    assert resolve("gaussian", 0.3) == Gaussian(0.3)
    assert resolve("gaussian", "learned") == Gaussian("learned")
    assert resolve("gaussian:0.2", 0.3) == Gaussian(0.2)
    assert likelihoods.spell(Gaussian(0.3)) == ("gaussian", 0.3)  # as older files have it


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="unknown likelihood 'bernouli': did you mean 'bernoulli'"):
        resolve("bernouli")
    with pytest.raises(ValueError, match="unknown variance 'learnt': did you mean 'learned'"):
        Gaussian(variance="learnt")
    with pytest.raises(ValueError, match="form categorical:classes"):
        resolve("categorical")


# ----------------------------------------------------------------------------------------- in a VAE
def rows_for(likelihood, n=192):
    """Rows of 6 values that go up and down together, of the kind that the likelihood is for."""
    rng = np.random.default_rng(4)
    level = np.clip(rng.uniform(0.15, 0.85, (n, 1)) + rng.normal(0, 0.05, (n, 6)), 0.01, 0.99)
    if isinstance(likelihood, (Poisson, NegativeBinomial)):
        return rng.poisson(8 * level).astype(float)
    if isinstance(likelihood, Categorical):
        return np.floor(level * likelihood.classes)
    if isinstance(likelihood, (DiscretizedLogistic, LogisticMixture)):
        return np.rint(level * (likelihood.levels - 1)) / (likelihood.levels - 1)
    if isinstance(likelihood, Bernoulli):
        return (rng.random((n, 6)) < level).astype(float)
    return level if isinstance(likelihood, Beta) else 4 * level - 2


TINY = {"latent_dim": 2, "hidden": (16,), "batch_size": 32, "random_state": 0, "activation": "tanh"}


@pytest.mark.parametrize("likelihood", ALL, ids=str)
def test_a_tiny_vae_learns_and_is_saved(likelihood, tmp_path):
    x = rows_for(likelihood)
    vae = tv.VAE(**TINY, likelihood=likelihood, epochs=12, learning_rate=0.02).fit(x)
    history = [record["elbo"] for record in vae.history_]
    assert np.mean(history[-2:]) > history[0] + 0.1
    assert vae.reconstruct(x).shape == vae.sample(192, 1, mean=False).shape == x.shape
    if likelihood.head():
        assert (vae.network_.decoder.layers[1].raw.data != 0).all()  # it has moved
    vae.save(tmp_path / "m")
    again = tv.load(tmp_path / "m")
    assert again.likelihood_ == likelihood
    np.testing.assert_array_equal(again.elbo(x), vae.elbo(x))
    np.testing.assert_array_equal(again.sample(3, 1, mean=False), vae.sample(3, 1, mean=False))


def test_a_shared_variance_becomes_that_of_the_noise():
    """Without anything to learn from z, the mean square around a constant."""
    x = np.random.default_rng(0).normal(1.5, 0.3, (256, 8))
    options = TINY | {"hidden": (4,), "dtype": "float64"}
    vae = tv.VAE(**options, likelihood="gaussian:shared", epochs=40, learning_rate=0.01).fit(x)
    raw = GAIN * vae.network_.decoder.layers[1].raw.data[0]
    np.testing.assert_allclose(np.exp(softplus(raw + 6) - 6), 0.09, rtol=0.15)


def test_networks_of_ones_own_get_the_shared_parameters_too():
    encoder = nn.Linear(6, 2)

    class Encoder(nn.Module):
        def __init__(self):
            self.first = encoder

        def __call__(self, x):
            return self.first(x), self.first(x) * 0.1

    x = rows_for(Gaussian())
    vae = tv.VAE(2, encoder=Encoder(), decoder=nn.Linear(2, 6), likelihood="gaussian:shared",
                 epochs=1, random_state=0).fit(x)  # fmt: skip
    assert "decoder.layers.1.raw" in vae.network_.state_dict()
    assert vae.reconstruct(x).shape == x.shape


def test_the_gradient_of_every_parameter_of_a_vae(rng):
    """The whole loss, with one likelihood that is composed of ops and two shared parameters."""
    likelihood = StudentT("shared", "shared")
    parts = tv.models.Parts((5,), 2, likelihood, hidden=(4,), activation="tanh",
                            rng=np.random.default_rng(0), dtype=np.float64)  # fmt: skip
    model = tv.models.vae.VAE().build(parts)
    batch = tv.batches.Batch(rng.normal(size=(3, 5)))

    def loss(*parameters):
        draw = tv.ops.noise.Draw(3, seed=1, dtype=np.float64)
        return model.loss(batch, draw, beta=1.5, rows=3).loss

    assert any(name.endswith("raw") for name, _ in model.named_parameters())
    assert gradcheck(loss, *model.parameters()) < 1e-6


def test_bytes_of_counts_are_not_divided():
    x = np.random.default_rng(0).poisson(3.0, (64, 4)).astype(np.uint8)
    vae = tv.VAE(**TINY, likelihood="poisson", epochs=1).fit(x)
    assert vae.scale_ == 1.0
    assert tv.VAE(**TINY, likelihood="bce", epochs=1).fit(x).scale_ == 255.0


def test_unsuitable_rows_are_refused_before_training():
    with pytest.raises(ValueError, match=r"X has 0\.5 at row 0, column 1, but a poisson"):
        tv.VAE(**TINY, likelihood="poisson").fit(np.array([[1.0, 0.5]]))


@pytest.mark.parametrize("likelihood", KINDS.values(), ids=str)
def test_the_same_on_a_gpu(likelihood, gpu, rng):
    x, output = data_for(likelihood, rng, (3, 4)), output_for(likelihood, rng, (3, 4))
    mask, results = (rng.random((3, 4)) < 0.7).astype(float), []
    for device in ("cpu", "cuda"):
        x2, output2, mask2 = (tv.devices.move(a, device) for a in (x, output, mask))
        leaf = Tensor(output2, True)
        nll = likelihood.nll(leaf, x2) + likelihood.nll(leaf, x2, mask2)
        ops.sum(nll).backward()
        found = (nll.data, leaf.grad, likelihood.mean(output2), likelihood.sample(output2, seed=1))
        assert all(tv.devices.of(a) == device for a in found)
        results.append([tv.devices.to_host(a) for a in found])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
