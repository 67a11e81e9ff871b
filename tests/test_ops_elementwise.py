"""ops/elementwise.py: values against scipy, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

import opcheck
import strategies
from tinyvae import Tensor, ops
from tinyvae.ops import elementwise

NAMES = ["exp", "log", "log1p", "sqrt", "relu", "leaky_relu", "elu", "gelu", "sigmoid", "silu",
         "tanh", "softplus", "where", "clip", "scale_gradient"]  # fmt: skip
X = np.linspace(-4, 4, 801)

EXPECTED = {
    "exp": (X, np.exp(X)),
    "log": (X[X > 0], np.log(X[X > 0])),
    "log1p": (X[X > -1], np.log1p(X[X > -1])),
    "sqrt": (X[X > 0], X[X > 0] ** 0.5),
    "relu": (X, X * (X > 0)),
    "leaky_relu": (X, np.maximum(X, 0.01 * X)),
    "elu": (X, np.where(X > 0, X, np.exp(X) - 1)),
    "sigmoid": (X, special.expit(X)),
    "silu": (X, X * special.expit(X)),
    "tanh": (X, np.tanh(X)),
    "softplus": (X, np.log1p(np.exp(X))),
    "clip": (X, X),
}


def test_this_file_checks_all_ops_of_the_module():
    assert set(NAMES) == {n for n in opcheck.OPS if hasattr(elementwise, f"{n}_forward")}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, data):
    opcheck.check_op(name, data.draw(strategies.CASES[name]))


@pytest.mark.parametrize("name", EXPECTED)
def test_value(name):
    x, expected = EXPECTED[name]
    np.testing.assert_allclose(getattr(ops, name)(x).data, expected, rtol=1e-13, atol=1e-15)


def test_options_reach_the_formula():
    x = np.array([-2.0, 3.0])
    np.testing.assert_allclose(ops.leaky_relu(x, slope=0.3).data, [-0.6, 3])
    np.testing.assert_allclose(ops.elu(x, alpha=2.0).data, [2 * np.expm1(-2), 3])
    np.testing.assert_array_equal(ops.clip(x, low=-1.0).data, [-1, 3])
    np.testing.assert_array_equal(ops.clip(x, high=1.0).data, [-2, 1])
    np.testing.assert_array_equal(ops.where(np.array([True, False]), x, 7.0).data, [-2, 7])


def test_gelu_is_near_x_times_the_normal_distribution():
    exact = X * stats.norm.cdf(X)
    found = ops.gelu(X).data
    assert 1e-5 < np.abs(found - exact).max() < 5e-4  # the tanh form, as documented


def test_softplus_of_small_numbers_is_not_rounded_to_zero():
    np.testing.assert_allclose(ops.softplus(np.array([-700.0, -50.0])).data, np.exp([-700, -50]))


def test_where_passes_each_gradient_to_the_array_that_was_taken():
    a, b = Tensor(np.zeros(3), True), Tensor(np.zeros(1), True)
    out = ops.where(np.array([True, False, False]), a, b)
    out.backward(np.array([1.0, 20.0, 300.0]))
    np.testing.assert_array_equal(a.grad, [1, 0, 0])
    np.testing.assert_array_equal(b.grad, [320])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("rate", [0.5, [1.0, 0.5, 0.0], [[1.0, 2.0], [0.5, 4.0], [0.0, 8.0]]])
def test_a_rate_scales_the_gradient_of_its_axes(rate, late, rng):
    x, rate, dout = Tensor(np.ones((3, 2)), True), np.array(rate), rng.normal(size=(3, 2))
    found: list = []
    out = ops.scale_gradient(x, (lambda: found[0]) if late else rate) * 2.0
    np.testing.assert_array_equal(out.data, 2)
    found.append(rate)  # known after the forward
    out.backward(dout)
    wide = rate.reshape(rate.shape + (1,) * (2 - rate.ndim))
    np.testing.assert_array_equal(x.grad, 2 * dout * wide)


def test_kinks_have_the_gradient_of_their_docstring():
    """relu and elu at 0 as on the left side; clip passes the gradient at its edges."""
    expected = {"relu": 0.0, "leaky_relu": 0.01, "elu": 1.0}
    for name, gradient in expected.items():
        x = Tensor(np.zeros(1), True)
        getattr(ops, name)(x).backward(np.ones(1))
        np.testing.assert_array_equal(x.grad, [gradient], err_msg=name)
    x = Tensor(np.array([-1.0, 1.0]), True)
    ops.clip(x, low=-1.0, high=1.0).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [1, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "silu", "tanh", "softplus", "clip"]
)
def test_extreme_arguments_give_finite_results(name, dtype):
    """As the formulas do: each goes to a constant or to x itself."""
    x = Tensor(np.array([-1e30, -1e4, -100, -20, 0, 20, 100, 1e4, 1e30], dtype), True)
    out = getattr(ops, name)(x)
    out.backward(np.ones_like(x.data))
    assert np.isfinite(out.data).all()
    assert np.isfinite(x.grad).all()


def test_clip_refuses_crossed_limits():
    with pytest.raises(ValueError, match="clip needs low <= high, got 2 and 1"):
        ops.clip(X, low=2, high=1)
