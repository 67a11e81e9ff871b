"""The semi-supervised model M2: x is made of a class y and of z, and some labels are known.

    p(x, y, z) = p(y) p(z) p(x | y, z),    p(y) = 1 / C, p(z) = N(0, I)
    q(y, z | x) = q(y | x) q(z | x, y)                               Kingma et al. 2014, section 2

M1 + M2 is a plain VAE (M1), whose codes are M2's x: two estimators, one after the other.
Sizes: B batch, C classes, Z latent, R = pairs of a row and a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..batches import Batch
from ..estimators import one_hot
from ..likelihoods import Likelihood
from ..nn import Linear, Sequential
from ..objectives import Terms, weighed, weighted
from ..ops.noise import Draw
from ..priors import StandardNormal
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused


class M2Network(Model):
    """A classifier q(y | x), an encoder q(z | x, y) and a decoder p(x | y, z).

    classifier: x (B, ...) -> logits (B, C); encoder: x, y (R, C) -> mu, logvar; decoder:
    z, y (R, C) -> raw parameters.  alpha: weight of -log q(y | x) where the label is known.
    """

    gaussian = False
    has_classifier = True

    def __init__(
        self,
        classifier: Callable,
        encoder: Callable,
        decoder: Callable,
        latent_dim: int,
        classes: int,
        *,
        likelihood: Likelihood,
        alpha: float,
    ):
        self.classifier, self.encoder, self.decoder = classifier, encoder, decoder
        self.latent_dim, self.classes, self.alpha = latent_dim, classes, alpha
        self.likelihood, self.prior = likelihood, StandardNormal(latent_dim)

    def classify(self, x: Any) -> Tensor:
        """log q(y | x) of each class, (B, C)."""
        return ops.log_softmax(self.classifier(x))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative of both bounds, and the classifier's own loss.

        y known:    -L(x, y) - alpha log q(y | x)            Kingma et al. 2014, equations 6 and 9
        y unknown:  -U(x)                                    equation 7
        """
        y = self._y(batch)
        known, others = np.flatnonzero(y >= 0), np.flatnonzero(y < 0)
        eps = draw.normal(self.latent_dim)
        nll, kl = self.labelled(batch[known], y[known], eps[known])
        nll_u, kl_u = self.unlabelled(batch[others], eps[others])
        code = self._one_hot(y[known], batch.x)
        log_q = ops.sum(self.classify(batch.seen[known]) * code, axis=1)
        losses = [nll + beta * kl - self.alpha * log_q, nll_u + beta * kl_u]
        place = np.argsort(np.concatenate([known, others]))  # back to the rows' own order
        nll, kl, loss = (ops.concatenate(t)[place] for t in ([nll, nll_u], [kl, kl_u], losses))
        return Terms(ops.sum(loss) * (1 / rows), nll.data, kl.data, -loss.data)

    def labelled(
        self, batch: Batch, y: Any, eps: Any, posterior: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The two terms of -L(x, y), each (B,) nats.

        L = E_q(z|x,y)[log p(x | y, z)] - (KL(q(z | x, y) || p(z)) - log p(y))
        """
        code = self._one_hot(y, batch.x)
        mu, logvar = posterior or self.encoder(batch.seen, code)
        z = ops.reparameterize(mu, logvar, eps)
        kl = ops.gaussian_kl(mu, logvar) + math.log(self.classes)
        return self.likelihood.nll(self.decoder(z, code), batch.x, batch.mask), kl

    def unlabelled(self, batch: Batch, eps: Any, posterior: Any = None) -> tuple[Tensor, Tensor]:
        """The two terms of -U(x), each (B,) nats; all labels of a row share its noise.

        U = sum_y q(y | x) L(x, y) + H(q(y | x))
        """
        log_q, mu, logvar = posterior or self.posterior(batch)
        rows, eps = batch.repeated(self.classes), np.repeat(eps, self.classes, axis=0)
        nll, kl = self.labelled(rows, self._every(log_q.data), eps, (mu, logvar))
        nll, kl = (ops.reshape(t, log_q.shape) for t in (nll, kl))  # (B C,) -> (B, C)
        q = ops.exp(log_q)
        return ops.sum(q * nll, axis=1), ops.sum(q * (kl + log_q), axis=1)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log q(y | x) (B, C), and mu, logvar of q(z | x, y) for each label, (B C, Z)."""
        codes = self._one_hot(np.arange(self.classes, like=batch.x).astype(np.int64), batch.x)
        return (self.classify(batch.seen), *self.encoder.every(batch.seen, codes))  # type: ignore[attr-defined]

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """U, the bound of log p(x): labels are summed out, and serve to count what is right."""
        posterior = posterior or self.posterior(batch)
        nll, kl = self.unlabelled(batch, draw.normal(self.latent_dim), posterior)
        log = {}
        if batch.y is not None:
            right = (posterior[0].data.argmax(axis=1) == batch.y).astype(nll.dtype)
            log["accuracy"] = np.where(batch.y >= 0, right, right.dtype.type(math.nan))
        return weighted(nll, kl, batch=len(batch))._replace(log=log)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log sum_y p(x, y, z_y) / q(z_y | x, y), one z_y a label: in expectation of p(x)."""
        _, mu, logvar = (t.data for t in posterior or self.posterior(batch))
        eps = np.repeat(draw.normal(self.latent_dim), self.classes, axis=0)
        (z, log_ratio), rows = weighed(mu, logvar, eps), batch.repeated(self.classes)
        nll = self.likelihood.nll(self.decode(z, self._every(batch.x)), rows.x, rows.mask).data
        log_w = (log_ratio - nll).reshape(len(batch), self.classes)
        return ops.logsumexp(log_w, axis=1).data - math.log(self.classes)

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x, y), each (B, Z); at the likeliest label if unknown."""
        return self.encoder(x, self._one_hot(self._label(x, y), x))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | y, z); y: labels, or their weights (N, C)."""
        if y is None:
            raise ValueError("M2's decoder takes a label beside z: give y")
        return self.decoder(z, self._one_hot(y, z) if y.ndim == 1 else y)

    def generate(self, n: int, draw: Draw, y: Any = None) -> Any:
        """Raw parameters of p(x | y, z) for n rows z ~ p(z); labels that are not known ~ p(y)."""
        z = self.prior.sample(n, draw)
        drawn = (draw.uniform() * self.classes).astype(np.int64)
        return self.decode(z, drawn if y is None else np.where(y < 0, drawn, y)).data

    def reconstruct(self, batch: Batch) -> Any:
        """Raw parameters of p(x | y, z) at each row's own label, or its likeliest, and its code."""
        y = self._label(batch.seen, batch.y)
        return self.decode(self.encode(batch.seen, y)[0], y).data

    # ------------------------------------------------------------------------------------- inside
    def _one_hot(self, y: Any, like: Any) -> Any:
        return one_hot(y, self.classes, like=like.data if isinstance(like, Tensor) else like)

    def _every(self, rows: Any) -> Any:
        """All labels, once for each row: 0 .. C-1, 0 .. C-1, .."""
        return np.tile(np.arange(self.classes, like=rows).astype(np.int64), len(rows))

    def _y(self, batch: Batch) -> Any:
        """The labels, -1 where they are unknown."""
        none = np.full_like(batch.x, -1, np.int64, shape=len(batch))
        return none if batch.y is None else batch.y

    def _label(self, x: Any, y: Any) -> Any:
        """y where it is known, else the likeliest label."""
        likeliest = self.classifier(x).data.argmax(axis=1)
        return likeliest if y is None else np.where(y < 0, likeliest, y)


