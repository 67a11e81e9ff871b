"""patches.py: image -> patches -> image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
import kernel_strategies
import tinyvae_kernels as kernels
from tinyvae_kernels import geometry

NAMES = ["im2col", "col2im"]
ON = ["numpy", "numba"]


def im2col_by_the_formula(x, kernel, stride, padding, dilation):
    """patches[b, p, q, r, s, c] = x[b, p stride + r dilation - padding, ..., c], one by one."""
    g = geometry(x.shape[1:], kernel, stride, padding, dilation)
    patches = np.zeros((len(x), g.P, g.Q, g.R, g.S, g.C))
    for p, q, r, s in np.ndindex(g.P, g.Q, g.R, g.S):
        h, w = p * stride + r * dilation - padding, q * stride + s * dilation - padding
        if 0 <= h < g.H and 0 <= w < g.W:
            patches[:, p, q, r, s] = x[:, h, w]
    return patches.reshape(len(x) * g.P * g.Q, g.R * g.S * g.C)


@pytest.mark.parametrize("on", ON)
@given(data=st.data())
def test_im2col_is_its_formula(on, data):
    case = data.draw(kernel_strategies.CASES["im2col"])
    with kernels.backend(on):
        patches, _ = kernels.im2col_forward(*case.arrays, **case.options)
    np.testing.assert_array_equal(patches, im2col_by_the_formula(*case.arrays, **case.options))


@pytest.mark.parametrize("on", ON)
@given(data=st.data())
def test_col2im_is_the_adjoint_of_im2col(on, data):
    """<im2col x, y> = <x, col2im y>."""
    case = data.draw(kernel_strategies.CASES["im2col"])
    (x,), options, rng = case.arrays, case.options, np.random.default_rng(2)
    g = geometry(x.shape[1:], **options)
    with kernels.backend(on):
        patches, _ = kernels.im2col_forward(x, **options)
        y = rng.normal(size=patches.shape)
        image, _ = kernels.col2im_forward(y, batch=len(x), geometry=g)
    assert image.shape == x.shape
    np.testing.assert_allclose((patches * y).sum(), (x * image).sum(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("on", ON)
def test_overlapping_patches_add_up(on):
    """All nine elements of a 3x3 filter meet a pixel in the middle, four one in a corner."""
    g = geometry((5, 5, 1), (3, 3), padding=1)
    with kernels.backend(on):
        image, _ = kernels.col2im_forward(np.ones((25, 9)), batch=1, geometry=g)
    np.testing.assert_array_equal(image[0, 2, 1:4, 0], [9, 9, 9])
    np.testing.assert_array_equal(image[0, 0, :, 0], [4, 6, 6, 6, 4])


def test_geometry_counts_the_positions():
    assert geometry((28, 28, 1), (4, 4), stride=2, padding=1)[5:7] == (14, 14)
    assert geometry((7, 6, 1), (3, 2), stride=2, padding=1, dilation=2)[5:7] == (3, 3)
    assert geometry((5, 1, 1), (5, 1))[5:7] == (1, 1)


@pytest.mark.parametrize(
    ("image", "kernel", "options", "message"),
    [
        ((4, 4, 1), (5, 1), {}, "a 5x1 filter with dilation 1 does not fit an image of 4x4"),
        ((4, 4, 1), (3, 3), {"dilation": 2}, "does not fit"),
        ((4, 4, 1), (0, 1), {}, r"kernel \(0, 1\)"),
        ((4, 4, 1), (1, 1), {"stride": 0}, "stride 0"),
        ((4, 4, 1), (1, 1), {"dilation": 0}, "dilation 0"),
        ((4, 4, 1), (1, 1), {"padding": -1}, "padding -1"),
    ],
)
def test_impossible_geometry_is_refused(image, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        geometry(image, kernel, **options)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, C\), got shape \(4, 4\)"):
        kernels.im2col_forward(np.ones((4, 4)), kernel=(2, 2))
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        kernels.im2col_forward(np.ones((1, 4, 4, 1), int), kernel=(2, 2))
    g = geometry((4, 4, 1), (2, 2))
    with pytest.raises(ValueError, match=r"patches have shape \(8, 4\), expected \(9, 4\)"):
        kernels.col2im_forward(np.ones((8, 4)), batch=1, geometry=g)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_dout_is_refused(name, on):
    """A Numba loop would read past the end of an array."""
    case, dout = backends.example(name, 3, 4, "float64")
    forward, backward = kernels.PAIRS[name]
    with kernels.backend(on):
        _, saved = forward(*case.arrays, **case.options)
        for wrong in (dout[:-1], dout[:, :-1], np.concatenate([dout, dout])):
            with pytest.raises(ValueError, match="dout has shape"):
                backward(wrong, saved)
