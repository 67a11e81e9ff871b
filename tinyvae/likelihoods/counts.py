"""Whole numbers: classes 0 .. C - 1, and counts 0, 1, 2, ...; bytes are taken as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import devices, ops
from ..tensor import Tensor
from .base import (
    FREE,
    Likelihood,
    array_of,
    below,
    check_each,
    check_parameter,
    generator,
    row_sums,
    uniform_like,
    within,
)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes: x in 0 .. classes - 1, the output is the logits of each value's classes.

    log p(x | z) = sum_d l_dx - log sum_c exp(l_dc)
    """

    name: ClassVar[str] = "categorical"
    counts: ClassVar[bool] = True
    classes: int

    def __post_init__(self) -> None:
        if not isinstance(self.classes, int) or self.classes < 2:
            raise ValueError(f"classes must be a whole number >= 2, got {self.classes!r}")

    @property
    def limits(self) -> tuple[float, float]:
        """The first and the last class."""
        return (0.0, self.classes - 1.0)

    @property
    def outputs(self) -> int:
        """A logit for each class."""
        return self.classes

    def _nll(self, output: Any, x: Any) -> Tensor:
        return ops.categorical_nll(self._by_value(output), array_of(x).astype(np.int64))

    def probabilities(self, output: Any) -> Any:
        """p(x = c | z), (B, ..., C, classes), an array."""
        return np.exp(ops.log_softmax(self._by_value(output)).data)

    def mean(self, output: Any) -> Any:
        """E[x | z] = sum_c c p(c): of use where the classes are in an order."""
        values = np.arange(self.classes, dtype=output.dtype, like=output)
        return (self.probabilities(output) * values).sum(axis=-1)

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Classes x ~ p(x | z)."""
        upper = self.probabilities(output).cumsum(axis=-1)[..., :-1]
        u = uniform_like(upper[..., 0], seed, step)[..., None]
        return (upper <= u).sum(axis=-1).astype(output.dtype)

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values are whole numbers from 0 to classes - 1."""
        last = self.classes - 1
        check_each(
            x, lambda part: (part >= 0) & (part <= last) & (part == np.rint(part)), name, 1.0,
            f"a categorical likelihood of {self.classes} classes is for whole numbers 0 to {last}",
        )  # fmt: skip


class _Count(Likelihood):
    """Counts 0, 1, 2, ...: the first output is the logarithm of their mean, kept below 20."""

    counts: ClassVar[bool] = True

    @property
    def limits(self) -> None:
        """Counts have no upper one."""

    def _log_mean(self, output: Any) -> Tensor:
        return below(self._blocks(output)[0])

    def mean(self, output: Any) -> Any:
        """E[x | z] = e^output."""
        return np.exp(self._log_mean(output).data)

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values are whole numbers >= 0."""
        wish = f"a {self.name} likelihood is for counts: whole numbers >= 0"
        check_each(x, lambda part: (part >= 0) & (part == np.rint(part)), name, 1.0, wish)


@dataclass(frozen=True)
class Poisson(_Count):
    """Counts of independent events: the output is the logarithm of their mean m.

    log p(x | z) = sum_d x log m - m - log x!
    """

    name: ClassVar[str] = "poisson"

    def _nll(self, output: Any, x: Any) -> Tensor:
        x, log_mean = array_of(x), self._log_mean(output)
        return row_sums(ops.exp(log_mean) - x * log_mean + ops.log_gamma_ratio(1.0, x))

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Counts x ~ p(x | z)."""
        mean = devices.to_host(self.mean(output)).astype(float)
        x = generator(seed, step).poisson(mean).astype(output.dtype)
        return devices.move(x, devices.of(output))


@dataclass(frozen=True)
class NegativeBinomial(_Count):
    """Counts more scattered than Poisson's: variance m + a m^2, the output is log m.

    log p(x | z) = sum_d log Gamma(x + r) - log Gamma(r) - log x!
                         - r log(1 + m / r) - x log(1 + r / m),     r = 1 / a
                                    Lopez et al. 2018 (scVI), where r is called inverse dispersion
    dispersion: a: a fixed number > 0; "learned", for every value; or "shared", one trained number.
    Its logarithm, if it is not fixed, stays within +-20.
    """

    name: ClassVar[str] = "negative_binomial"
    dispersion: float | str = "shared"

    def __post_init__(self) -> None:
        check_parameter("dispersion", self.dispersion)

    @property
    def _free(self) -> tuple[float | str, ...]:
        return (self.dispersion,)

    def _log_r(self, output: Any) -> Tensor:
        raw = self._blocks(output)[1]
        if self.dispersion in FREE:
            return -within(raw)
        return Tensor(np.asarray(-np.log(raw), output.dtype, like=array_of(output)))

    def _nll(self, output: Any, x: Any) -> Tensor:
        x, log_mean, log_r = array_of(x), self._log_mean(output), self._log_r(output)
        r, logit = ops.exp(log_r), log_mean - log_r
        each = r * ops.softplus(logit) + x * ops.softplus(-logit)
        return row_sums(each + ops.log_gamma_ratio(1.0, x) - ops.log_gamma_ratio(r, x))

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Counts x ~ p(x | z): Poisson's, with a Gamma distributed mean."""
        mean = devices.to_host(self.mean(output)).astype(float)
        r = np.exp(devices.to_host(self._log_r(output).data).astype(float))
        draw = generator(seed, step)
        x = draw.poisson(draw.gamma(r, mean / r, mean.shape)).astype(output.dtype)
        return devices.move(x, devices.of(output))


__all__ = ["Categorical", "NegativeBinomial", "Poisson"]
