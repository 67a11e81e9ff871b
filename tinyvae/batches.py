"""From stored rows to the batches that a network sees: gathered, scaled, binarized.

Data may stay uint8 or memory-mapped: only the rows of a batch are converted.  Binarization draws
from Philox by position, so that it does not depend on the batch size or on what ran before:

    dynamic   every training step draws new bits x ~ Bernoulli(grey), Salakhutdinov, Murray 2008
    static    every image is drawn once, as Larochelle and Murray 2011 did for MNIST
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import devices
from ._text import unknown
from .ops import noise
from .ops.noise import Stream

BINARIZE = ("dynamic", "static")


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of data as a model sees them, and what comes with them.

    x: (B, ...).  y: None, labels (B,) of whole numbers, or a condition (B, C).  mask: None, or like
    x (or its first axes): 1 where x is observed, 0 where it is missing (and x is 0).  total: rows
    of the data set that these were taken from, or None if they are all there are.  corrupted: None,
    or what the encoder sees of x.
    batch[part] are the rows of a slice.
    """

    x: Any
    y: Any = None
    mask: Any = None
    total: int | None = None
    corrupted: Any = None

    @property
    def seen(self) -> Any:
        """What the encoder sees: x, or what is left of it."""
        return self.x if self.corrupted is None else self.corrupted

    @property
    def plain(self) -> bool:
        """Whether there is x, and nothing else."""
        return self.y is None and self.mask is None and self.corrupted is None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: Any) -> Batch:
        return self._of(lambda array: array[part])

    def repeated(self, times: int) -> Batch:
        """Each row so many times, one copy after the other."""
        return self._of(lambda array: np.repeat(array, times, axis=0))

    def _of(self, change: Callable[[Any], Any]) -> Batch:
        arrays = (self.x, self.y, self.mask, self.corrupted)
        x, y, mask, corrupted = (None if a is None else change(a) for a in arrays)
        return Batch(x, y, mask, self.total or len(self), corrupted)


