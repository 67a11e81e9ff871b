"""`VAE`: the model as a scikit-learn style estimator, in the words of VAE users too.

Hyperparameters are stored unchanged under their own names; data are seen in `fit` alone; what is
learned ends in `_`.  Sizes: N rows, Z latent, K samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from . import (
    corruptions,
    devices,
    flows,
    imputation,
    likelihoods,
    metrics,
    models,
    objectives,
    ops,
    priors,
    saved,
    schedules,
    spelling,
)
from ._sklearn import NotFittedError, Parameters
from ._text import unknown
from .batches import BINARIZE, Rows
from .data import as_rows, check_finite
from .labels import Labels
from .labels import checked as checked_labels
from .models import Parts, Spec, networks
from .ops import noise
from .ops.noise import Draw, Stream
from .optim import Adam
from .tensor import no_grad
from .train import Callback, Progress, Run, Settings

DTYPES = {"float32": np.float32, "float64": np.float64}
BATCH = 512  # rows at a time outside of training


class VAE(Parameters):
    """A variational autoencoder (Kingma and Welling 2014), and all its family.

    model: which of them, "vae" or one of tinyvae.models.KINDS, with options: "iwae:50".
    prior: p(z), one of tinyvae.priors.KINDS.  flow: None, or one of tinyvae.flows.KINDS, that the
    posterior's sample passes through.
    latent_dim: Z.  architecture: "mlp" (layers of `hidden` units) or "conv" (4x4 convolutions of
    stride 2 with `channels` filters, then `hidden`).  encoder, decoder: your own modules instead,
    x (B, ...) -> (mu, logvar) and z (B, Z) -> raw parameters; they are copied at fit.
    image_shape: (H, W, C), to read flat rows as images.
    likelihood: "bernoulli" (bits), "gaussian" (real values; `variance` a number, "learned" for
    every value or "shared"), "bce" (grey values in [0, 1]; a loss, not a likelihood), "laplace",
    "student:4" (real values), "beta" (in (0, 1)), "logistic:256", "mixture_logistic:5" (pixels of
    few levels), "categorical:10" (classes), "tokens:27" (sequences of symbols, ended by -1),
    "poisson" or "negative_binomial" (counts); or an object of tinyvae.likelihoods.
    binarize: "dynamic" or "static" draws bits from grey values; None leaves the data alone.
    missing: NaN in X is a missing value: the encoder sees 0 there, and the ELBO is that of the
    observed values (Nazabal et al. 2020); `impute` fills them in.
    corruption: "noise:0.3", "mask:0.2" or "salt:0.1" damages what the encoder sees in training,
    while the decoder has to give the clean row (Im et al. 2017).
    beta, kl_schedule: weight of the KL is beta times the schedule, a number, a text such as
    "linear:0:1:10", or a function of the time in epochs; "capacity:0:25:50" instead presses the KL
    to so many nats, with weight beta.  free_bits: nats per dimension and row, or in a batch's mean
    per group of latents ("group:0.5:4") or of all ("total:8").
    learning_rate: a number or a schedule.  clip_norm: largest gradient norm.  patience: stop when
    the validation ELBO has not risen for so many epochs, and keep the best weights.
    random_state: None, an int or a NumPy generator.  dtype: "float32" or "float64".
    device: "cpu", "cuda" (CuPy's arrays, on a GPU), or "auto": cuda if it can be used, else cpu.

    Learned: network_, likelihood_, history_ (a dict an epoch), seed_, n_features_in_, labels_ (what
    y was, if the model uses it) and classes_ (the labels, sorted, if y was labels),
    data_shape_ (of a row as the network sees it), row_shape_ (as it was given), scale_ (uint8
    pixels are divided by it: 255, or 1 if they are 0 and 1), device_ (cpu or cuda: the network
    lies there, all that is given and returned on the CPU), optimizer_, progress_.
    """

    def __init__(
        self,
        latent_dim: int = 20,
        *,
        model: Any = "vae",
        prior: Any = "standard",
        flow: Any = None,
        hidden: Sequence[int] = (400,),
        architecture: str = "mlp",
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
        encoder: Callable | None = None,
        decoder: Callable | None = None,
        image_shape: tuple[int, int, int] | None = None,
        likelihood: Any = "bernoulli",
        variance: float | str = 1.0,
        binarize: str | None = None,
        missing: bool = False,
        corruption: Any = None,
        beta: float = 1.0,
        kl_schedule: Any = 1.0,
        free_bits: float = 0.0,
        learning_rate: Any = 1e-3,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        batch_size: int = 128,
        epochs: int = 10,
        patience: int | None = None,
        random_state: Any = None,
        device: str = "auto",
        dtype: str = "float32",
    ):
        self.latent_dim = latent_dim
        self.model = model
        self.prior = prior
        self.flow = flow
        self.hidden = hidden
        self.architecture = architecture
        self.channels = channels
        self.activation = activation
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = image_shape
        self.likelihood = likelihood
        self.variance = variance
        self.binarize = binarize
        self.missing = missing
        self.corruption = corruption
        self.beta = beta
        self.kl_schedule = kl_schedule
        self.free_bits = free_bits
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    # ------------------------------------------------------------------------------- parameters
    def _validate(self) -> None:
        """Refuse hyperparameters that cannot work, before any data is touched."""
        for name in ("latent_dim", "batch_size", "epochs", "patience"):
            value = getattr(self, name)
            if name == "patience" and value is None:
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            if isinstance(sizes, (str, int)) or any(
                not isinstance(n, (int, np.integer)) or n < 1 for n in sizes
            ):
                raise ValueError(f"{name} must be whole numbers >= 1, got {sizes!r}")
        for name in ("beta", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm!r}")
        if self.binarize not in (None, *BINARIZE):
            raise unknown("binarize", self.binarize, [*BINARIZE, None])
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        devices.resolve(self.device)
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError("give both encoder and decoder, or neither")
        learning_rate = schedules.parse(self.learning_rate)
        if not learning_rate(0.0) > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}")
        schedules.parse(self.kl_schedule)
        networks.check_names(self.architecture, self.activation)
        prior, flow = self._specs()
        self._kind().check(
            prior=prior, flow=flow, free_bits=objectives.free_bits(self.free_bits),
            capacity=self._capacity(), own=self._own(),
            weighted=self.beta != 1 or self.kl_schedule not in (1, "1"),
            likelihood=self._likelihood(), missing=self.missing,
            corruption=corruptions.resolve(self.corruption),
        )  # fmt: skip

    def _kind(self) -> Spec:
        return spelling.parse(self.model, models.KINDS, "model")

    def _specs(self) -> tuple[Any, Any]:
        """What was asked for as prior and as flow."""
        flow = None if self.flow is None else spelling.parse(self.flow, flows.KINDS, "flow")
        return spelling.parse(self.prior, priors.KINDS, "prior"), flow

    def _likelihood(self) -> likelihoods.Likelihood:
        return likelihoods.resolve(self.likelihood, self.variance)

    def _capacity(self) -> float | None:
        """The weight of |KL - C|, if kl_schedule is a capacity C."""
        capacity = isinstance(schedules.parse(self.kl_schedule), schedules.Capacity)
        return self.beta if capacity else None

    def _own(self) -> tuple[Callable, Callable] | None:
        """The user's own networks."""
        if self.encoder is None or self.decoder is None:
            return None
        return self.encoder, self.decoder

    # ------------------------------------------------------------------------------------ fitting
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> VAE:
        """Train a new network on X.

        X: (N, D), (N, H, W) or (N, H, W, C); floats, or uint8 pixels.
        y: labels (N,), numbers or texts, or conditions (N, C) floats, for a model that uses them;
        else ignored.  -1 is an unknown label, where the model can do without some.
        validation: None, rows like X, the pair (X, y), or a fraction of X in (0, 1) to set aside at
        random.
        callbacks: tinyvae.train.Callback objects.
        checkpoint: a file to write after every epoch; with `resume` training continues from it,
        to the same bits as if it had never stopped.  Ctrl-C saves, then raises Interrupted.
        Raises ValueError for unsuitable hyperparameters or data, DivergedError if the loss is
        not finite, FileNotFoundError if there is nothing to resume, BackendError with the reason
        if device="cuda" cannot be used.
        """
        self._validate()
        (X, y), (held_X, held_y) = self._split(X, self._used(y, X), validation)
        if resume:
            if checkpoint is None:
                raise ValueError("resume=True needs the checkpoint to continue from")
            saved.resume(checkpoint, self, X, y)
        else:
            self._start(X, y)
        rows = self._checked_rows(X, "X", y)
        held = None if held_X is None else self._checked_rows(held_X, "validation", held_y)
        if self.patience is not None and held is None:
            raise ValueError("patience needs validation data: give fit(validation=...)")
        run = self._run(rows, held, callbacks)
        if checkpoint is not None:
            saved.plain_parameters(self)  # what cannot be written is refused before any work
            path, fingerprint = Path(checkpoint), saved.fingerprint(X, y)
            run.save = lambda: saved.write(path, self, run, fingerprint)
        run.train()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> VAE:
        """One pass over X, continuing from where the model stands; a new model starts."""
        self._validate()
        X = as_rows(np.asarray(X))
        y = self._used(y, X)
        if not hasattr(self, "network_"):
            self._start(X, y)
        self.progress_.stopped = False  # what ended an earlier fit does not end this pass
        self._run(self._checked_rows(X, "X", y), None, (), self.progress_.epoch + 1).train()
        return self

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> np.ndarray:
        """fit(X, y), then transform(X)."""
        return self.fit(X, y, **options).transform(X, y)

    def _used(self, y: Any, X: Any = None) -> Any:
        """y, if the model uses labels; ValueError if it cannot do without, or they are not X's."""
        kind = self._kind()
        if kind.labels == "ignored":
            return None
        if y is None and kind.labels == "needed":
            raise ValueError(f"model={kind.name!r} needs labels: give y")
        return None if y is None else checked_labels(y, None if X is None else len(X))

    @property
    def uses_labels(self) -> bool:
        """Whether the model uses y at all."""
        return self._kind().labels != "ignored"

    @property
    def is_loss(self) -> bool:
        """Whether what it trains on bounds no log p(x): -score is a loss then."""
        return self._likelihood().is_loss or not self._kind().bound

    @property
    def needs_labels(self) -> bool:
        """Whether the model cannot do without y."""
        return self._kind().labels == "needed"

    def _split(self, X: Any, y: Any, validation: Any) -> tuple[tuple, tuple]:
        """X and y to train on, and to validate with; None for what there is none of."""
        X = np.asarray(X)
        if isinstance(validation, tuple) and len(validation) == 2:
            return (X, y), (np.asarray(validation[0]), self._used(validation[1], validation[0]))
        if not isinstance(validation, (float, int)):
            held_X = None if validation is None else np.asarray(validation)
            return (X, y), (held_X, None if held_X is None else self._used(None))
        if not 0 < validation < 1:
            raise ValueError(f"validation must be rows, or a fraction in (0, 1), got {validation}")
        if not isinstance(self.random_state, (int, np.integer, type(None))):
            raise ValueError("a validation fraction needs random_state to be an int or None")
        order = np.random.default_rng([int(self.random_state or 0), 0xDA7A]).permutation(len(X))
        held = max(1, round(validation * len(X)))
        if held >= len(X):
            raise ValueError(f"validation={validation} leaves nothing of {len(X)} rows to train on")
        train, out = np.sort(order[held:]), np.sort(order[:held])
        parts = [(X[part], None if y is None else y[part]) for part in (train, out)]
        return parts[0], parts[1]

    def _start(self, X: np.ndarray, y: Any = None) -> None:
        """Everything that the data and the seed decide: shapes, labels, network, optimizer."""
        rows = as_rows(X)
        if self.image_shape is not None and math.prod(self.image_shape) != rows[0].size:
            raise ValueError(f"image_shape {self.image_shape} needs {math.prod(self.image_shape)} "
                             f"values a row, X has {rows[0].size}")  # fmt: skip
        self.seed_ = _seed(self.random_state)
        self.row_shape_ = tuple(X.shape[1:])
        self.data_shape_ = tuple(self.image_shape or rows.shape[1:])
        self.n_features_in_ = rows[0].size
        pixels = rows.dtype == np.uint8 and not self._likelihood().counts
        self.scale_ = 255.0 if pixels and rows.max(initial=0) > 1 else 1.0
        self._learn(None if y is None else Labels.of(y))
        self._build()
        self._best_state: dict[str, Any] | None = None
        self.progress_ = Progress()
        self.history_ = self.progress_.history

    def _learn(self, labels: Labels | None) -> None:
        """What y was at fit."""
        self.labels_: Any = labels
        self.classes_: Any = None if labels is None else labels.classes

    def _build(self) -> None:
        """Network and optimizer for the shapes and the seed at hand, on the device."""
        self.device_ = devices.resolve(self.device)
        self.likelihood_ = self._likelihood()
        prior, flow = self._specs()
        own, dtype = self._own(), DTYPES[self.dtype]
        parts = Parts(
            self.data_shape_, int(self.latent_dim), self.likelihood_, self.architecture,
            tuple(self.hidden), tuple(self.channels), self.activation, prior, flow,
            objectives.free_bits(self.free_bits), self._capacity(),
            classes=0 if self.classes_ is None else len(self.classes_),
            condition=0 if self.labels_ is None else self.labels_.size,
            own=None if own is None else copy.deepcopy(own),
            rng=np.random.default_rng(self.seed_), dtype=dtype,
        )  # fmt: skip
        self.network_ = self._kind().build(parts).astype(dtype).to(self.device_)
        if own is not None:
            self._check_own_network()
        self.optimizer_ = Adam(
            self.network_.parameters(), weight_decay=self.weight_decay,
            groups=self.network_.groups(),
        )  # fmt: skip

    def _check_own_network(self) -> None:
        """Try a user's modules on two rows of zeros, and say what does not fit."""
        dtype = DTYPES[self.dtype]
        x, z = (
            devices.move(np.zeros((2, *shape), dtype), self.device_)
            for shape in (self.data_shape_, (self.latent_dim,))
        )
        y = None
        if self.labels_ is not None:
            y = devices.move(np.zeros((2, self.labels_.size), dtype), self.device_)
        with no_grad():
            encoded = self.network_.encode(x, y)
            if not isinstance(encoded, tuple) or len(encoded) != 2:
                raise ValueError("encoder must return the pair (mu, logvar)")
            for name, tensor in zip(("mu", "logvar"), encoded, strict=True):
                if tensor.shape != (2, self.latent_dim):
                    raise ValueError(f"encoder gives {name} of shape {tensor.shape} for 2 rows, "
                                     f"expected (2, {self.latent_dim})")  # fmt: skip
            output = self.network_.decode(z, y).data
        expected = (*x.shape[:-1], x.shape[-1] * self.likelihood_.blocks)
        if output.shape != expected:
            raise ValueError(f"decoder gives shape {output.shape} for 2 rows, expected {expected}")

    def _run(
        self,
        rows: Rows,
        validation: Rows | None,
        callbacks: Sequence[Callback],
        epochs: int | None = None,
    ) -> Run:
        schedule = schedules.parse(self.kl_schedule)
        factor = self.beta if self._capacity() is None else 1.0  # a capacity is in nats
        settings = Settings(
            epochs=epochs or int(self.epochs),
            batch_size=int(self.batch_size),
            learning_rate=schedules.parse(self.learning_rate),
            kl_weight=lambda epoch: factor * schedule(epoch),
            seed=self.seed_,
            clip_norm=self.clip_norm,
            patience=self.patience,
        )
        again = self._kind().again(rows.y)
        rows = replace(rows, corruption=corruptions.resolve(self.corruption), again=again)
        return Run(
            self.network_, rows, validation, self.optimizer_, settings,
            self.progress_, callbacks, best_state=self._best_state,
        )  # fmt: skip

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
        seed = _seed(random_state)
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
        with no_grad():
            parts = [self.network_.reconstruct(batch) for _, batch in rows.in_order(BATCH)]
        return self._mean(devices.to_host(np.concatenate(parts)))

    def sample(
        self, n: int = 1, random_state: Any = None, *, mean: bool = True, y: Any = None
    ) -> np.ndarray:
        """n new rows from z ~ p(z): the means of p(x | z), or draws from it with mean=False.

        y: a label for all, or one for each row, for a model that needs them.
        """
        self._check_fitted()
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        seed, dtype, labels = _seed(random_state), DTYPES[self.dtype], self._labels(y, n)
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
        mean, quantiles = self._of_prior(np.linspace(0.025, 0.975, steps), Z)
        base = mean if x is None else self.encode(np.asarray(x)[None], y)[0]
        z = np.repeat(np.repeat(base.astype(dtype), steps, axis=0)[None], Z, axis=0)
        for j in range(Z):  # z: (Z, steps, Z)
            z[j, :, j] = quantiles[:, j]
        rows = self.decode(z.reshape(Z * steps, Z), y)
        return rows.reshape(Z, steps, *self.row_shape_)

    def _of_prior(self, probabilities: np.ndarray, Z: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean (1, Z) and quantiles (P, Z) of the prior, each dimension; from its samples."""
        prior, _ = self._specs()
        if prior == priors.Standard():
            exact = [[NormalDist().inv_cdf(p)] * Z for p in probabilities]
            return np.zeros((1, Z)), np.array(exact)
        like = self.network_.parameters()[0].data
        draw = Draw(4096, seed=self.seed_, stream=Stream.SAMPLE, dtype=like.dtype, like=like)
        z = devices.to_host(self.network_.prior.sample(draw.rows, draw))
        return z.mean(axis=0, keepdims=True), np.quantile(z, probabilities, axis=0)

    # --------------------------------------------------------------------------------- evaluation
    def elbo(self, X: Any, random_state: Any = None, *, y: Any = None) -> np.ndarray:
        """Evidence lower bound of each row, (N,) nats, with one sample of z a row.

        random_state: of that sample; by default the model's seed, so that the answer repeats.
        """
        rows = self._checked_rows(X, "X", y)
        seed = self.seed_ if random_state is None else _seed(random_state)
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
        seed = self.seed_ if random_state is None else _seed(random_state)
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
        if "missing" not in self._kind().takes:
            raise ValueError(f"model={self._kind().name!r} does not take missing values")
        self._check_fitted()
        if not self.network_.factors:
            raise ValueError("impute needs a model whose p(x | z) draws all values at once")
        if self.flow is not None:
            raise ValueError("impute does not go with a flow: a chain asks for q(z | x) of any z")
        rows = _with_mask(self._rows(X, "X", y))
        if rows.mask is None:
            return np.array(X)
        check_finite(rows.array, "X")
        self._check_values(rows, "X")
        seed = self.seed_ if random_state is None else _seed(random_state)
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
        with no_grad():
            parts = [self.network_.classify(batch.x) for _, batch in rows.in_order(BATCH)]
        return np.exp(devices.to_host(np.concatenate([part.data for part in parts])))

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

    # ------------------------------------------------------------------------------- saved models
    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file, whole or not at all; tinyvae.load reads it."""
        self._check_fitted()
        saved.write(path, self)


def load(
    path: str | Path,
    *,
    encoder: Callable | None = None,
    decoder: Callable | None = None,
    device: str = "auto",
) -> VAE:
    """The model that `VAE.save` or a checkpoint holds.

    encoder, decoder: modules like those it was made of, if it had its own.
    device: as VAE's, wherever the model was trained.
    Raises FileNotFoundError, or ValueError if the file is truncated, altered or not tinyvae's;
    BackendError with the reason if device="cuda" cannot be used.
    """
    devices.resolve(device)
    arrays, description = saved.read(path)
    if description["own_network"] and encoder is None:
        raise ValueError(f"{path} was made with its own encoder and decoder: give them to load")
    parameters = description["parameters"]
    parameters |= {"encoder": encoder, "decoder": decoder, "device": device}
    for name in ("hidden", "channels", "image_shape"):
        parameters[name] = None if parameters[name] is None else tuple(parameters[name])
    model = VAE(**parameters)
    saved.restore(model, arrays, description)
    return model


def _with_mask(rows: Rows) -> Rows:
    """The rows, NaNs replaced by 0, and a mask that says so; without NaN as they are."""
    missing = np.isnan(rows.array) if rows.array.dtype.kind == "f" else np.zeros(1, bool)
    if not missing.any():
        return rows
    return replace(rows, array=np.where(missing, 0, rows.array), mask=~missing)


def _seed(random_state: Any) -> int:
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


__all__ = ["VAE", "NotFittedError", "load"]
