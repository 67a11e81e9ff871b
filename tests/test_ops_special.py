"""ops/special.py: the ratio of two Gamma functions, against scipy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, gammaln, poch

import opcheck
import strategies
from tinyvae import Tensor, ops


@given(data=st.data())
def test_backward_agrees_with_finite_differences(data):
    opcheck.check_op("log_gamma_ratio", data.draw(strategies.CASES["log_gamma_ratio"]))


def test_agrees_with_scipy(rng):
    a, x = 10 ** rng.uniform(-6, 3, (50, 1)), rng.uniform(0, 1000, 40)
    a, x = Tensor(a, True), Tensor(x, True)
    out = ops.log_gamma_ratio(a, x)
    n = a.data + x.data
    np.testing.assert_allclose(out.data, gammaln(n) - gammaln(a.data), rtol=1e-12, atol=1e-11)
    out.backward(np.ones(out.shape))
    da = (digamma(n) - digamma(a.data)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(a.grad, da, rtol=1e-11)
    np.testing.assert_allclose(x.grad, digamma(n).sum(axis=0), rtol=1e-11)


@pytest.mark.parametrize("x", [0.0, 1.0, 2.0, 7.0])
def test_small_whole_x_give_a_product_of_factors(x):
    """Gamma(a + 3) / Gamma(a) = a (a + 1) (a + 2): exact where two logarithms would cancel."""
    a = np.array([1e-8, 0.5, 7.99, 8.0, 1e4, 1e8])
    expected = sum((np.log(a + i) for i in range(int(x))), np.zeros(6))
    np.testing.assert_allclose(ops.log_gamma_ratio(a, x).data, expected, rtol=1e-13, atol=1e-13)
    single = ops.log_gamma_ratio(a.astype(np.float32), x)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.data, expected, rtol=1e-6, atol=1e-6)


def test_factorials_and_half_steps():
    x = np.arange(20.0)
    factorials = np.exp(ops.log_gamma_ratio(1.0, x).data)
    np.testing.assert_allclose(factorials, np.cumprod(np.maximum(x, 1)), rtol=1e-13)
    a = np.array([0.5, 3.0, 100.0])
    np.testing.assert_allclose(ops.log_gamma_ratio(a, 0.5).data, np.log(poch(a, 0.5)), rtol=1e-12)