@dataclass(frozen=True, eq=False)
class Gather:
    """A batch still to be read: rows of an index, its dynamic bits from (stream, step).

    `batch` reads it; `into` writes a part of it to memory that a recorded step reads.
    """

    rows: Rows
    index: np.ndarray
    stream: Stream
    step: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return (len(self.index), *self.rows.shape)

    @property
    def total(self) -> int:
        """Rows of the data set."""
        return len(self.rows)

    def batch(self) -> Batch:
        """The rows."""
        return self.rows.take(self.index, stream=self.stream, step=self.step)

    def into(self, x: np.ndarray, index: np.ndarray, part: slice, step: Any) -> None:
        """x[part] = the rows of index[part], in one pass; step: a number, or its cell."""
        rows = self.rows
        stored = rows.array.reshape(len(rows), -1)
        out = x.reshape(len(x), -1)[part]
        if rows.binarize is None:
            noise.gather_rows(stored, index[part], out, scale=rows.scale)
            return
        noise.gather_bits(
            stored, index[part], out, scale=rows.scale, seed=rows.seed, stream=self.stream,
            step=step, offset=part.start * stored.shape[1],
        )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """N rows of data and how to read them.

    array: (N, ...) floats, or uint8 that are divided by `scale`.
    shape: of a row as the network sees it.  dtype: of the batches.
    binarize: None, "dynamic" or "static".  seed: of the bits.
    device: where the batches are made, "cpu" or "cuda"; the rows themselves stay on the CPU.
    y: None, or the labels (N,) or conditions (N, C).  mask: None, or what of `array` is observed.
    corruption: None, or what the encoder's x goes through in training.
    again: how often more a row with a label (y >= 0) comes in an epoch.
    """

    array: np.ndarray
    shape: tuple[int, ...]
    dtype: Any = np.float32
    scale: float = 1.0
    binarize: str | None = None
    seed: int = 0
    device: str = "cpu"
    y: np.ndarray | None = None
    mask: np.ndarray | None = None
    corruption: Any = None
    again: int = 0

    def __post_init__(self) -> None:
        if self.binarize is not None and self.binarize not in BINARIZE:
            raise unknown("binarize", self.binarize, [*BINARIZE, None])

    def __len__(self) -> int:
        return len(self.array)

    def head(self, n: int) -> Rows:
        """The first n rows."""
        y, mask = (None if a is None else a[:n] for a in (self.y, self.mask))
        return replace(self, array=self.array[:n], y=y, mask=mask)

    def take(self, index: Any, *, stream: Stream, step: int = 0, offset: int = 0) -> Batch:
        """The rows of an index; dynamic bits come from (stream, step, offset)."""
        x = self._take(index, stream=stream, step=step, offset=offset)
        y, mask = (
            None if a is None else devices.move(a[index], self.device) for a in (self.y, self.mask)
        )
        if mask is not None:
            mask = mask.astype(self.dtype, copy=False).reshape(len(x), *self.shape)
        corrupted = None
        if self.corruption is not None:
            place = {"seed": self.seed, "step": step, "offset": offset}
            corrupted = self.corruption(x, stream=Stream.CORRUPT, **place)
            if mask is not None:  # what is missing shows nothing
                corrupted = corrupted * mask
        return Batch(x, y, mask, len(self), corrupted)

    def draw(self, index: np.ndarray, *, stream: Stream, step: int) -> Batch | Gather:
        """The rows of an index as they are best read: later, if they are plain x in memory."""
        plain = self.y is None and self.mask is None and self.corruption is None
        plain = (
            plain
            and self.device == "cpu"
            and self.binarize != "static"
            and self.array.flags.c_contiguous
        )
        if plain and self.array.dtype in (np.uint8, np.float32, np.float64):
            return Gather(self, index, stream, step)
        return self.take(index, stream=stream, step=step)

    def _take(self, index: Any, *, stream: Stream, step: int = 0, offset: int = 0) -> Any:
        """x of the rows of an index, (B, *shape)."""
        if self.binarize == "static":
            raise ValueError("static bits are drawn for all rows at once: use binarized_once()")
        x = self.array[index]
        if x.dtype != np.uint8:  # pixels travel as bytes
            x = np.asarray(x, self.dtype)
        x = devices.move(x, self.device).astype(self.dtype, copy=False)
        if self.scale != 1.0:
            x = x / x.dtype.type(self.scale)
        if self.binarize == "dynamic":
            u = noise.uniform(
                x.shape, seed=self.seed, stream=stream, step=step, offset=offset, dtype=self.dtype,
                like=x,
            )  # fmt: skip
            x = (x > u).astype(self.dtype)
        return x.reshape(len(x), *self.shape)

    def in_order(self, batch_size: int) -> Iterator[tuple[int, Batch]]:
        """Pairs of first row and batch, from first to last: for evaluation, of the clean x.

        Dynamic bits are drawn by row number, always the same ones for the same seed.
        """
        size, clean = math.prod(self.shape), replace(self, corruption=None)
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield start, clean.take(part, stream=Stream.EVALUATE_BITS, offset=start * size)

    def binarized_once(self) -> Rows:
        """Static binarization carried out: every row replaced by bits of its own, as uint8."""
        if self.binarize != "static":
            return self
        bits = np.empty((len(self), *self.shape), np.uint8)
        size, grey = math.prod(self.shape), replace(self, binarize=None, device="cpu")
        for start in range(0, len(self), 1024):
            x = grey._take(slice(start, start + 1024), stream=Stream.STATIC)
            u = noise.uniform(
                x.shape, seed=self.seed, stream=Stream.STATIC, offset=start * size, dtype=x.dtype
            )
            bits[start : start + 1024] = x > u
        return replace(self, array=bits, scale=1.0, binarize=None)

    def shuffled(self, batch_size: int, *, epoch: int) -> list[np.ndarray]:
        """The row numbers of every batch of an epoch; the last batch may be smaller."""
        numbers = np.arange(len(self))
        if self.again and self.y is not None:
            numbers = np.concatenate([numbers, np.repeat(np.flatnonzero(self.y >= 0), self.again)])
        order = np.random.default_rng([self.seed, epoch]).permutation(numbers)
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def read(source: Batch | Gather) -> Batch:
    """The batch itself."""
    return source.batch() if isinstance(source, Gather) else source
