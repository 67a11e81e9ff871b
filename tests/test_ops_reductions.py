"""ops/reductions.py: values against NumPy and scipy, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import opcheck
import strategies
from tinyvae import Tensor, ops
from tinyvae.ops import reductions

NAMES = ["sum", "mean", "max", "logsumexp", "log_softmax", "softmax", "reshape", "transpose",
         "concatenate"]  # fmt: skip


def naive_logsumexp(x, **options):
    return np.log(np.exp(x).sum(**options))


REFERENCE = {"sum": np.sum, "mean": np.mean, "max": np.max, "logsumexp": naive_logsumexp}


def test_this_file_checks_all_ops_of_the_module():
    assert set(NAMES) == {n for n in opcheck.OPS if hasattr(reductions, f"{n}_forward")}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, data):
    opcheck.check_op(name, data.draw(strategies.CASES[name]))


@pytest.mark.parametrize("name", REFERENCE)
@given(data=st.data())
def test_value_of_a_reduction(name, data):
    case = data.draw(strategies.CASES[name])
    (x,) = case.arrays
    found, expected = getattr(ops, name)(x, **case.options).data, REFERENCE[name](x, **case.options)
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(data=st.data())
def test_value_of_log_softmax(data):
    case = data.draw(strategies.CASES["log_softmax"])
    found = ops.log_softmax(*case.arrays, **case.options).data
    np.testing.assert_allclose(found, special.log_softmax(*case.arrays, **case.options), rtol=1e-12)


def test_softmax_works_on_the_last_axis_by_default(rng):
    x = rng.normal(size=(3, 5))
    np.testing.assert_allclose(np.exp(ops.log_softmax(x).data).sum(axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["logsumexp", "log_softmax"])
def test_extreme_arguments_give_finite_results(name, dtype):
    x = Tensor(np.array([[1e30, -1e30, 0], [-1e4, -1e4, -1e4], [800, 0, -800]], dtype), True)
    out = getattr(ops, name)(x, axis=1)
    out.backward(np.ones(out.shape))
    assert np.isfinite(out.data).all()
    assert np.isfinite(x.grad).all()
    if name == "logsumexp":
        np.testing.assert_allclose(out.data, [1e30, -1e4 + np.log(3), 800], rtol=1e-6)


def test_equal_maxima_share_the_gradient():
    x = Tensor(np.array([[1.0, 3.0, 3.0], [5.0, 2.0, 5.0]]), True)
    ops.max(x, axis=1).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [[0, 0.5, 0.5], [5, 0, 5]])


def test_a_full_sum_of_float32_is_taken_in_float64():
    """Ten million times 0.1 and one large number: pairwise float32 sums lose the small ones."""
    x = np.full(100_000, 0.1, np.float32)
    x[0] = 1e7
    exact = x.astype(np.float64).sum()
    for total in (ops.sum(x), ops.sum(x.reshape(10, -1)), ops.mean(x) * 100_000.0):
        assert total.dtype == np.float32
        np.testing.assert_allclose(total.data, exact, rtol=1.2e-7)


def test_reshape_and_transpose_reorder_as_numpy_does(rng):
    x = rng.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(ops.reshape(x, (4, -1)).data, x.reshape(4, 6))
    np.testing.assert_array_equal(ops.transpose(x).data, x.T)
    np.testing.assert_array_equal(ops.transpose(x, (1, -1, 0)).data, x.transpose(1, 2, 0))


def test_concatenate_joins_as_numpy_does(rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 1))
    np.testing.assert_array_equal(ops.concatenate([a, b]).data, np.concatenate([a, b], axis=1))
    np.testing.assert_array_equal(ops.concatenate([a, a], axis=0).data, np.concatenate([a, a]))


def test_concatenate_of_one_tensor_twice_adds_both_gradients():
    x = Tensor(np.zeros(2), True)
    ops.concatenate([x, x]).backward(np.array([1.0, 2.0, 30.0, 40.0]))
    np.testing.assert_array_equal(x.grad, [31, 42])


def test_wrong_shapes_are_refused(rng):
    x = rng.normal(size=(2, 3))
    with pytest.raises(ValueError, match="cannot reshape"):
        ops.reshape(x, (4, 2))
    with pytest.raises(ValueError, match="must match exactly"):
        ops.concatenate([x, x[:, :2]], axis=0)
    with pytest.raises(ValueError, match="axes"):
        ops.transpose(x, (0,))


@given(data=st.data())
def test_softmax_sums_to_one_over_what_the_mask_leaves(data):
    case = data.draw(strategies.CASES["softmax"])
    out, axis = ops.softmax(*case.arrays, **case.options).data, case.options["axis"]
    x, mask = (*case.arrays, np.True_)[:2]
    left = np.broadcast_to(mask, x.shape)
    assert (out[~left] == 0).all()
    np.testing.assert_allclose(out.sum(axis=axis), left.any(axis=axis), rtol=1e-14)
    expected = special.softmax(np.where(left, x, -1e9), axis=axis)
    np.testing.assert_allclose(out, np.where(left, expected, 0), rtol=1e-12)


@pytest.mark.parametrize("hidden", [1e30, np.inf, np.nan])
def test_softmax_ignores_what_is_hidden(hidden):
    x = Tensor(np.array([[hidden, 1.0, 3.0]], np.float32), True)
    out = ops.softmax(x, np.array([False, True, True]))
    out.backward(np.array([[5.0, 1.0, 2.0]]))
    np.testing.assert_allclose(out.data[0, 1:], special.softmax([1, 3]), rtol=1e-6)
    assert x.grad[0, 0] == 0
    assert np.isfinite(x.grad).all()
