"""Encoders and decoders: x -> features -> mu, logvar;  z -> parameters of p(x | z).

A condition y of E numbers a row (`extra=E`) is joined to x where the encoder's dense layers begin,
and to z.

Sizes: B batch, H W image, C channels, Z latent, D data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._text import unknown
from ..nn import ACTIVATIONS, Conv2d, ConvTranspose2d, Linear, Module, Reshape, Sequential
from ..tensor import Tensor

ARCHITECTURES = ("mlp", "conv")


class GaussianEncoder(Module):
    """A body that ends in features, and two linear heads on them: mu and logvar."""

    def __init__(self, body: Callable, features: int, latent_dim: int, **options: Any):
        self.body = body
        self.mu = Linear(features, latent_dim, **options)
        self.logvar = Linear(features, latent_dim, **options)

    def __call__(self, x: Any, *condition: Any) -> tuple[Tensor, Tensor]:
        """x (B, ...), and y (B, E) if there is a condition -> mu, logvar, each (B, Z)."""
        return self.heads(self.body(x, *condition))

    def heads(self, features: Any) -> tuple[Tensor, Tensor]:
        """The body's features (B, F) -> mu, logvar, each (B, Z)."""
        return self.mu(features), self.logvar(features)

    def every(self, x: Any, conditions: Any) -> tuple[Tensor, Tensor]:
        """Each row with each condition: x (B, ...), (C, E) -> mu, logvar, each (B C, Z)."""
        return self.heads(self.body.every(x, conditions))  # type: ignore[attr-defined]


class Joined(Module):
    """x -> front -> (B, F); then with y (B, E) beside it -> dense."""

    def __init__(self, front: Callable, dense: Callable):
        self.front, self.dense = front, dense

    def __call__(self, x: Any, y: Any = None) -> Tensor:
        """x (B, ...), y (B, E) -> what `dense` makes of (B, F + E)."""
        return self.dense(ops.concatenate([self.front(x), y]))

    def every(self, x: Any, conditions: Any) -> Tensor:
        """Each row with each condition: x (B, ...), (C, E) -> (B C, ...), a row's C together.

        (x, y) W = x W_x + y W_y: what the first layer makes of x is the same for all conditions.
        """
        B, C = len(x), len(conditions)
        if not self.dense.layers:  # type: ignore[attr-defined]
            return self(np.repeat(x, C, axis=0), np.tile(conditions, (B, 1)))
        first, *others = self.dense.layers  # type: ignore[attr-defined]
        rows, H = first.weight.shape
        of_x, of_y = (
            first.weight[: rows - conditions.shape[1]],
            first.weight[-conditions.shape[1] :],
        )
        from_x = ops.reshape(ops.linear(self.front(x), of_x, first.bias), (B, 1, H))
        from_y = ops.reshape(ops.linear(conditions, of_y), (1, C, H))
        return Sequential(*others)(ops.reshape(from_x + from_y, (B * C, H)))


def _body(front: list, dense: list, extra: int) -> Callable:
    """The body of an encoder from its layers: before a condition comes in, and after."""
    if extra:
        return Joined(Sequential(*front), Sequential(*dense))
    return Sequential(*front, *dense)


def _dense(sizes: list[int], activation: Callable, **options: Any) -> list:
    """Linear layers of these sizes, an activation after each."""
    layers: list = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [Linear(inputs, outputs, **options), activation]
    return layers


def mlp(
    shape: tuple[int, ...],
    latent_dim: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Callable,
    *,
    extra: int = 0,
    **options: Any,
) -> tuple[Callable, int, Callable]:
    """Fully connected: D - hidden, and Z - hidden - D.

    shape: of a row of x; outputs: parameters per value of x; options: rng, dtype.
    Returns the encoder's body x -> features, their number, and the decoder.
    """
    D = math.prod(shape)
    down, up = [D + extra, *hidden], [latent_dim + extra, *hidden[::-1]]
    body = _body([Reshape(-1)], _dense(down, activation, **options), extra)
    decoder = Sequential(
        *_dense(up, activation, **options),
        Linear(up[-1], outputs * D, **options),
        Reshape(*shape[:-1], outputs * shape[-1]),
    )
    return body, down[-1], decoder


