"""VAE of sequences (Bowman et al. 2016): one z for a whole sequence, written down step by step.

    x_1 .. x_T -> GRU -> mu, logvar;     z, x_1 .. x_{t-1} -> decoder -> parameters of p(x_t | ...)
    log p(x | z) = sum_t log p(x_t | x_<t, z)

A sequence is a row (T,) of symbols, with the likelihood "tokens", which ends a shorter one by -1;
or a row (T, ...) of values, such as the lines of an image, with any other likelihood.
Training feeds the decoder the true steps (teacher forcing), some of them hidden (word dropout), so
that it has to ask z.  Sizes: B batch, T steps, C values a step, E features, H units, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import objectives, ops
from .._text import unknown
from ..batches import Batch
from ..likelihoods import Tokens
from ..nn import GRU, Embedding, LayerNorm, Linear, Module, TransformerBlock, word_dropout
from ..objectives import Terms
from ..ops.noise import Draw
from ..priors import StandardNormal
from ..tensor import Tensor
from .base import Model, Parts, Spec

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

    def __call__(self, x: Any) -> Any:
        """x (B, T, ...) -> (B, T, C)."""
        return x.reshape(*x.shape[:2], self.features)

    def before(self, x: Any, u: Any = None, rate: float = 0.0) -> Any:
        """What the decoder sees at each step: the step before, or zeros; (B, T, C)."""
        x = self(x)
        if u is not None:
            x = word_dropout(x, u, rate=rate)
        return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

    def closed(self, x: Any) -> Any:
        """x: values have no end."""
        return x

    def counted(self, x: Any, mask: Any) -> Any:
        """The steps of which anything was observed, (B, T), or None for all."""
        return None if mask is None else self(mask).any(axis=2)


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
class SequenceVAE(Model):
    """A GRU that reads, and a decoder that writes.  A code (B, Z) stands for a whole sequence."""

    def __init__(self, steps: Any, decoder: Any, parts: Parts, *, dropout: float):
        options = {"rng": parts.rng, "dtype": parts.dtype}
        hidden, Z = parts.hidden[0], parts.latent_dim
        self.steps, self.decoder, self.dropout = steps, decoder, dropout
        self.reader = GRU(steps.features, hidden, **options)
        self.mu, self.logvar = (Linear(hidden, Z, **options) for _ in range(2))
        self.head = parts.likelihood.head(parts.dtype)
        self.shape, self.latent_dim = parts.shape, Z
        self.likelihood, self.prior = parts.likelihood, StandardNormal(Z)
        self.free_bits = parts.free_bits

    # ------------------------------------------------------------------------- the objective
    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative ELBO, with word dropout."""
        x, (mu, logvar) = self._filled(batch), self.posterior(batch)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        u = draw.uniform(self.shape[0]) if self.dropout else None
        loss = self.likelihood.loss(
            self.score(z, x, u), x, mu, logvar, mask=batch.mask, beta=beta,
            free_bits=self.free_bits, batch=rows,
        )  # fmt: skip
        return Terms(loss, loss.saved.nll, loss.saved.kl, loss.saved.elbo)

    def evaluation(self, batch: Batch, draw: Draw, posterior: Any = None) -> Terms:
        """The ELBO, without word dropout."""
        mu, logvar = posterior or self.posterior(batch)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        nll, kl = self._nll(z, batch), ops.gaussian_kl(mu, logvar)
        return Terms(nll + kl, nll.data, kl.data, -(nll + kl).data)

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x | z) + log p(z) - log q(z | x)."""
        mu, logvar = posterior or self.posterior(batch)
        z = ops.reparameterize(mu, logvar, draw.normal(self.latent_dim))
        log_q = objectives.gaussian_log_prob(z, mu, logvar)
        return (self.prior.log_prob(z) - log_q - self._nll(z, batch)).data

    def _nll(self, z: Any, batch: Batch) -> Tensor:
        x = self._filled(batch)
        return self.likelihood.nll(self.score(z, x), x, batch.mask)

    def _filled(self, batch: Batch) -> Any:
        """x with what word dropout shows where nothing was observed: it may be NaN there."""
        if batch.mask is None:
            return batch.x
        return np.where(batch.mask != 0, batch.x, batch.x.dtype.type(self.steps.hidden))

    def score(self, z: Any, x: Any, u: Any = None) -> Tensor:
        """Raw parameters of p(x_t | x_<t, z) at the steps of x itself, laid out like x.

        u: (B, T) uniform noise for the word dropout, or None for none.
        """
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
        """Mean and log-variance of q(z | x), each (B, Z)."""
        return self.posterior(Batch(x))

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Likewise; the reader passes over steps that are masked, or lie behind the end."""
        x = self._filled(batch)
        state = self.reader(self.steps(x), self.steps.counted(x, batch.mask))[:, -1]
        return self.mu(state), self.logvar(state)

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters at each step, after the most likely (or mean) steps before it."""
        raw, _ = self._write(z, lambda raw, t: self.likelihood.mean(raw))
        return raw

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
    takes: ClassVar[frozenset[str]] = frozenset({"free_bits"})
    decoder: str = "gru"
    dropout: float = 0.0
    heads: int = 4
    layers: int = 2

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise unknown("decoder", self.decoder, DECODERS)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {self.dropout}")

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
