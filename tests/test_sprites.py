"""sprites.py: the pictures show what their factors say."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae.sprites import FACTORS, SHAPES, draw, sprites

SQUARE, ELLIPSE, HEART = range(3)


def one(shape, scale=1.0, orientation=0.0, x=0.5, y=0.5, size=64):
    """One picture, (size, size), 0..1."""
    return draw(np.array([[shape, scale, orientation, x, y]]), size=size)[0, :, :, 0] / 255


def test_random_sprites():
    images, factors = sprites(300, seed=1)
    assert images.shape == (300, 64, 64, 1)
    assert images.dtype == np.uint8
    assert factors.shape == (300, len(FACTORS))
    assert factors.dtype == np.float32
    assert images.max() == 255
    assert (np.bincount(factors[:, 0].astype(int), minlength=len(SHAPES)) > 60).all()
    assert (factors.min(0)[1:] >= [0.5, 0, 0.22, 0.22]).all()
    assert (factors.max(0)[1:] <= [1, 2 * np.pi + 1e-6, 0.78, 0.78]).all()
    assert (np.ptp(factors, axis=0) > [1.9, 0.45, 6, 0.5, 0.5]).all()
    independent = np.corrcoef(factors.T) - np.eye(5)
    assert abs(independent).max() < 0.25
    np.testing.assert_array_equal(draw(factors), images)


def test_seeds_and_lengths():
    images, factors = sprites(20, seed=3, size=32)
    again, _ = sprites(5, seed=3, size=32)
    np.testing.assert_array_equal(again, images[:5])
    assert not np.array_equal(sprites(20, seed=4)[1], factors)
    assert sprites(0)[0].shape == (0, 64, 64, 1)


def test_default_number():
    images, factors = sprites(size=8)
    assert len(images) == len(factors) == 5000


@pytest.mark.parametrize("size", [8, 17, 64])
def test_frame_stays_black_and_centroid_is_x_y(size):
    images, factors = sprites(300, size=size)
    picture = images[..., 0].astype(float)
    if size == 64:
        edge = [picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]]
        assert np.max(edge) == 0
    middle, mass = np.arange(size) + 0.5, picture.sum((1, 2))
    x, y = picture.sum(1) @ middle / mass, picture.sum(2) @ middle / mass
    np.testing.assert_allclose(np.stack([x, y], 1), factors[:, 3:] * size, atol=0.15)


@pytest.mark.parametrize(("shape", "area"), [(SQUARE, 2), (ELLIPSE, 0.6 * np.pi), (HEART, 2.19)])
def test_area_grows_with_the_square_of_the_scale(shape, area):
    for scale in (0.5, 0.77, 1):
        mass = np.mean([one(shape, scale, angle).sum() for angle in np.linspace(0, 3, 7)])
        np.testing.assert_allclose(mass / (0.2 * 64 * scale) ** 2, area, rtol=0.01)


def test_a_square_in_whole_pixels_is_exact():
    scale = 16 / 64 / 0.2 / np.sqrt(2)  # half a side: 8 pixels
    expected = np.zeros((64, 64))
    expected[20:36, 28:44] = 1
    np.testing.assert_array_equal(one(SQUARE, scale, x=36 / 64, y=28 / 64), expected)


def test_ellipse_is_wide_then_turns_counter_clockwise():
    wide = one(ELLIPSE) > 0.5
    assert wide.any(0).sum() == pytest.approx(2 * 0.2 * 64, abs=1)
    assert wide.any(1).sum() == pytest.approx(2 * 0.6 * 0.2 * 64, abs=1)
    rows, columns = np.nonzero(one(ELLIPSE, orientation=0.5) > 0.5)
    assert np.corrcoef(rows, columns)[0, 1] < -0.3  # right end up: a lower row number


def test_heart_stands_on_its_tip():
    heart = one(HEART) > 0.5
    np.testing.assert_array_equal(one(HEART), one(HEART)[:, ::-1])
    widths = heart.sum(1)
    widths = widths[widths > 0]
    assert widths[-1] <= 3  # the tip
    assert widths.argmax() < len(widths) / 2
    top = np.flatnonzero(heart.any(1))[0]
    assert not heart[top, 31:33].any()  # the notch between two lobes
    assert heart[top, :31].any()
    quarter = one(HEART, orientation=np.pi / 2) > 0.5  # tip from below to the right
    np.testing.assert_array_equal(quarter, np.rot90(heart))


@pytest.mark.parametrize(
    ("shape", "period"), [(SQUARE, np.pi / 2), (ELLIPSE, np.pi), (HEART, 2 * np.pi)]
)
def test_symmetries(shape, period):
    picture = one(shape, 0.8, 0.3)
    assert abs(picture - one(shape, 0.8, 0.3 + period)).sum() < 0.5
    assert abs(picture - one(shape, 0.8, 0.3 + period / 2)).sum() > 20


def test_edges_are_grey():
    levels = np.unique(one(ELLIPSE, 0.9, 0.4, 0.43, 0.51))
    assert len(levels) > 10
    np.testing.assert_allclose(levels * 16, np.rint(levels * 16), atol=0.04)


def test_larger_pictures_show_the_same():
    small, large = one(HEART, 0.8, 1, 0.4, 0.6, 32), one(HEART, 0.8, 1, 0.4, 0.6, 128)
    assert abs(large.reshape(32, 4, 32, 4).mean((1, 3)) - small).max() < 0.15


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([0, 1, 0, 0.5], r"factors has shape \(1, 4\), expected \(N, 5\)"),
        ([3, 1, 0, 0.5, 0.5], "row 0 of factors, .3.0, .*, has a shape other than 0, 1, 2"),
        ([0.5, 1, 0, 0.5, 0.5], "has a shape other than 0, 1, 2"),
        ([0, 0, 0, 0.5, 0.5], r"has a scale outside \(0, 1\]"),
        ([0, 1.1, 0, 0.5, 0.5], r"has a scale outside \(0, 1\]"),
        ([0, 1, 0, 0.19, 0.5], "puts the sprite across the frame"),
        ([0, 1, 0, 0.5, 0.81], "puts the sprite across the frame"),
        ([0, 1, np.nan, 0.5, 0.5], "is not finite"),
    ],
)
def test_errors(factors, message):
    with pytest.raises(ValueError, match=message):
        draw(np.array([factors], float))


def test_errors_of_size_and_number():
    with pytest.raises(ValueError, match="size is 7, expected 8 pixels or more"):
        sprites(1, size=7)
    with pytest.raises(ValueError, match="n is -1, expected 0 or more"):
        sprites(-1)
