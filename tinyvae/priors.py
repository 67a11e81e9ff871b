"""Where z comes from before any data is seen: p(z).

The KL to a learned prior other than a Gaussian has no closed form: log q(z | x) - log p(z) at a
sample estimates it, and may be negative; only its mean cannot.

`Mixture(10)` and the other specs at the end say which prior is meant; `build` makes the module.
Sizes: N rows, Z latent, K components.  All log-probabilities in nats, a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import flows, ops, spelling
from .flows import Flow as FlowModule
from .nn import Module
from .ops.noise import Draw
from .tensor import Tensor, no_grad

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

    def log_ratio(self, z: Tensor, logvar: Tensor, eps: Any, *, still: bool) -> Tensor | None:
        """log N(z; mu, e^logvar) - log p(z) of z = mu + sigma eps, (B, K) nats, if it has a kernel.

        z, eps: (B, K, Z); logvar: (B, Z); still: see ops.gaussian_log_ratio.
        """
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

    def log_ratio(self, z: Tensor, logvar: Tensor, eps: Any, *, still: bool) -> Tensor:
        """1/2 sum_j z_j^2 - eps_j^2 - logvar_j."""
        return ops.gaussian_log_ratio(z, logvar, eps, still=still)


class LearnedGaussian(Prior):
    """N(mu, diag e^logvar) with learned mu and logvar, (1, Z); it starts as N(0, I)."""

    def __init__(self, latent_dim: int, *, dtype: Any = np.float32):
        self.standard = StandardNormal(latent_dim)
        self.mu, self.logvar = (
            Tensor(np.zeros((1, latent_dim), dtype), requires_grad=True) for _ in range(2)
        )

    def _standardized(self, z: Any) -> Tensor:
        return (z - self.mu) * ops.exp(self.logvar * -0.5)

    def log_prob(self, z: Any) -> Tensor:
        """log N((z - mu) / sigma; 0, I) - sum_j log sigma_j."""
        return self.standard.log_prob(self._standardized(z)) - ops.sum(self.logvar) * 0.5

    def sample(self, n: int, draw: Draw) -> Any:
        """mu + sigma eps."""
        return self.mu.data + np.exp(self.logvar.data / 2) * self.standard.sample(n, draw)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """That of (z - mu_p) / sigma_p to N(0, I): a change of variables leaves a KL as it is."""
        return self.standard.kl(self._standardized(mu), logvar - self.logvar)


class Components(Prior):
    """A mixture of K Gaussians, which `mixture` gives: sum_k w_k N(mu_k, diag e^logvar_k)."""

    def mixture(self) -> tuple[Any, Any, Any]:
        """log w (K,), with sum w = 1; mu and logvar, each (K, Z)."""
        raise NotImplementedError(f"{type(self).__name__} defines no mixture")

    def log_prob(self, z: Any) -> Tensor:
        """log sum_k w_k N(z; mu_k, diag e^logvar_k)."""
        return ops.mixture_log_prob(z, *self.mixture())

    def sample(self, n: int, draw: Draw) -> Any:
        """A component each, by its weight, and a sample of that Gaussian."""
        with no_grad():
            log_weights, mu, logvar = (tensor.data for tensor in self.mixture())
        ends = np.cumsum(np.exp(log_weights))[:-1]  # of the components' parts of (0, 1)
        chosen = (draw.uniform()[:, None] > ends).sum(axis=1)
        eps = draw.normal(mu.shape[1])
        return mu[chosen] + np.exp(logvar[chosen] / 2) * eps


class MixtureOfGaussians(Components):
    """K Gaussians with learned weights, means and log-variances.

    logits: (K,); mu, logvar: (K, Z).  At the start the means are spread with variance 1/2, which is
    also the variance of each component, so that the whole is about N(0, I).  One component starts
    as N(0, I).
    """

    def __init__(
        self,
        latent_dim: int,
        components: int,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        rng, spread = rng or np.random.default_rng(), 0.5 if components > 1 else 0.0
        shape = (components, latent_dim)
        first = (
            np.zeros(components),
            math.sqrt(spread) * rng.standard_normal(shape),
            np.full(shape, math.log(1 - spread)),
        )
        self.logits, self.mu, self.logvar = (
            Tensor(values.astype(dtype), requires_grad=True) for values in first
        )

    def mixture(self) -> tuple[Any, Any, Any]:
        """log softmax(logits), mu, logvar."""
        return ops.log_softmax(self.logits), self.mu, self.logvar


class VampPrior(Components):
    """The posteriors of K learned pseudo-inputs, mixed evenly.     Tomczak and Welling 2018, eq. 9.

    p(z) = 1/K sum_k q(z | u_k)
    encode: the model's own encoder x (K, ...) -> mu, logvar; u: (K, *shape), which start as noise
    in (0, 1).
    """

    def __init__(
        self,
        encode: Callable,
        components: int,
        shape: tuple[int, ...],
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        rng = rng or np.random.default_rng()
        self.encode = encode
        self.u = Tensor(rng.random((components, *shape)).astype(dtype), requires_grad=True)
        self.log_weights = Tensor(np.full(components, -math.log(components), dtype))

    def mixture(self) -> tuple[Any, Any, Any]:
        """-log K, and the encoder's mu and logvar of the pseudo-inputs."""
        return self.log_weights, *self.encode(self.u)


