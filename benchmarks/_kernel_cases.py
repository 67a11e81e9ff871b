"""What the kernels' benchmark times: one row a kernel, with its arrays, sizes and bytes.

Every kernel gets about B D elements in its main argument: a loss takes (B, D), and where the shape
is another by nature the row says which.  Z = 32 latents in an ELBO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Z = 32  # latents of an ELBO
SAMPLES = 50  # K of log_mean_exp
CLASSES = 16  # of a categorical position
COMPONENTS = 5  # of a mixture of logistics
CODES, WIDTH = 512, 64  # of the codebook
GAUSSIANS = 64  # of a mixture
IMAGE = (28, 28, 32)
PATCH: dict[str, Any] = {"kernel": (4, 4), "stride": 2, "padding": 1}
POSITIONS = 14 * 14  # of such patches in an image
SEED = {"seed": 7, "stream": 1, "step": 3}
SIZES = [(128, 784), (2048, 784), (8192, 3072)]
GPU_SIZES = [*SIZES, (65536, 3072)]
MODES = ("forward", "gradient")
DRAWN = 1 << 20  # numbers that are drawn; a longer array repeats them


class Argument(NamedTuple):
    """An array argument: what fills it, its shape for (B, D), and whether it gets a gradient."""

    name: str
    fill: str
    shape: Callable[[int, int], Shape]
    data: bool = False


class Kernel(NamedTuple):
    """One row: a pair, called as forward(*arrays, **options), or a function without a gradient.

    pair: its name, if that is not the row's; out: the shape of the result; in_place: positions of
    the arrays that are overwritten; copied: of those whose gradient is `dout` itself and moves no
    bytes; random: no two peers agree.
    """

    name: str
    arguments: tuple[Argument, ...]
    out: Callable[[int, int], Shape] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  (never modified)
    note: str = ""
    function: bool = False
    pair: str = ""
    in_place: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    random: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """What is timed: a function without a gradient has only a forward."""
        return ("forward",) if self.function else MODES

    def arrays(self, B: int, D: int) -> list[np.ndarray]:
        """The arguments, the same numbers for every peer."""
        return [
            filled(a.fill, a.shape(B, D), np.random.default_rng([position, B, D]))
            for position, a in enumerate(self.arguments)
        ]

    def dout(self, B: int, D: int) -> np.ndarray:
        """The gradient that comes in."""
        assert self.out
        return filled("normal", self.out(B, D), np.random.default_rng([99, B, D]))

    def bytes(self, B: int, D: int, mode: str) -> int:
        """What must be moved: every input read once, every output written once."""
        sizes = [
            math.prod(a.shape(B, D)) * (8 if a.fill == "labels" else 4) for a in self.arguments
        ]
        out = 4 * math.prod(self.out(B, D)) if self.out else 0
        forward = sum(sizes) + out + sum(sizes[i] for i in self.in_place)
        if mode == "forward":
            return forward
        gradients = (
            size
            for i, (a, size) in enumerate(zip(self.arguments, sizes, strict=True))
            if not a.data and i not in self.copied
        )
        return forward + out + sum(gradients)  # dout has the shape of out


def filled(fill: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Numbers of a kind: float32, but int64 labels."""
    n = min(math.prod(shape), DRAWN)
    values = {
        "normal": lambda: rng.standard_normal(n, np.float32),
        "logits": lambda: 3 * rng.standard_normal(n, np.float32),
        "log_scale": lambda: 0.5 * rng.standard_normal(n, np.float32) - 1,
        "log_alpha": lambda: 0.5 * rng.standard_normal(n, np.float32),
        "logvar": lambda: 0.5 * rng.standard_normal(n, np.float32),
        "log_weights": lambda: 5 * rng.standard_normal(n, np.float32),
        "bits": lambda: (rng.random(n) < 0.3).astype(np.float32),
        "unit": lambda: rng.uniform(0.05, 0.95, n).astype(np.float32),
        "pixels": lambda: (rng.integers(0, 256, n) / 127.5 - 1).astype(np.float32),
        "labels": lambda: rng.integers(0, CLASSES, n),
        "zeros": lambda: np.zeros(n, np.float32),
    }[fill]()
    return np.resize(values, shape)


# ------------------------------------------------------------------------------------------ rows
def _rows(B: int, D: int) -> Shape:
    return (B,)


def _full(B: int, D: int) -> Shape:
    return (B, D)


def _latent(B: int, D: int) -> Shape:
    return (B, Z)


def _flat(B: int, D: int) -> Shape:
    return (B * D,)


