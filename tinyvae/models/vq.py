"""VQ-VAE: the latents are places in a learned codebook, and a prior over them is learned beside.

x -> encoder -> P vectors z (a grid of them with convolutions) -> the nearest code of each ->
decoder -> p(x | codes).  The posterior is one point, so the bound on log p(x) is log p(x, codes),
with an autoregressive p(codes) that learns beside the rest; a code's cost is part of the bound.

    log p(x) = log sum_c p(c) p(x | c)  >=  log p(x | c(x)) + log p(c(x))
    loss = -log p(x | e_c) - log p(c) + |sg(z) - e_c|^2 + commitment |z - sg(e_c)|^2
                          van den Oord, Vinyals and Kavukcuoglu 2017, equation 3; sg: stop gradient

Sizes: B batch, P positions (codes a row), K codes, Z numbers a code, N = B P vectors.
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
from ..estimators import one_hot, sample_classes
from ..likelihoods import Likelihood
from ..nn import ACTIVATIONS, Buffer, Module
from ..objectives import Terms
from ..ops.fused import nearest_code
from ..ops.noise import Draw
from ..tensor import Tensor
from . import networks
from .base import Model, Parts, Spec, refused

UPDATES = ("ema", "loss")
SMOOTHING = 1e-5  # of the counts by which sums are divided
PROBATION = 2.0  # a code that starts anew is given so many times the count at which it is dead


class Quantizer(Module):
    """A codebook, and how it learns.

    update: "ema": each code is a moving average of the vectors that chose it (van den Oord et al.
    2017, appendix A.1; Razavi, van den Oord and Vinyals 2019), or "loss": a parameter, by gradient.
    decay: of the averages; 0.99 is usual, for long runs.  commitment: weight of |z - sg(e)|^2.
    restart: a code that is chosen less often than `restart` times the average becomes a vector of
    the batch at hand; so do all codes at the first step.  0: never.
    """

    couples_rows = True

    def __init__(
        self,
        codes: int,
        size: int,
        *,
        update: str = "ema",
        decay: float = 0.95,
        commitment: float = 0.25,
        restart: float = 0.1,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ):
        first = rng.uniform(-1 / codes, 1 / codes, (codes, size)).astype(dtype)
        self.decay, self.commitment, self.restart = decay, commitment, restart
        self.averages = update == "ema"
        self.codebook = Buffer(first) if self.averages else Tensor(first, requires_grad=True)
        self.counts = Buffer(np.ones(codes, dtype))  # moving average of how many chose each code
        self.sums = Buffer(first.copy()) if self.averages else None  # and of their sum
        self.steps = Buffer(np.zeros((), np.int64))

    def __call__(self, z: Any) -> tuple[Tensor, Any]:
        """The nearest codes of z (N, Z), straight through, and their numbers (N,)."""
        quantized = nearest_code(z, self.codebook)
        return quantized, quantized.saved.codes

    def loss(self, z: Tensor, codes: Any) -> Tensor:
        """What draws z and its codes to each other, (N,): see the top of this file."""
        chosen = self.codebook.data[codes]
        commitment = self.commitment * ops.sum((z - chosen) ** 2, axis=1)
        if self.averages:
            return commitment
        return commitment + ops.sum((ops.embedding(self.codebook, codes) - z.detach()) ** 2, axis=1)

    def learn(self, z: Any, codes: Any, u: Any) -> None:
        """After a step: move the averages, and let codes that nobody chooses start anew.

        counts <- decay counts + (1 - decay) n       n_k: how many of the batch chose code k
        sums   <- decay sums + (1 - decay) s         s_k: their sum
        e_k = sums_k / counts_k, the counts smoothed as in Razavi et al.'s code: a code without any
        keeps a finite place.
        z: (N, Z), codes: (N,), arrays; u: (N,) uniform noise: which vectors restart codes.
        """
        K, keep = len(self.counts), self.decay
        chosen = one_hot(codes, K, like=z)  # (N,) -> (N, K)
        self.counts.data[...] = keep * self.counts.data + (1 - keep) * chosen.sum(axis=0)
        if self.sums is not None:
            self.sums.data[...] = keep * self.sums.data + (1 - keep) * (chosen.T @ z)
            total = self.counts.data.sum()
            smooth = (self.counts.data + SMOOTHING) * (total / (total + K * SMOOTHING))
            self.codebook.data[...] = self.sums.data / smooth[:, None]
        self._restart(z, u)
        self.steps.data += 1

    def _restart(self, z: Any, u: Any) -> None:
        """Codes that are hardly chosen become vectors of this batch; at the first step all do.

        On the digits (32 codes, 30 epochs) codes that restart with the average count, and not with
        PROBATION, cost 0.8 nats of the ELBO in the mean: they take too long to be found dead.
        """
        first = self.steps.data == 0
        usual = len(z) / len(self.counts) if first else self.counts.data.mean()
        threshold = self.restart * usual
        dead = (self.counts.data < threshold) | (first and self.restart > 0)
        number = int(dead.sum())
        picked = np.argsort(u)[
            np.arange(number, like=u) % len(z)
        ]  # vectors at random, without repeats
        start = usual if first else PROBATION * threshold
        self.counts.data[dead] = start
        self.codebook.data[dead] = z[picked]
        if self.sums is not None:
            self.sums.data[dead] = start * z[picked]


def perplexity(codes: Any, count: int) -> float:
    """How many codes are in use: e^entropy of how often each of `count` is chosen, 1 to count."""
    used = np.bincount(codes.reshape(-1), minlength=count) / codes.size
    return float(np.exp(-(used * np.log(np.maximum(used, 1e-30))).sum()))


class CodePrior(Module):
    """p(codes), one code after the other: a GRU over those before it.

    log p(c) = sum_t log softmax(W h_t + b)_{c_t},    h_t = GRU(c_1 .. c_{t-1}, t)
    codes: K; positions: P; hidden: units of the GRU.
    """

    def __init__(self, codes: int, positions: int, hidden: int, **options: Any):
        self.codes, self.positions = codes, positions
        self.embedding = nn.Embedding(codes + 1, hidden, **options)  # the last one: nothing yet
        self.places = nn.Embedding(positions, hidden, **options)
        self.gru = nn.GRU(hidden, hidden, **options)
        self.head = nn.Linear(hidden, codes, **options)

    def log_prob(self, codes: Any) -> Tensor:
        """Of each row's codes (B, P), (B,) nats."""
        start = np.full_like(codes[:, :1], self.codes)
        before = np.concatenate([start, codes[:, :-1]], axis=1)
        states = self.gru(self.embedding(before) + self.places.weight)
        return -ops.categorical_nll(self.head(states), codes)

    def sample(self, n: int, draw: Draw) -> Any:
        """n rows of codes, (n, P) integers; draw: noise of n rows."""
        like = self.head.weight.data
        codes = np.full_like(like, self.codes, dtype=np.int64, shape=(n, self.positions + 1))
        state = np.zeros_like(like, shape=(n, self.gru.hidden))
        for t in range(self.positions):  # codes[:, t] is what stands before position t
            step = self.embedding(codes[:, t : t + 1]) + self.places.weight[t : t + 1]
            state = self.gru(step, state=state).data[:, 0]
            z = sample_classes(self.head(state), draw.uniform(self.codes))
            codes[:, t + 1] = z.argmax(axis=1)
        return codes[:, 1:]


