"""VAE of sequences (Bowman et al. 2016): one z for a whole sequence, written down step by step.

    x_1 .. x_T -> GRU -> mu, logvar;     z, x_1 .. x_{t-1} -> decoder -> parameters of p(x_t | ...)
    log p(x | z) = sum_t log p(x_t | x_<t, z)

A sequence is a row (T,) of symbols, with the likelihood "tokens", which ends a shorter one by -1;
or a row (T, ...) of values, such as the lines of an image, with any other likelihood.  Values of a
shorter one are masked (NaN, with missing=True): its length is given, and not part of p(x | z).
Training feeds the decoder the true steps (teacher forcing), some of them hidden (word dropout), so
that it has to ask z.  Sizes: B batch, T steps, C values a step, E features, U units, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import objectives, ops, priors
from .._text import unknown
from ..batches import Batch
from ..likelihoods import Likelihood, Tokens
from ..nn import GRU, Embedding, LayerNorm, Linear, Module, TransformerBlock, word_dropout
from ..objectives import Terms
from ..ops.noise import Draw
from ..priors import Prior, StandardNormal
from ..tensor import Tensor
from . import vae
from .base import Model, Parts, Spec
from .networks import GaussianEncoder

DECODERS = ("gru", "transformer")


# ----------------------------------------------------------------------------- steps as features
class Symbols(Module):
    """Steps that are symbols 0 .. S - 1, or -1 for the end.  table: (S + 3, E).

    Behind the symbols the table holds the end, the start and what word dropout shows.
    """

    def __init__(self, symbols: int, features: int, **options: Any):
        self.symbols, self.features = symbols, features
        self.hidden = symbols + 2
        self.table = Embedding(symbols + 3, features, **options)

    def __call__(self, x: Any) -> Tensor:
        """x (B, T) -> (B, T, E)."""
        return self.table(self._index(x))

    def before(self, x: Any, u: Any = None, rate: float = 0.0) -> Tensor:
        """What the decoder sees at each step: the step before, or the start; (B, T, E).

        u: (B, T) uniform noise; a step is hidden where u < rate.
        """
        index = self._index(x)
        if u is not None:
            index = word_dropout(index, u, rate=rate, unknown=self.hidden)
        start = np.full_like(index[:, :1], self.symbols + 1)
        return self.table(np.concatenate([start, index[:, :-1]], axis=1))

    def closed(self, x: Any) -> Any:
        """x with nothing but ends behind its first end."""
        return np.where((x < 0).cumsum(axis=1) > 0, -1, x)

    def counted(self, x: Any, mask: Any) -> Any:
        """The steps to be read, (B, T)."""
        return x >= 0 if mask is None else (x >= 0) & (mask != 0)

    def _index(self, x: Any) -> Any:
        return np.where(x < 0, self.symbols, x).astype(np.int64)


class Values(Module):
    """Steps that are values, C = E of them; a step that is not there is all zeros."""

    hidden = 0

    def __init__(self, features: int):
        self.features = features

    def __call__(self, x: Any) -> Tensor:
        """x (B, T, ...) -> (B, T, C)."""
        return ops.reshape(x, (*x.shape[:2], self.features))

    def before(self, x: Any, u: Any = None, rate: float = 0.0) -> Any:
        """What the decoder sees at each step: the step before, or zeros; (B, T, C)."""
        x = x.reshape(*x.shape[:2], self.features)
        if u is not None:
            x = word_dropout(x, u, rate=rate)
        return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

    def closed(self, x: Any) -> Any:
        """x: values have no end."""
        return x

    def counted(self, x: Any, mask: Any) -> Any:
        """The steps of which anything was observed, (B, T), or None for all."""
        return None if mask is None else self(mask).data.any(axis=2)


# --------------------------------------------------------------------------------------- decoders
class GRUDecoder(Module):
    """z makes the first state, and stands beside each input (Bowman et al. 2016, section 3)."""

    def __init__(self, features: int, latent_dim: int, hidden: int, outputs: int, **options: Any):
        self.first = Linear(latent_dim, hidden, **options)
        self.gru = GRU(features + latent_dim, hidden, **options)
        self.out = Linear(hidden, outputs, **options)

    def outputs(self, z: Any, inputs: Any) -> Tensor:
        """z (B, Z), inputs (B, T, E) -> raw parameters of all steps (B, T, outputs)."""
        return self.out(self._states(z, inputs, self.start(z)))

    def start(self, z: Any) -> Tensor:
        """The state before the first step."""
        return self.first(z, "tanh")

    def step(self, z: Any, state: Any, inputs: Any) -> tuple[Tensor, Any]:
        """inputs (B, 1, E) -> raw parameters of this step (B, 1, outputs), the next state."""
        states = self._states(z, inputs, state)
        return self.out(states), states[:, -1]

    def _states(self, z: Any, inputs: Any, state: Any) -> Tensor:
        beside = np.zeros((*inputs.shape[:2], 1), z.dtype, like=z.data) + z[:, None, :]
        return self.gru(ops.concatenate([inputs, beside]), state=state)


class TransformerDecoder(Module):
    """Causal self-attention over the steps so far; z is added to each, and so is its place."""

    def __init__(
        self, steps: int, features: int, latent_dim: int, hidden: int, outputs: int, *,
        heads: int, layers: int, **options: Any,
    ):  # fmt: skip
        self.inputs = Linear(features, hidden, **options)
        self.latent = Linear(latent_dim, hidden, bias=False, **options)
        self.place = Embedding(steps, hidden, **options)
        self.blocks = [TransformerBlock(hidden, heads, **options) for _ in range(layers)]
        self.norm = LayerNorm(hidden, dtype=options.get("dtype", np.float32))
        self.out = Linear(hidden, outputs, **options)

    def outputs(self, z: Any, inputs: Any) -> Tensor:
        """z (B, Z), inputs (B, T, E) -> raw parameters of all steps (B, T, outputs)."""
        place = self.place.weight[: inputs.shape[1]]
        x = self.inputs(inputs) + place + self.latent(z)[:, None, :]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))

    def start(self, z: Any) -> Any:
        """The state is the inputs so far: none."""
        return None

    def step(self, z: Any, state: Any, inputs: Any) -> tuple[Tensor, Any]:
        """inputs (B, 1, E) -> raw parameters of this step (B, 1, outputs), the inputs so far."""
        state = inputs if state is None else ops.concatenate([state, inputs], axis=1)
        return self.outputs(z, state)[:, -1:], state


# ------------------------------------------------------------------------------------- the model
class LastState(Module):
    """The state of a GRU after all steps that count: not those masked, nor those behind an end."""

    def __init__(self, steps: Any, hidden: int, **options: Any):
        self.steps, self.gru = steps, GRU(steps.features, hidden, **options)

    def __call__(self, x: Any, mask: Any = None) -> Tensor:
        """x (B, T, ...), mask like x -> (B, U)."""
        return self.gru(self.steps(x), self.steps.counted(x, mask))[:, -1]


@dataclass(frozen=True)
class Told:
    """A model to whom the steps of a batch are told, as `objectives` want one: z is all it needs.

    x: the steps, filled where nothing was observed; posterior: mu, logvar and a flow's context.
    """

    x: Any
    posterior: tuple
    prior: Prior
    flow: Any
    likelihood: Likelihood
    decode: Callable[[Any], Tensor]

    def encode(self, x: Any) -> tuple:
        """mu, logvar."""
        return self.posterior[:2]


class SequenceVAE(Model):
    """A GRU that reads, and a decoder that writes.  A code (B, Z) stands for a whole sequence."""

    factors = False

    def __init__(self, steps: Any, decoder: Any, parts: Parts, *, dropout: float):
        options = {"rng": parts.rng, "dtype": parts.dtype}
        (hidden,), self.latent_dim = parts.hidden, parts.latent_dim
        self.steps, self.decoder, self.dropout = steps, decoder, dropout
        reader = LastState(steps, hidden, **options)
        self.encoder = GaussianEncoder(reader, hidden, self.latent_dim, **options)
        self.head = parts.likelihood.head(parts.dtype)
        self.shape, self.likelihood, self.free_bits = parts.shape, parts.likelihood, parts.free_bits
        self.prior, self.flow = parts.build_prior(self.encoder), None
        if parts.flow is not None:
            self.flow = parts.flow.build(self.latent_dim, hidden, parts.rng, parts.dtype)
        self.gaussian = isinstance(self.prior, StandardNormal) and self.flow is None
        if callable(self.free_bits):  # of the batch's KL
            self.couples_rows = True

    # ------------------------------------------------------------------------- the objective
    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO, with word dropout."""
        eps = draw.normal(1, self.latent_dim)
        told = self._told(batch, u=draw.uniform(self.shape[0]) if self.dropout else None)
        if self.gaussian:
            return objectives.elbo(
                told, told.x, eps[:, 0], likelihood=self.likelihood, beta=beta,
                free_bits=self.free_bits, batch=rows, mask=batch.mask,
            )  # fmt: skip
        return objectives.sampled_elbo(
            told, told.x, told.posterior, eps, beta=beta, batch=rows, mask=batch.mask
        )

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO, without word dropout."""
        told, eps = self._told(batch, posterior), draw.normal(1, self.latent_dim)
        return objectives.sampled_elbo(told, told.x, told.posterior, eps, mask=batch.mask)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x)."""
        told, eps = self._told(batch, posterior), draw.normal(1, self.latent_dim)
        found = objectives.samples(told, told.x, told.posterior, eps, mask=batch.mask)
        return -(found.nll.data + found.log_ratio.data)[:, 0]

    def _told(self, batch: Batch, posterior: Any = None, u: Any = None) -> Told:
        """u: (B, T) uniform noise for the word dropout, or None for none."""
        x, posterior = self._filled(batch.x, batch.mask), posterior or self.posterior(batch)

        def decode(z: Any) -> Tensor:
            return self.score(z, x, u)

        return Told(x, posterior, self.prior, self.flow, self.likelihood, decode)

    def _filled(self, x: Any, mask: Any) -> Any:
        """x with what word dropout shows where nothing was observed: it may be NaN there."""
        return x if mask is None else np.where(mask != 0, x, x.dtype.type(self.steps.hidden))

    def score(self, z: Any, x: Any, u: Any = None) -> Tensor:
        """Raw parameters of p(x_t | x_<t, z) at the true steps x, laid out like x; u: noise."""
        return self._laid_out(self.decoder.outputs(z, self.steps.before(x, u, self.dropout)))

    def _laid_out(self, raw: Any) -> Tensor:
        """(B, T, outputs) -> as the likelihood reads it: (B, P T), or (B, T, ..., P C)."""
        if len(self.shape) == 1:
            raw = ops.reshape(ops.transpose(raw, (0, 2, 1)), (len(raw), -1))
        else:
            raw = ops.reshape(raw, (*raw.shape[:2], *self.shape[1:-1], -1))
        return raw if self.head is None else self.head(raw)

    # ----------------------------------------------------------------------- what can be asked
    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, Z); with a flow, where it takes the mean."""
        return self.code(Batch(x))

    def code(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Likewise, of the steps that count."""
        mu, logvar, *context = self.posterior(batch)
        return (self.flow.forward(mu, *context)[0] if self.flow else mu), logvar

    def posterior(self, batch: Batch) -> tuple:
        """mu and logvar, and with a flow its context, the reader's state."""
        state = self.encoder.body(self._filled(batch.seen, batch.mask), batch.mask)
        return *self.encoder.heads(state), *([state] if self.flow else [])

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters at each step, after the most likely (or mean) steps before it."""
        raw, _ = self._write(z, lambda raw, t: self.likelihood.mean(raw))
        return raw

    def scored(self, batch: Batch) -> Any:
        """Raw parameters at each row's own code, after the true steps before, an array."""
        return self.score(self.code(batch)[0], self._filled(batch.x, batch.mask)).data

    def sample(self, n: int, draw: Draw, y: Any = None) -> Any:
        """n sequences x, drawn step by step: each is what the next one follows."""
        z, T = self.prior.sample(n, draw), self.shape[0]
        first = draw.first * T
        _, x = self._write(
            z, lambda raw, t: self.likelihood.sample(raw, seed=draw.seed, step=first + t)
        )
        return x

    def _write(self, z: Any, choose: Callable[[Any, int], Any]) -> tuple[Tensor, Any]:
        """Step by step: raw parameters of all steps, and what `choose` made of them."""
        z = z if isinstance(z, Tensor) else Tensor(z)
        nothing = np.zeros((len(z), 1, *self.shape[1:]), z.dtype, like=z.data)
        state, before = self.decoder.start(z), self.steps.before(nothing)
        raw, chosen = [], []
        for t in range(self.shape[0]):
            step, state = self.decoder.step(z, state, before)
            raw.append(step)
            chosen.append(choose(self._laid_out(step).data, t))
            before = self.steps(chosen[-1])
        x = np.concatenate(chosen, axis=1)
        return self._laid_out(ops.concatenate(raw, axis=1)), self.steps.closed(x)


