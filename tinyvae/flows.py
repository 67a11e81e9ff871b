"""Normalizing flows: invertible maps z -> z2 whose volume change is known.

    log q(z2) = log q(z) - log |det dz2/dz|                 Rezende and Mohamed 2015, equation 5

Every flow has `forward(z, context) -> z2, logdet` and its `inverse(z2, context) -> z, logdet`.
Where the paper amortizes a flow, its parameters are a linear map of a context, `features` numbers
a row (the encoder's); without `features` they are the flow's own.  All flows start at the identity
or near it, so that a model with a flow starts as the model without.

`Planar(8)` and the other specs at the end say which flow is meant; `build` makes the modules.
Sizes: N rows, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import ops
from .nn import MADE, Linear, Module, Sequential, fan_in_uniform, zeros
from .tensor import Tensor, no_grad

FLOOR = 1e-6  # kept from a volume of zero, which softplus and tanh reach when they round
SMALL = 0.01  # size of random numbers that break ties at the start
ONE = math.log(math.e - 1)  # softplus(ONE) = 1


class Flow(Module):
    """An invertible map of z (N, Z), and the logarithm of its Jacobian's determinant."""

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), log |det dz2/dz| (N,) nats.

        context: (N, features), for a flow made with features.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), log |det dz/dz2| (N,) nats.

        Raises NotImplementedError, with the reason, where there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def __call__(self, z: Any) -> Tensor:
        """The map alone, without a context."""
        return self.forward(z)[0]


class Amortized(Module):
    """Parameters of a flow: its own, or a linear map of the context.

    initial: (...) first values of each, reached exactly for a context of zeros.
    """

    def __init__(
        self, features: int | None, rng: np.random.Generator, dtype: Any, *initial: np.ndarray
    ):
        self.features, self.shapes = features, [value.shape for value in initial]
        self.own, self.head = [], None
        if features is None:
            for value in initial:
                first = np.ascontiguousarray(value[None], dtype)
                self.own.append(Tensor(first, requires_grad=True))
        else:
            biases = np.concatenate([value.ravel() for value in initial])
            self.head = Linear(features, biases.size, initialiser=_slight, rng=rng, dtype=dtype)
            self.head.bias.data[:] = biases  # type: ignore[union-attr]

    def __call__(self, context: Any = None) -> list[Tensor]:
        """context (N, features) -> the parameters, each (N, ...), or (1, ...) if they are own.

        Raises ValueError if a context is needed and there is none.
        """
        if self.head is None or self.features is None:
            return self.own
        raw, found, start = self.head(_given(context, self.features)), [], 0
        for shape in self.shapes:
            end = start + math.prod(shape)
            found.append(ops.reshape(raw[:, start:end], (len(raw), *shape)))
            start = end
        return found


def _given(context: Any, features: int) -> Any:
    """The context, which must be there."""
    if context is None:
        raise ValueError(f"the flow was made with features={features}: it needs a context")
    return context


def _slight(rng: np.random.Generator, shape: tuple, fan_in: int, fan_out: int) -> np.ndarray:
    return SMALL * fan_in_uniform(rng, shape, fan_in, fan_out)


def _dot(a: Any, b: Any) -> Tensor:
    """Inner product of rows: (N, Z), (N, Z) -> (N, 1)."""
    return ops.sum(a * b, axis=-1, keepdims=True)


def _nothing(z: Any) -> Tensor:
    """The logdet of a map that keeps volumes, (N,)."""
    data = z.data if isinstance(z, Tensor) else z
    return Tensor(np.zeros_like(data, shape=data.shape[:1]))


