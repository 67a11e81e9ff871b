"""VAEs that keep their latents independent: beta-TCVAE and FactorVAE.

The graph is the plain VAE's; the loss has the total correlation TC = KL(q(z) || prod_j q(z_j)) of
the aggregate posterior beside the ELBO.  It is estimated from a batch's posteriors, or by a
discriminator, and so couples the rows of a batch.

Sizes: B batch, Z latent, N rows of the data set.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import devices, nn, objectives, ops
from .._text import unknown
from ..batches import Batch
from ..objectives import Terms
from ..ops.noise import Draw
from ..optim import Group
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused
from .vae import VAENetwork

REFUSES = refused("its KL is the closed form to N(0, I)", "prior", "flow") | refused(
    "it weighs the parts of the KL, not the whole", "grouped", "capacity"
)


class CorrelationVAE(VAENetwork):
    """A VAE whose loss has a term that needs z beside mu and logvar."""

    couples_rows = True

    def bound(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> tuple:
        """The negative ELBO, and what it was made of: mu, logvar, z."""
        mu, logvar = self.encode(batch.seen, batch.y)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        loss = self.likelihood.loss(
            self.decode(z), batch.x, mu, logvar, beta=beta, free_bits=self.free_bits, batch=rows,
            mask=batch.mask,
        )  # fmt: skip
        return loss, mu, logvar, z

    def report(self, batch: Batch, mu: Any, logvar: Any, z: Any) -> dict[str, Any]:
        """What `evaluation` logs about a sample z of these posteriors."""
        raise NotImplementedError

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO without weights, and in the log what is said of the total correlation."""
        mu, logvar = posterior or self.posterior(batch)
        found = super().evaluation(batch, draw, (mu, logvar))
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        return found._replace(log=self.report(batch, mu, logvar, z))


# --------------------------------------------------------------------------------- from a batch
class TCVAE(CorrelationVAE):
    """A weight on the total correlation alone.  weight, estimator: of `TotalCorrelation`."""

    def __init__(self, *, weight: float, estimator: str, **parts: Any):
        super().__init__(**parts)
        self.weight, self.estimator = weight, estimator

    def kl_terms(self, batch: Batch, mu: Tensor, logvar: Tensor, z: Tensor, estimator: str) -> Any:
        """Mutual information, total correlation and dimension-wise KL of each row."""
        weights = objectives.aggregate_log_weights(
            len(z), batch.total or len(batch), estimator
        ).astype(z.dtype)
        return objectives.kl_terms(
            z, mu, logvar, log_p=self.prior.log_prob(z),
            log_weights=devices.move(weights, devices.of(mu.data)),
        )  # fmt: skip

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """-E[log p(x | z)] + beta (MI + weight TC + dimension-wise KL), their sum being the KL.

        Chen et al. 2018, equation 4 with alpha = gamma = 1.  The KL itself is in closed form.
        """
        bound, mu, logvar, z = self.bound(batch, draw, beta=beta, rows=rows)
        terms = self.kl_terms(batch, mu, logvar, z, self.estimator)
        extra = beta * (self.weight - 1) * terms.tc
        log = {name: term.data for name, term in terms._asdict().items()}
        return Terms(
            bound + ops.sum(extra) * (1 / rows), bound.saved.nll, bound.saved.kl,
            bound.saved.elbo - extra.data, log,
        )  # fmt: skip

    def report(self, batch: Batch, mu: Any, logvar: Any, z: Any) -> dict[str, Any]:
        """The three terms from the rows at hand, without the constants of "mws"."""
        terms = self.kl_terms(batch, mu, logvar, z, "mss")
        return {name: term.data for name, term in terms._asdict().items()}


@dataclass(frozen=True)
class TotalCorrelation(Spec):
    """beta-TCVAE (Chen et al. 2018): `tc:6` weighs the total correlation six times.

    The model's own beta and its schedule weigh all three terms of the KL.
    estimator: of q(z) from one batch, "mws" (weighted; the paper's experiments, and the stronger
    push) or "mss" (stratified): see `objectives.aggregate_log_weights`.  While it trains, the log
    has this one's estimates; `evaluate` always has those of mss.
    """

    name: ClassVar[str] = "tc"
    refuses: ClassVar[dict[str, str]] = REFUSES
    beta: float = 6.0
    estimator: str = "mws"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be finite and >= 0, got {self.beta}")
        if self.estimator not in objectives.ESTIMATORS:
            raise unknown("estimator", self.estimator, objectives.ESTIMATORS)

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        return TCVAE(weight=self.beta, estimator=self.estimator, **_vae_parts(parts))


