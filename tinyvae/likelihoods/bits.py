"""Bits, and grey values taken as such: x in {0, 1} or [0, 1], the output is logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..data import check_range, first_bad
from ..tensor import Tensor
from .base import Likelihood, uniform_like

HINT = "scale the data to [0, 1], or use likelihood='gaussian'"


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent bits: the output is their logits.  x in {0, 1}.

    log p(x | z) = sum_d x l - softplus(l)                  Kingma and Welling 2014, appendix C.1
    """

    name: ClassVar[str] = "bernoulli"

    def _nll(self, output: Any, x: Any) -> Tensor:
        return ops.bernoulli_nll(output, x)

    def elbo(
        self, output: Any, x: Any, mu: Any, logvar: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """ELBO (B,) nats, with `beta` and `free_bits`, in one pass; its terms in `.saved`."""
        if mask is not None:
            return super().elbo(output, x, mu, logvar, mask=mask, **weights)
        return ops.bernoulli_elbo(output, x, mu, logvar, **weights)

    def loss(
        self, output: Any, x: Any, mu: Any, logvar: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """The negative ELBO over `batch`, a single number, in one pass."""
        if mask is not None:
            return super().loss(output, x, mu, logvar, mask=mask, **weights)
        return ops.elbo_loss(output, x, mu, logvar, elbo="bernoulli_elbo", **weights)

    def iwae_loss(
        self, output: Any, x: Any, log_ratio: Any, *, mask: Any = None, **weights: Any
    ) -> Tensor:
        """The negative importance-weighted bound over `batch`, in one pass."""
        if mask is not None:
            return super().iwae_loss(output, x, log_ratio, mask=mask, **weights)
        return ops.elbo_loss(output, x, log_ratio, elbo="bernoulli_iwae", **weights)

    def mean(self, output: Any) -> Any:
        """E[x | z] = sigmoid(output)."""
        return ops.sigmoid(output).data

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Bits x ~ p(x | z)."""
        return (uniform_like(output, seed, step) < self.mean(output)).astype(output.dtype)

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
    is_loss: ClassVar[bool] = True

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are in [0, 1]."""
        check_range(x, 0, scale, name, HINT)
