"""What every model offers to training, evaluation and sampling, and how it is made of parts.

Sizes: B rows of a batch, N rows, Z latent, D data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import priors
from ..batches import Batch, Rows
from ..likelihoods import Likelihood
from ..nn import Module, Sequential
from ..objectives import Terms
from ..ops.noise import Draw
from ..optim import Group
from ..priors import Prior
from ..tensor import Tensor
from . import networks


class Model(Module):
    """A graph with latents z: how to train it, and what can be asked of it.

    has_likelihood: whether `log_weights` estimate log p(x).  has_classifier: whether `classify`
    gives log q(y | x).  gaussian: whether q(z | x) is a Gaussian with the mean and log-variance
    that `encode` and `posterior` give, and p(z) N(0, I), so that the KL has a part for each
    dimension.  factors: whether p(x | z) is the likelihood at decode(z), value by value; not if
    later values depend on earlier ones.
    """

    has_likelihood: ClassVar[bool] = True
    has_classifier: ClassVar[bool] = False
    factors: ClassVar[bool] = True
    gaussian: bool = True
    latent_dim: int
    likelihood: Likelihood
    prior: Prior

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """A step's loss: the sum over the rows at hand, divided by `rows`, those of the batch.

        beta: weight of the KL; draw: the noise of these rows.
        """
        raise NotImplementedError

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The terms of the bound itself, with weights of one; no gradient is wanted."""
        return self.loss(batch, draw, beta=1.0, rows=len(batch))

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, Z)."""
        raise NotImplementedError

    def code(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`encode` of a batch, with regard to its mask where the encoder has any."""
        return self.encode(batch.seen, batch.y)

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z)."""
        raise NotImplementedError

    def classify(self, x: Any) -> Tensor:
        """log q(y | x) of each class, (B, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no classifier")

    def posterior(self, batch: Batch) -> Any:
        """What of q(z | x) is the same for all samples; given to `evaluation` and `log_weights`."""
        return self.encode(batch.seen, batch.y)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x, z) - log q(z | x) at one sample z ~ q(z | x) of each row, an array (B,) nats."""
        raise NotImplementedError

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n codes z ~ p(z), an array (n, Z)."""
        return self.prior.sample(n, draw)

    def generate(self, n: int, draw: Draw, y: Any = None) -> Any:
        """Raw parameters of p(x | z) for n rows z from the prior, an array."""
        return self.decode(self.from_prior(n, draw, y), y).data

    def sample(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n rows x, drawn from p(x | z) with z from the prior, an array."""
        return self.likelihood.sample(self.generate(n, draw, y), seed=draw.seed, step=draw.first)

    def reconstruct(self, batch: Batch) -> Any:
        """Raw parameters of p(x | z) at each row's own code, an array."""
        return self.decode(self.code(batch)[0], batch.y).data

    def groups(self) -> list[Group]:
        """Parameters with a learning rate of their own: networks that are trained beside this one.

        Their loss is added to `loss`; `nn.frozen` and `detach` keep the gradients apart.
        """
        return []

    def scored(self, batch: Batch) -> Any:
        """What `reconstruct` gives, but where steps depend on earlier ones, after the true ones."""
        return self.reconstruct(batch)

    def after_step(self, terms: Terms) -> None:
        """Called after each update with the terms of its batch: moving averages and the like."""

    def after_epoch(self, rows: Rows) -> None:
        """Called after each epoch with training rows, without recording; sets buffers."""


STANDARD = priors.Standard()


@dataclass(frozen=True)
class Parts:
    """What a model is made of, as the user asked for it.

    shape: of a row of x as the network sees it; classes: number of labels, or 0; condition: numbers
    that a row's y is to the network (classes, one-hot, or columns of real values), or 0; own: the
    user's encoder and decoder, or None; prior, flow: specifications; free_bits: as objectives.elbo
    takes them.  rng, dtype: of first weights.
    """

    shape: tuple[int, ...]
    latent_dim: int
    likelihood: Likelihood
    architecture: str = "mlp"
    hidden: tuple[int, ...] = (400,)
    channels: tuple[int, ...] = (32, 64)
    activation: Any = "relu"
    prior: Any = STANDARD
    flow: Any = None
    free_bits: Any = 0.0
    classes: int = 0
    condition: int = 0
    own: tuple[Callable, Callable] | None = None
    rng: Any = None
    dtype: Any = np.float32

    def networks(self, latent_dim: int | None = None, **more: Any) -> tuple[Callable, Callable]:
        """An encoder x -> mu, logvar and a decoder z -> raw parameters: the user's, or new ones."""
        encoder, decoder = self.own or networks.encoder_and_decoder(
            self.architecture, self.shape, latent_dim or self.latent_dim, **self._options(), **more
        )
        return encoder, self._with_head(decoder)

    def body_and_decoder(self, latent_dim: int, **more: Any) -> tuple[Callable, int, Callable]:
        """An encoder's body x -> features, their number, and a decoder z -> raw parameters."""
        body, features, decoder = networks.body_and_decoder(
            self.architecture, self.shape, latent_dim, **self._options()
        )
        return body, features, self._with_head(decoder)

    def _options(self) -> dict[str, Any]:
        names = ("hidden", "channels", "activation", "rng", "dtype")
        return {name: getattr(self, name) for name in names} | {"outputs": self.likelihood.outputs}

    def _with_head(self, decoder: Callable) -> Callable:
        """The decoder, and behind it the parameters of p(x | z) that all values share, if any."""
        head = self.likelihood.head(self.dtype)
        return decoder if head is None else Sequential(decoder, head)

    def build_prior(self, encode: Callable) -> Prior:
        """The prior; encode: x -> mu, logvar, for one that asks the encoder."""
        return self.prior.build(
            self.latent_dim, encode=encode, shape=self.shape, rng=self.rng, dtype=self.dtype
        )


WORDS = {
    "latent_dim": "latent_dim",
    "weight": "beta or kl_schedule",
    "prior": "prior",
    "flow": "flow",
    "free_bits": "free_bits",
    "grouped": "free_bits of groups",
    "capacity": "a capacity as kl_schedule",
    "own": "an encoder and a decoder of one's own",
    "missing": "missing values",
    "corruption": "corruption",
}


def refused(reason: str, *names: str) -> dict[str, str]:
    """The same reason for several of WORDS."""
    return dict.fromkeys(names, reason)


@dataclass(frozen=True)
class Spec:
    """A kind of model as an argument: `model="vq:64"` is VQ(codes=64).

    refuses: what it cannot be combined with, and why; names as in WORDS.  labels: "ignored",
    "needed", or "optional": some may be unknown at fit, all later.  bound: whether -(nll + kl)
    bounds log p(x), under a likelihood; else it is a loss.
    """

    name: ClassVar[str]
    refuses: ClassVar[dict[str, str]] = {}
    labels: ClassVar[str] = "ignored"
    bound: ClassVar[bool] = True

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        raise NotImplementedError

    def again(self, y: Any) -> int:
        """How often more a row with a known label comes in an epoch; y: (N,), -1 if unknown."""
        return 0

    def check(self, **given: Any) -> None:
        """Raise ValueError, with the reason, for what does not go with this kind.

        given: prior, flow (specifications or None), free_bits, own, likelihood, as in Parts;
        latent_dim, capacity, corruption: None if there is none; missing: whether values may be;
        weighted: whether the KL has a weight other than one.
        """
        asked = {
            "latent_dim": given.get("latent_dim") is not None,
            "weight": given.get("weighted", False),
            "prior": given["prior"] != STANDARD,
            "flow": given["flow"] is not None,
            "free_bits": bool(given["free_bits"]),
            "grouped": not isinstance(given["free_bits"], (int, float)),
            "capacity": given.get("capacity") is not None,
            "own": given["own"] is not None,
            "missing": given.get("missing", False),
            "corruption": given.get("corruption") is not None,
        }
        for name, reason in self.refuses.items():
            if asked[name]:
                raise ValueError(f"model={self.name!r} does not take {WORDS[name]}: {reason}")
