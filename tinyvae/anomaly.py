"""Anomaly detection: a row that a model of the normal rows finds unlikely, or cannot reconstruct.

The words are scikit-learn's: `score_samples` is high for normal rows, `offset_` is the threshold, a
quantile of the training rows' scores, `decision_function` is what is above it, and `predict` says
1 for normal and -1 for anomalous.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import devices
from ._sklearn import Parameters
from ._text import unknown
from .estimator import VAE
from .fitted import BATCH
from .tensor import no_grad

SCORES = ("elbo", "log_likelihood", "reconstruction")


class AnomalyDetector(Parameters):
    """A threshold on the scores of a VAE.

    vae: the VAE to train on normal rows (or on all, if anomalies are few), or a fitted one.
    score: of a row, in nats: "elbo", the mean of `samples` bounds; "log_likelihood", estimated with
    `samples` samples (An and Cho 2015 take the nll alone); or "reconstruction", minus the squared
    error of its own reconstruction.
    contamination: the part of the training rows whose scores lie below the threshold, in (0, 1).
    refit: train a copy of `vae`; False takes it as it is, and finds the threshold alone.
    Learned: vae_, offset_.
    """

    def __init__(
        self,
        vae: VAE | None = None,
        *,
        score: str = "elbo",
        contamination: float = 0.1,
        samples: int = 10,
        refit: bool = True,
    ):
        self.vae = vae
        self.score = score
        self.contamination = contamination
        self.samples = samples
        self.refit = refit

    def fit(self, X: Any, y: Any = None, **options: Any) -> AnomalyDetector:
        """Train on X, and put the threshold where `contamination` of its rows are below.

        y: ignored.  options: of VAE.fit, `validation` say.
        Raises ValueError for settings that cannot work, and what VAE.fit raises.
        """
        self._validate()
        if self.refit:
            model = VAE(likelihood="gaussian:shared") if self.vae is None else self.vae
            self.vae_ = VAE(**model.get_params()).fit(X, **options)
        elif self.vae is None:
            raise ValueError("refit=False needs a fitted vae")
        else:
            self.vae_ = self.vae
        self.offset_ = float(np.quantile(self.score_samples(X), self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """How normal each row is, (N,): higher is more normal."""
        self._check_fitted()
        self._validate()
        if self.score == "reconstruction":
            return -self.contributions(X).reshape(len(X), -1).sum(axis=1)
        if self.score == "log_likelihood":
            return self.vae_.log_likelihood(X, self.samples)
        # samples after the first have seeds of their own, each the same for every call
        seeds = [self.vae_.seed_ ^ k for k in range(self.samples)]
        return np.mean([self.vae_.elbo(X, seed) for seed in seeds], axis=0)

    def contributions(self, X: Any) -> np.ndarray:
        """What each value of a row has to do with it, in X's shape: higher is more anomalous.

        -log p(x_d | z) in nats at the row's own code z, or the squared error for the score
        "reconstruction"; 0 for a missing value.
        """
        self._check_fitted()
        vae, parts = self.vae_, []
        likelihood = vae.likelihood_
        with no_grad():
            for _, batch in vae._checked_rows(X, "X").in_order(BATCH):
                output = vae.network_.scored(batch)
                if self.score == "reconstruction":
                    each = (batch.x - likelihood.mean(output)) ** 2
                    each = each if batch.mask is None else each * batch.mask
                else:
                    each = likelihood.nll_each(output, batch.x, batch.mask).data
                parts.append(devices.to_host(each))
        return vae._as_given(np.concatenate(parts))

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples(X) - offset_: negative for anomalies."""
        self._check_fitted()
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for normal rows, -1 for anomalies, (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(self, X: Any, y: Any = None, **options: Any) -> np.ndarray:
        """fit(X), then predict(X)."""
        return self.fit(X, y, **options).predict(X)

    def _validate(self) -> None:
        if self.score not in SCORES:
            raise unknown("score", self.score, SCORES)
        if not 0 < self.contamination < 1:
            raise ValueError(f"contamination must be in (0, 1), got {self.contamination!r}")
        if not isinstance(self.samples, (int, np.integer)) or self.samples < 1:
            raise ValueError(f"samples must be a whole number >= 1, got {self.samples!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "vae_")


__all__ = ["SCORES", "AnomalyDetector"]