@dataclass(frozen=True)
class M2(Spec):
    """Semi-supervised classification: "m2", "m2:alpha=10:share=0.1".

    alpha: weight of the classifier's loss on a row whose label is known.
    share: such rows come again and again until they are so much of an epoch; a few labels would
    else be in one batch of many.  The paper's alpha, 0.1 N times a mean over the labelled rows, is
    0.1 / share here.
    """

    name: ClassVar[str] = "m2"
    refuses: ClassVar[dict[str, str]] = {
        **refused("its KL is the closed form to N(0, I), for each label", "prior", "flow"),
        **refused("its KL is a mean over labels", "free_bits", "capacity"),
        "own": "it has a classifier, and networks that are told the label",
    }
    labels: ClassVar[str] = "optional"
    alpha: float = 10.0
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and >= 0, got {self.alpha}")
        if not 0 <= self.share < 1:
            raise ValueError(f"share must be in [0, 1), got {self.share}")

    def again(self, y: Any) -> int:
        """k n / (k n + m) = share, of n known and m unknown labels: k - 1."""
        known = int((y >= 0).sum()) if y is not None else 0
        if known == 0:
            return 0
        times = self.share / (1 - self.share) * (len(y) - known) / known
        return max(0, round(times) - 1)

    def build(self, parts: Parts) -> M2Network:
        """The model, with first weights; ValueError if there are no labels at all."""
        if not parts.classes:
            raise ValueError("model='m2' needs the labels of some rows: give y, with -1 elsewhere")
        body, features, _ = parts.body_and_decoder(parts.latent_dim)
        head = Linear(features, parts.classes, rng=parts.rng, dtype=parts.dtype)
        encoder, decoder = parts.networks(extra=parts.classes)
        return M2Network(
            Sequential(body, head), encoder, decoder, parts.latent_dim, parts.classes,
            likelihood=parts.likelihood, alpha=self.alpha,
        )  # fmt: skip
