"""VAEs whose latents are bits or classes: Gumbel-softmax, enumerated, and by the score function.

x -> encoder -> logits of q(z | x);  z, bits (N,) or one-hot (N, C) -> decoder -> p(x | z).  The
prior is uniform.  The models differ in how the encoder learns (tinyvae/estimators.py); whatever
they train on, they are evaluated with hard samples, so that their bounds can be compared.

Sizes: B batch, N latents, C classes, Z = N or N C values of z, K samples, S states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import estimators, nn, ops
from .._text import unknown
from ..batches import Batch
from ..estimators import Baseline
from ..likelihoods import Likelihood
from ..objectives import Terms, weighted
from ..ops.noise import Draw
from ..tensor import Tensor
from .base import Model, Parts, Spec, refused

# ------------------------------------------------------------------------------- what z can be


@dataclass(frozen=True)
class Bits:
    """N independent bits; z (..., N), logits (..., N)."""

    latents: int
    log_prob: ClassVar[Callable] = staticmethod(estimators.bernoulli_log_prob)
    kl: ClassVar[Callable] = staticmethod(estimators.bernoulli_kl)
    sample: ClassVar[Callable] = staticmethod(estimators.sample_bits)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's z."""
        return (self.latents,)

    @property
    def log_uniform(self) -> float:
        """log p(z) of every z, in nats."""
        return -self.latents * math.log(2)

    def mean(self, logits: Any) -> Tensor:
        """Probability that each bit is 1."""
        return ops.sigmoid(logits)

    def mode(self, logits: Any) -> Any:
        """The most likely z."""
        return (logits > 0).astype(logits.dtype)


@dataclass(frozen=True)
class Classes:
    """N independent variables of C classes, one-hot; z (..., N, C), logits (..., N, C)."""

    latents: int
    classes: int
    log_prob: ClassVar[Callable] = staticmethod(estimators.categorical_log_prob)
    kl: ClassVar[Callable] = staticmethod(estimators.categorical_kl)
    sample: ClassVar[Callable] = staticmethod(estimators.sample_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's z."""
        return (self.latents, self.classes)

    @property
    def log_uniform(self) -> float:
        """log p(z) of every z, in nats."""
        return -self.latents * math.log(self.classes)

    def mean(self, logits: Any) -> Tensor:
        """Probability of each class."""
        return ops.softmax(logits)

    def mode(self, logits: Any) -> Any:
        """The most likely z."""
        return estimators.one_hot(logits.argmax(axis=-1), self.classes, like=logits)


# ------------------------------------------------------------------------------------ the models
class DiscreteVAE(Model):
    """An encoder to logits, and a decoder from bits or one-hot classes; subclasses define loss().

    encoder: x (B, ...) -> (B, Z), the logits; decoder: z (B, Z) -> raw parameters (B, ...).
    latents: Bits or Classes.
    """

    gaussian = False

    def __init__(
        self, encoder: Callable, decoder: Callable, latents: Any, *, likelihood: Likelihood
    ):
        self.encoder, self.decoder, self.latents = encoder, decoder, latents
        self.latent_dim = math.prod(latents.shape)
        self.likelihood = likelihood

    def logits(self, x: Any) -> Tensor:
        """Of q(z | x), (B, N) or (B, N, C)."""
        return ops.reshape(self.encoder(x), (len(x), *self.latents.shape))

    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Probabilities q(z | x) and the log-variances log q (1 - q) of z's values, each (B, Z)."""
        mean = ops.reshape(self.latents.mean(self.logits(x)), (len(x), self.latent_dim))
        variance = mean.data * (1 - mean.data)
        return mean, Tensor(np.log(np.maximum(variance, np.finfo(variance.dtype).tiny)))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z).  z: (B, Z)."""
        return self.decoder(z)

    def nll(self, z: Any, batch: Batch) -> Tensor:
        """-log p(x | z) of each row, (B,) nats.  z: (B, ...), of Z values a row."""
        output = self.decode(ops.reshape(z, (len(batch), self.latent_dim)))
        return self.likelihood.nll(output, batch.x, batch.mask)

    def kl(self, logits: Tensor) -> Tensor:
        """KL(q(z | x) || uniform) of each row, (B,) nats, in closed form."""
        return ops.sum(self.latents.kl(logits), axis=1)

    def posterior(self, batch: Batch) -> Tensor:
        """The logits."""
        return self.logits(batch.seen)

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO at one hard sample of z, whatever the model trains on."""
        logits = self.posterior(batch) if posterior is None else posterior
        z = self.latents.sample(logits, draw.uniform(*self.latents.shape))
        return weighted(self.nll(z, batch), self.kl(logits), batch=len(batch))

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x) at one hard sample of z."""
        logits = self.posterior(batch) if posterior is None else posterior
        z = self.latents.sample(logits, draw.uniform(*self.latents.shape))
        log_p = self.latents.log_uniform - self.nll(z, batch)
        return (log_p - self.latents.log_prob(logits, z)).data

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n uniform z."""
        u = draw.uniform(*self.latents.shape)
        return self.latents.sample(np.zeros_like(u), u).reshape(n, self.latent_dim)

    def reconstruct(self, batch: Batch) -> Any:
        """Raw parameters of p(x | z) at each row's most likely z."""
        z = self.latents.mode(self.logits(batch.seen).data)
        return self.decode(z.reshape(len(z), self.latent_dim)).data