# ----------------------------------------------------------------------------- by discriminator
class Discriminator(nn.Module):
    """Dense layers with leaky relu to one number a row, the log-odds of being real.

    inputs: numbers in a row; units, layers: of the hidden layers.
    """

    def __init__(self, inputs: int, units: int, layers: int, **options: Any):
        activation = functools.partial(ops.leaky_relu, slope=0.2)
        sizes = [inputs, *[units] * layers]
        hidden = [
            layer
            for i in range(layers)
            for layer in (nn.Linear(sizes[i], sizes[i + 1], **options), activation)
        ]
        self.body = nn.Sequential(nn.Reshape(-1), *hidden, nn.Linear(sizes[-1], 1, **options))

    def __call__(self, x: Any) -> Tensor:
        """(B, ...) -> (B,)."""
        return ops.reshape(self.body(x), (-1,))


def real_or_not(real: Tensor, other: Tensor) -> Tensor:
    """A discriminator's cross-entropy from its log-odds of real and other rows, (B,) nats.

    -(log D(real) + mean log(1 - D(other))) / 2            Goodfellow et al. 2014, equation 1
    real: (B,); other: (K B,), of which row i has the i-th, the B + i-th ...
    At its best D's log-odds are log p(real) / p(other).
    """
    wrong = ops.mean(ops.reshape(ops.softplus(other), (-1, len(real))), axis=0)
    return 0.5 * (ops.softplus(-real) + wrong)


def permuted(z: Any, u: Any) -> Any:
    """Each column of an array z (B, Z) in an order of its own, that of the noise u (B, Z).

    Rows of it are as from prod_j q(z_j)                   Kim and Mnih 2018, algorithm 1
    """
    return np.take_along_axis(z, np.argsort(u, axis=0), axis=0)


class FactorNetwork(CorrelationVAE):
    """A discriminator tells z from permuted z; its log-odds estimate the total correlation.

    gamma: weight of the total correlation; learning_rate: the discriminator's.
    """

    def __init__(
        self, *, discriminator: Discriminator, gamma: float, learning_rate: float, **parts: Any
    ):
        super().__init__(**parts)
        self.discriminator, self.gamma = discriminator, gamma
        self.learning_rate = learning_rate

    def groups(self) -> list[Group]:
        """The discriminator, with the betas of Kim and Mnih 2018, appendix A."""
        return [Group(self.discriminator.parameters(), self.learning_rate, (0.5, 0.9))]

    def discriminator_loss(self, z: Any, u: Any) -> Tensor:
        """The mean of one half of the rows against the other half, permuted.

        z: an array (B, Z), so that no gradient goes further; u: noise (B, Z).
        """
        half = (len(z) + 1) // 2  # of an odd number both have the middle row
        others = permuted(z[-half:], u[-half:])
        odds = self.discriminator(np.concatenate([z[:half], others]))
        return ops.mean(real_or_not(odds[:half], odds[half:]))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """-ELBO + beta gamma TC, and beside it the discriminator's loss.

        TC = E[log D(z) / (1 - D(z))]                      Kim and Mnih 2018, equations 2 and 3
        """
        bound, _, _, z = self.bound(batch, draw, beta=beta, rows=rows)
        with nn.frozen(self.discriminator):
            tc = self.discriminator(z)
        extra = beta * self.gamma * tc
        telling = self.discriminator_loss(z.data, draw.uniform(self.latent_dim))
        return Terms(
            bound + ops.sum(extra) * (1 / rows) + telling, bound.saved.nll, bound.saved.kl,
            bound.saved.elbo - extra.data - telling.data,
            {"tc": tc.data, "discriminator_loss": telling.data},
        )  # fmt: skip

    def report(self, batch: Batch, mu: Any, logvar: Any, z: Any) -> dict[str, Any]:
        """The discriminator's estimate of the total correlation."""
        return {"tc": self.discriminator(z).data}


@dataclass(frozen=True)
class Factor(Spec):
    """FactorVAE (Kim and Mnih 2018): `factor:20` adds twenty times the total correlation.

    units, layers, learning_rate: of the discriminator (in the paper 1000, 6 and 1e-4, for 10^6
    steps; a smaller one follows q(z) faster).
    """

    name: ClassVar[str] = "factor"
    refuses: ClassVar[dict[str, str]] = REFUSES
    gamma: float = 20.0
    units: int = 200
    layers: int = 4
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be finite and >= 0, got {self.gamma}")
        if min(self.units, self.layers) < 1:
            raise ValueError(f"units and layers must be at least 1, got {self.units} and "
                             f"{self.layers}")  # fmt: skip
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        given = _vae_parts(parts)  # the discriminator's weights are drawn last
        discriminator = Discriminator(
            parts.latent_dim, self.units, self.layers, rng=parts.rng, dtype=parts.dtype
        )
        return FactorNetwork(
            discriminator=discriminator, gamma=self.gamma, learning_rate=self.learning_rate, **given
        )


def _vae_parts(parts: Parts) -> dict[str, Any]:
    """What the plain VAE is made of."""
    encoder, decoder = parts.networks()
    return {
        "encoder": encoder, "decoder": decoder, "latent_dim": parts.latent_dim,
        "likelihood": parts.likelihood, "prior": parts.build_prior(encoder),
        "free_bits": parts.free_bits,
    }  # fmt: skip


__all__ = ["Factor", "TotalCorrelation"]
