"""Where training's random numbers come from: Philox, keyed by a seed, a stream and a step.

Each use has a stream of its own, so that no two ever share noise, and a resumed run draws the same.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from tinyvae_kernels import gather_bits, gather_rows
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
    CORRUPT = 7  # damage to a training batch
    IMPUTE = 8  # z while missing values are filled in


STREAMS = 16  # of each call of a Draw: room for the uses above


class Draw:
    """The noise of one step for some rows of a batch: asked for, array by array.

        eps = draw.normal(Z)              # (rows, Z)
        u = draw.uniform(samples, Z)      # (rows, samples, Z), in (0, 1)

    The k-th array of a step depends on seed, step, k and the row: not on how many rows are drawn at
    once, so that a batch in shards sees the noise of the whole.
    step: a number, or a Cell that holds one.  first: number of the first row in the batch.
    like: any array, the noise is made where it lies.
    """

    def __init__(
        self,
        rows: int,
        *,
        seed: int,
        step: Any = 0,
        first: int = 0,
        stream: Stream = Stream.POSTERIOR,
        dtype: Any = np.float32,
        like: Any = None,
    ):
        self.rows, self.first, self.seed, self.stream = rows, first, seed, stream
        self.calls = 0
        self.options = {"step": step, "dtype": dtype, "like": like}

    def normal(self, *shape: int) -> Any:
        """Standard normal numbers, (rows, *shape)."""
        return normal((self.rows, *shape), **self._next(shape))

    def uniform(self, *shape: int) -> Any:
        """Uniform numbers in (0, 1), (rows, *shape)."""
        return uniform((self.rows, *shape), **self._next(shape))

    def _next(self, shape: tuple[int, ...]) -> dict[str, Any]:
        stream = int(self.stream) + STREAMS * self.calls
        self.calls += 1
        size = int(np.prod(shape, dtype=np.int64))
        place = {"seed": self.seed, "stream": stream, "offset": self.first * size}
        return self.options | place


__all__ = ["Draw", "Stream", "gather_bits", "gather_rows", "normal", "uniform"]