def _root(f: Callable[[Any], Any], low: Any, high: Any) -> Any:
    """Where a rising function is zero, element by element between low and high, by bisection."""
    middle = low + (high - low) / 2
    while ((middle > low) & (middle < high)).any():  # until no number lies between
        above = f(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
        middle = low + (high - low) / 2
    return middle


# ----------------------------------------------------------------------------------------- planar
class PlanarFlow(Flow):
    """Stretch along one direction: z2 = z + u^ tanh(w.z + b).

    logdet = log(1 + (1 - tanh^2(w.z + b)) w.u^)        Rezende and Mohamed 2015, equations 10, 12
    u^ = u + (m(w.u) - w.u) w / |w|^2,  m(a) = softplus(a) - 1         there, appendix A.1
    so that w.u^ = m(w.u) > -1, and the map is invertible: the inverse solves for w.z by bisection,
    for values alone (no gradient).  u, w: (Z,), b: one number.
    """

    def __init__(self, latent_dim: int, features: int | None, rng: np.random.Generator, dtype: Any):
        w = rng.standard_normal(latent_dim) / math.sqrt(latent_dim)
        u = ONE * w / (w @ w) + SMALL * rng.standard_normal(latent_dim)  # m(w.u) = 0: u^ = 0
        self.raw = Amortized(features, rng, dtype, u, w, np.zeros(1))

    def _parameters(self, context: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u^ (N, Z), w (N, Z), b (N, 1), 1 + w.u^ (N, 1)."""
        u, w, b = self.raw(context)
        wu = _dot(w, u)
        s = ops.softplus(wu) + FLOOR
        return u + (s - 1.0 - wu) / _dot(w, w) * w, w, b, s

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        u, w, b, s = self._parameters(context)
        t = ops.tanh(_dot(w, z) + b)
        # 1 + (1 - t^2)(s - 1) as a sum that does not cancel
        return z + u * t, ops.sum(ops.log(s + t * t * (1.0 - s)), axis=-1)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,), both constants."""
        with no_grad():
            u, w, b, s = self._parameters(context)
            across, wu = _dot(w, z2).data, s.data - 1
            a = _root(
                lambda a: a + wu * np.tanh(a + b.data) - across,
                across - np.abs(wu), across + np.abs(wu),
            )  # fmt: skip
            z = z2 - u * np.tanh(a + b.data)
            return z, -self.forward(z, context)[1]


# ----------------------------------------------------------------------------------------- radial
class RadialFlow(Flow):
    """Expand or contract around a point: z2 = z + beta (z - z0) / (alpha + r), r = |z - z0|.

    logdet = (Z-1) log(1 + beta h) + log(1 + beta h + beta h' r), h = 1/(alpha + r)
    alpha = softplus(a) > 0, beta = softplus(b) - alpha > -alpha, so that it is invertible
                                        Rezende and Mohamed 2015, equation 14, appendix A.2
    z0: (Z,), a, b: one number each.  The inverse is a quadratic equation in r.
    """

    def __init__(self, latent_dim: int, features: int | None, rng: np.random.Generator, dtype: Any):
        z0, b = rng.standard_normal(latent_dim), ONE + SMALL * rng.standard_normal(1)
        self.raw = Amortized(features, rng, dtype, z0, np.full(1, ONE), b)  # beta = 0, nearly

    def _parameters(self, context: Any) -> tuple[Tensor, Tensor, Tensor]:
        """z0 (N, Z), alpha (N, 1), alpha + beta (N, 1)."""
        z0, a, b = self.raw(context)
        return z0, ops.softplus(a) + FLOOR, ops.softplus(b) + FLOOR

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        z0, alpha, s = self._parameters(context)
        away = z - z0
        r = _length(away)
        # with s = alpha + beta both factors are sums of positive numbers over powers of alpha + r
        logdet = (z.shape[-1] - 1) * ops.log((r + s) / (alpha + r)) + (
            ops.log(r * r + 2.0 * alpha * r + alpha * s) - 2.0 * ops.log(alpha + r)
        )
        return z0 + away * ((r + s) / (alpha + r)), ops.sum(logdet, axis=-1)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,)."""
        z0, alpha, s = self._parameters(context)
        away = z2 - z0
        R = _length(away)
        # R = r (r + s)/(alpha + r):  r^2 - (R - s) r - alpha R = 0, the root that does not cancel
        half = (R - s) * 0.5
        q = ops.sqrt(half * half + alpha * R)
        r = ops.where(
            half.data > 0, q + half, alpha * R / (q + ops.where(half.data > 0, 0.0, -half))
        )
        z = z0 + away * ((alpha + r) / (r + s))
        return z, -self.forward(z, context)[1]


def _length(a: Tensor) -> Tensor:
    """|a| of each row, (N, 1); its gradient at zero is zero."""
    return ops.sqrt(_dot(a, a) + 1e-20)


# --------------------------------------------------------------------------------------- coupling
class CouplingFlow(Flow):
    """Half of z decides how the other half is scaled and shifted.

    z = (a, b):  z2 = (a, b e^s(a) + t(a)),  logdet = sum s(a)      Dinh et al. 2017, equations 4-6
    s, t: a network with one hidden layer, of a and the context; s within (-3, 3), as 3 tanh(./3),
    or one bad step could scale by any factor.
    """

    BOUND: ClassVar[float] = 3.0

    def __init__(
        self,
        latent_dim: int,
        features: int | None,
        rng: np.random.Generator,
        dtype: Any,
        *,
        hidden: int = 64,
    ):
        if latent_dim < 2:
            raise ValueError(f"a coupling splits z: latent_dim must be >= 2, got {latent_dim}")
        self.kept, self.features = latent_dim // 2, features
        self.size = latent_dim - self.kept
        last = Linear(hidden, 2 * self.size, initialiser=zeros, rng=rng, dtype=dtype)
        last.bias.data[:] = 0  # type: ignore[union-attr]
        first = Linear(self.kept + (features or 0), hidden, rng=rng, dtype=dtype)
        self.network = Sequential(first, ops.relu, last)

    def _split(self, z: Any, context: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a (N, kept), b (N, size) and s, t (N, size)."""
        a, b = ops.getitem(z, np.s_[:, : self.kept]), ops.getitem(z, np.s_[:, self.kept :])
        known = a
        if self.features is not None:
            known = ops.concatenate([a, _given(context, self.features)])
        out = self.network(known)
        s = ops.tanh(out[:, : self.size] * (1 / self.BOUND)) * self.BOUND
        return a, b, s, out[:, self.size :]

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        a, b, s, t = self._split(z, context)
        return ops.concatenate([a, b * ops.exp(s) + t]), ops.sum(s, axis=-1)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,)."""
        a, b, s, t = self._split(z2, context)
        return ops.concatenate([a, (b - t) * ops.exp(-s)]), -ops.sum(s, axis=-1)


# -------------------------------------------------------------------------- inverse autoregressive
class InverseAutoregressiveFlow(Flow):
    """Each z_d is moved towards a value that the z before it decide, by a gate.

    z2 = g z + (1 - g) m,  g = sigmoid(s + 2),  logdet = sum log g       Kingma et al. 2016,
    m_d, s_d: a MADE of z_1 .. z_{d-1} and the context                         algorithm 1
    The gate keeps the map stable; the 2 has it start nearly open, g = 0.88.  The inverse runs the
    network Z times, a dimension at a time.
    """

    FORGET: ClassVar[float] = 2.0

    def __init__(
        self,
        latent_dim: int,
        features: int | None,
        rng: np.random.Generator,
        dtype: Any,
        *,
        hidden: int = 64,
    ):
        self.features = features
        self.network = MADE(latent_dim, (hidden,), features=features, rng=rng, dtype=dtype)

    def _gates(self, z: Any, context: Any) -> tuple[Tensor, Tensor]:
        """m and the gate's logit, each (N, Z)."""
        m, s = self.network(z, context)
        return m, s + self.FORGET

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        m, s = self._gates(z, context)
        z2 = ops.sigmoid(s) * z + ops.sigmoid(-s) * m
        return z2, -ops.sum(ops.softplus(-s), axis=-1)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,)."""
        z: Any = z2 * 0.0
        order = np.arange(z2.shape[-1], like=z.data if isinstance(z, Tensor) else z)
        for d in range(z2.shape[-1]):
            m, s = self._gates(z, context)
            # those before d are right already; those after d may be anything, and stay zero
            z = ops.where(order <= d, (z2 - ops.sigmoid(-s) * m) / ops.sigmoid(s), 0.0)
        return z, -self.forward(z, context)[1]


# ------------------------------------------------------------------------------------ Householder
def reflect(z: Any, v: Any) -> Tensor:
    """The mirror image of each row: H z = z - 2 v (v.z) / (v.v).     z: (N, Z), v: (N or 1, Z)."""
    return z - v * (2.0 * _dot(v, z) / _dot(v, v))


class HouseholderFlow(Flow):
    """One reflection, z2 = (I - 2 v v^T / |v|^2) z; logdet = 0.     Tomczak and Welling 2016

    Several of them turn a Gaussian with independent dimensions into one with any covariance.  It
    is its own inverse.  v: (Z,), first values `v`.
    """

    def __init__(self, v: np.ndarray, features: int | None, rng: np.random.Generator, dtype: Any):
        self.raw = Amortized(features, rng, dtype, v)

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        (v,) = self.raw(context)
        return reflect(z, v), _nothing(z)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,)."""
        return self.forward(z2, context)