class FlowPrior(Prior):
    """What a flow f turns into N(0, I):  log p(z) = log N(f(z); 0, I) + log |det df/dz|.

    The flow's own direction is the one whose gradient training needs; samples z = f^-1(eps) need
    none.  So an inverse autoregressive flow is a masked autoregressive one here (Papamakarios,
    Pavlakou and Murray 2017, section 3.4), and couplings are Dinh et al. 2017.
    """

    def __init__(self, flow: FlowModule, latent_dim: int):
        self.flow, self.standard = flow, StandardNormal(latent_dim)

    def log_prob(self, z: Any) -> Tensor:
        """log N(f(z); 0, I) + logdet."""
        eps, logdet = self.flow.forward(z)
        return self.standard.log_prob(eps) + logdet

    def sample(self, n: int, draw: Draw) -> Any:
        """f^-1 of noise."""
        with no_grad():
            return self.flow.inverse(self.standard.sample(n, draw))[0].data


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


@dataclass(frozen=True)
class Gaussian:
    """Spelled "gaussian": a Gaussian with learned mean and variances, see LearnedGaussian."""

    name: ClassVar[str] = "gaussian"

    def build(self, latent_dim: int, *, dtype: Any = np.float32, **_: Any) -> Prior:
        """It starts as N(0, I)."""
        return LearnedGaussian(latent_dim, dtype=dtype)


@dataclass(frozen=True)
class Mixture:
    """Spelled "mixture:10": so many Gaussians, all learned, see MixtureOfGaussians.

    Raises ValueError unless components >= 1.
    """

    name: ClassVar[str] = "mixture"
    components: int = 10

    def __post_init__(self) -> None:
        _check_components(self.components)

    def build(
        self, latent_dim: int, *, rng: Any = None, dtype: Any = np.float32, **_: Any
    ) -> Prior:
        """rng, dtype: of the first means."""
        return MixtureOfGaussians(latent_dim, self.components, rng=rng, dtype=dtype)


@dataclass(frozen=True)
class Vamp:
    """Spelled "vamp:50": posteriors of so many pseudo-inputs, see VampPrior.

    Raises ValueError unless components >= 1.
    """

    name: ClassVar[str] = "vamp"
    components: int = 50

    def __post_init__(self) -> None:
        _check_components(self.components)

    def build(
        self, latent_dim: int, *, encode: Callable, shape: tuple, rng: Any = None,
        dtype: Any = np.float32,
    ) -> Prior:  # fmt: skip
        """encode: x -> mu, logvar; shape: of a row of x; rng, dtype: of first pseudo-inputs."""
        return VampPrior(encode, self.components, shape, rng=rng, dtype=dtype)


@dataclass(frozen=True)
class Flow:
    """Spelled "flow:coupling:4", any of tinyvae.flows.KINDS: a learned flow, see FlowPrior.

    Raises ValueError for an unknown flow.
    """

    name: ClassVar[str] = "flow"
    flow: str = "coupling"

    def __post_init__(self) -> None:
        spelling.parse(self.flow, flows.KINDS, "flow")

    def build(
        self, latent_dim: int, *, rng: Any = None, dtype: Any = np.float32, **_: Any
    ) -> Prior:
        """rng, dtype: of the flow's first weights."""
        spec = spelling.parse(self.flow, flows.KINDS, "flow")
        return FlowPrior(spec.build(latent_dim, None, rng, dtype), latent_dim)


def _check_components(components: Any) -> None:
    if not isinstance(components, (int, np.integer)) or isinstance(components, bool):
        raise TypeError(f"components must be a whole number, got {components!r}")
    if components < 1:
        raise ValueError(f"components must be >= 1, got {components}")


KINDS: dict[str, type] = {kind.name: kind for kind in (Standard, Gaussian, Mixture, Vamp, Flow)}
