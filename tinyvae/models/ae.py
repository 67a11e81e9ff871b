"""The autoencoder, a baseline: x -> encoder -> z -> decoder, without noise and without a KL.

Sizes: B batch, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import devices, ops
from ..batches import Batch, Rows
from ..likelihoods import Likelihood
from ..nn import Buffer, Linear, Sequential
from ..objectives import Terms
from ..ops.noise import Draw
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused


class AutoencoderNetwork(Model):
    """-log p(x | z) at z = encoder(x), the same networks and likelihoods as the VAE's.

    A linear one with squared error spans the subspace of PCA          Baldi and Hornik 1989
    encoder: x (B, ...) -> z (B, Z); decoder: z (B, Z) -> raw parameters (B, ...).
    It has no p(z), so its value bounds no log p(x).  To draw from it at all, a Gaussian is fitted
    to the codes of the training rows after each epoch       Ghosh et al. 2020, section 4
    """

    gaussian = False
    has_likelihood = False

    def __init__(
        self, encoder: Callable, decoder: Callable, latent_dim: int, *, likelihood: Likelihood
    ):
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.likelihood = latent_dim, likelihood
        self.mean = Buffer(np.zeros(latent_dim, np.float32))
        self.factor = Buffer(np.eye(latent_dim, dtype=np.float32))  # of the covariance, L L^T

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The reconstruction's -log p(x | z); beta plays no part."""
        z = self.encoder(batch.seen)
        nll = self.likelihood.nll(self.decoder(z), batch.x, batch.mask)
        return Terms(ops.sum(nll) * (1 / rows), nll.data, np.zeros_like(nll.data), -nll.data)

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """The code z, and log-variances as small as they come, each (B, Z)."""
        z = self.encoder(x)
        return z, Tensor(np.full_like(z.data, math.log(np.finfo(z.dtype).tiny)))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z)."""
        return self.decoder(z)

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n rows z of the Gaussian that the codes look like."""
        return self.mean.data + draw.normal(self.latent_dim) @ self.factor.data.T

    def after_epoch(self, rows: Rows) -> None:
        """Fit the Gaussian to the codes."""
        parts = [self.encoder(batch.x).data for _, batch in rows.in_order(512)]
        codes = devices.to_host(np.concatenate(parts)).astype(np.float64)
        covariance = np.atleast_2d(np.cov(codes.T, bias=True))
        jitter = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12  # codes may be linearly tied
        factor = np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
        for buffer, values in ((self.mean, codes.mean(axis=0)), (self.factor, factor)):
            buffer.data[...] = devices.move(values.astype(buffer.dtype), devices.of(buffer.data))


@dataclass(frozen=True)
class AE(Spec):
    """The autoencoder: "ae"."""

    name: ClassVar[str] = "ae"
    refuses: ClassVar[dict[str, str]] = refused(
        "it has no KL, and no p(z)", "weight", "prior", "flow", "free_bits", "capacity"
    )
    bound: ClassVar[bool] = False

    def build(self, parts: Parts) -> AutoencoderNetwork:
        """The model, with first weights; an encoder of the user's own is x -> z."""
        if parts.own is not None:
            encoder, decoder = parts.networks()
        else:
            body, features, decoder = parts.body_and_decoder(parts.latent_dim)
            head = Linear(features, parts.latent_dim, rng=parts.rng, dtype=parts.dtype)
            encoder = Sequential(body, head)
        return AutoencoderNetwork(encoder, decoder, parts.latent_dim, likelihood=parts.likelihood)