# -------------------------------------------------------------------------------------- Sylvester
class SylvesterFlow(Flow):
    """Z planar flows at once, in directions that do not disturb each other.

    z2 = z + Q R tanh(S Q^T z + b)                          van den Berg et al. 2018, section 3
    logdet = sum_i log(1 + (1 - tanh_i^2) r_ii s_ii)
    Q: orthogonal, a product of Householder reflections; R, S: upper triangular, their diagonals
    within (-1, 1) by tanh, so that r_ii s_ii > -1 and the map is invertible (there, theorem 2).
    Above the diagonal R holds the elements of one matrix above its own, S those below, transposed.
    In the coordinates Q^T z the map is triangular: the inverse solves them from the last to the
    first, each by bisection, for values alone (no gradient).
    """

    def __init__(
        self,
        latent_dim: int,
        features: int | None,
        rng: np.random.Generator,
        dtype: Any,
        *,
        reflections: int = 4,
    ):
        Z = latent_dim
        below = np.tril(rng.standard_normal((Z, Z)), -1) / Z
        matrix = below + np.triu(SMALL * rng.standard_normal((Z, Z)), 1)
        v, r = rng.standard_normal((reflections, Z)), SMALL * rng.standard_normal(Z)
        self.raw = Amortized(features, rng, dtype, v, matrix, r, np.ones(Z), np.zeros(Z))
        self.reflections = reflections
        self.above = Tensor(np.triu(np.ones((Z, Z), dtype), 1))  # (constants, which devices move)

    def _parameters(self, context: Any) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Q's vectors, each (N, Z); R and S above the diagonals (N, Z, Z); r, s and b (N, Z)."""
        v, matrix, r, s, b = self.raw(context)
        vectors = [v[:, k] for k in range(self.reflections)]
        bound = 1 - FLOOR
        R = matrix * self.above
        S = ops.transpose(matrix, (0, 2, 1)) * self.above
        return vectors, (R, S, ops.tanh(r) * bound, ops.tanh(s) * bound, b)

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        vectors, (R, S, r, s, b) = self._parameters(context)
        y = _turned(z, vectors[::-1])  # Q^T z
        t = ops.tanh(_product(S, y) + s * y + b)
        moved = _turned(_product(R, t) + r * t, vectors)  # Q R t
        return z + moved, ops.sum(ops.log(1.0 + (1.0 - t * t) * (r * s)), axis=-1)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,), both constants."""
        with no_grad():
            vectors, parameters = self._parameters(context)
            R, S, r, s, b = (a.data for a in parameters)
            y2 = _turned(z2, vectors[::-1]).data
            y, t = np.zeros_like(y2), np.zeros_like(y2)
            for i in range(y2.shape[1] - 1, -1, -1):
                goal = y2[:, i] - (R[:, i] * t).sum(axis=-1)  # those after i are known
                c = b[:, i] + (S[:, i] * y).sum(axis=-1)

                def above(a: Any, i: int = i, c: Any = c, goal: Any = goal) -> Any:
                    return a + r[:, i] * np.tanh(s[:, i] * a + c) - goal

                y[:, i] = _root(above, goal - 1, goal + 1)
                t[:, i] = np.tanh(s[:, i] * y[:, i] + c)
            z = _turned(y, vectors)
            return z, -self.forward(z, context)[1]


def _turned(z: Any, vectors: Sequence[Tensor]) -> Tensor:
    """H_1 H_2 .. H_K z for the vectors of the reflections, the last one applied first."""
    for v in reversed(vectors):
        z = reflect(z, v)
    return z


def _product(matrix: Tensor, y: Tensor) -> Tensor:
    """matrix (N or 1, Z, Z) times y (N, Z), row by row."""
    if len(matrix) == 1:
        return y @ ops.transpose(matrix[0])
    return ops.sum(matrix * ops.reshape(y, (len(y), 1, y.shape[1])), axis=-1)


# -------------------------------------------------------------------------------------- sequences
class Reverse(Flow):
    """The dimensions in reverse order; its own inverse."""

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,) of zeros."""
        return ops.getitem(z, np.s_[:, ::-1]), _nothing(z)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,) of zeros."""
        return self.forward(z2)


class Flows(Flow):
    """One flow after the other; the logdets add up.     Rezende and Mohamed 2015, equation 7."""

    def __init__(self, *flows: Flow):
        self.flows = list(flows)

    def forward(self, z: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z (N, Z) -> z2 (N, Z), logdet (N,)."""
        return self._chain(z, [flow.forward for flow in self.flows], context)

    def inverse(self, z2: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """z2 (N, Z) -> z (N, Z), logdet (N,)."""
        return self._chain(z2, [flow.inverse for flow in self.flows[::-1]], context)

    @staticmethod
    def _chain(z: Any, steps: list[Callable], context: Any) -> tuple[Tensor, Tensor]:
        total = _nothing(z)
        for step in steps:
            z, logdet = step(z, context)
            total = total + logdet
        return z, total


def alternating(flows: Sequence[Flow]) -> Flows:
    """The flows with a Reverse between any two, so that all dimensions get their turn.

    One more follows if their number is odd: the sequence starts as the identity, not as a mirror.
    """
    between = [part for flow in flows for part in (flow, Reverse())][:-1]
    return Flows(*between, *([] if len(flows) % 2 else [Reverse()]))


# ------------------------------------------------------------------------------------------ specs
@dataclass(frozen=True)
class FlowSpec:
    """Which flow, and how many of it.

    steps: flows in the sequence.
    Raises ValueError for a number below 1.
    """

    steps: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} of a flow must be a whole number >= 1, got {value!r}")

    def build(
        self,
        latent_dim: int,
        features: int | None = None,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ) -> Flows:
        """The flow of z (N, latent_dim) and, if features are given, of a context (N, features)."""
        return self._build(latent_dim, features, rng or np.random.default_rng(), dtype)

    def _build(self, *sizes: Any) -> Flows:
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


