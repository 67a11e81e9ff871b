"""What a decoder's output means: p(x | z) from raw parameters.

A likelihood knows how many outputs each value of x needs (`outputs`), and turns the decoder's
output (B, ..., outputs * C) and data x (B, ..., C) into nll or ELBO per row (B,), in nats, with all
normalising constants; into the mean of x (B, ..., C); and into samples of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import ops
from ._text import unknown
from .data import check_range, first_bad
from .ops import noise
from .tensor import Tensor

HINT = "scale the data to [0, 1], or use likelihood='gaussian'"


@dataclass(frozen=True)
class Bernoulli:
    """Independent bits: the output is their logits.  x in {0, 1}.

    log p(x | z) = sum_d x l - softplus(l)                  Kingma and Welling 2014, appendix C.1
    """

    name: ClassVar[str] = "bernoulli"
    outputs: ClassVar[int] = 1

    def nll(self, output: Tensor, x: Any) -> Tensor:
        """-log p(x | z), (B,) nats."""
        return ops.bernoulli_nll(output, x)

    def elbo(self, output: Tensor, x: Any, mu: Tensor, logvar: Tensor, **weights: float) -> Tensor:
        """ELBO (B,) nats, with `beta` and `free_bits`; its terms in `.saved`."""
        return ops.bernoulli_elbo(output, x, mu, logvar, **weights)

    def loss(self, output: Tensor, x: Any, mu: Tensor, logvar: Tensor, **weights: Any) -> Tensor:
        """The negative ELBO over `batch`, a single number, in one pass."""
        return ops.elbo_loss(output, x, mu, logvar, elbo="bernoulli_elbo", **weights)

    def mean(self, output: Any) -> Any:
        """E[x | z] = sigmoid(output)."""
        return ops.sigmoid(output).data

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Bits x ~ p(x | z)."""
        u = noise.uniform(
            output.shape, seed=seed, stream=noise.Stream.OBSERVE, step=step, dtype=output.dtype,
            like=output,
        )  # fmt: skip
        return (u < self.mean(output)).astype(output.dtype)

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are 0 or 1."""
        check_range(x, 0, scale, name, HINT)
        found = first_bad(x, lambda part: (part == 0) | (part == scale), name)
        if found is not None:
            raise ValueError(
                f"{name} has the grey value {found[0] / scale:g} at {found[1]}, but a Bernoulli "
                "likelihood is for 0 and 1: binarize the data (binarize='dynamic' or 'static'), "
                "or take the cross-entropy as a plain loss (likelihood='bce')"
            )


@dataclass(frozen=True)
class CrossEntropy(Bernoulli):
    """Binary cross-entropy on grey values in [0, 1]: a loss, not a likelihood.

    The formula is the Bernoulli's, but on grey x it does not integrate to one, so its value is no
    bound on any log p(x) and cannot be compared with one.
    """

    name: ClassVar[str] = "bce"

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are in [0, 1]."""
        check_range(x, 0, scale, name, HINT)


@dataclass(frozen=True)
class Gaussian:
    """Independent real values: the output is their means, and their log-variances if learned.

    variance: one fixed number > 0, or "learned": one for every value, from the decoder.
    min_logvar: floor of a learned log-variance, reached smoothly (Rybkin et al. 2021, section 4):
    without it a pixel that never changes drives the density to infinity.
    """

    name: ClassVar[str] = "gaussian"
    variance: float | str = 1.0
    min_logvar: float = -6.0

    def __post_init__(self) -> None:
        if self.learned:
            return
        if isinstance(self.variance, str):
            raise unknown("variance", self.variance, ["learned", "a number > 0"])
        if not 0 < self.variance < math.inf:
            raise ValueError(f"variance must be positive and finite, got {self.variance}")

    @property
    def learned(self) -> bool:
        """Whether the decoder gives the variance."""
        return self.variance == "learned"

    @property
    def outputs(self) -> int:
        """Outputs per value of x: the mean, and the log-variance if learned."""
        return 2 if self.learned else 1

    def _parameters(self, output: Any) -> tuple[Any, Any]:
        """(B, ..., 2C) -> x_mu (B, ..., C), x_logvar (B, ..., C)."""
        size = output.shape[-1] // 2
        raw = ops.getitem(output, (..., slice(size, None)))
        x_logvar = ops.softplus(raw - self.min_logvar) + self.min_logvar
        return ops.getitem(output, (..., slice(size))), x_logvar

    def nll(self, output: Tensor, x: Any) -> Tensor:
        """-log p(x | z), (B,) nats."""
        if self.learned:
            return ops.gaussian_nll(*self._parameters(output), x)
        return ops.gaussian_fixed_nll(output, x, variance=self.variance)

    def elbo(self, output: Tensor, x: Any, mu: Tensor, logvar: Tensor, **weights: float) -> Tensor:
        """ELBO (B,) nats, with `beta` and `free_bits`; its terms in `.saved`."""
        if self.learned:
            return ops.gaussian_elbo(*self._parameters(output), x, mu, logvar, **weights)
        return ops.gaussian_fixed_elbo(output, x, mu, logvar, variance=self.variance, **weights)

    def loss(self, output: Tensor, x: Any, mu: Tensor, logvar: Tensor, **weights: Any) -> Tensor:
        """The negative ELBO over `batch`, a single number, in one pass."""
        if self.learned:
            parameters = self._parameters(output)
            return ops.elbo_loss(*parameters, x, mu, logvar, elbo="gaussian_elbo", **weights)
        weights |= {"elbo": "gaussian_fixed_elbo", "variance": self.variance}
        return ops.elbo_loss(output, x, mu, logvar, **weights)

    def mean(self, output: Any) -> Any:
        """E[x | z]."""
        return output[..., : output.shape[-1] // self.outputs]

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Values x ~ p(x | z)."""
        mean = self.mean(output)
        eps = noise.normal(
            mean.shape, seed=seed, stream=noise.Stream.OBSERVE, step=step, dtype=output.dtype,
            like=output,
        )  # fmt: skip
        if not self.learned:
            return mean + output.dtype.type(math.sqrt(float(self.variance))) * eps
        _, x_logvar = self._parameters(output)
        return mean + np.exp(x_logvar.data / 2) * eps

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Any finite number will do."""


LIKELIHOODS = ("bernoulli", "gaussian", "bce")
Likelihood = Bernoulli | CrossEntropy | Gaussian


def resolve(likelihood: str | Likelihood, variance: float | str = 1.0) -> Likelihood:
    """The likelihood of that name; an instance is returned as it is.

    Raises ValueError for an unknown name.
    """
    if isinstance(likelihood, (Bernoulli, Gaussian)):
        return likelihood
    if likelihood == "bernoulli":
        return Bernoulli()
    if likelihood == "bce":
        return CrossEntropy()
    if likelihood == "gaussian":
        return Gaussian(variance=variance)
    raise unknown("likelihood", likelihood, LIKELIHOODS)
