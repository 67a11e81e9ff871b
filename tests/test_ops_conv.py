"""ops/conv.py: convolution against scipy, and its transpose as the adjoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

import opcheck
import strategies
import tinyvae_kernels as kernels
from tinyvae import Tensor, ops
from tinyvae_kernels import convolution

NAMES = ["conv2d", "conv_transpose2d"]


@pytest.mark.parametrize("on", ["numpy", "auto"])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, on, data):
    with kernels.backend(on):
        opcheck.check_op(name, data.draw(strategies.CASES[name]))


def conv2d_by_scipy(x, weight, bias=0.0, *, stride, padding, dilation):
    """Correlation of the padded image with the filter spread out, then every stride-th position."""
    R, S, C, O = weight.shape  # noqa: E741
    spread = np.zeros((dilation * (R - 1) + 1, dilation * (S - 1) + 1, C, O))
    spread[::dilation, ::dilation] = weight
    pad = ((padding, padding), (padding, padding), (0, 0))
    images = [
        np.stack([correlate(np.pad(image, pad), spread[..., o], "valid")[..., 0] for o in range(O)])
        for image in x
    ]
    y = np.array(images).reshape(len(x), O, *np.shape(images)[2:])
    return y.transpose(0, 2, 3, 1)[:, ::stride, ::stride] + bias  # (B, O, P, Q) -> (B, P, Q, O)


@given(data=st.data())
def test_conv2d_agrees_with_scipy(data):
    case = data.draw(strategies.CASES["conv2d"].filter(lambda case: len(case.arrays[0])))
    expected = conv2d_by_scipy(*case.arrays, **case.options)
    found = ops.conv2d(*case.arrays, **case.options).data
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@given(data=st.data())
def test_conv_transpose2d_is_the_adjoint_of_conv2d(data):
    """<conv(x), y> = <x, conv_transpose(y)> with the filter's channels swapped, without bias."""
    case = data.draw(strategies.CASES["conv2d"])
    (x, weight), rng = case.arrays[:2], np.random.default_rng(3)
    forward = ops.conv2d(x, weight, **case.options).data
    y = rng.normal(size=forward.shape)
    back = ops.conv_transpose2d(
        y, weight.swapaxes(2, 3), output_size=x.shape[1:3], **case.options
    ).data
    assert back.shape == x.shape
    np.testing.assert_allclose((forward * y).sum(), (x * back).sum(), rtol=1e-10, atol=1e-10)


def test_bias_is_added_to_every_pixel(rng):
    x, weight, bias = rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(2, 2, 2, 3)), np.arange(3.0)
    for name in NAMES:
        op = getattr(ops, name)
        difference = op(x, weight, bias).data - op(x, weight).data
        np.testing.assert_allclose(difference, np.broadcast_to(bias, difference.shape), atol=1e-14)


def test_smallest_output_of_the_transpose_is_the_default():
    x, weight = np.ones((1, 3, 4, 1)), np.ones((4, 4, 1, 1))
    assert ops.conv_transpose2d(x, weight, stride=2, padding=1).shape == (1, 6, 8, 1)
    sizes = [(6, 8), (7, 8), (7, 9)]
    for size in sizes:
        y = ops.conv_transpose2d(x, weight, stride=2, padding=1, output_size=size)
        assert y.shape == (1, *size, 1)


def test_a_one_by_one_filter_is_a_linear_layer(rng):
    x, weight, bias = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(3, 6)), rng.normal(size=6)
    expected = ops.linear(x, weight, bias).data
    for name in NAMES:
        found = getattr(ops, name)(x, weight[None, None], bias).data
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_data_get_no_gradient(name, rng):
    forward, backward = getattr(ops, name).pair
    y, saved = forward(rng.normal(size=(2, 4, 4, 1)), rng.normal(size=(3, 3, 1, 2)))
    dx, dweight, _ = backward(rng.normal(size=y.shape), saved, needs=(False, True))
    assert dx is None
    assert dweight.shape == (3, 3, 1, 2)


@pytest.mark.parametrize("part", [1, 100, 400])
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_batch_make_no_difference(name, part, rng, monkeypatch):
    """One image, several, or all at a time; the last part may be smaller."""
    x, weight, bias = rng.normal(size=(7, 5, 4, 2)), rng.normal(size=(3, 2, 2, 3)), np.arange(3.0)
    op, results = getattr(ops, name), []
    dout = rng.normal(size=op(x, weight, bias).shape)
    for numbers in (convolution.PART, part):
        monkeypatch.setattr(convolution, "PART", numbers)
        monkeypatch.setattr(convolution, "MARGIN", numbers)
        leaves = [Tensor(value, True) for value in (x, weight, bias)]
        out = op(*leaves)
        out.backward(dout)
        results.append([out.data, *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_sizes_are_named(name):
    op, x, weight = getattr(ops, name), np.ones((2, 5, 5, 4)), np.ones((3, 3, 3, 2))
    with pytest.raises(ValueError, match="weight has 3 input channels, x has 4"):
        op(x, weight)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), weight has 2 outputs"):
        op(x[..., :3], weight, np.ones(3))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, C\)"):
        op(x[0], weight)


def test_impossible_sizes_are_refused():
    x, weight = np.ones((1, 3, 3, 1)), np.ones((4, 4, 1, 1))
    with pytest.raises(ValueError, match="a 4x4 filter with dilation 1 does not fit an image of 3"):
        ops.conv2d(x, weight)
    with pytest.raises(ValueError, match="the output would be 0x0"):
        ops.conv_transpose2d(x, weight, padding=3)
    message = r"output_size \(8, 6\) does not belong to an input of 3x3: the smallest .* \(6, 6\)"
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose2d(x, weight, stride=2, padding=1, output_size=(8, 6))
    with pytest.raises(ValueError, match="stride 0"):
        ops.conv_transpose2d(x, weight, stride=0, output_size=(6, 6))