@dataclass(frozen=True)
class Planar(FlowSpec):
    """Spelled "planar:8": planar flows (Rezende and Mohamed 2015), see PlanarFlow."""

    def _build(self, *sizes: Any) -> Flows:
        return Flows(*(PlanarFlow(*sizes) for _ in range(self.steps)))


@dataclass(frozen=True)
class Radial(FlowSpec):
    """Spelled "radial:8": radial flows (Rezende and Mohamed 2015), see RadialFlow."""

    def _build(self, *sizes: Any) -> Flows:
        return Flows(*(RadialFlow(*sizes) for _ in range(self.steps)))


@dataclass(frozen=True)
class Coupling(FlowSpec):
    """Spelled "coupling:4": affine couplings (RealNVP, Dinh et al. 2017), see CouplingFlow.

    hidden: units of each coupling's network.
    """

    steps: int = 4
    hidden: int = 64

    def _build(self, *sizes: Any) -> Flows:
        return alternating([CouplingFlow(*sizes, hidden=self.hidden) for _ in range(self.steps)])


@dataclass(frozen=True)
class InverseAutoregressive(FlowSpec):
    """Spelled "iaf:4": inverse autoregressive (Kingma et al. 2016), see InverseAutoregressiveFlow.

    hidden: units of each step's network.
    """

    steps: int = 4
    hidden: int = 64

    def _build(self, *sizes: Any) -> Flows:
        return alternating(
            [InverseAutoregressiveFlow(*sizes, hidden=self.hidden) for _ in range(self.steps)]
        )


