"""A perceptual loss: pictures are compared by the features that a given network sees in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import devices, ops
from ..data import check_range
from ..nn import Module
from ..tensor import Tensor
from .base import Likelihood, array_of, row_sums


@dataclass(frozen=True, eq=False)
class FeatureMatching(Likelihood):
    """Squared distance of features, and `pixels` times that of the pixels: a loss, no likelihood.

    sum_l |f_l(x) - f_l(g(z))|^2 / 2 + pixels |x - g(z)|^2 / 2
                                  Dosovitskiy and Brox 2016, section 3; Hou et al. 2017, equation 4
    network: a Module, x (B, ...) -> features, a tensor (B, ...) or a list of them, of several
    layers; it is copied, and stays as it is.  Its weights are of the VAE's dtype.
    unit: whether x is in [0, 1], and g(z) is the sigmoid of the output, or else the output itself.
    Two pictures with the same features cost nothing, whatever their pixels, unless pixels > 0: that
    is a density of no x, so there is no log p(x), and no sample but the mean.  A model with it
    cannot be saved: a file holds no network of the user's.
    """

    name: ClassVar[str] = "feature_matching"
    is_loss: ClassVar[bool] = True
    network: Callable
    pixels: float = 0.0
    unit: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.network, Module):
            raise TypeError(f"network must be a Module, got {type(self.network).__name__}")
        if not 0 <= self.pixels < np.inf:
            raise ValueError(f"pixels must be finite and >= 0, got {self.pixels}")
        network = copy.deepcopy(self.network)
        for tensor in network.parameters():
            tensor.requires_grad = False
        object.__setattr__(self, "network", network)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and the largest mean of x; None if there are none."""
        return (0.0, 1.0) if self.unit else None

    def nll(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """The loss of each row, (B,); ValueError for a mask: features need the whole row."""
        if mask is not None:
            raise ValueError("feature matching needs whole rows, without a mask")
        return self._nll(output, x)

    def nll_each(self, output: Any, x: Any, mask: Any = None) -> Tensor:
        """Refused: the loss is no sum over the values of x."""
        raise ValueError("feature matching has no loss of each value")

    def _nll(self, output: Any, x: Any) -> Tensor:
        picture = ops.sigmoid(output) if self.unit else output
        loss = self.pixels * _squares(picture, x)
        for seen, made in zip(self._features(x), self._features(picture), strict=True):
            loss = loss + _squares(made, array_of(seen))
        return loss

    def _features(self, x: Any) -> list[Any]:
        """As a list; the network follows x to its device."""
        device, network = devices.of(array_of(x)), self.network
        if any(devices.of(array_of(item)) != device for item in _constants(network)):
            network.to(device)  # type: ignore[attr-defined]
        features = network(x)
        return list(features) if isinstance(features, (list, tuple)) else [features]

    def mean(self, output: Any) -> Any:
        """The picture, (B, ..., C), an array."""
        return array_of(ops.sigmoid(output) if self.unit else output)

    def sample(self, output: Any, *, seed: int, step: int = 0) -> Any:
        """Refused: there is no p(x | z)."""
        raise ValueError("feature matching is no likelihood: take the mean, there is no sample")

    def check(self, x: np.ndarray, name: str = "X", scale: float = 1.0) -> None:
        """Raise ValueError unless all values of x / scale are in [0, 1], if `unit`."""
        if self.unit:
            check_range(x, 0, scale, name, "scale the data to [0, 1], or give unit=False")


def _constants(network: Any) -> list[Tensor]:
    """The first tensor of a network, which tells where it lies."""
    return [tensor for _, tensor in network._all_tensors("")][:1]


def _squares(a: Any, b: Any) -> Tensor:
    """|a - b|^2 / 2 of each row."""
    return 0.5 * row_sums((a - b) ** 2)
