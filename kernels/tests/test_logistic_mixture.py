"""logistic_mixture.py: -log p(x) of pixels with few levels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import logistic

import backends
import simt
from tinyvae_kernels.logistic_mixture import (
    logistic_mixture_nll_backward,
    logistic_mixture_nll_forward,
)

ON = ["numpy", "numba", "cuda"]


def nll_and_gradients(*arrays, on, dout=None, **options):
    """Of logit_weight, x_mu, log_scale and x."""
    with backends.running_on(on) as (put, get):
        nll, saved = logistic_mixture_nll_forward(*map(put, arrays), **options)
        dout = np.ones(nll.shape, nll.dtype) if dout is None else dout
        *gradients, dx = logistic_mixture_nll_backward(put(dout), saved)
        assert dx is None
        return get(nll), *map(get, gradients)


def all_levels(levels):
    return np.arange(levels)[:, None] * 2 / (levels - 1) - 1


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("levels", [2, 3, 8, 12, 50, 256, 4096])
@pytest.mark.parametrize("log_scale", [-7.0, -2.0, 0.0, 3.0, 30.0])
def test_sums_to_one_over_all_levels(log_scale, levels, on, rng):
    x = all_levels(levels)
    parameters = rng.normal(size=(3, 1, 1, 5)) + np.array([0, 0, log_scale]).reshape(3, 1, 1, 1)
    logit_weight, x_mu, scales = np.broadcast_to(parameters, (3, levels, 1, 5)).copy()
    nll, *_ = nll_and_gradients(logit_weight, x_mu, scales, x, on=on, levels=levels)
    np.testing.assert_allclose(np.exp(-nll).sum(), 1, rtol=1e-12 * max(1, levels / 256))


@pytest.mark.parametrize("on", ON)
def test_one_component_agrees_with_scipy(on, rng):
    x_mu, log_scale = rng.normal(0, 0.5, 300), rng.uniform(-3, 1, 300)
    x = rng.choice(all_levels(256)[:, 0], 300)
    x[:20], x[20:40] = -1, 1
    cdf = logistic(x_mu, np.exp(log_scale)).cdf
    upper = np.where(x == 1, 1, cdf(x + 1 / 255))
    expected = upper - np.where(x == -1, 0, cdf(x - 1 / 255))
    columns = (a[:, None, None] for a in (rng.normal(size=300), x_mu, log_scale))
    nll, dlogit_weight, *_ = nll_and_gradients(*columns, x[:, None], on=on)
    np.testing.assert_allclose(np.exp(-nll), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dlogit_weight, 0, atol=1e-15)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("K", [1, 2, 10, 33, 70])
def test_a_mixture_is_the_weighted_sum_of_its_components(K, on, rng):
    shape = (4, 3, 2)
    logit_weight, x_mu, log_scale = rng.normal(size=(3, *shape, K))
    x = rng.choice(all_levels(256)[:, 0], shape)
    each, _, _, _ = nll_and_gradients(
        *(a.reshape(-1, 1, 1) for a in (logit_weight, x_mu, log_scale)),
        np.repeat(x, K).reshape(-1, 1),
        on="numpy",
    )
    log_p = np.logaddexp.reduce(log_softmax(logit_weight, -1) - each.reshape(*shape, K), axis=-1)
    nll, *_ = nll_and_gradients(logit_weight, x_mu, log_scale, x, on=on)
    np.testing.assert_allclose(nll, -log_p.sum(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_far_from_its_mean_the_loss_grows_as_the_distance(dtype, on):
    """Where both sigmoids round to the same number: log(e^-b - e^-a) = -b + log(1 - e^(b - a))."""
    x, scale, h = all_levels(256)[200:201], 1e-3, 1 / 255
    arrays = (np.zeros((1, 1, 1)), np.full((1, 1, 1), -0.5), np.full((1, 1, 1), np.log(scale)), x)
    nll, _, dx_mu, dlog_scale = nll_and_gradients(*(a.astype(dtype) for a in arrays), on=on)
    b = (x[0] + 0.5 - h) / scale
    np.testing.assert_allclose(nll, b - np.log1p(-np.exp(-2 * h / scale)), rtol=1e-5)
    np.testing.assert_allclose(dx_mu[0, 0], [-1 / scale], rtol=1e-5)
    np.testing.assert_allclose(dlog_scale[0, 0], -b, rtol=1e-4)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    values = np.meshgrid([0.0, 1e10, -1e3], [-60.0, -7.0, 0.0, 80.0], [-1.0, 0.0, 1.0])
    x_mu, log_scale, x = (a.reshape(1, -1, 1).astype(dtype) for a in values)
    arrays = (np.zeros_like(x_mu), x_mu, log_scale, x[..., 0])
    for value in nll_and_gradients(*arrays, on=on):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("on", ON)
def test_a_very_wide_component(on):
    """exp(-log_scale) underflows in float32; inner levels get 2 h / (4 s), the two ends 1/2."""
    x = np.array([[-1.0], [0.2], [1.0]], np.float32)
    arrays = [np.full((3, 1, 1), value, np.float32) for value in (0, 0.3, 95)]
    nll, _, dx_mu, dlog_scale = nll_and_gradients(*arrays, x, on=on)
    np.testing.assert_allclose(nll, [np.log(2), 95 - np.log(2 / 255 / 4), np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(dx_mu, 0, atol=1e-36)
    np.testing.assert_allclose(dlog_scale[:, 0, 0], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("on", ON)
def test_x_is_rounded_to_its_level(on, rng):
    parameters = rng.normal(size=(3, 256, 1, 3))
    x = all_levels(256)
    expected = nll_and_gradients(*parameters, x, on=on)
    for moved in (x + 0.4 / 127.5, x - 0.4 / 127.5, x.astype(np.float16).astype(float)):
        results = nll_and_gradients(*parameters, moved, on=on)
        for found, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("value", [1.1, -1.005, np.inf])
def test_x_without_a_level(value, rng):
    """A ValueError on a CPU; on a GPU x cannot be looked at without waiting for the device."""
    parameters, x = rng.normal(size=(3, 2, 3, 4)), np.zeros((2, 3))
    x[1, 2] = value
    for on in ("numpy", "numba"):
        with pytest.raises(ValueError, match=rf"x holds {value}, its levels lie in \[-1, 1\]"):
            nll_and_gradients(*parameters, x, on=on)
    nll, *_ = nll_and_gradients(*parameters, x, on="cuda")
    np.testing.assert_array_equal(np.isnan(nll), [False, True])


@pytest.mark.parametrize("K", [3, 8])
def test_storage_in_half_precision(K, rng):
    parameters = rng.normal(size=(3, 5, 7, K)).astype(np.float16)
    x = rng.choice(all_levels(256)[:, 0], (5, 7)).astype(np.float16)
    expected = nll_and_gradients(*(a.astype(np.float32) for a in (*parameters, x)), on="cuda")
    with simt.device() as gpu:
        nll, saved = logistic_mixture_nll_forward(*map(gpu.xp.asarray, (*parameters, x)))
        *gradients, _ = logistic_mixture_nll_backward(gpu.xp.ones(5, np.float32), saved)
        assert nll.dtype == np.float32
        np.testing.assert_allclose(nll.get(), expected[0], rtol=1e-6)
        for gradient, wanted in zip(gradients, expected[1:], strict=True):
            assert gradient.dtype == np.float16
            np.testing.assert_allclose(gradient.get(), wanted, rtol=1e-3, atol=1e-3)


def test_wrong_arguments_are_named():
    p, x = np.ones((3, 2, 4)), np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"log_scale has shape \(3, 2, 3\), logit_weight has"):
        logistic_mixture_nll_forward(p, p, p[..., :3], x)
    with pytest.raises(ValueError, match=r"x has shape \(3, 1\), logit_weight without .* \(3, 2\)"):
        logistic_mixture_nll_forward(p, p, p, x[:, :1])
    with pytest.raises(ValueError, match=r"\(B, ..., K\) with K >= 1, got shape \(3, 2, 0\)"):
        logistic_mixture_nll_forward(p[..., :0], p[..., :0], p[..., :0], x)
    with pytest.raises(ValueError, match=r"\(B, ..., K\) with K >= 1, got shape \(3,\)"):
        logistic_mixture_nll_forward(x[:, 0], x[:, 0], x[:, 0], x)
    with pytest.raises(TypeError, match="x is float32, logit_weight is float64"):
        logistic_mixture_nll_forward(p, p, p, x.astype(np.float32))
    with pytest.raises(TypeError, match="x must be float32 or float64, got uint8"):
        logistic_mixture_nll_forward(p, p, p, x.astype(np.uint8))
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        logistic_mixture_nll_forward(p, p, p, x, levels=1)


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on):
    p, x = np.ones((3, 2, 4)), np.zeros((3, 2))
    for wrong in (np.ones(2), x, np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3,\)"):
            nll_and_gradients(p, p, p, x, on=on, dout=wrong)
