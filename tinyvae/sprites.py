"""Sprites: small pictures whose generating factors are known, drawn by formulas.

White squares, ellipses and hearts on black, for disentanglement, as in dSprites (Matthey et
al. 2017), of which nothing is copied: the five factors here are continuous and independent.

N pictures    H = W = size pixels    P pixels: side of the window that is drawn
"""

from __future__ import annotations

import numpy as np

FACTORS = ("shape", "scale", "orientation", "x", "y")
SHAPES = ("square", "ellipse", "heart")

_REACH = 0.2  # from the centre to the farthest point at scale 1, in sides of the picture
_MARGIN = 0.22  # of a random centre to the frame, so that nothing is ever cut
_SAMPLES = 4  # per pixel and axis: 17 levels of grey along the edges
_CHUNK = 16  # sprites at a time: the samples stay in a 1 MB cache (2 times the speed of 256)


def sprites(
    n: int | None = None, *, seed: int = 0, size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """`n` random sprites (5000 if None, about a second) and the factors that drew them.

    Factors are independent and uniform: shape in {0, 1, 2}, scale in [0.5, 1), orientation in
    [0, 2 pi), x and y in [0.22, 0.78). The first rows do not depend on `n`.
    Returns images (N, H, W, 1) uint8 and factors (N, 5) float32; columns as in `draw`.

    >>> images, factors = sprites(3, size=32)
    >>> images.shape, factors.shape
    ((3, 32, 32, 1), (3, 5))
    """
    n = 5000 if n is None else n
    if n < 0:
        raise ValueError(f"n is {n}, expected 0 or more")
    unit = np.random.default_rng(seed).random((n, 5))
    low = np.array([0, 0.5, 0, _MARGIN, _MARGIN])
    high = np.array([3, 1, 2 * np.pi, 1 - _MARGIN, 1 - _MARGIN])
    factors = low + (high - low) * unit
    factors[:, 0] = np.floor(factors[:, 0])
    factors = factors.astype(np.float32)
    return draw(factors, size=size), factors


def draw(factors: np.ndarray, *, size: int = 64) -> np.ndarray:
    """One sprite for each row of factors, anti-aliased by 4 x 4 samples per pixel.

    factors: (N, 5), columns shape (0 square, 1 ellipse, 2 heart), scale in (0, 1],
    orientation in radians, counter-clockwise as seen (a square repeats every pi/2, an ellipse
    every pi), x and y of the centroid in sides of the picture, from its left and its top.
    Returns images (N, H, W, 1) uint8, 0 black and 255 white.
    Raises ValueError if a factor is out of range or a sprite would cross the frame.
    """
    factors = np.asarray(factors)
    _check(factors, size)
    images = np.zeros((len(factors), size, size, 1), np.uint8)
    for shape, inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        rows = np.flatnonzero(factors[:, 0] == shape)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            _draw_into(images, part, factors[part, 1:], inside)
    return images


def _check(factors: np.ndarray, size: int) -> None:
    if size < 8:
        raise ValueError(f"size is {size}, expected 8 pixels or more")
    if factors.ndim != 2 or factors.shape[1] != 5:
        raise ValueError(f"factors has shape {factors.shape}, expected (N, 5)")
    scale, reach = factors[:, 1], _REACH * factors[:, 1:2]
    for bad, problem in (
        (~np.isfinite(factors).all(1), "is not finite"),
        (~np.isin(factors[:, 0], (0, 1, 2)), "has a shape other than 0, 1, 2"),
        (~((scale > 0) & (scale <= 1)), "has a scale outside (0, 1]"),
        ((abs(factors[:, 3:] - 0.5) + reach > 0.5).any(1), "puts the sprite across the frame"),
    ):
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"row {row} of factors, {factors[row].tolist()}, {problem}")


def _draw_into(images, rows, factors, inside) -> None:
    """Draw sprites of one shape into images[rows]; factors: (n, 4), the last four columns.

    Only a window of P x P pixels around each centre is sampled, pushed back into the frame
    where it sticks out (the sprite itself never does).
    """
    size = images.shape[1]
    width = min(size, int(np.ceil(2 * _REACH * size)) + 2)  # P
    scale, angle, x, y = factors.astype(np.float32).T[:, :, None]  # each (n, 1)
    left, top = (np.clip(c * size - width / 2, 0, size - width).astype(int) for c in (x, y))
    # Centres of the samples, from the centre of the sprite, in its reach; y points up.
    sample = (np.arange(width * _SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES
    unit = scale * np.float32(_REACH * size)
    right = (left.astype(np.float32) + sample - x * size) / unit  # (n, 4P)
    up = (y * size - top.astype(np.float32) - sample) / unit  # (n, 4P)
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * right)[:, None, :] + (sin * up)[:, :, None]  # (n, 4P, 4P): turned back by angle
    v = (cos * up)[:, :, None] - (sin * right)[:, None, :]
    hit = inside(u, v).reshape(-1, width, _SAMPLES, width, _SAMPLES)  # -> (n, P, 4, P, 4)
    hits = hit.sum(4, dtype=np.uint8).sum(2, dtype=np.uint8)  # (n, P, P)
    grey = np.rint(hits * np.float32(255 / _SAMPLES**2)).astype(np.uint8)
    pixel = np.arange(width)
    images[rows[:, None, None], (top + pixel)[:, :, None], (left + pixel)[:, None, :], 0] = grey


# Each shape at orientation 0, centroid at the origin, u to the right, v up; the circle around
# it has radius 1. Areas 2, 1.88 and 2.19.


def _in_square(u, v):
    return np.maximum(abs(u), abs(v)) <= np.float32(np.sqrt(0.5))


def _in_ellipse(u, v):
    return u * u + v * v * np.float32(1 / 0.6**2) <= 1


def _in_heart(u, v):
    """(p^2 + q^2 - 1)^3 <= p^2 q^3        source: MathWorld, "Heart Curve", the sextic

    p = 1.294 u, q = 1.294 v + 0.2935: its centroid is (0, 0.2935), its tip, the farthest point
    from there, (0, -1).
    """
    p = np.float32(1.294) * u
    q = np.float32(1.294) * v + np.float32(0.2935)
    p *= p
    qq = q * q
    r = p + qq
    r -= 1
    return r * r * r <= p * qq * q
