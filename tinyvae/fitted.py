"""What a fitted VAE answers: codes, reconstructions, samples, bounds, missing values.

Sizes: N rows, Z latent, K samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from . import devices, imputation, likelihoods, metrics, ops
from .batches import Batch, Rows
from .data import as_rows, check_finite
from .labels import checked as checked_labels
from .models import Model
from .models.vae import VAENetwork
from .ops import noise
from .ops.noise import Draw, Stream
from .options import DTYPES, Options
from .priors import StandardNormal
from .tensor import no_grad

BATCH = 512  # rows at a time outside of training


class Fitted(Options):
    """The hyperparameters and what fit made of them; every question that a model can be asked."""

    network_: Model
    likelihood_: likelihoods.Likelihood
    seed_: int
    device_: str
    labels_: Any
    classes_: Any
    row_shape_: tuple[int, ...]
    data_shape_: tuple[int, ...]
    n_features_in_: int
    scale_: float

    # --------------------------------------------------------------------------------------- data
    def _rows(self, X: Any, name: str = "X", y: Any = None) -> Rows:
        """X and y as the network sees them; ValueError if the rows have another size than fit's."""
        self._check_fitted()
        array = as_rows(np.asarray(X), name)
        if array[0].size != self.n_features_in_:
            raise ValueError(
                f"{name} has {array[0].size} features, but the VAE was fitted on "
                f"{self.n_features_in_}"
            )
        scale = self.scale_ if array.dtype == np.uint8 else 1.0
        dtype = DTYPES[self.dtype]
        return Rows(
            array, self.data_shape_, dtype, scale, self.binarize, self.seed_, self.device_,
            self._labels(y, len(array)),
        )  # fmt: skip

    def _used(self, y: Any, X: Any = None) -> Any:
        """y, if the model uses labels; ValueError if it cannot do without, or they are not X's."""
        kind = self._kind()
        if kind.labels == "ignored":
            return None
        if y is None and kind.labels == "needed":
            raise ValueError(f"model={kind.name!r} needs labels: give y")
        return None if y is None else checked_labels(y, None if X is None else len(X))

    def _labels(self, y: Any, n: int) -> np.ndarray | None:
        """y of n rows as the network sees it: numbers of classes, -1 for an unknown one, or floats.

        y: one for each row, or one for all of them.
        Raises ValueError for labels that fit had not seen, and if a model that needs them has none.
        """
        if y is None or self.labels_ is None:
            return self._used(y)
        partly = self._kind().labels == "optional"
        return self.labels_.codes(y, n, dtype=DTYPES[self.dtype], partly=partly)

    def _checked_rows(self, X: Any, name: str, y: Any = None, *, bits: bool = True) -> Rows:
        """X, every value checked: finite, and of the kind that the likelihood is for.

        bits: binarize if the model does.
        """
        rows = self._rows(X, name, y)
        if self.missing:
            rows = _with_mask(rows)
        check_finite(rows.array, name)
        self._check_values(rows, name)
        return rows.binarized_once() if bits else replace(rows, binarize=None)

    def _check_values(self, rows: Rows, name: str) -> None:
        """Raise ValueError for an observed value that the likelihood is not for."""
        bits = self.binarize is not None
        likelihood = likelihoods.CrossEntropy() if bits else self.likelihood_  # grey, in [0, 1]
        array = rows.array
        if rows.mask is not None:
            array = np.where(rows.mask, array, likelihood.filler)
        likelihood.check(array, name, rows.scale)

    def _as_given(self, x: np.ndarray) -> np.ndarray:
        """Rows in the shape in which fit got them."""
        return x.reshape(len(x), *self.row_shape_)

    # -------------------------------------------------------------------- the words of VAE users
    def encode(self, X: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance of q(z | x) of each row, each (N, Z).

        y: the rows' labels, here and below, for a model that needs them.
        Grey values are taken as they are, not binarized: a row's code depends on that row alone.
        """
        rows = self._checked_rows(X, "X", y, bits=False)
        return metrics.encode(self.network_, rows, batch_size=BATCH)

    def reparameterize(self, mu: Any, logvar: Any, random_state: Any = None) -> np.ndarray:
        """A sample z = mu + exp(logvar / 2) eps, (N, Z)."""
        mu, logvar = (np.asarray(a, DTYPES[self.dtype]) for a in (mu, logvar))
        seed = seed_of(random_state)
        eps = noise.normal(mu.shape, seed=seed, stream=Stream.POSTERIOR, dtype=mu.dtype)
        return ops.reparameterize(mu, logvar, eps).data

    def decode(self, z: Any, y: Any = None) -> np.ndarray:
        """Mean of p(x | z), (N, ...) in the shape in which fit got its rows.  z: (N, Z)."""
        self._check_fitted()
        return self._mean(self._outputs(z, self._labels(y, len(np.atleast_1d(z)))))

    def _mean(self, outputs: np.ndarray) -> np.ndarray:
        return self._as_given(self.likelihood_.mean(outputs))

    def _outputs(self, z: Any, labels: np.ndarray | None) -> np.ndarray:
        """Raw parameters of p(x | z), in batches, on the CPU; labels: as the network sees them."""
        z = np.asarray(z, DTYPES[self.dtype])
        Z = self.network_.latent_dim
        if z.ndim != 2 or z.shape[1] != Z:
            raise ValueError(f"z must be (N, {Z}), got shape {z.shape}")
        return self._in_batches(
            len(z),
            lambda part: self.network_.decode(self._there(z[part]), self._there(labels, part)).data,
        )

    def _there(self, array: np.ndarray | None, part: slice = slice(None)) -> Any:
        """Rows of an array on the network's device."""
        return None if array is None else devices.move(array[part], self.device_)

    def _in_batches(self, n: int, outputs: Callable[[slice], Any]) -> np.ndarray:
        """outputs(part) for parts of n rows, together, on the CPU, without recording."""
        if n == 0:
            return np.empty((0, *self.data_shape_), DTYPES[self.dtype])
        with no_grad():
            parts = [outputs(slice(i, min(i + BATCH, n))) for i in range(0, n, BATCH)]
        return devices.to_host(np.concatenate(parts))

    def reconstruct(self, X: Any, y: Any = None) -> np.ndarray:
        """Mean of p(x | z) at each row's own code (its posterior mean), in X's row shape."""
        rows = self._checked_rows(X, "X", y, bits=False)
        return self._mean(_of_each(rows, self.network_.reconstruct))

    def sample(
        self, n: int = 1, random_state: Any = None, *, mean: bool = True, y: Any = None
    ) -> np.ndarray:
        """n new rows from z ~ p(z): the means of p(x | z), or draws from it with mean=False.

        y: a label for all, or one for each row, for a model that needs them.
        """
        self._check_fitted()
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        seed, dtype, labels = seed_of(random_state), DTYPES[self.dtype], self._labels(y, n)
        like = self.network_.parameters()[0].data

        ask = self.network_.generate if mean else self.network_.sample

        def rows(part: slice) -> Any:
            draw = Draw(part.stop - part.start, seed=seed, first=part.start, stream=Stream.SAMPLE,
                        dtype=dtype, like=like)  # fmt: skip
            return ask(draw.rows, draw, self._there(labels, part))

        found = self._in_batches(n, rows)
        return self._mean(found) if mean else self._as_given(found)

    def interpolate(
        self, a: Any, b: Any, steps: int = 8, *, spherical: bool = False, y: Any = None
    ) -> np.ndarray:
        """Rows on the way from row a to row b, (steps, ...), ends included.

        Through latent space, on a straight line, or on an arc with spherical=True (Shoemake 1985;
        White 2016), which keeps to the norms that the prior makes likely.
        y: the labels of a and b, or one for both; a label's one-hot code moves on a line.
        """
        if steps < 2:
            raise ValueError(f"steps must be >= 2, got {steps}")
        ends, _ = self.encode(np.stack([np.asarray(a), np.asarray(b)]), y)
        t = np.linspace(0, 1, steps, dtype=ends.dtype)[:, None]
        weights = np.concatenate([1 - t, t], axis=1)  # (steps, 2)
        labels = self._labels(y, 2)
        if labels is not None:
            one_hot = np.eye(self.labels_.size, dtype=ends.dtype)
            labels = weights @ (one_hot[labels] if labels.ndim == 1 else labels)
        if spherical:
            unit = ends / np.maximum(np.linalg.norm(ends, axis=1, keepdims=True), 1e-12)
            angle = np.arccos(np.clip(unit[0] @ unit[1], -1, 1))
            if 1e-6 < angle < math.pi - 1e-6:  # else the arc is a line, or not unique
                weights = np.sin(weights * angle) / np.sin(angle)
        return self._mean(self._outputs(weights @ ends, labels))

    def traverse(self, x: Any = None, steps: int = 9, *, y: Any = None) -> np.ndarray:
        """Each latent dimension moved over quantiles of the prior, (Z, steps, ...).

        x: a row whose code the others stay at; the prior's mean by default.  y: the label of all.
        """
        if steps < 2:
            raise ValueError(f"steps must be >= 2, got {steps}")
        self._check_fitted()
        Z, dtype = self.network_.latent_dim, DTYPES[self.dtype]
        mean, quantiles = self._of_prior(np.linspace(0.025, 0.975, steps), y)
        base = mean if x is None else self.encode(np.asarray(x)[None], y)[0]
        z = np.repeat(np.repeat(base.astype(dtype), steps, axis=0)[None], Z, axis=0)
        for j in range(Z):  # z: (Z, steps, Z)
            z[j, :, j] = quantiles[:, j]
        rows = self.decode(z.reshape(Z * steps, Z), y)
        return rows.reshape(Z, steps, *self.row_shape_)

    def _of_prior(self, probabilities: np.ndarray, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean (1, Z) and quantiles (P, Z) of p(z), each dimension; from samples if it is learned.

        y: the label of all.
        """
        network = self.network_
        if type(network).from_prior is Model.from_prior and type(network.prior) is StandardNormal:
            exact = [[NormalDist().inv_cdf(p)] * network.latent_dim for p in probabilities]
            return np.zeros((1, network.latent_dim)), np.array(exact)
        n, like = 4096, network.parameters()[0].data
        draw = Draw(n, seed=self.seed_, stream=Stream.SAMPLE, dtype=like.dtype, like=like)
        with no_grad():
            z = network.from_prior(n, draw, self._there(self._labels(y, n)))
        z = devices.to_host(z)
        return z.mean(axis=0, keepdims=True), np.quantile(z, probabilities, axis=0)

    # --------------------------------------------------------------------------------- evaluation
    def elbo(self, X: Any, random_state: Any = None, *, y: Any = None) -> np.ndarray:
        """Evidence lower bound of each row, (N,) nats, with one sample of z a row.

        random_state: of that sample; by default the model's seed, so that the answer repeats.
        """
        rows = self._checked_rows(X, "X", y)
        seed = self.seed_ if random_state is None else seed_of(random_state)
        nll, kl, *_ = metrics.terms(self.network_, rows, seed=seed)
        return -(nll + kl)

    def evaluate(self, X: Any, y: Any = None) -> metrics.Evaluation:
        """Mean ELBO and its terms, KL per dimension and active units."""
        rows = self._checked_rows(X, "X", y)
        return metrics.evaluate(self.network_, rows, seed=self.seed_)

    def log_likelihood(
        self, X: Any, samples: int = 100, random_state: Any = None, *, y: Any = None
    ) -> np.ndarray:
        """Importance-weighted estimate of log p(x) of each row, (N,) nats (Burda et al. 2016).

        Raises ValueError if the model defines none.
        """
        rows = self._checked_rows(X, "X", y)
        seed = self.seed_ if random_state is None else seed_of(random_state)
        return metrics.log_likelihood_rows(self.network_, rows, samples=samples, seed=seed)

    def impute(
        self,
        X: Any,
        random_state: Any = None,
        *,
        steps: int = 100,
        mean: bool = True,
        y: Any = None,
    ) -> np.ndarray:
        """X with its NaNs filled in; what is observed stays as it is.

        steps: of the chain (see tinyvae.imputation), of which the second half counts.
        mean: the best guess of each value; False gives one possible row, another for each
        random_state.
        """
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        self._check_fitted()
        if self.flow is not None:
            raise ValueError("impute does not go with a flow: a chain asks for q(z | x) of any z")
        if not (isinstance(self.network_, VAENetwork) and self.network_.has_likelihood):
            raise ValueError(f"impute needs p(x, z) / q(z | x) of any z, which model={self.model!r}"
                             " does not give")  # fmt: skip
        rows = _with_mask(self._rows(X, "X", y))
        if rows.mask is None:
            return np.array(X)
        check_finite(rows.array, "X")
        self._check_values(rows, "X")
        seed = self.seed_ if random_state is None else seed_of(random_state)
        filled = imputation.impute(
            self.network_, replace(rows, binarize=None), steps=steps, seed=seed, mean=mean
        )
        observed = rows.mask.reshape(filled.shape)
        return self._as_given(np.where(observed, rows.array.reshape(filled.shape), filled))

    # ---------------------------------------------------------------------- scikit-learn's words
    def predict_proba(self, X: Any) -> np.ndarray:
        """q(y | x) of each class in the order of classes_, (N, C), by a model with a classifier.

        Raises ValueError if the model has none.
        """
        rows = self._checked_rows(X, "X", bits=False)
        if not self.network_.has_classifier:
            raise ValueError(f"model={self.model!r} has no classifier")
        return np.exp(_of_each(rows, lambda batch: self.network_.classify(batch.x).data))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, (N,), by a model with a classifier."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Posterior mean of each row, (N, Z)."""
        return self.encode(X, y)[0]

    def inverse_transform(self, Z: Any, y: Any = None) -> np.ndarray:
        """Mean of p(x | z) for each code, (N, ...)."""
        return self.decode(Z, y)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """ELBO of each row, (N,) nats: a lower bound of its log-likelihood."""
        return self.elbo(X, y=y)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean ELBO in nats; higher is better."""
        return float(self.elbo(X, y=y).mean(dtype=np.float64))


def _of_each(rows: Rows, answer: Callable[[Batch], Any]) -> np.ndarray:
    """What `answer` makes of all batches of the rows, an array on the CPU."""
    with no_grad():
        parts = [answer(batch) for _, batch in rows.in_order(BATCH)]
    return devices.to_host(np.concatenate(parts))


def _with_mask(rows: Rows) -> Rows:
    """The rows, NaNs replaced by 0, and a mask that says so; without NaN as they are."""
    missing = np.isnan(rows.array) if rows.array.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        return rows
    return replace(rows, array=np.where(missing, 0, rows.array), mask=~missing)


def seed_of(random_state: Any) -> int:
    """A seed in [0, 2^63) from None (fresh), an int, or a NumPy generator."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, (int, np.integer)) and 0 <= random_state < 2**63:
        return int(random_state)
    raise ValueError(f"random_state must be None, an int >= 0 or a generator, got {random_state!r}")
