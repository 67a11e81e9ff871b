"""World model (Ha and Schmidhuber 2018): frames as latents, and a memory that foresees the next.

    vision   x_t -> mu_t, logvar_t -> z_t -> parameters of p(x_t | z_t), a VAE of single frames
    memory   h_t = GRU(h_{t-1}, [z_t, a_t]);  p(z_{t+1} | h_t) = sum_k w_k N(mu_k, diag var_k)

A row of data is an episode (T, H, W) of grey frames; y holds its actions, (T A) numbers: a_t leads
from frame t to frame t + 1.  Trained as in the paper, the memory learns from the latents that the
vision gives, without changing them; trained jointly, its forecast is the prior of the next latent:

    log p(x_1 .. x_T | a) >= sum_t E_q[log p(x_t | z_t) + log p(z_t | h_{t-1}) - log q(z_t | x_t)]

Sizes: B episodes, T steps, A numbers an action has, Z latent, K components, U units of the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..batches import Batch
from ..nn import GRU, Linear, Module
from ..objectives import Terms, weighted
from ..ops.noise import Draw
from ..priors import LOG_2PI, StandardNormal
from ..tensor import Tensor, no_grad
from .base import Model, Parts, Spec, refused


class Mixture(NamedTuple):
    """Gaussians with weights: logits (..., K), mu and logvar (..., K, Z)."""

    logits: Any
    mu: Any
    logvar: Any

    def log_prob(self, z: Any) -> Tensor:
        """log sum_k w_k N(z; mu_k, diag e^logvar_k) in nats: z (..., Z) -> (...)."""
        away = ops.reshape(z, (*z.shape[:-1], 1, z.shape[-1])) - self.mu
        each = away * away * ops.exp(-self.logvar) + self.logvar + LOG_2PI
        return ops.logsumexp(ops.log_softmax(self.logits) - 0.5 * ops.sum(each, axis=-1), axis=-1)

    def sample(self, u: Any, eps: Any, temperature: float = 1.0) -> Any:
        """One z of each mixture (B, Z), an array.     Ha and Schmidhuber 2018, appendix A.2

        u: (B,) uniform, chooses the component; eps: (B, Z) normal.  temperature: 1 is the mixture
        itself, more is more surprising, 0 the middle of the likeliest component.
        """
        logits, mu, logvar = (a.data for a in self)
        weights = np.exp(ops.log_softmax(logits / max(temperature, 1e-3)).data)
        k = (weights.cumsum(axis=-1)[:, :-1] <= u[:, None]).sum(axis=-1)
        rows = np.arange(len(k), like=k)
        return mu[rows, k] + math.sqrt(temperature) * np.exp(logvar[rows, k] / 2) * eps


class Memory(Module):
    """A GRU over latents and actions, and a mixture for the latent that comes next."""

    def __init__(self, latent_dim: int, actions: int, hidden: int, components: int, **options: Any):
        self.latent_dim, self.actions, self.components = latent_dim, actions, components
        self.gru = GRU(latent_dim + actions, hidden, **options)
        self.out = Linear(hidden, components * (1 + 2 * latent_dim), **options)

    def foresee(self, z: Any, actions: Any, state: Any = None) -> tuple[Mixture, Tensor]:
        """z (B, T, Z), actions (B, T, A) -> a mixture for each next z, and the states (B, T, U)."""
        states = self.gru(ops.concatenate([z, actions]), state=state)
        raw, K = self.out(states), self.components
        rest = ops.reshape(raw[:, :, K:], (*raw.shape[:2], 2, K, self.latent_dim))
        return Mixture(raw[:, :, :K], rest[:, :, 0], rest[:, :, 1]), states


def _log_q(logvar: Any, eps: Any) -> Tensor:
    """log q(z | x) at z = mu + sigma eps, (B,)."""
    return -0.5 * ops.sum(logvar + (eps * eps + LOG_2PI), axis=1)


class WorldModel(Model):
    """Vision and memory.  An episode's code are the latents of its frames, (B, T Z)."""

    gaussian = False

    def __init__(self, encoder: Any, decoder: Any, memory: Memory, parts: Parts, *, joint: bool):
        self.encoder, self.decoder, self.memory = encoder, decoder, memory
        self.steps, self.frame = parts.shape[0], (*parts.shape[1:], 1)
        self.latent_dim = self.steps * memory.latent_dim
        self.likelihood, self.prior = parts.likelihood, StandardNormal(self.latent_dim)
        self.joint = joint

    # ------------------------------------------------------------------------- the objective
    def loss(self, batch: Batch, draw: Draw, *, beta: float, rows: int) -> Terms:
        """The negative bound, and, unless trained jointly, what the memory did not foresee."""
        mu, logvar = self.posterior(batch)
        eps = draw.normal(self.latent_dim)
        z = ops.reparameterize(mu, logvar, eps)
        nll, forecast = self._nll(z, batch), self._forecast(z, batch.y)
        if self.joint:
            kl = _log_q(logvar, eps) - self._log_first(z) - forecast
            found = weighted(nll, kl, beta=beta, batch=rows)
        else:
            found = weighted(nll - forecast, ops.gaussian_kl(mu, logvar), beta=beta, batch=rows)
        return found._replace(nll=nll.data, log={"forecast": forecast.data})

    def log_weights(self, batch: Batch, draw: Draw, posterior: Any = None) -> Any:
        """log p(x, z) - log q(z | x); without joint training p(z) is N(0, I) for every frame."""
        mu, logvar = posterior or self.posterior(batch)
        eps = draw.normal(self.latent_dim)
        z = ops.reparameterize(mu, logvar, eps)
        if self.joint:
            log_p = self._log_first(z) + self._forecast(z, batch.y)
        else:
            log_p = self.prior.log_prob(z)
        return (log_p - _log_q(logvar, eps) - self._nll(z, batch)).data

    def _nll(self, z: Any, batch: Batch) -> Tensor:
        """-log p(x | z) of an episode, (B,)."""
        x, mask = (None if a is None else a.reshape(-1, *self.frame) for a in (batch.x, batch.mask))
        each = self.likelihood.nll(self._frames(z), x, mask)
        return ops.sum(ops.reshape(each, (-1, self.steps)), axis=1)

    def _forecast(self, z: Any, y: Any) -> Tensor:
        """log p(z_2 .. z_T | z_1, actions), (B,)."""
        z = self._by_step(z if self.joint else z.detach())
        mixture, _ = self.memory.foresee(z[:, :-1], self._actions(y, z)[:, :-1])
        return ops.sum(mixture.log_prob(z[:, 1:]), axis=1)

    def _log_first(self, z: Any) -> Tensor:
        """log p(z_1), (B,)."""
        return self.prior.log_prob(self._by_step(z)[:, 0])

    def _by_step(self, z: Any) -> Tensor:
        """(B, T Z) -> (B, T, Z)."""
        return ops.reshape(z, (len(z), -1, self.memory.latent_dim))

    def _frames(self, z: Any) -> Tensor:
        """z (..., Z) or (B, T Z) -> raw parameters of single frames, one below the other."""
        return self.decoder(ops.reshape(z, (-1, self.memory.latent_dim)))

    def _actions(self, y: Any, z: Any) -> Any:
        """y (B, T A) -> (B, T, A); none are zeros."""
        B, T, A = len(z), self.steps, self.memory.actions
        if y is None:
            return np.zeros((B, T, A), z.dtype, like=z.data)
        if y.shape != (B, T * A):
            raise ValueError(f"y has shape {y.shape}, expected ({B}, {T * A}): for each of {T} "
                             f"steps an action of {A} numbers")  # fmt: skip
        return y.reshape(B, T, A).astype(z.dtype, copy=False)

    # ----------------------------------------------------------------------- what can be asked
    def encode(self, x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x) of each frame, (B, T, H, W) -> two of (B, T Z)."""
        mu, logvar = self.encoder(x.reshape(-1, *self.frame))
        return ops.reshape(mu, (len(x), -1)), ops.reshape(logvar, (len(x), -1))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """Raw parameters of p(x | z), (B, T, H, P W), frame by frame; z: (B, T Z)."""
        H, W, _ = self.frame
        raw = ops.reshape(self._frames(z), (len(z), -1, H, W, self.likelihood.blocks))
        blocks = ops.transpose(raw, (0, 1, 2, 4, 3))  # the first parameter of a line, the next ...
        return ops.reshape(blocks, (*raw.shape[:3], -1))

    def from_prior(self, n: int, draw: Draw, y: Any = None) -> Any:
        """The latents of n dreamed episodes, the first frame's from N(0, I), by these actions."""
        return self._go_on(Tensor(draw.normal(1, self.memory.latent_dim)), draw, y, 1.0)

    def dream(self, x: Any, draw: Draw, y: Any = None, *, temperature: float = 1.0) -> Any:
        """Raw parameters of episodes (B, T, ...) that go on where x (B, t, H, W) stops, an array.

        The memory reads the latents of the frames given, then draws those that follow, each from
        the mixture that its last draw led to.  y: the actions of all T steps, (B, T A).
        """
        if not 1 <= x.shape[1] <= self.steps:
            raise ValueError(f"x must have 1 to {self.steps} frames, got {x.shape[1]}")
        with no_grad():
            z = self._by_step(self.encode(x)[0])
        return self.decode(self._go_on(z, draw, y, temperature)).data

    def _go_on(self, z: Any, draw: Draw, y: Any, temperature: float) -> Any:
        """The latents z (B, t, Z), and those that follow, drawn one by one: an array (B, T Z)."""
        with no_grad():
            known, state, actions = [z], None, self._actions(y, z)
            for t in range(z.shape[1], self.steps):
                mixture, states = self.memory.foresee(z, actions[:, t - z.shape[1] : t], state)
                state, last = states[:, -1], Mixture(*(part[:, -1] for part in mixture))
                eps = draw.normal(self.memory.latent_dim)
                z = Tensor(last.sample(draw.uniform(), eps, temperature)[:, None])
                known.append(z)
            return ops.reshape(ops.concatenate(known, axis=1), (len(z), -1)).data

    def predict(self, x: Any, y: Any = None) -> Any:
        """The mean of each next frame, given those up to now: (B, T, H, W) -> (B, T - 1, H, W).

        sum_k w_k E[x | z = mu_k], by the mixture that the memory gives.
        """
        with no_grad():
            z = self._by_step(self.encode(x)[0])
            mixture, _ = self.memory.foresee(z[:, :-1], self._actions(y, z)[:, :-1])
            frames = self.likelihood.mean(self._frames(mixture.mu))
            weights = np.exp(ops.log_softmax(mixture.logits).data)
            frames = frames.reshape(*weights.shape, *self.frame[:-1])  # (B, T - 1, K, H, W)
            return (weights[..., None, None] * frames).sum(axis=2)


