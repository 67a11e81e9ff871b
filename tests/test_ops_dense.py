"""ops/dense.py: the fully connected layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opcheck
import strategies
from tinyvae import Tensor, ops


@given(data=st.data())
def test_backward_agrees_with_finite_differences(data):
    opcheck.check_op("linear", data.draw(strategies.CASES["linear"]))


def test_value(rng):
    x, weight, bias = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 4)), rng.normal(size=4)
    expected = np.einsum("abi,io->abo", x, weight)
    np.testing.assert_allclose(ops.linear(x, weight).data, expected, rtol=1e-13)
    np.testing.assert_allclose(ops.linear(x, weight, bias).data, expected + bias, rtol=1e-13)


def test_gradients_are_those_of_matmul_and_add(rng):
    values = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)), rng.normal(size=4)
    dout, gradients = rng.normal(size=(5, 4)), []
    for function in (ops.linear, lambda x, w, b: x @ w + b):
        leaves = [Tensor(value, True) for value in values]
        function(*leaves).backward(dout)
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_data_get_no_gradient(rng):
    """The first layer's input is data: a third of the layer's work is not done."""
    weight = Tensor(rng.normal(size=(3, 4)), True)
    _, saved = ops.linear.pair[0](rng.normal(size=(5, 3)), weight.data)
    dx, dweight, _ = ops.linear.pair[1](rng.normal(size=(5, 4)), saved, needs=(False, True))
    assert dx is None
    assert dweight.shape == (3, 4)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 2), (2, 0), (0, 0)])
def test_an_empty_feature_axis(inputs, outputs):
    """Whatever has a forward has a backward."""
    leaves = [
        Tensor(np.ones(shape), True) for shape in ((3, inputs), (inputs, outputs), (outputs,))
    ]
    out = ops.linear(*leaves)
    out.backward(np.ones(out.shape))
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
    np.testing.assert_array_equal(leaves[2].grad, np.full(outputs, 3))


def test_wrong_sizes_are_named(rng):
    x, weight = rng.normal(size=(5, 3)), rng.normal(size=(4, 2))
    with pytest.raises(ValueError, match=r"weight has shape \(4, 2\), x has \(5, 3\)"):
        ops.linear(x, weight)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), weight has 2 outputs"):
        ops.linear(rng.normal(size=(5, 4)), weight, np.ones(3))
    with pytest.raises(ValueError, match="weight has shape"):
        ops.linear(np.ones(()), weight)
    with pytest.raises(ValueError, match="weight has shape"):
        ops.linear(x, np.ones(3))