class VQVAE(Model):
    """Encoder to P vectors, quantizer, decoder, and the prior over the codes.

    encoder: x (B, ...) -> (B, P Z); decoder: (B, P Z) -> raw parameters (B, ...).
    `beta` has no effect: the codes' -log p trains the prior alone.
    """

    gaussian = False

    def __init__(
        self,
        encoder: Callable,
        decoder: Callable,
        quantizer: Quantizer,
        code_prior: CodePrior,
        *,
        likelihood: Likelihood,
    ):
        self.encoder, self.decoder = encoder, decoder
        self.quantizer, self.code_prior = quantizer, code_prior
        self.likelihood = likelihood
        self.codes, self.size = quantizer.codebook.shape
        self.latent_dim = code_prior.positions * self.size

    def vectors(self, x: Any) -> Tensor:
        """The encoder's vectors, (N, Z)."""
        return ops.reshape(self.encoder(x), (-1, self.size))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """-log p(x, codes), and what draws vectors and codes to each other."""
        z = self.vectors(batch.seen)
        quantized, codes = self.quantizer(z)
        found = self._bound(batch, quantized, codes)
        pull = ops.sum(ops.reshape(self.quantizer.loss(z, codes), (len(batch), -1)), axis=1)
        negative = found.loss + pull
        self._seen = z.data, codes, draw.uniform(self.code_prior.positions).reshape(-1)
        return found._replace(loss=ops.sum(negative) * (1 / rows), elbo=-negative.data)

    def _bound(self, batch: Batch, quantized: Tensor, codes: Any) -> Terms:
        """nll and -log p(codes), (B,); the loss is their sum, per row."""
        output = self.decode(ops.reshape(quantized, (len(batch), -1)))
        nll = self.likelihood.nll(output, batch.x, batch.mask)
        rate = -self.code_prior.log_prob(codes.reshape(len(batch), -1))
        log = {"perplexity": perplexity(codes, self.codes)}
        return Terms(nll + rate, nll.data, rate.data, -(nll + rate).data, log)

    def after_step(self, terms: Terms) -> None:
        """The codebook's own way to learn."""
        self.quantizer.learn(*self._seen)

    def posterior(self, batch: Batch) -> Terms:
        """The bound, which knows no noise."""
        return self._bound(batch, *self.quantizer(self.vectors(batch.seen)))

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """log p(x, codes), a lower bound on log p(x); its kl is -log p(codes)."""
        return posterior or self.posterior(batch)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x, codes): the same at every sample, so that more of them do not tighten it."""
        return (posterior or self.posterior(batch)).elbo

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """The chosen codes as vectors, (B, P Z), and the logarithm of a variance of zero."""
        quantized, _ = self.quantizer(self.vectors(x))
        mu = ops.reshape(quantized, (len(x), self.latent_dim))
        return mu, Tensor(np.full_like(mu.data, -np.inf))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z).  z: (B, P Z), vectors, from the codebook or between."""
        return self.decoder(z)

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """The vectors of n rows of codes from the prior."""
        codes = self.code_prior.sample(n, draw)
        return self.quantizer.codebook.data[codes].reshape(n, self.latent_dim)


