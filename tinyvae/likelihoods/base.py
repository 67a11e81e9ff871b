"""What every likelihood shares: the ELBO around its nll, missing values, and free parameters.

A decoder gives each value of x one number or several, in blocks: (B, ..., P C) for x (B, ..., C),
first C numbers of the first kind, means say, then C of the next.  A parameter beside the first is
one of three things: a fixed number; "learned", a block of its own; or "shared", one trained number
for all values, which the decoder's last layer appends to its output (`Shared`), so that it is
trained, saved and copied with the decoder, and here looks like any other block.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from .._text import unknown
from ..data import first_bad
from ..nn import Module
from ..ops import noise
from ..tensor import Tensor, no_grad

LEARNED, SHARED = "learned", "shared"
FREE = (LEARNED, SHARED)
# Adam moves a parameter by the learning rate a step, whatever its gradient: too slow for a number
# that stands alone.  Digits, 25 epochs at 0.001, a shared variance: ELBO -46 nats with a gain of 1,
# 19 with 10.
GAIN = 10.0
LARGEST = 20.0  # of a logarithm: e^20 is 5e8, and float32 counts exactly to 2^24 only


class Terms(NamedTuple):
    """An ELBO and its two terms, (B,) nats, kl unweighted."""

    elbo: Any
    nll: Any
    kl: Any


class Importance(NamedTuple):
    """An importance-weighted bound and its terms, (B,) nats, and the weights (B, K)."""

    elbo: Any
    nll: Any
    kl: Any
    weights: Any


class Likelihood:
    """p(x | z) from a decoder's raw output.  Subclasses are frozen dataclasses: settings, no state.

    A subclass has a name, `_nll`, `mean`, `sample` and `check`; and, if it is not one output a
    value, `_free` or `outputs`.
    """

    name: ClassVar[str]
    is_loss: ClassVar[bool] = False  # its value bounds no log p(x)
    counts: ClassVar[bool] = False  # whole numbers as they are: bytes are no pixels
    filler: ClassVar[float] = 0.0  # an allowed x, in the place of a missing one

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and the largest mean of x; None if there are none."""
        return (0.0, 1.0)

    # ------------------------------------------------------------------------------- parameters
    @property
    def _free(self) -> tuple[float | str, ...]:
        """The parameters beside the first: each a fixed number, "learned" or "shared"."""
        return ()

    @property
    def outputs(self) -> int:
        """Outputs of the network per value of x."""
        return 1 + self._free.count(LEARNED)

    def head(self, dtype: Any = np.float32) -> Shared | None:
        """The decoder's last layer if there are shared parameters, else None."""
        count = self._free.count(SHARED)
        return Shared(self.outputs, count, dtype) if count else None

    @property
    def blocks(self) -> int:
        """Blocks of a raw output, shared parameters included."""
        return self.outputs + self._free.count(SHARED)

    def _blocks(self, output: Any) -> list[Any]:
        """(B, ..., P C) -> the first block (B, ..., C), then the free parameters in their order."""
        count, C = self.blocks, output.shape[-1] // self.blocks
        if count == 1:
            return [output, *self._free]
        blocks = [ops.getitem(output, (..., slice(i * C, i * C + C))) for i in range(count)]
        order = {LEARNED: iter(blocks[1 : self.outputs]), SHARED: iter(blocks[self.outputs :])}
        free = [next(order[p]) if isinstance(p, str) else p for p in self._free]
        return [blocks[0], *free]

    def _by_value(self, output: Any) -> Any:
        """(B, ..., P C) -> (B, ..., C, P): the numbers of each value side by side."""
        *leading, width = output.shape
        blocks = ops.reshape(output, (*leading, self.blocks, width // self.blocks))
        return ops.transpose(blocks, (*range(len(leading)), -1, -2))

    # ------------------------------------------------------------------------------------- the nll
    def nll(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """-log p(x | z), (B,) nats; with a mask that of the observed values alone.

        output: (B, ..., P C); x: (B, ..., C); mask: like x, 1 where x is observed.  A missing
        value, NaN or any other, changes nothing and gives the output no gradient: p(x | z) factors
        over the values, so leaving one out is integrating over it (Nazabal et al. 2020, eq. 3).
        """
        if mask is None:
            return self._nll(output, x)
        return row_sums(self.nll_each(output, x, mask))

    def nll_each(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """-log p of each value of x, (B, ..., C) nats; 0 where the mask says that it is missing."""
        x = array_of(x)
        if mask is not None:
            observed = array_of(mask).astype(bool)
            x = np.where(observed, x, x.dtype.type(self.filler))
        rows = ops.reshape(self._by_value(output), (x.size, self.blocks))  # -> (B ... C, P)
        each = ops.reshape(self._nll(rows, x.reshape(-1, 1)), x.shape)
        return each if mask is None else each * observed.astype(each.dtype)

    def _nll(self, output: Any, x: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no _nll")

    # ------------------------------------------------------------------------------------ the ELBO
    def elbo(
        self,
        output: Any,
        x: Any,
        mu: Any,
        logvar: Any,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        mask: Any = None,
    ) -> Tensor:
        """ELBO (B,) nats, with the KL to N(0, I); its terms in `.saved`."""
        nll = self.nll(output, x, mask)
        bound = -nll - beta * ops.gaussian_kl(mu, logvar, free_bits=free_bits)
        with no_grad():
            bound.saved = Terms(bound.data, nll.data, ops.gaussian_kl(mu, logvar).data)
        return bound

    def loss(
        self, output: Any, x: Any, mu: Any, logvar: Any, *, batch: int, **weights: Any
    ) -> Tensor:
        """The negative ELBO over `batch`, a single number; the ELBO and its terms in `.saved`."""
        bound = self.elbo(output, x, mu, logvar, **weights)
        loss = ops.sum(bound) * (-1.0 / batch)
        loss.saved = Terms(bound.data, bound.saved.nll, bound.saved.kl)
        return loss

    def iwae_loss(
        self,
        output: Any,
        x: Any,
        log_ratio: Any,
        *,
        batch: int,
        beta: float = 1.0,
        mask: Any = None,
    ) -> Tensor:
        """The negative importance-weighted bound over `batch`, a single number.

        bound = log 1/K sum_k exp(log p(x | z_k) - beta log_ratio_k)      Burda et al. 2016, eq. 8
        output: (B K, ...), the samples of a row one after the other; x: (B, ...); log_ratio:
        (B, K), log q(z | x) - log p(z).  In `.saved`: elbo, the bound, (B,); nll and kl, (B,),
        means over the samples; weights (B, K), which sum to one.
        """
        x, mask = (None if a is None else np.repeat(a, log_ratio.shape[1], 0) for a in (x, mask))
        nll = ops.reshape(self.nll(output, x, mask), log_ratio.shape)
        bound = ops.log_mean_exp(-nll - beta * log_ratio)
        loss = ops.sum(bound) * (-1.0 / batch)
        nll_mean, kl = (array_of(a).mean(axis=1) for a in (nll, log_ratio))
        loss.saved = Importance(bound.data, nll_mean, kl, bound.saved.weights)
        return loss

    # ------------------------------------------------------------------------------------ the data
    def mean(self, output: Any) -> Any:
        """E[x | z], (B, ..., C), an array."""
        raise NotImplementedError(f"{type(self).__name__} defines no mean")

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """x ~ p(x | z), (B, ..., C), an array; the same for the same seed and step."""
        raise NotImplementedError(f"{type(self).__name__} defines no sample")

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError that names the first value of x / scale which this is not for."""
        raise NotImplementedError(f"{type(self).__name__} defines no check")


class Shared(Module):
    """Trained numbers that are the same for every value, appended to a decoder's output.

    (B, ..., P C) -> (B, ..., (P + count) C); outputs: P.  The numbers are GAIN raw, raw (count,)
    zero at first.
    """

    def __init__(self, outputs: int, count: int, dtype: Any = np.float32):
        self.outputs = outputs
        self.raw = Tensor(np.zeros(count, dtype), requires_grad=True)

    def __call__(self, output: Any) -> Tensor:
        """Append a block for each number."""
        data = array_of(output)
        shape = (*data.shape[:-1], data.shape[-1] // self.outputs)
        zeros = np.zeros_like(data, shape=shape)
        numbers = self.raw * GAIN
        blocks = [zeros + numbers[i : i + 1] for i in range(self.raw.size)]
        return ops.concatenate([output, *blocks])


# ------------------------------------------------------------------------- parts of likelihoods
def array_of(value: Any) -> Any:
    """The array of a tensor; an array as it is."""
    return value.data if isinstance(value, Tensor) else value


def check_parameter(name: str, value: float | str, free: tuple[str, ...] = FREE) -> None:
    """Raise ValueError unless a parameter is a positive number, or one of the free kinds."""
    if isinstance(value, str):
        if value not in free:
            raise unknown(name, value, [*free, "a number > 0"])
    elif not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def above(raw: Any, low: float) -> Any:
    """low + softplus(raw - low): raw, kept above `low` smoothly."""
    return ops.softplus(raw - low) + low


def below(raw: Any, high: float = LARGEST) -> Any:
    """high - softplus(high - raw): raw, kept below `high` smoothly."""
    return high - ops.softplus(high - raw)


def within(raw: Any, limit: float = LARGEST) -> Any:
    """limit tanh(raw / limit): near 0 raw itself, and never beyond +-limit."""
    return limit * ops.tanh(raw * (1 / limit))


def row_sums(each: Any) -> Tensor:
    """(B, ...) -> (B,)."""
    return ops.sum(ops.reshape(each, (each.shape[0], math.prod(each.shape[1:]))), axis=1)


def uniform_like(array: Any, seed: int, step: int, *leading: int) -> Any:
    """Uniform numbers in (0, 1) for a sample of x, (*leading, *shape of the array)."""
    return noise.uniform(
        (*leading, *array.shape), seed=seed, stream=noise.Stream.OBSERVE, step=step,
        dtype=array.dtype, like=array,
    )  # fmt: skip


def generator(seed: int, step: int) -> np.random.Generator:
    """For samples that no fixed count of uniform numbers gives: gamma, Poisson."""
    return np.random.default_rng([seed, int(noise.Stream.OBSERVE), step])


def check_each(x: np.ndarray, good: Any, name: str, scale: float, what: str) -> None:
    """Raise ValueError with the first value of x that is not good; what: the likelihood's wish."""
    found = first_bad(x, good, name)
    if found is not None:
        value = found[0] / scale
        raise ValueError(f"{name} has {value:g} at {found[1]}, but {what}")
