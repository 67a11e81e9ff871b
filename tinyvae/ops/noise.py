"""Where training's random numbers come from: Philox, keyed by a seed, a stream and a step.

Each use has a stream of its own, so that no two ever share noise, and a resumed run draws the same.
"""

from __future__ import annotations

from enum import IntEnum

from tinyvae_kernels import philox_normal as normal
from tinyvae_kernels import philox_uniform as uniform


class Stream(IntEnum):
    """What the noise is for."""

    POSTERIOR = 0  # eps of a training step
    BINARIZE = 1  # dynamic binarization of a training batch
    STATIC = 2  # static binarization of a data set
    EVALUATE = 3  # eps of an evaluation
    SAMPLE = 4  # z from the prior
    OBSERVE = 5  # x from p(x | z)
    EVALUATE_BITS = 6  # dynamic binarization of an evaluation


__all__ = ["Stream", "normal", "uniform"]
