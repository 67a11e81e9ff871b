"""The plain VAE: x -> encoder -> mu, logvar;  z -> decoder -> parameters of p(x | z)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import flows, objectives, ops, priors
from .._text import unknown
from ..batches import Batch
from ..likelihoods import Bernoulli, Likelihood
from ..objectives import Terms
from ..ops.noise import Draw
from ..priors import Prior, StandardNormal
from ..tensor import Tensor
from . import networks
from .base import STANDARD, Model, Parts, Spec, refused
from .networks import GaussianEncoder

KL = ("closed", "sampled")


class VAENetwork(Model):
    """An encoder, a decoder and a prior, trained on the ELBO.

    encoder: x (B, ...) -> mu, logvar, each (B, Z); decoder: z (B, Z) -> raw parameters (B, ...).
    """

    def __init__(
        self,
        encoder: Callable,
        decoder: Callable,
        latent_dim: int,
        *,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        free_bits: Any = 0.0,
    ):
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood or Bernoulli()
        self.prior = prior or StandardNormal(self.latent_dim)
        self.free_bits = free_bits
        if callable(free_bits):  # of the batch's KL
            self.couples_rows = True

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, Z)."""
        return self.encoder(x)

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z)."""
        return self.decoder(z)

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO."""
        return objectives.elbo(
            self, batch.x, draw.normal(self.latent_dim), likelihood=self.likelihood, beta=beta,
            free_bits=self.free_bits, batch=rows, y=batch.y, mask=batch.mask, seen=batch.seen,
        )  # fmt: skip

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO without weights: its terms from their own kernels, for no gradient is wanted."""
        mu, logvar = posterior or self.posterior(batch)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        nll = self.likelihood.nll(self.decode(z, batch.y), batch.x, batch.mask)
        return objectives.weighted(nll, self.kl(batch, mu, logvar), batch=len(batch))

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x)."""
        mu, logvar = (t.data for t in posterior or self.posterior(batch))
        eps, prior = draw.normal(self.latent_dim), self.given(batch.y, mu)
        z, log_ratio = objectives.weighed(mu, logvar, eps, prior)
        return log_ratio - self.likelihood.nll(self.decode(z, batch.y), batch.x, batch.mask).data

    # -------------------------------------------------------- p(z), where it depends on a condition
    def given(self, y: Any, like: Any) -> tuple | None:
        """mu and logvar of p(z | y), arrays like `like`; None for the prior alone."""
        return None

    def kl(self, batch: Batch, mu: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z | x) || p(z)) of each row, (B,) nats."""
        return ops.gaussian_kl(mu, logvar)

    def log_prior(self, z: Any, y: Any = None) -> Tensor:
        """log p(z) of each row, (B,) nats."""
        return self.prior.log_prob(z)


class SampledVAE(VAENetwork):
    """A VAE with any prior, a flow in the posterior, and L samples a row: KL from the samples.

    flow: makes of z ~ N(mu, sigma^2) the z that is decoded; its context are the encoder's features,
    or mu and logvar where the encoder is the user's own.
    samples: L.  closed: take the KL in closed form where there is one.
    """

    def __init__(
        self, *networks: Any, flow: Any = None, samples: int = 1, closed: bool = True, **more: Any
    ):
        super().__init__(*networks, **more)
        self.flow, self.samples, self.closed = flow, samples, closed
        self.gaussian = isinstance(self.prior, StandardNormal) and flow is None

    def base(self, x: Any) -> tuple[Tensor, ...]:
        """mu and logvar of q before its flow, each (B, Z); with a flow, its context (B, F) too."""
        if self.flow is None:
            return self.encoder(x)
        if isinstance(self.encoder, GaussianEncoder):
            features = self.encoder.body(x)
            return *self.encoder.heads(features), features
        mu, logvar = self.encoder(x)
        return mu, logvar, ops.concatenate([mu, logvar])

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, Z); with a flow, where it takes the mean."""
        mu, logvar, *context = self.base(x)
        return (self.flow.forward(mu, *context)[0] if self.flow else mu), logvar

    def posterior(self, batch: Batch) -> Any:
        """mu, logvar, and the flow's context."""
        return self.base(batch.seen)

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO."""
        eps = draw.normal(self.samples, self.latent_dim)
        return objectives.sampled_elbo(
            self, batch.x, self.posterior(batch), eps, beta=beta, closed=self.closed, batch=rows,
            mask=batch.mask,
        )  # fmt: skip

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO with one sample a row."""
        posterior, eps = posterior or self.posterior(batch), draw.normal(1, self.latent_dim)
        return objectives.sampled_elbo(
            self, batch.x, posterior, eps, closed=self.closed, mask=batch.mask
        )

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x)."""
        eps = draw.normal(1, self.latent_dim)
        posterior = posterior or self.posterior(batch)
        found = objectives.samples(self, batch.x, posterior, eps, mask=batch.mask)
        return -(found.nll.data + found.log_ratio.data)[:, 0]


class IWAENetwork(SampledVAE):
    """The same graph, trained on the importance-weighted bound.  samples: K; gradient: see iwae."""

    def __init__(self, *networks: Any, gradient: str = "iwae", **more: Any):
        super().__init__(*networks, **more)
        self.gradient = gradient

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative bound."""
        eps = draw.normal(self.samples, self.latent_dim)
        return objectives.iwae(
            self, batch.x, self.posterior(batch), eps, gradient=self.gradient, beta=beta,
            batch=rows, mask=batch.mask,
        )  # fmt: skip


