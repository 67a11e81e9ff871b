"""convolution.py: products with patches are those of the patches that im2col writes down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simt
import tinyvae_kernels as kernels
from tinyvae_kernels import convolution

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-11, "atol": 1e-11}}


@st.composite
def convolutions(draw):
    """B, an image, O, and the options of a convolution that fits it."""
    size = st.integers(1, 9)
    B, O, C = draw(st.integers(0, 5)), draw(st.integers(1, 70)), draw(st.integers(1, 5))  # noqa: E741
    kernel, padding = (draw(st.integers(1, 4)), draw(st.integers(1, 4))), draw(st.integers(0, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    image = tuple(max(draw(size), dilation * (k - 1) + 1 - 2 * padding) for k in kernel)
    return B, (*image, C), O, kernel, {"stride": stride, "padding": padding, "dilation": dilation}


def example(B, image, O, kernel, options, dtype, seed=0):  # noqa: E741
    rng, g = np.random.default_rng(seed), kernels.geometry(image, kernel, **options)
    x, w, y = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((B, *image), (g.R * g.S * g.C, O), (B * g.P * g.Q, O))
    )
    patches, _ = kernels.im2col_forward(x, kernel=kernel, **options)
    (image_of_y,) = kernels.im2col_backward(y @ w.T, (g, x.shape))
    return g, x, w, y, (patches @ w, patches.T @ y, image_of_y)


def three(g, x, w, y, xp=np):
    x, w, y = (xp.asarray(a) for a in (x, w, y))
    return (
        kernels.correlate(x, w, g, xp.empty(y.shape, y.dtype)),
        kernels.correlate_by(x, y, g, xp.empty(w.shape, w.dtype)),
        kernels.spread(y, w, g, xp.empty(x.shape, x.dtype)),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("on", ["numpy", "auto"])
@given(case=convolutions(), margin=st.sampled_from([1, 200, convolution.MARGIN]))
def test_products_are_those_with_patches(on, dtype, case, margin):
    g, x, w, y, expected = example(*case, dtype)
    with pytest.MonkeyPatch.context() as patch, kernels.backend(on):
        patch.setattr(convolution, "MARGIN", margin)  # one image, a few, all of them at a time
        patch.setattr(convolution, "PART", 10 * margin)
        found = three(g, x, w, y)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE[dtype])


def test_more_patches_than_a_table_has_rows():
    g, x, w, y, expected = example(3, (30, 31, 2), 5, (3, 3), {"padding": 1}, "float64")
    assert g.P * g.Q > convolution.ROWS
    for a, b in zip(three(g, x, w, y), expected, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE["float64"])


def test_views_are_read_as_they_are(rng):
    g, x, w, y, expected = example(4, (5, 6, 3), 7, (3, 2), {"stride": 2, "padding": 1}, "float64")
    views = (np.asfortranarray(x), w[::-1].copy()[::-1], np.repeat(y, 2, 1)[:, ::2])
    for a, b in zip(three(g, *views), expected, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE["float64"])


def test_threads_make_no_difference(rng):
    g, x, w, y, _ = example(64, (14, 14, 8), 16, (4, 4), {"stride": 2, "padding": 1}, "float32")
    with kernels.threads(1):
        alone = three(g, x, w, y)
    for a, b in zip(alone, three(g, x, w, y), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_share_of_the_rows_keeps_to_its_room(rng):
    """A thread may have fewer images than fit at a time; beyond its share lies another's room."""
    g, x, w, y, expected = example(3, (6, 5, 2), 7, (3, 3), {"padding": 1}, "float64")
    tables = convolution._tables(g, 5, 8)
    memory = np.full((9, 8 * 7 * 2), np.nan)
    out, address = np.empty_like(y), convolution.tiles(y.dtype)
    convolution._correlate_numba(x, out, w, memory[3:6], 5, *tables, g, address)
    np.testing.assert_allclose(out, expected[0], **TOLERANCE["float64"])
    assert np.isnan(memory[:3]).all()
    assert np.isnan(memory[6:]).all()


def test_on_a_gpu():
    g, x, w, y, expected = example(2, (5, 6, 3), 7, (3, 2), {"padding": 1}, "float64")
    with simt.device() as gpu:
        for a, b in zip(three(g, x, w, y, gpu.xp), expected, strict=True):
            np.testing.assert_allclose(a.get(), b, **TOLERANCE["float64"])
