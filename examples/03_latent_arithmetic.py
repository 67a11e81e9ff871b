"""Arithmetic on codes: mean code of one class minus that of another is a direction in z.

    python examples/03_latent_arithmetic.py        writes latent_arithmetic.png

The sprites' factors are known, so that the result can be measured: adding (mean code of large
sprites - mean code of small ones) must make a sprite larger and leave it where it is.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots

sprites = tv.data.load("sprites")
names = list(sprites.label_names)
x = sprites.train[:, ::2, ::2]  # (N, 64, 64, 1) -> (N, 32, 32, 1): four times as fast
scale = sprites.train_labels[:, names.index("scale")]

vae = tv.VAE(
    12, architecture="conv", channels=(16, 32), hidden=(128,), likelihood="bce",
    learning_rate=2e-3, epochs=10, random_state=0,
)  # fmt: skip
vae.fit(x)
codes = vae.transform(x)
low, high = np.quantile(scale, [0.25, 0.75])
larger = codes[scale > high].mean(axis=0) - codes[scale < low].mean(axis=0)

some = vae.transform(sprites.test[:8, ::2, ::2])
steps = np.linspace(-1, 1, 7)
rows = np.stack([vae.decode(some + step * larger) for step in steps], axis=1)  # (8, 7, ...)
ink = rows.sum(axis=(2, 3, 4)).mean(axis=0)
print("white pixels, from smaller to larger:", " ".join(f"{n:.0f}" for n in ink))
plots.image_grid(rows.reshape(-1, 32, 32, 1), "latent_arithmetic.png", columns=len(steps))
print("wrote latent_arithmetic.png: each row is one sprite made smaller (left) and larger (right)")