def _check_samples(samples: Any) -> None:
    if not isinstance(samples, (int, np.integer)) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"samples must be a whole number >= 1, got {samples!r}")


def _check_flow(flow: Any, prior: Any) -> None:
    """Raise ValueError, with the reason, for a prior that no flow goes with."""
    if flow is not None and isinstance(prior, priors.Vamp):
        raise ValueError(
            "prior='vamp' does not take a flow: it mixes posteriors, which must be Gaussian"
        )


def _parts(parts: Parts) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a SampledVAE."""
    encoder, decoder = parts.networks()
    own = not isinstance(encoder, GaussianEncoder)
    features = 2 * parts.latent_dim if own else encoder.mu.weight.shape[0]  # type: ignore[attr-defined]
    flow: flows.Flow | None = None
    if parts.flow is not None:
        flow = parts.flow.build(parts.latent_dim, features, parts.rng, parts.dtype)
    return (encoder, decoder, parts.latent_dim), {
        "likelihood": parts.likelihood, "prior": parts.build_prior(encoder), "flow": flow,
    }  # fmt: skip


@dataclass(frozen=True)
class VAE(Spec):
    """The plain VAE (Kingma and Welling 2014): "vae", or with options "vae:5", "vae:kl=sampled".

    samples: of z, for each row of a step.  kl: "closed" where there is a closed form, or "sampled".
    Raises ValueError for an unknown kl, or no samples.
    """

    name: ClassVar[str] = "vae"
    samples: int = 1
    kl: str = "closed"

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if self.kl not in KL:
            raise unknown("kl", self.kl, KL)

    def _plain(self, prior: Any, flow: Any) -> bool:
        """Whether the fused ELBO says it all."""
        return (self.samples, self.kl, prior, flow) == (1, "closed", STANDARD, None)

    def check(self, **given: Any) -> None:
        """As any model's; free bits are counted in the KL to N(0, I), dimension by dimension."""
        super().check(**given)
        _check_flow(given["flow"], given["prior"])
        capacity = given.get("capacity") is not None
        if given["free_bits"] and capacity:
            raise ValueError("free_bits and a capacity both say what the KL may cost: give one")
        if (given["free_bits"] or capacity) and not self._plain(given["prior"], given["flow"]):
            raise ValueError(
                f"{'a capacity' if capacity else 'free_bits'} needs the closed-form KL to N(0, I) "
                "and one sample: it does not go with a learned prior, a flow, samples > 1 or "
                "kl='sampled'"
            )

    def build(self, parts: Parts) -> VAENetwork:
        """The model, with first weights."""
        if not self._plain(parts.prior, parts.flow):
            networks, options = _parts(parts)
            closed = self.kl == "closed"
            return SampledVAE(*networks, samples=self.samples, closed=closed, **options)
        encoder, decoder = parts.networks()
        given = encoder, decoder, parts.latent_dim
        options = {"likelihood": parts.likelihood, "prior": parts.build_prior(encoder)}
        return VAENetwork(*given, free_bits=parts.free_bits, **options)


@dataclass(frozen=True)
class IWAE(Spec):
    """The importance-weighted autoencoder (Burda et al. 2016): "iwae:50", "iwae:50:dreg".

    samples: K, of z for each row.  gradient: "iwae", "stl" or "dreg", see objectives.iwae.
    Raises ValueError for an unknown gradient, or no samples.
    """

    name: ClassVar[str] = "iwae"
    refuses: ClassVar[dict[str, str]] = refused(
        "its bound has no KL of its own: that is inside the weights", "free_bits", "capacity"
    )
    samples: int = 50
    gradient: str = "iwae"

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if self.gradient not in objectives.GRADIENTS:
            raise unknown("gradient", self.gradient, objectives.GRADIENTS)

    def check(self, **given: Any) -> None:
        """As any model's; a flow's own parameters are part of the score that stl and dreg drop."""
        super().check(**given)
        _check_flow(given["flow"], given["prior"])
        if given["flow"] is not None and self.gradient != "iwae":
            raise ValueError(
                f"gradient={self.gradient!r} does not take a flow: the score of q with respect to "
                "the flow's parameters has no closed form here; take gradient='iwae'"
            )

    def build(self, parts: Parts) -> IWAENetwork:
        """The model, with first weights."""
        networks, options = _parts(parts)
        return IWAENetwork(*networks, samples=self.samples, gradient=self.gradient, **options)


def build(
    architecture: str,
    shape: tuple[int, ...],
    latent_dim: int,
    *,
    hidden: tuple[int, ...],
    channels: tuple[int, ...],
    activation: str | Callable,
    seed: int,
    likelihood: Likelihood | None = None,
    free_bits: float = 0.0,
    dtype: Any = np.float32,
) -> VAENetwork:
    """A plain VAE of that architecture, its weights drawn from `seed`.

    Raises ValueError for an unknown architecture or activation.
    """
    parts = Parts(
        shape, latent_dim, likelihood or Bernoulli(), architecture, tuple(hidden),
        tuple(channels), activation, free_bits=free_bits, rng=np.random.default_rng(seed),
        dtype=dtype,
    )  # fmt: skip
    return VAE().build(parts)


__all__ = [
    "IWAE",
    "VAE",
    "IWAENetwork",
    "SampledVAE",
    "VAENetwork",
    "build",
    "networks",
]
