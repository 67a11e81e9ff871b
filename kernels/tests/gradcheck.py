"""Finite differences for pairs of plain array functions, with neither the tape nor its checker.

`tinyvae.checking` is part of what is tested here, so the pairs are checked by this file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

STEP = 1e-6
RTOL = 1e-6
ROUNDING = 4 * np.finfo(np.float64).eps


class Case(NamedTuple):
    """One call of a pair: positional arrays, options, and which arrays are data (no gradient)."""

    arrays: tuple
    options: dict[str, Any] = {}  # noqa: RUF012  (never modified)
    data: tuple[int, ...] = ()


def check_pair(pair: tuple[Callable, Callable], case: Case, *, rtol: float = RTOL) -> None:
    """Each gradient along one random direction; data have none; nothing is modified."""
    forward, backward = pair
    arrays, rng = case.arrays, np.random.default_rng(1)
    before = [np.array(a) for a in arrays]
    out, saved = forward(*arrays, **case.options)
    dout = rng.standard_normal(np.shape(out))  # never ones
    kept = dout.copy()
    gradients = backward(dout, saved)
    # a layer without its optional bias may still name the bias's gradient, as None
    assert len(gradients) >= len(arrays)
    assert all(gradient is None for gradient in gradients[len(arrays) :])
    for position, gradient in enumerate(gradients[: len(arrays)]):
        if position in case.data:
            assert gradient is None, f"argument {position} is data, yet got a gradient"
            continue
        assert gradient.shape == arrays[position].shape
        assert gradient.dtype == np.float64
        _check_argument(forward, case, position, gradient, dout, rng, rtol)
    np.testing.assert_array_equal(dout, kept)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def _check_argument(
    forward: Callable,
    case: Case,
    position: int,
    gradient: np.ndarray,
    dout: np.ndarray,
    rng: np.random.Generator,
    rtol: float,
) -> None:
    v = rng.standard_normal(gradient.shape)

    def along(h: float) -> np.ndarray:
        arrays = list(case.arrays)
        arrays[position] = arrays[position] + h * v
        return np.asarray(forward(*arrays, **case.options)[0])

    above, below = along(STEP), along(-STEP)
    difference = float(np.sum(dout * (above - below))) / (2 * STEP)
    products = gradient * v
    analytic, size = float(np.sum(products)), float(np.sum(np.abs(products)))
    # the outputs' own rounding, which the division by 2h magnifies
    rounding = ROUNDING * float(np.sum(np.abs(dout * above))) / STEP
    allowed = rtol * max(size, abs(difference)) + rounding
    assert abs(difference - analytic) <= allowed, (
        f"argument {position}, shapes {[np.shape(a) for a in case.arrays]}, {case.options}: "
        f"finite difference {difference:.9g}, backward {analytic:.9g}"
    )