def conv(
    shape: tuple[int, ...],
    latent_dim: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Callable,
    *,
    channels: tuple[int, ...] = (32, 64),
    extra: int = 0,
    **options: Any,
) -> tuple[Callable, int, Callable]:
    """Convolutions 4x4 of stride 2 that halve the image, dense layers, and the mirror of it all.

    shape: (H, W, C) of an image; channels: filters of each convolution; hidden: dense sizes;
    outputs: parameters per value of x; options: rng, dtype.
    Returns the encoder's body x -> features, their number, and the decoder.
    Raises ValueError if the image is too small for that many halvings.
    """
    front, sizes = halvings(shape, channels, activation, **options)
    H, W, C = *sizes[-1], [shape[2], *channels][-1]
    dense = [H * W * C + extra, *hidden]
    body = _body([*front, Reshape(-1)], _dense(dense, activation, **options), extra)
    up = [latent_dim + extra, *hidden[::-1], H * W * C]
    decoder: list = [*_dense(up, activation, **options), Reshape(H, W, C)]
    decoder += doublings(sizes, [*channels[::-1], outputs * shape[2]], activation, **options)
    return body, dense[-1], Sequential(*decoder)


HALVING: dict[str, Any] = {"stride": 2, "padding": 1}


def halvings(
    shape: tuple[int, ...], channels: tuple[int, ...], activation: Callable, **options: Any
) -> tuple[list, list[tuple[int, int]]]:
    """Layers (B, H, W, C) -> (B, H', W', channels[-1]), and the image's size before and after each.

    shape: (H, W, C).
    Raises ValueError if the image is too small for that many halvings, or is no image.
    """
    if len(shape) != 3:
        raise ValueError(
            f"the conv architecture needs images (N, H, W, C), got rows of shape {shape}: reshape "
            "them, or give image_shape=(H, W, C)"
        )
    layers: list = []
    (H, W, C), sizes = shape, [(shape[0], shape[1])]
    for filters in channels:
        if min(H, W) < 2:
            raise ValueError(
                f"an image of {shape[0]}x{shape[1]} cannot be halved {len(channels)} times: give "
                f"fewer channels than {channels}"
            )
        layers += [Conv2d(C, filters, 4, **HALVING, **options), activation]
        H, W, C = H // 2, W // 2, filters
        sizes.append((H, W))
    return layers, sizes


def doublings(
    sizes: list[tuple[int, int]], widths: Sequence[int], activation: Callable, **options: Any
) -> list:
    """The way back through the sizes of `halvings`; widths: channels before and after each layer.

    The last layer's output is raw.
    """
    layers: list = []
    for i, size in enumerate(sizes[-2::-1]):
        up = ConvTranspose2d(widths[i], widths[i + 1], 4, output_size=size, **HALVING, **options)
        layers += [up, activation]
    return layers[:-1]


def body_and_decoder(
    architecture: str,
    shape: tuple[int, ...],
    latent_dim: int,
    *,
    hidden: tuple[int, ...],
    channels: tuple[int, ...],
    outputs: int,
    activation: str | Callable,
    rng: np.random.Generator,
    dtype: Any = np.float32,
    extra: int = 0,
) -> tuple[Callable, int, Callable]:
    """The body of an encoder x -> features, their number, and a decoder z -> raw parameters.

    extra: numbers of a condition y that both take too: (x, y) -> features, (z, y) -> parameters.
    Raises ValueError for an unknown architecture or activation.
    """
    check_names(architecture, activation)
    if isinstance(activation, str):
        activation = ACTIVATIONS[activation]
    common = (shape, latent_dim, tuple(hidden), outputs, activation)
    options: dict[str, Any] = {"extra": extra, "rng": rng, "dtype": dtype}
    if architecture == "mlp":
        body, features, decoder = mlp(*common, **options)
    else:
        body, features, decoder = conv(*common, channels=tuple(channels), **options)
    return body, features, Joined(Sequential(), decoder) if extra else decoder


def encoder_and_decoder(
    architecture: str, shape: tuple[int, ...], latent_dim: int, **options: Any
) -> tuple[GaussianEncoder, Callable]:
    """An encoder x -> mu, logvar and a decoder z -> raw parameters; options of body_and_decoder."""
    body, features, decoder = body_and_decoder(architecture, shape, latent_dim, **options)
    weights = {name: options[name] for name in ("rng", "dtype") if name in options}
    return GaussianEncoder(body, features, latent_dim, **weights), decoder


def check_names(architecture: str, activation: str | Callable) -> None:
    """Raise ValueError for an architecture or an activation that does not exist."""
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
