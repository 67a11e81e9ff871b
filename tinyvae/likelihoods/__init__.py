"""What a decoder's output means: p(x | z) from raw parameters.

A likelihood knows how many outputs each value of x needs (`outputs`), and turns the decoder's
output (B, ..., outputs * C) and data x (B, ..., C) into nll or ELBO per row (B,), in nats, with all
normalising constants; into the mean of x (B, ..., C); and into samples of x.  As text a likelihood
is its kind and its settings: "gaussian", "gaussian:learned", "mixture_logistic:5:levels=17".
"""

from __future__ import annotations

from typing import Any

from .. import spelling
from .base import Likelihood
from .bits import Bernoulli, CrossEntropy
from .counts import Categorical, NegativeBinomial, Poisson
from .perceptual import FeatureMatching
from .reals import Gaussian, Laplace, StudentT
from .tokens import Tokens
from .unit import Beta, DiscretizedLogistic, LogisticMixture

KINDS: dict[str, type] = {
    kind.name: kind
    for kind in (
        Bernoulli, Gaussian, CrossEntropy, Laplace, StudentT, Beta, DiscretizedLogistic,
        LogisticMixture, Categorical, Poisson, NegativeBinomial, Tokens,
    )
}  # fmt: skip
LIKELIHOODS = tuple(KINDS)


def resolve(likelihood: Any, variance: float | str = 1.0) -> Likelihood:
    """The likelihood of that text; an instance is returned as it is.

    variance: of a Gaussian that is just called "gaussian".
    Raises ValueError for an unknown name, and for settings that do not fit.
    """
    if isinstance(likelihood, Likelihood):  # a user's own too
        return likelihood
    if likelihood == Gaussian.name:
        return Gaussian(variance)
    return spelling.parse(likelihood, KINDS, "likelihood")


def spell(likelihood: Likelihood, variance: float | str = 1.0) -> tuple[str, float | str]:
    """The text and the variance of which `resolve` makes that likelihood again.

    variance: what shall stand beside a text that does not need it.
    Raises TypeError for a likelihood that is not of this package.
    """
    if isinstance(likelihood, Gaussian) and likelihood == Gaussian(likelihood.variance):
        return likelihood.name, likelihood.variance
    return spelling.spell(likelihood, KINDS), variance


__all__ = [
    "KINDS",
    "LIKELIHOODS",
    "Bernoulli",
    "Beta",
    "Categorical",
    "CrossEntropy",
    "DiscretizedLogistic",
    "FeatureMatching",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogisticMixture",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "Tokens",
    "resolve",
    "spell",
]
