"""The plain VAE: x -> encoder -> mu, logvar;  z -> decoder -> parameters of p(x | z)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import objectives, ops
from ..batches import Batch
from ..likelihoods import Bernoulli, Likelihood
from ..objectives import Terms
from ..ops.noise import Draw
from ..priors import Prior, StandardNormal
from ..tensor import Tensor
from . import networks
from .base import Model, Parts, Spec


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
        free_bits: float = 0.0,
    ):
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood or Bernoulli()
        self.prior = prior or StandardNormal(self.latent_dim)
        self.free_bits = free_bits

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
            free_bits=self.free_bits, batch=rows, y=batch.y,
        )  # fmt: skip

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO without weights: its terms from their own kernels, for no gradient is wanted."""
        mu, logvar = posterior or self.posterior(batch)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        nll = self.likelihood.nll(self.decode(z, batch.y), batch.x)
        kl = ops.gaussian_kl(mu, logvar)
        return Terms(nll + kl, nll.data, kl.data, -(nll + kl).data)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x), whose Gaussian constants cancel."""
        mu, logvar = (t.data for t in posterior or self.posterior(batch))
        eps = draw.normal(self.latent_dim)
        z = mu + np.exp(logvar / 2) * eps
        log_ratio = 0.5 * (eps**2 + logvar - z**2).sum(axis=1, dtype=np.float64)
        return log_ratio - self.likelihood.nll(self.decode(z, batch.y), batch.x).data


@dataclass(frozen=True)
class VAE(Spec):
    """The plain VAE (Kingma and Welling 2014)."""

    name: ClassVar[str] = "vae"
    takes: ClassVar[frozenset[str]] = frozenset({"free_bits", "own"})

    def build(self, parts: Parts) -> VAENetwork:
        """The model, with first weights."""
        encoder, decoder = parts.networks()
        return VAENetwork(
            encoder, decoder, parts.latent_dim, likelihood=parts.likelihood,
            free_bits=parts.free_bits, prior=parts.build_prior(encoder),
        )  # fmt: skip


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


__all__ = ["VAE", "VAENetwork", "build", "networks"]