class GumbelVAE(DiscreteVAE):
    """Classes that training replaces by Gumbel-softmax samples.    Jang, Gu and Poole 2017.

    temperature: max(final, start e^(-rate steps)), as in their section 4; hard: straight through.
    """

    def __init__(
        self, *networks: Any, start: float, final: float, rate: float, hard: bool, **more: Any
    ):
        super().__init__(*networks, **more)
        self.start, self.final, self.rate, self.hard = start, final, rate, hard
        self.steps = nn.Buffer(np.zeros((), np.int64))

    @property
    def temperature(self) -> float:
        """At the present step."""
        return max(self.final, self.start * math.exp(-self.rate * int(self.steps.data)))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """-E[log p(x | z)] at a relaxed z, and the KL of the classes in closed form.

        While z is soft this bounds no likelihood; `evaluation` does.
        """
        temperature, logits = self.temperature, self.logits(batch.seen)
        u = draw.uniform(*self.latents.shape)
        z = estimators.gumbel_softmax(logits, u, temperature=temperature, hard=self.hard)
        found = weighted(self.nll(z, batch), self.kl(logits), beta=beta, batch=rows)
        return found._replace(log={"temperature": temperature})

    def after_step(self, terms: Terms) -> None:
        """Count the step."""
        self.steps.data += 1


class EnumeratedVAE(DiscreteVAE):
    """All states of z summed out: the bound and its gradient are exact, and log p(x) is known."""

    def __init__(self, *networks: Any, **more: Any):
        super().__init__(*networks, **more)
        latents, classes = self.latents.shape
        dtype = nn.Module.parameters(self)[0].dtype
        self.states = Tensor(estimators.enumerate_classes(latents, classes, dtype))  # (S, N, C)

    def nll_of_states(self, batch: Batch) -> Tensor:
        """-log p(x | z) for every state, (S, B) nats: the decoder runs once for each state."""
        S, B = len(self.states), len(batch)
        output = self.decode(ops.reshape(self.states, (S, self.latent_dim)))
        rest, ones = output.shape[1:], (1,) * (output.ndim - 1)
        each = np.zeros_like(output.data, shape=(1, B, *ones))
        output = ops.reshape(ops.reshape(output, (S, 1, *rest)) + each, (S * B, *rest))
        rows = batch[np.tile(np.arange(B, like=each), S)]  # (B, ..) -> (S B, ..)
        return ops.reshape(self.likelihood.nll(output, rows.x, rows.mask), (S, B))

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO, summed over all z: no noise."""
        logits, nll = self.logits(batch.seen), self.nll_of_states(batch)
        log_q = self.latents.log_prob(logits, self.states.data[:, None])  # (S, B)
        expected = estimators.expectation(log_q, nll)
        return weighted(expected, self.kl(logits), beta=beta, batch=rows)

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO, exactly, and in the log log p(x), exactly."""
        log_p = self.latents.log_uniform - self.nll_of_states(batch)
        found = self.loss(batch, draw, beta=1.0, rows=len(batch))
        return found._replace(log={"log_likelihood": ops.logsumexp(log_p, axis=0).data})


