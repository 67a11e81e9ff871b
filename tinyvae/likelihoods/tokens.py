"""Sequences of symbols: rows of whole numbers that end where they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..tensor import Tensor
from .base import Likelihood, array_of, check_each, row_sums
from .counts import Categorical


@dataclass(frozen=True)
class Tokens(Likelihood):
    """Symbols 0 .. symbols - 1 along the last axis; a sequence shorter than it ends with -1.

    log p(x | z) = sum_t l_t,x_t - log sum_c exp(l_tc), over t up to the first end and with it
    The end is the last class of each step, so that sequences of all lengths sum to one; what stands
    behind the first end is padding, and counts for nothing.
    """

    name: ClassVar[str] = "tokens"
    counts: ClassVar[bool] = True
    symbols: int

    def __post_init__(self) -> None:
        if not isinstance(self.symbols, int) or self.symbols < 1:
            raise ValueError(f"symbols must be a whole number >= 1, got {self.symbols!r}")

    @property
    def limits(self) -> tuple[float, float]:
        """The end and the last symbol."""
        return (-1.0, self.symbols - 1.0)

    @property
    def outputs(self) -> int:
        """A logit for each symbol, then one for the end."""
        return self.symbols + 1

    def nll(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """-log p(x | z), (B,) nats; with a mask that of the observed values alone."""
        return row_sums(self.nll_each(output, x, mask))

    def nll_each(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """-log p of each symbol and of the end, (B, ..., T) nats; 0 behind the end."""
        counted = until_end(array_of(x))
        if mask is not None:
            counted = counted & array_of(mask).astype(bool)
        return super().nll_each(output, x, counted)

    def _nll(self, output: Any, x: Any) -> Tensor:
        return self._classes._nll(output, np.where(x < 0, self.symbols, x))

    def mean(self, output: Any) -> Any:
        """The likeliest symbol of each step, and -1 from the first end on: whole numbers."""
        return self._closed(self._classes.probabilities(output).argmax(axis=-1))

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Symbols x ~ p(x | z), and -1 from the first end on: whole numbers."""
        return self._closed(self._classes.sample(output, seed=seed, step=step).astype(np.int64))

    @property
    def _classes(self) -> Categorical:
        return Categorical(self.outputs)

    def _closed(self, classes: Any) -> Any:
        """Classes as rows are given: -1 from the first end on."""
        x = np.where(classes == self.symbols, -1, classes)
        return np.where(until_end(x), x, -1)

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless x are symbols, followed in each row by nothing but -1."""
        last = self.symbols - 1
        check_each(
            x, lambda part: (part >= -1) & (part <= last) & (part == np.rint(part)), name, 1.0,
            f"{self.symbols} symbols are whole numbers 0 to {last}, and -1 from the end on",
        )  # fmt: skip
        symbol_behind = ((x >= 0) & ~until_end(x)).reshape(len(x), -1).any(axis=1)
        if symbol_behind.any():
            row = symbol_behind.argmax()
            raise ValueError(f"{name} has a symbol behind the end (-1) of row {row}")


def until_end(x: Any) -> Any:
    """True up to the first -1 of each row and at it."""
    ends = x < 0
    return ends.cumsum(axis=-1) - ends == 0
