"""Damage to x before the encoder sees it, in training alone: the denoising VAE.

The decoder still has to give the clean x:  E_{c(x2 | x)} E_{q(z | x2)}[log p(x, z) / q(z | x2)],
which is a lower bound of log p(x) too                          Im et al. 2017, section 3, theorem 1
As text: "noise:0.3", "mask:0.2", "salt:0.1".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import spelling
from .ops import noise


@dataclass(frozen=True)
class Noise:
    """x + std eps, eps ~ N(0, 1)."""

    name: ClassVar[str] = "noise"
    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std}")

    def __call__(self, x: Any, **place: Any) -> Any:
        """place: seed, stream, step and offset of the noise."""
        eps = noise.normal(x.shape, dtype=x.dtype, like=x, **place)
        return x + x.dtype.type(self.std) * eps


@dataclass(frozen=True)
class Mask:
    """Each value is 0 with probability `rate`, else x."""

    name: ClassVar[str] = "mask"
    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, x: Any, **place: Any) -> Any:
        """place: seed, stream, step and offset of the noise."""
        u = noise.uniform(x.shape, dtype=x.dtype, like=x, **place)
        return x * (u >= self.rate).astype(x.dtype)


@dataclass(frozen=True)
class Salt:
    """Salt and pepper: each value is 0 or 1 with probability `rate`, either as often, else x."""

    name: ClassVar[str] = "salt"
    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, x: Any, **place: Any) -> Any:
        """place: seed, stream, step and offset of the noise."""
        u = noise.uniform(x.shape, dtype=x.dtype, like=x, **place)
        grains = (u < self.rate / 2).astype(x.dtype)
        return np.where(u < self.rate, grains, x)


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")


KINDS: dict[str, type] = {kind.name: kind for kind in (Noise, Mask, Salt)}


def resolve(corruption: Any) -> Noise | Mask | Salt | None:
    """The corruption of that text; None and an instance as they are.

    Raises ValueError for an unknown kind, and for values that do not fit.
    """
    return None if corruption is None else spelling.parse(corruption, KINDS, "corruption")


__all__ = ["KINDS", "Mask", "Noise", "Salt", "resolve"]