# -------------------------------------------------------------------------------- as an argument
@dataclass(frozen=True)
class VQ(Spec):
    """VQ-VAE (van den Oord, Vinyals and Kavukcuoglu 2017): `vq:codes=64:size=16`.

    codes: K.  size: Z, numbers a code.  positions: P with the mlp architecture; with conv it is the
    image after all halvings.  update, decay, commitment, restart: see Quantizer.  prior: units of
    the GRU over the codes.
    """

    name: ClassVar[str] = "vq"
    refuses: ClassVar[dict[str, str]] = {
        "latent_dim": "the sizes of its codes stand in its text, vq:size=16:positions=8",
        "prior": "it learns one over its codes",
        "flow": "its posterior is one point",
        "own": "its encoder gives vectors, not mu and logvar",
        **refused("it has no KL to weigh", "weight", "free_bits", "capacity"),
    }
    codes: int = 64
    size: int = 16
    positions: int = 8
    update: str = "ema"
    decay: float = 0.95
    commitment: float = 0.25
    restart: float = 0.1
    prior: int = 64

    def __post_init__(self) -> None:
        for name in ("codes", "size", "positions", "prior"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.update not in UPDATES:
            raise unknown("update", self.update, UPDATES)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if not 0 <= self.restart < 1:
            raise ValueError(f"restart must be in [0, 1), got {self.restart}")
        if not 0 <= self.commitment < math.inf:
            raise ValueError(f"commitment must be finite and >= 0, got {self.commitment}")

    def build(self, parts: Parts) -> VQVAE:
        """The model, with first weights."""
        options = {"rng": parts.rng, "dtype": parts.dtype}
        build = self._conv if parts.architecture == "conv" else self._mlp
        encoder, decoder, positions = build(parts, options)
        quantizer = Quantizer(
            self.codes, self.size, update=self.update, decay=self.decay,
            commitment=self.commitment, restart=self.restart, **options,
        )  # fmt: skip
        prior = CodePrior(self.codes, positions, self.prior, **options)
        return VQVAE(encoder, decoder, quantizer, prior, likelihood=parts.likelihood)

    def _mlp(self, parts: Parts, options: dict[str, Any]) -> tuple[Callable, Callable, int]:
        Z = self.positions * self.size
        body, features, decoder = parts.body_and_decoder(Z)
        return nn.Sequential(body, nn.Linear(features, Z, **options)), decoder, self.positions

    def _conv(self, parts: Parts, options: dict[str, Any]) -> tuple[Callable, Callable, int]:
        """Halvings and a 1x1 convolution to vectors; a 3x3 convolution, and doublings."""
        act = parts.activation
        act = ACTIVATIONS[act] if isinstance(act, str) else act
        layers, sizes = networks.halvings(parts.shape, parts.channels, act, **options)
        (H, W), filters = sizes[-1], [parts.shape[2], *parts.channels][-1]
        layers += [nn.Conv2d(filters, self.size, 1, **options), nn.Reshape(-1)]
        widths = [*parts.channels[::-1], parts.likelihood.outputs * parts.shape[2]]
        decoder = nn.Sequential(
            nn.Reshape(H, W, self.size),
            nn.Conv2d(self.size, widths[0], 3, padding=1, **options), act,
            *networks.doublings(sizes, widths, act, **options),
        )  # fmt: skip
        return nn.Sequential(*layers), decoder, H * W


__all__ = ["VQ", "VQVAE", "CodePrior", "Quantizer", "perplexity"]
