"""The hyperparameters: declared once, for the estimator and for the command line.

A field of `Options` has its default, and in its metadata what `tinyvae train --help` says of it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import numpy as np

from . import (
    corruptions,
    devices,
    flows,
    likelihoods,
    models,
    objectives,
    priors,
    schedules,
    spelling,
)
from ._sklearn import Parameters
from ._text import unknown
from .batches import BINARIZE
from .models import Spec, networks

DTYPES = {"float32": np.float32, "float64": np.float64}
DATA, MODEL, OBJECTIVE = "Data", "Model", "Objective"
OPTIMIZATION, RUN = "Optimization", "Run"  # the panels of --help, in their order
PANELS = (DATA, MODEL, OBJECTIVE, OPTIMIZATION, RUN)


# -------------------------------------------------------------------------- on the command line
@dataclass(frozen=True)
class Help:
    """What the command line says of a hyperparameter, and how it reads it.

    panel: of --help.  unit: what stands for its value.  parse: from the text that was typed.
    flag: its name, if that is not the hyperparameter's.  default: in words, if that says more than
    the value.  least: the smallest whole number that it may be.
    """

    panel: str
    text: str
    unit: str = ""
    parse: Callable[[str], Any] | None = None
    flag: str = ""
    default: str = ""
    least: int | None = None


def said(*of: Any, **more: Any) -> dict[str, Help]:
    """The metadata of a hyperparameter that the command line takes."""
    return {"help": Help(*of, **more)}


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"expected whole numbers with commas between, got {text!r}") from None


def number_or_text(text: str) -> float | str:
    """A number if it is one."""
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def text_or_none(text: str) -> str | None:
    """None for "none"."""
    return None if text == "none" else text


def spell(value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "none" if value is None else str(value)


# ------------------------------------------------------------------------------ hyperparameters
# fmt: off
@dataclass(eq=False, repr=False)
class Options(Parameters):
    """What is set before training; tinyvae.VAE says more of each."""

    latent_dim: int = field(default=20, metadata=said(MODEL, "Latent dimensions.", "N"))
    _: KW_ONLY
    model: Any = field(default="vae", metadata=said(
        MODEL, f"What to train: {', '.join(models.KINDS)}; options after a colon.", "NAME"))
    prior: Any = field(default="standard", metadata=said(
        MODEL, f"p(z): {', '.join(priors.KINDS)}; options after a colon.", "NAME"))
    flow: Any = field(default=None, metadata=said(
        MODEL, "Of the posterior: planar:8, iaf:4, ..", "NAME", text_or_none))
    hidden: Sequence[int] = field(default=(400,), metadata=said(
        MODEL, "Units of each dense layer.", "N,N,..", numbers))
    architecture: str = field(default="mlp", metadata=said(
        MODEL, "mlp, or conv: convolutions before the dense layers.", "NAME"))
    channels: Sequence[int] = field(default=(32, 64), metadata=said(
        MODEL, "Filters of each convolution.", "N,N,..", numbers))
    activation: str = field(default="relu", metadata=said(
        MODEL, "relu, gelu, silu, elu, tanh, ..", "NAME"))
    encoder: Callable | None = None
    decoder: Callable | None = None
    image_shape: tuple[int, int, int] | None = field(default=None, metadata=said(
        DATA, "Read flat rows as images.", "H,W,C", numbers))
    likelihood: Any = field(default="bernoulli", metadata=said(
        OBJECTIVE, f"p(x|z): {', '.join(likelihoods.LIKELIHOODS)}; options after a colon: "
        "student:4, mixture_logistic:5. bce is a plain loss.", "NAME"))
    variance: float | str = field(default=1.0, metadata=said(
        OBJECTIVE, "Of the gaussian likelihood: a number, learned (for every value) or shared.",
        "X", number_or_text))
    binarize: str | None = field(default=None, metadata=said(
        DATA, "Draw bits from grey values: dynamic (at every step), static (once) or none.",
        "NAME", text_or_none, default="dynamic if grey images meet bernoulli"))
    missing: bool = field(default=False, metadata=said(DATA, "NaN is a missing value."))
    corruption: Any = field(default=None, metadata=said(
        DATA, "Damage what the encoder sees in training: noise:0.3, mask:0.2 or salt:0.1.",
        "NAME", text_or_none))
    beta: float = field(default=1.0, metadata=said(OBJECTIVE, "Weight of the KL.", "X"))
    kl_schedule: Any = field(default=1.0, metadata=said(
        OBJECTIVE, "Factor of beta over the epochs: linear:0:1:10, cyclical:0:1:5, .. Or the nats "
        "that the KL is pressed to, with weight beta: capacity:0:25:50.", "X", number_or_text))
    free_bits: float | str = field(default=0.0, metadata=said(
        OBJECTIVE, "Nats of KL that cost nothing, per latent dimension; or group:0.5:4, total:8.",
        "X", number_or_text))
    learning_rate: Any = field(default=1e-3, metadata=said(
        OPTIMIZATION, "Of Adam: a number, or over the epochs cosine:0.001:0:10, ..", "X",
        number_or_text))
    weight_decay: float = field(default=0.0, metadata=said(
        OPTIMIZATION, "Shrinks the weights, apart from Adam.", "X"))
    clip_norm: float | None = field(default=None, metadata=said(
        OPTIMIZATION, "Largest gradient norm.", "X"))
    batch_size: int = field(default=128, metadata=said(OPTIMIZATION, "Rows in a step.", "N"))
    epochs: int = field(default=10, metadata=said(
        OPTIMIZATION, "Passes over the training rows.", "N"))
    patience: int | None = field(default=None, metadata=said(
        OPTIMIZATION, "Stop after N epochs without a better validation ELBO; keep the best "
        "weights.", "N"))
    random_state: Any = field(default=None, metadata=said(
        OPTIMIZATION, "Of all random numbers: same seed, same model.", "S", flag="--seed",
        default="0", least=0))
    device: str = field(default="auto", metadata=said(
        RUN, "Where to compute: cpu, cuda (a GPU), or auto: cuda if it can be used.", "NAME"))
    dtype: str = field(default="float32", metadata=said(
        OPTIMIZATION, "Of weights and rows: float32 or float64.", "NAME"))
    precision: str = field(default="float32", metadata=said(
        OPTIMIZATION, "Of training's matrix products: float32; on a GPU also tf32 or bf16, whose "
        "factors are rounded.", "NAME"))
    # fmt: on

    # ------------------------------------------------------------------------------ what they mean
    def _validate(self) -> None:
        """Refuse hyperparameters that cannot work, before any data is touched."""
        self._check_numbers()
        if self.binarize not in (None, *BINARIZE):
            raise unknown("binarize", self.binarize, [*BINARIZE, None])
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        self._check_precision(devices.resolve(self.device))
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError("give both encoder and decoder, or neither")
        networks.check_names(self.architecture, self.activation)
        prior, flow = self._specs()
        usual = self._defaults()["latent_dim"]
        self._kind().check(
            latent_dim=None if self.latent_dim == usual else self.latent_dim,
            prior=prior, flow=flow, free_bits=objectives.free_bits(self.free_bits),
            capacity=self._capacity(), own=self._own(),
            weighted=self.beta != 1 or self.kl_schedule not in (1, "1"),
            likelihood=self._likelihood(), missing=self.missing,
            corruption=corruptions.resolve(self.corruption),
        )  # fmt: skip

    def _check_numbers(self) -> None:
        for name in ("latent_dim", "batch_size", "epochs", "patience"):
            value = getattr(self, name)
            if not (_is_size(value) or (name == "patience" and value is None)):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            if isinstance(sizes, (str, int)) or not all(map(_is_size, sizes)):
                raise ValueError(f"{name} must be whole numbers >= 1, got {sizes!r}")
        for name in ("beta", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm!r}")
        if not schedules.parse(self.learning_rate)(0.0) > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}")
        schedules.parse(self.kl_schedule)

    def _check_precision(self, device: str) -> None:
        if self.precision not in devices.PRECISIONS:
            raise unknown("precision", self.precision, devices.PRECISIONS)
        if self.precision == "float32":
            return
        if device == "cpu":
            raise ValueError(
                f"precision={self.precision!r} needs a GPU: the CPU multiplies float32 exactly"
            )
        if self.dtype != "float32":
            raise ValueError(f"precision={self.precision!r} is of float32, dtype={self.dtype!r}")

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

    def _free_bits(self) -> Any:
        """What the KL may cost, as objectives.elbo takes it."""
        gamma = self._capacity()
        return objectives.free_bits(self.free_bits) if gamma is None else objectives.Towards(gamma)

    def _own(self) -> tuple[Callable, Callable] | None:
        """The user's own networks."""
        if self.encoder is None or self.decoder is None:
            return None
        return self.encoder, self.decoder

    @property
    def uses_labels(self) -> bool:
        """Whether the model uses y at all."""
        return self._kind().labels != "ignored"

    @property
    def has_own_sizes(self) -> bool:
        """Whether the model's own text says how large z is, and latent_dim has no say."""
        return "latent_dim" in self._kind().refuses

    @property
    def is_loss(self) -> bool:
        """Whether what it trains on bounds no log p(x): -score is a loss then."""
        return self._likelihood().is_loss or not self._kind().bound

    @property
    def needs_labels(self) -> bool:
        """Whether the model cannot do without y."""
        return self._kind().labels == "needed"


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


HELP: dict[str, Help] = {f.name: f.metadata["help"] for f in fields(Options) if f.metadata}


def flag(name: str) -> str:
    """The option of `tinyvae train` that sets a hyperparameter, --latent-dim say."""
    given = HELP[name].flag if name in HELP else ""
    return given or f"--{name.replace('_', '-')}"
