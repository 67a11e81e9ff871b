"""VAE-GAN: a discriminator that learns to tell pictures from reconstructions and samples.

x -> encoder -> z -> decoder -> picture;  x, picture -> discriminator -> features, log-odds of being
real.  The decoder is trained to be taken for real, and reconstructs what the discriminator sees in
a picture, or its pixels.

Sizes: B batch, Z latent, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import nn, ops
from .._text import unknown
from ..batches import Batch
from ..likelihoods import Bernoulli, Gaussian
from ..likelihoods.base import row_sums
from ..objectives import Terms
from ..ops.noise import Draw
from ..optim import Group
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused
from .correlation import real_or_not
from .vae import VAENetwork

RECONSTRUCT = ("features", "pixels")


class PictureDiscriminator(nn.Module):
    """A body x -> features (B, F), and one linear layer to the log-odds."""

    def __init__(self, body: Callable, features: int, **options: Any):
        self.body, self.odds = body, nn.Linear(features, 1, **options)

    def __call__(self, x: Any) -> tuple[Tensor, Tensor]:
        """(B, ...) -> features (B, F), log-odds (B,)."""
        features = self.body(x)
        return features, ops.reshape(self.odds(features), (-1,))


class VAEGAN(VAENetwork):
    """Three networks, each with a gradient of its own (Larsen et al. 2016, algorithm 1).

    encoder          KL + reconstruction
    decoder          reconstruction - weight (log D(decoded z) + log D(decoded prior's z))
    discriminator    `real_or_not` of x, and of decoded z and decoded prior's z

    Reconstruction is |f(x) - f(picture)|^2 / 2 with f the discriminator's last features, or the
    nll of the pixels.  The decoder's adversarial term is the second of Goodfellow et al. 2014,
    which does not vanish where the discriminator is sure.  `nll` and `kl` are those of the plain
    VAE, reported beside the losses; what is trained on is no bound.
    """

    has_likelihood = False

    def __init__(
        self, *, discriminator: PictureDiscriminator, weight: float, reconstruct: str,
        learning_rate: float, **parts: Any,
    ):  # fmt: skip
        super().__init__(**parts)
        self.discriminator, self.weight = discriminator, weight
        self.reconstruct_, self.learning_rate = reconstruct, learning_rate

    def groups(self) -> list[Group]:
        """The discriminator, with the betas that Radford et al. 2016 found steady."""
        return [Group(self.discriminator.parameters(), self.learning_rate, (0.5, 0.999))]

    def picture(self, output: Any) -> Tensor:
        """The mean of p(x | z) as a tensor."""
        if isinstance(self.likelihood, Bernoulli):
            return ops.sigmoid(output)
        return ops.getitem(output, (..., slice(output.shape[-1] // self.likelihood.blocks)))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The three losses in one sum: what is frozen or detached keeps them apart."""
        x, (mu, logvar) = batch.x, self.encode(batch.seen)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        output, kl = self.decode(z), ops.gaussian_kl(mu, logvar)
        nll = self.likelihood.nll(output, x)
        distance = nll if self.reconstruct_ == "pixels" else self.distance(x, output)
        fooling, telling = self.adversarial(x, z.data, draw)
        total = distance + beta * kl + self.weight * fooling + telling
        log = {"reconstruction": distance, "decoder_loss": fooling, "discriminator_loss": telling}
        return Terms(
            ops.sum(total) * (1 / rows), nll.data, kl.data, -total.data,
            {name: value.data for name, value in log.items()},
        )  # fmt: skip

    def adversarial(self, x: Any, z: Any, draw: Draw) -> tuple[Tensor, Tensor]:
        """What fools and what tells: the decoder's -log D of two fakes a row, the discriminator's.

        x, z: arrays, so that the encoder gets no gradient.  Returns two of (B,).
        """
        drawn = self.prior.sample(len(x), draw)
        fakes = self.picture(self.decode(np.concatenate([z, drawn])))  # (2 B, ...)
        with nn.frozen(self.discriminator):
            fooling = ops.softplus(-self.discriminator(fakes)[1])
        odds = self.discriminator(np.concatenate([x, fakes.data]))[1]  # (3 B,)
        telling = real_or_not(odds[: len(x)], odds[len(x) :])
        return fooling[: len(x)] + fooling[len(x) :], telling

    def distance(self, x: Any, output: Tensor) -> Tensor:
        """|f(x) - f(picture)|^2 / 2 of each row, f the features of the discriminator as it is."""
        with nn.frozen(self.discriminator):
            seen, _ = self.discriminator(x)
            made, _ = self.discriminator(self.picture(output))
        return 0.5 * row_sums((made - seen.data) ** 2)

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The plain VAE's terms, and how real reconstructions look to the discriminator, D."""
        found = super().evaluation(batch, draw, posterior)
        picture = self.picture(self.reconstruct(batch))
        seen = {"real": batch.x, "reconstructed": picture}
        log = {f"d_{k}": ops.sigmoid(self.discriminator(x)[1]).data for k, x in seen.items()}
        return found._replace(log=log)


@dataclass(frozen=True)
class GAN(Spec):
    """VAE-GAN (Larsen et al. 2016): `gan`, or `gan:0.1:pixels`.

    weight: of the adversarial term beside the decoder's reconstruction (in the paper reconstruction
    has the weight, and this is its inverse).  reconstruct: "features" of the discriminator, as in
    the paper, or "pixels", the likelihood's nll.  learning_rate: the discriminator's, which has the
    encoder's body and sizes.
    """

    name: ClassVar[str] = "gan"
    refuses: ClassVar[dict[str, str]] = {
        **refused("its KL is the closed form to N(0, I)", "prior", "flow"),
        **refused("its loss is no ELBO whose KL could be free", "free_bits", "capacity"),
        "missing": "its discriminator would see the holes",
    }
    bound: ClassVar[bool] = False
    weight: float = 1.0
    reconstruct: str = "features"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        if self.reconstruct not in RECONSTRUCT:
            raise unknown("reconstruct", self.reconstruct, RECONSTRUCT)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def check(self, **given: Any) -> None:
        """Raise ValueError for a likelihood whose mean is not simply the decoder's output."""
        super().check(**given)
        if not isinstance(given["likelihood"], (Bernoulli, Gaussian)):
            raise ValueError(
                "model='gan' needs the gradient of the mean of p(x | z): take bernoulli, bce or "
                f"gaussian, not {given['likelihood'].name!r}"
            )

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        encoder, decoder = parts.networks()
        body, features, _ = parts.body_and_decoder(parts.latent_dim)
        return VAEGAN(
            encoder=encoder, decoder=decoder, latent_dim=parts.latent_dim,
            likelihood=parts.likelihood, prior=parts.build_prior(encoder),
            discriminator=PictureDiscriminator(body, features, rng=parts.rng, dtype=parts.dtype),
            weight=self.weight, reconstruct=self.reconstruct, learning_rate=self.learning_rate,
        )  # fmt: skip


__all__ = ["GAN"]
