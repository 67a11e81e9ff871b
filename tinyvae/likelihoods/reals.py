"""Real values: x is any finite number, the output is its location, and its scale if learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..ops import noise
from ..tensor import Tensor
from .base import (
    FREE,
    LEARNED,
    Likelihood,
    above,
    array_of,
    below,
    check_parameter,
    row_sums,
    uniform_like,
)


class _Real(Likelihood):
    """A location, the first block, and free parameters; any finite number will do as x."""

    @property
    def limits(self) -> None:
        """Real values have none."""

    def mean(self, output: Any) -> Any:
        """E[x | z], the location."""
        return output[..., : output.shape[-1] // self.blocks]

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Any finite number will do."""


@dataclass(frozen=True)
class Gaussian(_Real):
    """Independent real values: the output is their means, and their log-variances if learned.

    variance: one fixed number > 0; "learned": one for every value, from the decoder; or "shared":
    one trained number for all, the sigma-VAE of Rybkin et al. 2021, section 3.2.
    min_logvar: floor of a variance that is not fixed, reached smoothly (Rybkin et al. 2021,
    section 4): without it a pixel that never changes drives the density to infinity.
    """

    name: ClassVar[str] = "gaussian"
    variance: float | str = 1.0
    min_logvar: float = -6.0

    def __post_init__(self) -> None:
        check_parameter("variance", self.variance)

    @property
    def learned(self) -> bool:
        """Whether the decoder gives a variance for every value."""
        return self.variance == LEARNED

    @property
    def _free(self) -> tuple[float | str, ...]:
        return (self.variance,)

    def _parameters(self, output: Any) -> tuple[Any, Any]:
        """(B, ..., P C) -> x_mu (B, ..., C), and x_logvar (B, ..., C) unless it is fixed."""
        x_mu, raw = self._blocks(output)
        return x_mu, above(raw, self.min_logvar) if self.variance in FREE else None

    def _nll(self, output: Any, x: Any) -> Tensor:
        x_mu, x_logvar = self._parameters(output)
        if x_logvar is None:
            return ops.gaussian_fixed_nll(x_mu, x, variance=self.variance)
        return ops.gaussian_nll(x_mu, x_logvar, x)

    def elbo(
        self, output: Any, x: Any, mu: Any, logvar: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """ELBO (B,) nats, with `beta` and `free_bits`, in one pass; its terms in `.saved`."""
        if mask is not None:
            return super().elbo(output, x, mu, logvar, mask=mask, **weights)
        x_mu, x_logvar = self._parameters(output)
        if x_logvar is None:
            weights |= {"variance": self.variance}
            return ops.gaussian_fixed_elbo(x_mu, x, mu, logvar, **weights)
        return ops.gaussian_elbo(x_mu, x_logvar, x, mu, logvar, **weights)

    def loss(
        self, output: Any, x: Any, mu: Any, logvar: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """The negative ELBO over `batch`, a single number, in one pass."""
        if mask is not None:
            return super().loss(output, x, mu, logvar, mask=mask, **weights)
        x_mu, x_logvar = self._parameters(output)
        if x_logvar is None:
            weights |= {"elbo": "gaussian_fixed_elbo", "variance": self.variance}
            return ops.elbo_loss(x_mu, x, mu, logvar, **weights)
        return ops.elbo_loss(x_mu, x_logvar, x, mu, logvar, elbo="gaussian_elbo", **weights)

    def iwae_loss(
        self, output: Any, x: Any, log_ratio: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """The negative importance-weighted bound over `batch`, in one pass."""
        if mask is not None:
            return super().iwae_loss(output, x, log_ratio, mask=mask, **weights)
        x_mu, x_logvar = self._parameters(output)
        if x_logvar is None:
            weights |= {"elbo": "gaussian_fixed_iwae", "variance": self.variance}
            return ops.elbo_loss(x_mu, x, log_ratio, **weights)
        return ops.elbo_loss(x_mu, x_logvar, x, log_ratio, elbo="gaussian_iwae", **weights)

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Values x ~ p(x | z)."""
        mean, (_, x_logvar) = self.mean(output), self._parameters(output)
        eps = noise.normal(
            mean.shape, seed=seed, stream=noise.Stream.OBSERVE, step=step, dtype=output.dtype,
            like=output,
        )  # fmt: skip
        if x_logvar is None:
            return mean + output.dtype.type(math.sqrt(float(self.variance))) * eps
        return mean + np.exp(x_logvar.data / 2) * eps


@dataclass(frozen=True)
class Laplace(_Real):
    """Real values with heavier tails, for absolute errors: the output is their medians.

    log p(x | z) = sum_d -|x - m| / s - log 2 s
    scale: s, one fixed number > 0, "learned" (for every value) or "shared" (one trained number).
    min_log_scale: floor of a scale that is not fixed, as `min_logvar` of the Gaussian.
    """

    name: ClassVar[str] = "laplace"
    scale: float | str = 1.0
    min_log_scale: float = -3.0

    def __post_init__(self) -> None:
        check_parameter("scale", self.scale)

    @property
    def _free(self) -> tuple[float | str, ...]:
        return (self.scale,)

    def _parameters(self, output: Any) -> tuple[Any, Any]:
        """The location, and log s: a tensor or a number."""
        location, raw = self._blocks(output)
        return location, _log_scale(raw, self.scale, self.min_log_scale)

    def _nll(self, output: Any, x: Any) -> Tensor:
        location, log_scale = self._parameters(output)
        y = (array_of(x) - location) * _exp(-log_scale)
        # |y| = relu(y) + relu(-y)
        return row_sums(ops.relu(y) + ops.relu(-y) + (log_scale + math.log(2)))

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Values x ~ p(x | z): m -+ s log of a uniform number, on either side of the median."""
        mean, (_, log_scale) = self.mean(output), self._parameters(output)
        u = uniform_like(mean, seed, step)
        y = np.where(u < 0.5, np.log(2 * u), -np.log(2 * (1 - u)))
        return mean + array_of(_exp(log_scale)) * y


@dataclass(frozen=True)
class StudentT(_Real):
    """Real values with outliers: the output is the locations of Student's t.

    log p(x | z) = sum_d log Gamma((v + 1) / 2) - log Gamma(v / 2) - log(pi v) / 2 - log s
                         - (v + 1) / 2 log(1 + ((x - m) / s)^2 / v)
                                        Takahashi et al. 2018, Student-t variational autoencoder
    freedom: v, the degrees of freedom: a fixed number > 0 (where it is 1 or less, the location is
    the median, and there is no mean), "learned" (for every value) or "shared" (one trained
    number); then v = 2 + e^raw, so that x has a variance.
    scale: s, one fixed number > 0, "learned" or "shared".  min_log_scale: floor of these.
    """

    name: ClassVar[str] = "student"
    freedom: float | str = 4.0
    scale: float | str = 1.0
    min_log_scale: float = -3.0

    def __post_init__(self) -> None:
        check_parameter("freedom", self.freedom)
        check_parameter("scale", self.scale)

    @property
    def _free(self) -> tuple[float | str, ...]:
        return self.freedom, self.scale

    def _parameters(self, output: Any) -> tuple[Any, Any, Any]:
        """The location, v, and log s, a tensor or a number."""
        location, v, raw = self._blocks(output)
        if self.freedom in FREE:
            v = ops.exp(below(v)) + 2.0
        else:
            v = Tensor(np.asarray(v, output.dtype, like=array_of(output)))
        return location, v, _log_scale(raw, self.scale, self.min_log_scale)

    def _nll(self, output: Any, x: Any) -> Tensor:
        location, v, log_scale = self._parameters(output)
        y = (array_of(x) - location) * _exp(-log_scale)
        constant = ops.log(v) * 0.5 + 0.5 * math.log(math.pi) - ops.log_gamma_ratio(v * 0.5, 0.5)
        return row_sums((v + 1.0) * 0.5 * ops.log1p(y * y / v) + (constant + log_scale))

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Values x ~ p(x | z), from two uniform numbers each.     Bailey 1994, equation 2.

        t = sqrt(v (u^(-2/v) - 1)) cos(2 pi w), which is Box and Muller's normal for v = infinity
        """
        mean, (_, v, log_scale) = self.mean(output), self._parameters(output)
        u, w = uniform_like(mean, seed, step, 2)
        v = array_of(v)
        t = np.sqrt(v * np.expm1(-2 / v * np.log(u))) * np.cos(2 * math.pi * w)
        return mean + array_of(_exp(log_scale)) * t


def _log_scale(raw: Any, scale: float | str, low: float) -> Any:
    """The logarithm of a scale: of the fixed number, or the raw output above its floor."""
    return math.log(float(scale)) if scale not in FREE else above(raw, low)


def _exp(value: Any) -> Any:
    """e^value of a tensor or a number."""
    return math.exp(value) if isinstance(value, float) else ops.exp(value)
