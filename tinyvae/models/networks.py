"""Encoders and decoders: x -> features -> mu, logvar;  z -> parameters of p(x | z).

Sizes: B batch, H W image, C channels, Z latent, D data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

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

    def __call__(self, x: Any) -> tuple[Tensor, Tensor]:
        """x (B, ...) -> mu, logvar, each (B, Z)."""
        return self.heads(self.body(x))

    def heads(self, features: Any) -> tuple[Tensor, Tensor]:
        """The body's features (B, F) -> mu, logvar, each (B, Z)."""
        return self.mu(features), self.logvar(features)


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
    **options: Any,
) -> tuple[Callable, int, Callable]:
    """Fully connected: D - hidden, and Z - hidden - D.

    shape: of a row of x; outputs: parameters per value of x; options: rng, dtype.
    Returns the encoder's body x -> features, their number, and the decoder.
    """
    D = math.prod(shape)
    body = Sequential(Reshape(-1), *_dense([D, *hidden], activation, **options))
    decoder = Sequential(
        *_dense([latent_dim, *hidden[::-1]], activation, **options),
        Linear([latent_dim, *hidden[::-1]][-1], outputs * D, **options),
        Reshape(*shape[:-1], outputs * shape[-1]),
    )
    return body, [D, *hidden][-1], decoder


def conv(
    shape: tuple[int, ...],
    latent_dim: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Callable,
    *,
    channels: tuple[int, ...] = (32, 64),
    **options: Any,
) -> tuple[Callable, int, Callable]:
    """Convolutions 4x4 of stride 2 that halve the image, dense layers, and the mirror of it all.

    shape: (H, W, C) of an image; channels: filters of each convolution; hidden: dense sizes;
    outputs: parameters per value of x; options: rng, dtype.
    Returns the encoder's body x -> features, their number, and the decoder.
    Raises ValueError if the image is too small for that many halvings.
    """
    if len(shape) != 3:
        raise ValueError(
            f"the conv architecture needs images (N, H, W, C), got rows of shape {shape}: reshape "
            "them, or give image_shape=(H, W, C)"
        )
    halving: dict[str, Any] = {"stride": 2, "padding": 1}
    (H, W, C), sizes = shape, [shape[:2]]
    body: list = []
    for filters in channels:
        if min(H, W) < 2:
            raise ValueError(
                f"an image of {shape[0]}x{shape[1]} cannot be halved {len(channels)} times: give "
                f"fewer channels than {channels}"
            )
        body += [Conv2d(C, filters, 4, **halving, **options), activation]
        H, W, C = H // 2, W // 2, filters
        sizes.append((H, W))
    dense = [H * W * C, *hidden]
    body += [Reshape(-1), *_dense(dense, activation, **options)]

    decoder: list = _dense([latent_dim, *hidden[::-1], H * W * C], activation, **options)
    decoder += [Reshape(H, W, C)]
    widths = [*channels[::-1], outputs * shape[2]]
    for i, size in enumerate(sizes[-2::-1]):
        up = ConvTranspose2d(widths[i], widths[i + 1], 4, output_size=size, **halving, **options)
        decoder += [up, activation]
    decoder.pop()  # the last layer's output is raw
    return Sequential(*body), dense[-1], Sequential(*decoder)


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
) -> tuple[Callable, int, Callable]:
    """The body of an encoder x -> features, their number, and a decoder z -> raw parameters.

    Raises ValueError for an unknown architecture or activation.
    """
    check_names(architecture, activation)
    if isinstance(activation, str):
        activation = ACTIVATIONS[activation]
    common = (shape, latent_dim, tuple(hidden), outputs, activation)
    if architecture == "mlp":
        return mlp(*common, rng=rng, dtype=dtype)
    return conv(*common, channels=tuple(channels), rng=rng, dtype=dtype)


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
