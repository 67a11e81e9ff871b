"""The conditional VAE: encoder and decoder are told y, a label or any numbers, beside x and z.

Sizes: B batch, Z latent, E numbers of a condition (classes are one-hot).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import objectives, ops
from ..batches import Batch
from ..estimators import one_hot
from ..objectives import Terms
from ..ops.noise import Draw
from ..tensor import Tensor
from . import networks, vae
from .base import Parts, Spec
from .vae import VAENetwork


class CVAENetwork(VAENetwork):
    """The ELBO of log p(x | y), every part given y.

    E_q(z|x,y)[log p(x | z, y)] - KL(q(z | x, y) || N(0, I))
                        Sohn, Lee and Yan 2015, equation 4, where x is the condition, y the output
    encoder: x (B, ...), y (B, E) -> mu, logvar; decoder: z (B, Z), y (B, E) -> raw parameters.
    size: E.
    """

    def __init__(
        self, encoder: Callable, decoder: Callable, latent_dim: int, size: int, **more: Any
    ):
        super().__init__(encoder, decoder, latent_dim, **more)
        self.size = size

    def condition(self, y: Any, like: Any) -> Any:
        """What y is to the networks, (B, E): a label's one-hot code, or the numbers as they are."""
        if y is None:
            raise ValueError("a conditional model needs y")
        like = like.data if isinstance(like, Tensor) else like
        return one_hot(y, self.size, like=like) if y.ndim == 1 else y

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x, y), each (B, Z)."""
        return self.encoder(x, self.condition(y, x))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z, y)."""
        return self.decoder(z, self.condition(y, z))


class ConditionalPriorNetwork(CVAENetwork):
    """The same with a learned prior p(z | y) = N(mu_p, e^logvar_p) in the place of N(0, I).

    E_q(z|x,y)[log p(x | z, y)] - KL(q(z | x, y) || p(z | y))          Sohn et al. 2015, equation 4
    prior_encoder: y (B, E) -> mu_p, logvar_p, each (B, Z).
    """

    gaussian = False  # the KL is to p(z | y), dimension by dimension too

    def __init__(self, *networks: Any, prior_encoder: Callable, **more: Any):
        super().__init__(*networks, **more)
        self.prior_encoder = prior_encoder

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO."""
        mu, logvar = self.encode(batch.seen, batch.y)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        nll = self.likelihood.nll(self.decode(z, batch.y), batch.x, batch.mask)
        return objectives.weighted(nll, self.kl(batch, mu, logvar), beta=beta, batch=rows)

    def kl(self, batch: Batch, mu: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z | x, y) || p(z | y)) of each row, (B,) nats."""
        return ops.gaussian_kl_between(mu, logvar, *self._prior(batch.y, mu))

    def given(self, y: Any, like: Any) -> tuple:
        """mu_p and logvar_p."""
        return tuple(tensor.data for tensor in self._prior(y, like))

    def log_prior(self, z: Any, y: Any = None) -> Tensor:
        """log p(z | y) of each row, (B,) nats."""
        return objectives.gaussian_log_prob(z, *self._prior(y, z))

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n rows z ~ p(z | y)."""
        eps = draw.normal(self.latent_dim)
        return ops.reparameterize(*self._prior(y, eps), eps).data

    def _prior(self, y: Any, like: Any) -> tuple[Tensor, Tensor]:
        return self.prior_encoder(self.condition(y, like))


@dataclass(frozen=True)
class CVAE(Spec):
    """The conditional VAE: "cvae", or "cvae:learned_prior=true" with p(z | y) from a network."""

    name: ClassVar[str] = "cvae"
    refuses: ClassVar[dict[str, str]] = {
        "prior": "it has N(0, I), or with learned_prior=true one that y decides",
        "flow": "its encoder gives a flow no context",
    }
    labels: ClassVar[str] = "needed"
    learned_prior: bool = False

    def check(self, **given: Any) -> None:
        """As any model's; free bits and a capacity are counted against N(0, I)."""
        super().check(**given)
        vae.VAE().check(**given)
        if self.learned_prior and (given["free_bits"] or given.get("capacity") is not None):
            raise ValueError("cvae:learned_prior=true does not take free_bits or a capacity: they "
                             "count the KL to N(0, I), and its prior is another")  # fmt: skip

    def build(self, parts: Parts) -> CVAENetwork:
        """The model, with first weights."""
        encoder, decoder = parts.networks(extra=parts.condition)
        given = encoder, decoder, parts.latent_dim, parts.condition
        if not self.learned_prior:
            return CVAENetwork(*given, likelihood=parts.likelihood, free_bits=parts.free_bits)
        prior_encoder, _ = networks.encoder_and_decoder(
            "mlp", (parts.condition,), parts.latent_dim, hidden=parts.hidden[-1:], channels=(),
            outputs=1, activation=parts.activation, rng=parts.rng, dtype=parts.dtype,
        )  # fmt: skip
        return ConditionalPriorNetwork(
            *given, likelihood=parts.likelihood, prior_encoder=prior_encoder
        )