class ScoreVAE(DiscreteVAE):
    """Bits, whose encoder learns by the score function: E[(f - baseline) grad log q].

    baseline: None for none; samples: K; more than one are VIMCO's, each other's baseline.
    """

    def __init__(self, *networks: Any, baseline: Baseline | None, samples: int, **more: Any):
        super().__init__(*networks, **more)
        self.baseline, self.samples = baseline, samples

    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The ELBO of a sample (its KL in closed form), or VIMCO's bound of K samples."""
        logits = self.logits(batch.seen)
        if self.samples > 1:
            return self._vimco(logits, batch, draw, beta=beta, rows=rows)
        z = self.latents.sample(logits, draw.uniform(*self.latents.shape))
        f, log_q = -self.nll(z, batch), self.latents.log_prob(logits, z)
        b = self.baseline(batch.x) if self.baseline else Tensor(np.zeros_like(f.data))
        log_p = estimators.score_function(f, log_q, b)
        found = weighted(-log_p, self.kl(logits), beta=beta, batch=rows)
        if self.baseline is None:
            return found
        learning = self.baseline.loss(f.data, b)
        loss = found.loss + ops.sum(learning) * (1 / rows)
        return found._replace(loss=loss, elbo=found.elbo - learning.data)

    def _vimco(self, logits: Tensor, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """kl: what of the bound is not -E[log p(x | z)], so that the two add up to it."""
        B, K, N = len(batch), self.samples, self.latents.latents
        logits = ops.reshape(logits, (B, 1, N))
        z = self.latents.sample(logits, draw.uniform(K, N))  # (B, K, N)
        nll = self.nll(z.reshape(B * K, N), batch.repeated(K))
        nll, log_q = ops.reshape(nll, (B, K)), self.latents.log_prob(logits, z)
        bound = estimators.vimco(beta * (self.latents.log_uniform - log_q) - nll, log_q)
        mean = nll.data.mean(axis=1)
        return Terms(ops.sum(bound) * (-1 / rows), mean, -bound.data - mean, bound.data)

    def after_step(self, terms: Terms) -> None:
        """Let the running mean follow f = -nll."""
        if self.baseline is not None:
            self.baseline.update(-terms.nll)


# -------------------------------------------------------------------------------- as arguments
class DiscreteSpec(Spec):
    """What the kinds below share: a uniform prior, no flow, and logits from one linear layer."""

    refuses: ClassVar[dict[str, str]] = {
        "latent_dim": "the sizes of its latents stand in its text, gumbel:latents=20:classes=10, "
        "categorical:classes=10 or bernoulli:latents=20",
        "own": "its encoder gives logits, not mu and logvar",
        **refused("its latents are discrete, and p(z) is uniform", "prior", "flow"),
        **refused("its KL is that of discrete latents", "free_bits", "capacity"),
    }

    def parts(self, parts: Parts, latents: Any) -> tuple[Callable, Callable, Any]:
        """Encoder, decoder, latents."""
        Z = math.prod(latents.shape)
        body, features, decoder = parts.body_and_decoder(Z)
        head = nn.Linear(features, Z, rng=parts.rng, dtype=parts.dtype)
        return nn.Sequential(body, head), decoder, latents


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless all are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class Gumbel(DiscreteSpec):
    """N variables of C classes, by Gumbel-softmax (Jang, Gu and Poole 2017): `gumbel:20:10`.

    temperature: at first; it falls by a factor e^-rate a step, down to final.  hard: straight
    through, so that the decoder sees one-hot z in training too.
    """

    name: ClassVar[str] = "gumbel"
    latents: int = 20
    classes: int = 10
    temperature: float = 1.0
    final: float = 0.5
    rate: float = 1e-3
    hard: bool = False

    def __post_init__(self) -> None:
        check_sizes(latents=self.latents, classes=self.classes)
        if not 0 < self.final <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite, and at least final > 0, got "
                             f"{self.temperature} and {self.final}")  # fmt: skip
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate must be finite and >= 0, got {self.rate}")

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        return GumbelVAE(
            *self.parts(parts, Classes(self.latents, self.classes)), likelihood=parts.likelihood,
            start=self.temperature, final=self.final, rate=self.rate, hard=self.hard,
        )  # fmt: skip


@dataclass(frozen=True)
class Categorical(DiscreteSpec):
    """One variable of C classes, or a few, summed out: `categorical:10`, a mixture of 10."""

    name: ClassVar[str] = "categorical"
    classes: int = 10
    latents: int = 1

    def __post_init__(self) -> None:
        check_sizes(classes=self.classes, latents=self.latents)
        if self.latents * math.log(self.classes) > math.log(estimators.MOST_STATES) + 1e-9:
            raise ValueError(f"{self.classes}^{self.latents} states are too many to sum over: "
                             "use gumbel or bernoulli")  # fmt: skip

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        latents = Classes(self.latents, self.classes)
        return EnumeratedVAE(*self.parts(parts, latents), likelihood=parts.likelihood)


ESTIMATORS = ("vimco", "nvil", "mean", "reinforce")


@dataclass(frozen=True)
class Bernoulli(DiscreteSpec):
    """N bits, by the score function: `bernoulli:20:vimco`.

    estimator: "vimco" (Mnih and Rezende 2016; `samples` a row), or with one sample a row "nvil" (a
    baseline that a network guesses from x; Mnih and Gregor 2014), "mean" (a running mean as the
    baseline), "reinforce" (none).
    """

    name: ClassVar[str] = "bernoulli"
    latents: int = 20
    estimator: str = "vimco"
    samples: int = 5

    def __post_init__(self) -> None:
        check_sizes(latents=self.latents)
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        if self.samples < 2 and self.estimator == "vimco":
            raise ValueError(f"vimco needs samples >= 2, got {self.samples}")

    def build(self, parts: Parts) -> Model:
        """The model, with first weights."""
        given = self.parts(parts, Bits(self.latents))
        return ScoreVAE(
            *given, baseline=self._baseline(parts), likelihood=parts.likelihood,
            samples=self.samples if self.estimator == "vimco" else 1,
        )  # fmt: skip

    def _baseline(self, parts: Parts) -> Baseline | None:
        if self.estimator in ("vimco", "reinforce"):
            return None
        network = None
        if self.estimator == "nvil":
            options, D = {"rng": parts.rng, "dtype": parts.dtype}, math.prod(parts.shape)
            network = nn.Sequential(
                nn.Reshape(-1), nn.Linear(D, 100, **options), ops.tanh, nn.Linear(100, 1, **options)
            )
        return Baseline(network, dtype=parts.dtype)


__all__ = ["Bernoulli", "Bits", "Categorical", "Classes", "DiscreteVAE", "Gumbel"]
