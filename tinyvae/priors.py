"""Where z comes from before any data is seen: p(z).

Sizes: N rows, Z latent.  All log-probabilities in nats, a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from . import ops
from .nn import Module
from .ops.noise import Draw
from .tensor import Tensor

LOG_2PI = math.log(2 * math.pi)


class Prior(Module):
    """p(z) over (N, Z)."""

    def log_prob(self, z: Any) -> Tensor:
        """log p(z) of each row, (N,) nats."""
        raise NotImplementedError(f"{type(self).__name__} defines no log_prob")

    def sample(self, n: int, draw: Draw) -> Any:
        """n rows z ~ p(z), an array (n, Z); draw: noise of n rows."""
        raise NotImplementedError(f"{type(self).__name__} defines no sample")

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """KL(N(mu, e^logvar) || p) of each row, (B,) nats; None where no closed form is known."""
        return None


class StandardNormal(Prior):
    """N(0, I)."""

    def __init__(self, latent_dim: int):
        self.latent_dim = latent_dim

    def log_prob(self, z: Any) -> Tensor:
        """-sum_j (z_j^2 + log 2 pi) / 2."""
        return ops.sum(z * z + LOG_2PI, axis=1) * -0.5

    def sample(self, n: int, draw: Draw) -> Any:
        """Noise as it is."""
        return draw.normal(self.latent_dim)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Kingma and Welling 2014, appendix B."""
        return ops.gaussian_kl(mu, logvar)


# ------------------------------------------------------------------------------------- as arguments
@dataclass(frozen=True)
class Standard:
    """N(0, I), which has nothing to learn."""

    name: ClassVar[str] = "standard"

    def build(
        self, latent_dim: int, *, encode: Callable, shape: tuple, rng: Any, dtype: Any
    ) -> Prior:
        """encode: x -> mu, logvar; shape: of a row of x; rng, dtype: of first weights."""
        return StandardNormal(latent_dim)


KINDS: dict[str, type] = {"standard": Standard}
