"""beta.py: -log p(x) of numbers between 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betaln, digamma
from scipy.stats import beta

import backends
from tinyvae_kernels.beta import beta_nll_backward, beta_nll_forward

ON = ["numpy", "numba", "cuda"]

# a, b, x, nll, dlog_alpha, dlog_beta, by mpmath in 80 digits for exp(log(a)), exp(log(b))
EXACT = [
    (1e-3, 1e-3, 0.5, 6.2159927502495764, -0.49930849415489693, -0.49930849415489693),
    (1e-3, 1e6, 1e-9, -13.808179196783575, -0.99366781615382808, -4.9900016681523984e-10),
    (0.3, 7.9, 0.01, -2.6651370558859692, -0.28178252081133188, -0.23409445696173364),
    (7.9, 8.1, 0.5, -1.1435567245608079, -0.36045851561115783, -0.15388939456416232),
    (8.0, 8.0, 0.25, 0.86888637329163754, 5.287380085984321, -3.501518223360555),
    (1.0, 1.0, 0.7, 0.0, -0.64332505606126756, 0.20397280432593584),
    (2.0, 1e4, 1e-4, -8.2104903686432669, 0.84526869186159923, -0.99985000666541578),
    (1e6, 1e6, 0.5, -7.028537391617382, -0.2500000625, -0.2500000625),
    (1e6, 2e5, 0.8125, 1754.226300634208, 25317.724650930941, -23557.02379834833),
    (1e8, 1e8, 0.5, -9.3311226083614288, -0.250000000625, -0.250000000625),
    (1e-30, 3.0, 0.25, 68.266622573605039, -1.0, 0.86304621735534286),
    (150.0, 1e-30, 0.75, 110.55588722401683, 43.152310867767129, -1.0),
]


def nll_and_gradients(log_alpha, log_beta, x, on, dout=None):
    with backends.running_on(on) as (put, get):
        nll, saved = beta_nll_forward(put(log_alpha), put(log_beta), put(x))
        dout = np.ones(nll.shape, x.dtype) if dout is None else dout
        dlog_alpha, dlog_beta, dx = beta_nll_backward(put(dout), saved)
        assert dx is None
        return get(nll), get(dlog_alpha), get(dlog_beta)


@pytest.mark.parametrize("on", ON)
def test_agrees_with_exact_values(on):
    a, b, x, *expected = np.array(EXACT).T[:, :, None]
    found = nll_and_gradients(np.log(a), np.log(b), x, on)
    for value, exact in zip((found[0][:, None], *found[1:]), expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_agrees_with_scipy(on, rng):
    log_alpha, log_beta = rng.uniform(-5, 5, (2, 20, 40))
    x = rng.uniform(0.01, 0.99, (20, 40))
    a, b = np.exp(log_alpha), np.exp(log_beta)
    nll, dlog_alpha, dlog_beta = nll_and_gradients(log_alpha, log_beta, x, on)
    np.testing.assert_allclose(nll, -beta.logpdf(x, a, b).sum(axis=1), rtol=1e-11)
    da, db = digamma(a) - digamma(a + b) - np.log(x), digamma(b) - digamma(a + b) - np.log1p(-x)
    np.testing.assert_allclose(dlog_alpha, a * da, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dlog_beta, b * db, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_the_normalising_constant(on, rng):
    """log B(a, b) as scipy has it, up to 1e3: for 1e6, scipy is wrong by 3e-9."""
    a, b = 10 ** rng.uniform(-3, 3, (2, 2000, 1))
    x = np.clip(a / (a + b), 1e-6, 1 - 1e-6)
    nll, *_ = nll_and_gradients(np.log(a), np.log(b), x, on)
    products = ((a - 1) * np.log(x) + (b - 1) * np.log1p(-x))[:, 0]
    np.testing.assert_allclose(nll + products, betaln(a, b)[:, 0], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("a", "b"), [(2.5, 1.5), (1.0, 1.0), (30.0, 12.0), (8.0, 8.5)])
def test_integrates_to_one(a, b, on):
    def density(x):
        arrays = (np.array([[number]]) for number in (np.log(a), np.log(b), x))
        return np.exp(-nll_and_gradients(*arrays, on)[0][0])

    total, _ = quad(density, 0, 1, points=[a / (a + b)], limit=20, epsabs=1e-7)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("on", ON)
def test_mirrored(on, rng):
    log_alpha, log_beta = rng.uniform(-4, 8, (2, 9, 31))
    x = rng.integers(1, 1024, (9, 31)) / 1024  # 1 - x is exact
    nll, dlog_alpha, dlog_beta = nll_and_gradients(log_alpha, log_beta, x, on)
    mirrored = nll_and_gradients(log_beta, log_alpha, 1 - x, on)
    for value, other in zip(mirrored, (nll, dlog_beta, dlog_alpha), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("on", ON)
def test_large_parameters_in_float32(on, rng):
    """The nll to the rounding of its terms, the gradients to that of a and b."""
    log_alpha, log_beta = rng.uniform(-3, 9, (2, 3000, 1)).astype(np.float32)
    a, b = np.exp(log_alpha.astype(float)), np.exp(log_beta.astype(float))
    x = np.clip(rng.beta(a, b), 1e-6, 1 - 1e-6).astype(np.float32)
    found = nll_and_gradients(log_alpha, log_beta, x, on)
    exact = nll_and_gradients(*(v.astype(float) for v in (log_alpha, log_beta, x)), "numpy")
    terms = abs(a * np.log(a / (a + b) / x)) + abs(b * np.log(b / (a + b) / (1 - x)))
    terms += 1 + abs(np.log(x)) + abs(np.log1p(-x)) + abs(log_alpha) + abs(log_beta)
    scales = (terms[:, 0], terms + a, terms + b)
    for value, wanted, scale in zip(found, exact, scales, strict=True):
        assert (abs(value - wanted) <= 1e-6 * scale).all()


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    ends = [-200.0, -80.0, -69.0, 0.0, 18.4, 70.0]  # e^18.4 is 1e8
    x = np.array([1.2e-38, 1e-30, 0.5, 1 - 2.0**-24], dtype)
    arrays = (array.reshape(1, -1).astype(dtype) for array in np.meshgrid(ends, ends, x))
    for value in nll_and_gradients(*arrays, on):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5, 1e-320])
def test_x_outside_of_0_and_1(value):
    """A ValueError on a CPU; on a GPU x cannot be looked at without waiting for the device."""
    zeros, x = np.zeros((2, 3)), np.full((2, 3), 0.5)
    x[1, 2] = value
    for on in ("numpy", "numba"):
        with pytest.raises(ValueError, match=f"x holds {value}, a Beta likelihood needs 0 < x"):
            nll_and_gradients(zeros, zeros, x, on)
    if value != 1e-320:  # a GPU may flush it to 0, the stand-in does not
        nll, *_ = nll_and_gradients(zeros, zeros, x, "cuda")
        np.testing.assert_array_equal(np.isfinite(nll), [True, False])


def test_wrong_arguments_are_named():
    good = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"x has shape \(3, 1\), log_alpha has \(3, 2\)"):
        beta_nll_forward(good, good, good[:, :1])
    with pytest.raises(TypeError, match="log_beta is float32, log_alpha is float64"):
        beta_nll_forward(good, good.astype(np.float32), good)
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        beta_nll_forward(good, good, good.astype(int))


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on):
    good = np.full((3, 2), 0.5)
    for wrong in (np.ones(2), good, np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3,\)"):
            nll_and_gradients(good, good, good, on, wrong)
