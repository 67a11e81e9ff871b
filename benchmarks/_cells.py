"""What is timed: two VAEs on 28 x 28 bits, as PyTorch's basic VAE example and its mirror in
convolutions have them, at several sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

IMAGE, CHANNELS, Z = (28, 28, 1), (32, 64), 20
SIDE = 1536  # of the square matrices that measure sgemm


class Cell(NamedTuple):
    """One row of the table: "mlp" or "conv", batch size, units of the dense hidden layer."""

    architecture: str
    batch: int
    hidden: int

    @property
    def name(self) -> str:
        """As the command line takes it."""
        size = f"-{self.hidden}" if self.architecture == "mlp" else ""
        return f"{self.architecture}-{self.batch}{size}"

    def weights(self) -> list[tuple[int, int, int]]:
        """Each layer's matrix product: rows per example, inputs, outputs.

        Convolutions as products of patches: 4 x 4 x channels inputs a position.
        """
        first, second = CHANNELS
        at14, at7, size = 14 * 14, 7 * 7, 7 * 7 * second
        if self.architecture == "mlp":
            D, H = math.prod(IMAGE), self.hidden
            return [(1, D, H), (1, H, Z), (1, H, Z), (1, Z, H), (1, H, D)]
        heads = [(1, self.hidden, Z)] * 2
        encoder = [(at14, 16, first), (at7, 16 * first, second), (1, size, self.hidden), *heads]
        decoder = [(1, Z, self.hidden), (1, self.hidden, size), (at7, second, 16 * first)]
        return [*encoder, *decoder, (at14, first, 16)]

    def flops(self) -> int:
        """Of a step's matrix products: y, dW and dx of each layer, but the first has no dx."""
        products = [2 * self.batch * n * i * o for n, i, o in self.weights()]
        return 3 * sum(products) - products[0]

    def data(self) -> np.ndarray:
        """x (B, H, W, C), float32 bits, the same for every peer."""
        bits = np.random.default_rng(0).random((self.batch, *IMAGE)) < 0.3
        return bits.astype(np.float32)


CELLS = [
    Cell("mlp", 16, 32),
    Cell("mlp", 32, 64),
    Cell("mlp", 100, 200),
    Cell("mlp", 128, 400),
    Cell("mlp", 512, 400),
    Cell("conv", 32, 256),
    Cell("conv", 128, 256),
]
QUICK = [cell for cell in CELLS if cell.name in ("mlp-128-400", "conv-128")]