def _images(B: int, D: int) -> Shape:
    return (max(1, B * D // math.prod(IMAGE)), *IMAGE)


def _patches(B: int, D: int) -> Shape:
    return (_images(B, D)[0] * POSITIONS, 16 * IMAGE[2])


def _samples(B: int, D: int) -> Shape:
    return (B * D // SAMPLES, SAMPLES)


def _means(B: int, D: int) -> Shape:
    return (B * D // SAMPLES,)


def _drawn(B: int, D: int) -> Shape:
    return (max(1, B // SAMPLES), SAMPLES, D)


def _drawn_rows(B: int, D: int) -> Shape:
    return (max(1, B // SAMPLES), D)


def _drawn_weights(B: int, D: int) -> Shape:
    return (max(1, B // SAMPLES), SAMPLES)


def _drawn_means(B: int, D: int) -> Shape:
    return (max(1, B // SAMPLES),)


def _decoded(B: int, D: int) -> Shape:
    return (max(1, B // SAMPLES) * SAMPLES, D)


def _columns(B: int, D: int) -> Shape:
    return (D,)


def _number(B: int, D: int) -> Shape:
    return ()


def _positions(B: int, D: int) -> Shape:
    return (B, D // CLASSES)


def _classes(B: int, D: int) -> Shape:
    return (B, D // CLASSES, CLASSES)


def _vectors(B: int, D: int) -> Shape:
    return (B * D // WIDTH, WIDTH)


def _codebook(B: int, D: int) -> Shape:
    return (CODES, WIDTH)


def _mixed(B: int, D: int) -> Shape:
    return (max(1, B * D // (GAUSSIANS * Z)), Z)


def _mixed_rows(B: int, D: int) -> Shape:
    return _mixed(B, D)[:1]


def _gaussians(B: int, D: int) -> Shape:
    return (GAUSSIANS, Z)


def _weights(B: int, D: int) -> Shape:
    return (GAUSSIANS,)


def _pixels(B: int, D: int) -> Shape:
    return (B, D // (3 * COMPONENTS))


def _components(B: int, D: int) -> Shape:
    return (*_pixels(B, D), COMPONENTS)


def argument(name: str, fill: str, shape: Any = _full, *, data: bool = False) -> Argument:
    return Argument(name, fill, shape, data)


MU, LOGVAR = argument("mu", "normal"), argument("logvar", "logvar")
X_MU, X_LOGVAR = argument("x_mu", "normal"), argument("x_logvar", "logvar")
LOGITS, BITS = argument("logits", "logits"), argument("x", "bits", data=True)
X = argument("x", "normal", data=True)
LATENT = (argument("mu", "normal", _latent), argument("logvar", "logvar", _latent))
BIASED = (argument("x", "normal"), argument("bias", "normal", _columns))
MIXTURE = (
    argument("z", "normal", _mixed), argument("log_weights", "normal", _weights),
    argument("mu", "normal", _gaussians), argument("logvar", "logvar", _gaussians),
)  # fmt: skip
MIXTURE_NOTE = f"z (B D / {GAUSSIANS * Z}, {Z}), {GAUSSIANS} Gaussians"
EPS = argument("eps", "normal", _drawn, data=True)
X_DRAWN = argument("x", "normal", _drawn_rows, data=True)
RATIO = argument("log_ratio", "normal", _drawn_weights)
DRAWN_NOTE = f"K = {SAMPLES} samples of each of B / {SAMPLES} rows"
PATCHES_NOTE = "n = B D / 25088 images of 28 x 28 x 32, 4 x 4 patches, stride 2"

KERNELS = {
    kernel.name: kernel
    for kernel in [
        Kernel("bernoulli_elbo", (LOGITS, BITS, *LATENT), _rows, note=f"(B, D), Z = {Z}"),
        Kernel("gaussian_elbo", (X_MU, X_LOGVAR, X, *LATENT), _rows, note=f"(B, D), Z = {Z}"),
        Kernel(
            "gaussian_fixed_elbo", (X_MU, X, *LATENT), _rows, {"variance": 0.5},
            note=f"(B, D), Z = {Z}",
        ),
        Kernel("bernoulli_nll", (LOGITS, BITS), _rows),
        Kernel("gaussian_nll", (X_MU, X_LOGVAR, X), _rows),
        Kernel("gaussian_fixed_nll", (X_MU, X), _rows, {"variance": 0.5}),
        Kernel(
            "categorical_nll",
            (argument("logits", "logits", _classes),
             argument("labels", "labels", _positions, data=True)),
            _rows, note=f"(B, D / {CLASSES}, {CLASSES})",
        ),
        Kernel(
            "logistic_mixture_nll",
            (
                argument("logit_weight", "normal", _components),
                argument("x_mu", "normal", _components),
                argument("log_scale", "log_scale", _components),
                argument("x", "pixels", _pixels, data=True),
            ),
            _rows, note=f"x (B, D / {3 * COMPONENTS}), K = {COMPONENTS}",
        ),
        Kernel(
            "beta_nll",
            (
                argument("log_alpha", "log_alpha"), argument("log_beta", "log_alpha"),
                argument("x", "unit", data=True),
            ),
            _rows,
        ),
        Kernel(
            "reparameterize", (MU, LOGVAR, argument("eps", "normal", data=True)), _full,
            note="Z = D", copied=(0,),
        ),
        Kernel(
            "gaussian_sample", (MU, LOGVAR), _full, SEED, note="Z = D", copied=(0,), random=True
        ),
        Kernel("gaussian_kl", (MU, LOGVAR), _rows, note="Z = D"),
        Kernel("gaussian_kl_total", (MU, LOGVAR), _number, note="Z = D"),
        Kernel(
            "gaussian_kl_between",
            (MU, LOGVAR, argument("mu2", "normal"), argument("logvar2", "logvar")),
            _rows, note="Z = D",
        ),
        Kernel(
            "log_mean_exp", (argument("log_w", "log_weights", _samples),), _means,
            note=f"(B D / {SAMPLES}, {SAMPLES})",
        ),
        Kernel(
            "reparameterize_samples",
            (argument("mu", "normal", _drawn_rows), argument("logvar", "logvar", _drawn_rows), EPS),
            _drawn, note=f"{DRAWN_NOTE}, Z = D",
        ),
        Kernel(
            "gaussian_log_ratio",
            (argument("z", "normal", _drawn), argument("logvar", "logvar", _drawn_rows), EPS),
            _drawn_weights, note=f"{DRAWN_NOTE}, Z = D",
        ),
        Kernel(
            "bernoulli_iwae",
            (
                argument("logits", "logits", _decoded),
                argument("x", "bits", _drawn_rows, data=True), RATIO,
            ),
            _drawn_means, note=DRAWN_NOTE,
        ),
        Kernel(
            "gaussian_iwae",
            (
                argument("x_mu", "normal", _decoded), argument("x_logvar", "logvar", _decoded),
                X_DRAWN, RATIO,
            ),
            _drawn_means, note=DRAWN_NOTE,
        ),
        Kernel(
            "gaussian_fixed_iwae", (argument("x_mu", "normal", _decoded), X_DRAWN, RATIO),
            _drawn_means, {"variance": 0.5}, note=DRAWN_NOTE,
        ),
        Kernel("mixture_log_prob", MIXTURE, _mixed_rows, note=MIXTURE_NOTE),
        Kernel("mixture_marginal_log_prob", MIXTURE, _mixed, note=MIXTURE_NOTE),
        Kernel(
            "nearest_code",
            (
                argument("z", "normal", _vectors),
                argument("codebook", "normal", _codebook, data=True),
            ),
            _vectors, note=f"z (B D / {WIDTH}, {WIDTH}), {CODES} codes", copied=(0,),
        ),
        Kernel("total", (argument("values", "normal", _rows),), _number, note="(B,)"),
        Kernel("bias_activation", BIASED, _full, {"activation": "relu"}, note="relu"),
        Kernel(
            "bias_gelu", BIASED, _full, {"activation": "gelu"}, note="bias_activation, gelu",
            pair="bias_activation",
        ),
        Kernel(
            "adam_update",
            (
                argument("parameter", "normal", _flat), argument("gradient", "normal", _flat),
                argument("m", "zeros", _flat), argument("v", "zeros", _flat),
            ),
            options={"step": 1}, note="B D parameters", function=True,
            in_place=(0, 2, 3),
        ),
        Kernel(
            "sgd_update",
            (
                argument("parameter", "normal", _flat), argument("gradient", "normal", _flat),
                argument("velocity", "zeros", _flat),
            ),
            options={"learning_rate": 1e-3, "momentum": 0.9}, note="B D parameters, momentum",
            function=True, in_place=(0, 2),
        ),
        Kernel("im2col", (argument("x", "normal", _images),), _patches, PATCH, note=PATCHES_NOTE),
        Kernel(
            "col2im", (argument("patches", "normal", _patches),), _images, PATCH,
            note=PATCHES_NOTE,
        ),
        Kernel(
            "philox_normal", (), _full, SEED, note="B D numbers", function=True,
            random=True,
        ),
        Kernel(
            "philox_uniform", (), _full, SEED, note="B D numbers", function=True,
            random=True,
        ),
    ]
}  # fmt: skip


def there(package: Any) -> list[Kernel]:
    """The rows whose kernel this version of tinyvae_kernels has."""
    names = package.PAIRS.keys() | vars(package).keys()
    return [kernel for kernel in KERNELS.values() if (kernel.pair or kernel.name) in names]


def missing(package: Any) -> list[str]:
    """Its pairs that have no row here."""
    return [name for name in package.PAIRS if name not in KERNELS]