@dataclass(frozen=True)
class World(Spec):
    """A VAE of frames and a memory that foresees the next latent.  Rows: episodes (T, H, W).

    y, if there is one, holds the actions of all steps: (N, T A).  units: of the GRU; components: of
    the mixture; joint: train vision and memory on one bound.
    """

    name: ClassVar[str] = "world"
    refuses: ClassVar[dict[str, str]] = {
        "prior": "it has N(0, I) for each frame, or with joint=true the memory's forecast",
        "flow": "the memory foresees Gaussian latents",
        "own": "it makes its networks for single frames",
        **refused("its KL is that of many frames", "free_bits", "capacity"),
    }
    labels: ClassVar[str] = "optional"
    units: int = 128
    components: int = 5
    joint: bool = False

    def __post_init__(self) -> None:
        for name in ("units", "components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def build(self, parts: Parts) -> WorldModel:
        """The model, with first weights."""
        if len(parts.shape) != 3:
            raise ValueError("model='world' needs episodes of grey frames (N, T, H, W), got rows "
                             f"of shape {parts.shape}")  # fmt: skip
        actions, rest = divmod(parts.condition, parts.shape[0])
        if parts.classes or rest:
            raise ValueError(
                f"y must hold the actions of {parts.shape[0]} steps, floats (N, T A), got "
                f"{parts.condition} numbers a row"
            )
        encoder, decoder = replace(parts, shape=(*parts.shape[1:], 1)).networks()
        options = {"rng": parts.rng, "dtype": parts.dtype}
        memory = Memory(parts.latent_dim, actions, self.units, self.components, **options)
        return WorldModel(encoder, decoder, memory, parts, joint=self.joint)