@dataclass(frozen=True)
class Householder(FlowSpec):
    """Spelled "householder:8": reflections (Tomczak and Welling 2016), see HouseholderFlow.

    They come in pairs that nearly undo each other at the start; an odd one mirrors z.
    """

    def _build(self, *sizes: Any) -> Flows:
        Z, features, rng, dtype = sizes
        firsts = np.repeat(rng.standard_normal(((self.steps + 1) // 2, Z)), 2, axis=0)
        firsts += SMALL * rng.standard_normal(firsts.shape)
        return Flows(*(HouseholderFlow(v, features, rng, dtype) for v in firsts[: self.steps]))


@dataclass(frozen=True)
class Sylvester(FlowSpec):
    """Spelled "sylvester:4": Sylvester flows (van den Berg et al. 2018), see SylvesterFlow.

    reflections: Householder reflections that make each orthogonal matrix.
    """

    steps: int = 4
    reflections: int = 4

    def _build(self, *sizes: Any) -> Flows:
        flows = (SylvesterFlow(*sizes, reflections=self.reflections) for _ in range(self.steps))
        return Flows(*flows)


KINDS: dict[str, type[FlowSpec]] = {
    "planar": Planar,
    "radial": Radial,
    "coupling": Coupling,
    "iaf": InverseAutoregressive,
    "householder": Householder,
    "sylvester": Sylvester,
}
