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
from typing import Any

import numpy as np

from . import corruptions, devices, saved, schedules
from ._sklearn import NotFittedError
from .batches import Rows
from .data import as_rows
from .fitted import Fitted, seed_of
from .labels import Labels
from .models import Parts
from .optim import Adam
from .options import DTYPES
from .tensor import no_grad
from .train import Callback, Progress, Run, Settings


class VAE(Fitted):
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
    precision: of training's float32 matrix products, "float32"; on a GPU also "tf32" or "bf16",
    which round the factors to 10 or 7 bits for the tensor cores; evaluation stays exact.
    device: "cpu", "cuda" (CuPy's arrays, on a GPU), or "auto": cuda if it can be used, else cpu.

    Learned: network_, likelihood_, history_ (a dict an epoch), seed_, n_features_in_, labels_ (what
    y was, if the model uses it) and classes_ (the labels, sorted, if y was labels),
    data_shape_ (of a row as the network sees it), row_shape_ (as it was given), scale_ (uint8
    pixels are divided by it: 255, or 1 if they are 0 and 1), device_ (cpu or cuda: the network
    lies there, all that is given and returned on the CPU), optimizer_, progress_.
    """

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
        self.seed_ = seed_of(self.random_state)
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
            self._free_bits(),
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
            precision=self.precision,
        )
        again = self._kind().again(rows.y)
        rows = replace(rows, corruption=corruptions.resolve(self.corruption), again=again)
        return Run(
            self.network_, rows, validation, self.optimizer_, settings,
            self.progress_, callbacks, best_state=self._best_state,
        )  # fmt: skip

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


__all__ = ["VAE", "NotFittedError", "load"]
