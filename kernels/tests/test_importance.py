"""importance.py: log-mean-exp and the importance weights."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

import backends
from tinyvae_kernels.importance import log_mean_exp_backward, log_mean_exp_forward

ON = ["numpy", "numba", "cuda"]


def value_weights_gradient(log_w, on, dout=None):
    with backends.running_on(on) as (put, get):
        value, saved = log_mean_exp_forward(put(log_w))
        dout = np.ones(value.shape, log_w.dtype) if dout is None else dout
        (dlog_w,) = log_mean_exp_backward(put(dout), saved)
        return get(value), get(saved.weights), get(dlog_w)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("K", [1, 2, 31, 33, 64, 257, 3000])
def test_agrees_with_scipy(K, on, rng):
    log_w, dout = rng.normal(-90, 5, (7, K)), rng.normal(size=7)
    value, weights, dlog_w = value_weights_gradient(log_w, on, dout)
    np.testing.assert_allclose(value, logsumexp(log_w, axis=1) - np.log(K), rtol=1e-13)
    np.testing.assert_allclose(weights, softmax(log_w, axis=1), rtol=1e-11)
    np.testing.assert_allclose(dlog_w, dout[:, None] * softmax(log_w, axis=1), rtol=1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_one_sample_is_the_elbo_itself(dtype, on, rng):
    log_w = (1000 * rng.normal(size=(50, 1))).astype(dtype)
    value, weights, dlog_w = value_weights_gradient(log_w, on)
    np.testing.assert_array_equal(value, log_w[:, 0])
    np.testing.assert_array_equal(weights, np.ones_like(log_w))
    np.testing.assert_array_equal(dlog_w, np.ones_like(log_w))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_weights_sum_to_one_and_favour_the_best(dtype, on, rng):
    log_w = rng.normal(0, 30, (20, 50)).astype(dtype)
    _, weights, _ = value_weights_gradient(log_w, on)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(weights.argmax(axis=1), log_w.argmax(axis=1))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_weights_of_zero(dtype, on):
    """-inf, alone or in company; a NaN beside it is not forgotten."""
    inf = np.inf
    log_w = np.array([[-inf, 0, 0], [-inf, -inf, -inf], [-inf, np.nan, -inf], [1, 1, 1]], dtype)
    value, weights, dlog_w = value_weights_gradient(log_w, on)
    np.testing.assert_allclose(value, [np.log(2 / 3), -inf, np.nan, 1], rtol=1e-6)
    expected = [[0, 0.5, 0.5], [0, 0, 0], [np.nan] * 3, [1 / 3] * 3]
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-37)
    np.testing.assert_array_equal(dlog_w, weights)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    log_w = np.array([[1e30, -1e30, 0], [-1e30, -1e30, -1e30], [80, -80, 80]], dtype)
    value, weights, _ = value_weights_gradient(log_w, on)
    np.testing.assert_allclose(value, [1e30, -1e30, 80 + np.log(2 / 3)], rtol=1e-6)
    assert np.isfinite(weights).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"log_w must be \(B, K\) with K >= 1, got shape \(3,\)"):
        log_mean_exp_forward(np.ones(3))
    with pytest.raises(ValueError, match=r"with K >= 1, got shape \(3, 0\)"):
        log_mean_exp_forward(np.ones((3, 0)))
    with pytest.raises(TypeError, match="log_w must be float32 or float64, got int64"):
        log_mean_exp_forward(np.ones((3, 2), np.int64))


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on):
    for wrong in (np.ones(2), np.ones((3, 2)), np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3,\)"):
            value_weights_gradient(np.ones((3, 2)), on, wrong)
