"""Values between 0 and 1: the Beta density, and pixels of few levels by (mixtures of) logistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import devices, ops
from ..data import check_range
from ..tensor import Tensor
from .base import (
    Likelihood,
    above,
    array_of,
    check_each,
    generator,
    uniform_like,
    within,
)

MOST_SUMMED = 64  # levels whose mean is summed up; for more, an integral is closer than 1 in 10^4


@dataclass(frozen=True)
class Beta(Likelihood):
    """Values strictly between 0 and 1: the output is log a and log b, each within +-20.

    log p(x | z) = sum_d (a - 1) log x + (b - 1) log(1 - x) - log B(a, b)
    """

    name: ClassVar[str] = "beta"
    filler: ClassVar[float] = 0.5

    @property
    def outputs(self) -> int:
        """log a and log b of each value."""
        return 2

    def _parameters(self, output: Any) -> tuple[Tensor, Tensor]:
        """(B, ..., 2 C) -> log a, log b, each (B, ..., C)."""
        C = output.shape[-1] // 2
        log_alpha, log_beta = (ops.getitem(output, (..., slice(i, i + C))) for i in (0, C))
        return within(log_alpha), within(log_beta)

    def _nll(self, output: Any, x: Any) -> Tensor:
        x = array_of(x)
        info = np.finfo(x.dtype)  # a value that rounds to 0 or 1 in float32 is still inside
        return ops.beta_nll(*self._parameters(output), np.clip(x, info.tiny, 1 - info.epsneg))

    def mean(self, output: Any) -> Any:
        """E[x | z] = a / (a + b)."""
        log_alpha, log_beta = self._parameters(output)
        return ops.sigmoid(log_alpha - log_beta).data

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Values x ~ p(x | z)."""
        a, b = (np.exp(devices.to_host(p.data.astype(float))) for p in self._parameters(output))
        x, info = generator(seed, step).beta(a, b), np.finfo(output.dtype)
        x = np.clip(x, info.tiny, 1 - info.epsneg).astype(output.dtype)
        return devices.move(x, devices.of(output))

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are between 0 and 1, neither 0 nor 1."""
        wish = (
            "a Beta likelihood is for numbers between 0 and 1, neither 0 nor 1: move them inside, "
            "say x * 0.998 + 0.001, or use likelihood='mixture_logistic' for pixels"
        )
        check_each(x, lambda part: (part > 0) & (part < scale), name, scale, wish)


class _Logistics(Likelihood):
    """Pixels i / (levels - 1): the logistic distribution's shares of their bins.

    P(x) = sum_k w_k (sigmoid((x + h - m_k) / s_k) - sigmoid((x - h - m_k) / s_k))
                                        Salimans et al. 2017, equations 1 and 2, for x in [-1, 1]
    h is half of the distance of two levels, and the outer bins reach to infinity.  log s stays
    above `min_log_scale`, as in their code.  The output is in blocks: K logits of w (none if K is
    1), K means, K log-scales.
    """

    components: Any  # an int: of the class, or a field
    levels: int
    min_log_scale: float

    def __post_init__(self) -> None:
        for name, least in (("components", 1), ("levels", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")

    @property
    def outputs(self) -> int:
        """Logits, means and log-scales of each value's components."""
        return 2 if self.components == 1 else 3 * self.components

    def _parameters(self, output: Any) -> list[Any]:
        """(B, ..., P C) -> logits of the weights, means, log-scales, each (B, ..., C, K)."""
        numbers, K = self._by_value(output), self.components
        if K == 1:
            *blocks, raw = (ops.getitem(numbers, (..., slice(k, k + 1))) for k in (0, 1))
            blocks = [Tensor(np.zeros_like(raw.data)), *blocks]
        else:
            cuts = (slice(k, k + K) for k in (0, K, 2 * K))
            *blocks, raw = (ops.getitem(numbers, (..., cut)) for cut in cuts)
        return [*blocks, above(raw, self.min_log_scale)]

    def _nll(self, output: Any, x: Any) -> Tensor:
        centered = 2 * array_of(x) - 1
        return ops.logistic_mixture_nll(*self._parameters(output), centered, levels=self.levels)

    def _components(self, output: Any) -> tuple[Any, Any, Any]:
        """Weights, means and scales, each (B, ..., C, K), arrays."""
        logits, means, log_scales = (p.data for p in self._parameters(output))
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True), means, np.exp(log_scales)

    def mean(self, output: Any) -> Any:
        """E[x | z]: the sum over few levels; over more, the integral that it approximates."""
        weights, m, s = self._components(output)
        if self.levels <= MOST_SUMMED:
            edges = (2 * np.arange(self.levels - 1) + 1) / (self.levels - 1) - 1
            steps = (ops.sigmoid((m - output.dtype.type(e)) / s).data for e in edges)
            return (weights * sum(steps)).sum(axis=-1) / output.dtype.type(self.levels - 1)
        inside = s * (np.logaddexp(0, (m + 1) / s) - np.logaddexp(0, (m - 1) / s))
        return (weights * inside).sum(axis=-1) / 2

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Levels x ~ p(x | z): a component, its logistic number, and the level next to it."""
        weights, m, s = self._components(output)
        u, v = uniform_like(m[..., 0], seed, step, 2)
        chosen = (weights.cumsum(axis=-1)[..., :-1] <= u[..., None]).sum(axis=-1)[..., None]
        m, s = (np.take_along_axis(p, chosen, axis=-1)[..., 0] for p in (m, s))
        level = (m + s * (np.log(v) - np.log1p(-v)) + 1) * ((self.levels - 1) / 2)
        return np.clip(np.rint(level), 0, self.levels - 1) / output.dtype.type(self.levels - 1)

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are levels, i / (levels - 1)."""
        check_range(x, 0, scale, name, "scale the data to [0, 1]")
        last = self.levels - 1
        wish = (
            f"a likelihood of {self.levels} levels is for i / {last}, i = 0 .. {last}: round the "
            "data, or give their number of levels"
        )

        def good(part: np.ndarray) -> np.ndarray:
            level = part * (last / scale)
            return np.abs(level - np.rint(level)) < 0.01

        check_each(x, good, name, scale, wish)


@dataclass(frozen=True)
class DiscretizedLogistic(_Logistics):
    """Pixels of few levels: the logistic distribution's shares of their bins.

    P(x) = sigmoid((x + h - m) / s) - sigmoid((x - h - m) / s)      Kingma et al. 2016, equation 15
    x in [0, 1] is one of i / (levels - 1).  The output is m and log s.
    """

    name: ClassVar[str] = "logistic"
    components: ClassVar[int] = 1  # type: ignore[misc]
    levels: int = 256
    min_log_scale: float = -7.0


@dataclass(frozen=True)
class LogisticMixture(_Logistics):
    """Pixels of few levels by a mixture of discretized logistics (Salimans et al. 2017).

    P(x) = sum_k w_k (sigmoid((x + h - m_k) / s_k) - sigmoid((x - h - m_k) / s_k))
    x in [0, 1] is one of i / (levels - 1).  The output is logits of w, m and log s, K each; the
    channels are independent.
    """

    name: ClassVar[str] = "mixture_logistic"
    components: int = 5
    levels: int = 256
    min_log_scale: float = -7.0


__all__ = ["Beta", "DiscretizedLogistic", "LogisticMixture"]