@dataclass(frozen=True)
class Sequence(Spec):
    """One z for a sequence that is written step by step.  Rows: (T,) symbols or (T, ...) values.

    decoder: "gru" or "transformer" (of `layers` blocks with `heads` heads); as many units as
    `hidden` says.  dropout: chance that training hides a step from the decoder.
    """

    name: ClassVar[str] = "sequence"
    refuses: ClassVar[dict[str, str]] = {"own": "its networks read and write step by step"}
    decoder: str = "gru"
    dropout: float = 0.0
    heads: int = 4
    layers: int = 2

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise unknown("decoder", self.decoder, DECODERS)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {self.dropout}")

    def check(self, **given: Any) -> None:
        """As the plain VAE's; symbols are no numbers, and there are no pseudo-inputs of them."""
        super().check(**given)
        vae.VAE().check(**given)
        tokens = isinstance(given["likelihood"], Tokens)
        if tokens and given.get("corruption") is not None:
            raise ValueError("corruption damages numbers, which tokens are not: hide some from the "
                             "decoder by model='sequence:dropout=0.3'")  # fmt: skip
        if tokens and isinstance(given["prior"], priors.Vamp):
            raise ValueError(
                "prior='vamp' learns inputs, which tokens cannot be: they are no numbers"
            )

    def build(self, parts: Parts) -> SequenceVAE:
        """The model, with first weights."""
        if len(parts.hidden) != 1 or parts.architecture != "mlp":
            raise ValueError(
                "model='sequence' has networks of its own: one size of hidden units, and no "
                f"architecture; got hidden={parts.hidden}, architecture={parts.architecture!r}"
            )
        T, *rest = parts.shape
        options = {"rng": parts.rng, "dtype": parts.dtype}
        hidden, outputs = parts.hidden[0], parts.likelihood.outputs * math.prod(rest)
        steps: Any = Values(math.prod(rest))
        if isinstance(parts.likelihood, Tokens):
            steps = Symbols(parts.likelihood.symbols, hidden, **options)
        sizes = (steps.features, parts.latent_dim, hidden, outputs)
        decoder: Any
        if self.decoder == "gru":
            decoder = GRUDecoder(*sizes, **options)
        else:
            decoder = TransformerDecoder(T, *sizes, heads=self.heads, layers=self.layers, **options)
        return SequenceVAE(steps, decoder, parts, dropout=self.dropout)
