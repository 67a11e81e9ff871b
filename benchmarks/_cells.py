"""What is timed: VAEs on 28 x 28 bits, at several sizes: PyTorch's basic VAE example, its mirror in
convolutions, and the example with the importance-weighted bound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

IMAGE, CHANNELS, Z = (28, 28, 1), (32, 64), 20
SAMPLES = 50  # of the importance-weighted bound
SIDE = 1536  # of the square matrices that measure sgemm
MOVED = 2**26  # floats that measure the copy bandwidth, 256 MB


class Cell(NamedTuple):
    """One row of the table: "mlp", "iwae" or "conv", batch size, units of the dense layer."""

    architecture: str
    batch: int
    hidden: int

    @property
    def name(self) -> str:
        """As the command line takes it."""
        size = "" if self.architecture == "conv" else f"-{self.hidden}"
        return f"{self.architecture}-{self.batch}{size}"

    def weights(self) -> list[tuple[int, int, int]]:
        """Each layer's matrix product: rows per example, inputs, outputs.

        Convolutions as products of patches: 4 x 4 x channels inputs a position.
        """
        first, second = CHANNELS
        at14, at7, size = 14 * 14, 7 * 7, 7 * 7 * second
        if self.architecture != "conv":
            D, H, K = math.prod(IMAGE), self.hidden, SAMPLES if self.architecture == "iwae" else 1
            return [(1, D, H), (1, H, Z), (1, H, Z), (K, Z, H), (K, H, D)]
        heads = [(1, self.hidden, Z)] * 2
        encoder = [(at14, 16, first), (at7, 16 * first, second), (1, size, self.hidden), *heads]
        decoder = [(1, Z, self.hidden), (1, self.hidden, size), (at7, second, 16 * first)]
        return [*encoder, *decoder, (at14, first, 16)]

    def flops(self) -> int:
        """Of a step's matrix products: y, dW and dx of each layer, but the first has no dx."""
        products = [2 * self.batch * n * i * o for n, i, o in self.weights()]
        return 3 * sum(products) - products[0]

    def bytes(self) -> int:
        """What a step must move at least, each array as often as its kernels need it.

        A parameter: read by two products, and Adam's p, m, v read and written; its gradient can be
        used where it is made.  A layer's output: written, read by the next layer and again in the
        backward, its gradient written and read.
        """
        parameters = sum((i + 1) * o for _, i, o in self.weights())
        outputs = sum(n * o for n, _, o in self.weights())
        return 4 * (8 * parameters + self.batch * (2 * math.prod(IMAGE) + 5 * outputs))

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
    Cell("mlp", 2048, 400),
    Cell("conv", 32, 256),
    Cell("conv", 128, 256),
    Cell("conv", 512, 256),
    Cell("iwae", 20, 200),
]
QUICK = [cell for cell in CELLS if cell.name in ("mlp-128-400", "conv-128")]
