"""Latents kept independent: beta-TCVAE and FactorVAE beside the plain VAE, on small sprites.

    python examples/13_total_correlation.py        prints a table

White ellipses whose scale, x and y are drawn independently.  TC: total correlation of the latents
over all test rows; MIG: the mutual information gap (Chen et al. 2018), 1 if each factor has a
latent of its own.  What the weight changes is TC.  The gap of so short a run is noise: it differs
more from seed to seed (two are shown) than from model to model.
"""

import numpy as np

import tinyvae as tv
from tinyvae import metrics, sprites
from tinyvae.batches import Rows

MODELS = {"VAE": ("vae", 1.0), "beta = 4": ("vae", 4.0), "beta-TC": ("tc:6", 1.0),
          "factor": ("factor:10:units=64:layers=3", 1.0)}  # fmt: skip


def draw(n, rng):
    """n ellipses of 16 x 16 pixels, and their factors scale, x and y."""
    scale, x, y = (low + width * rng.random(n) for low, width in ((0.5, 0.5), (0.22, 0.56),
                                                                   (0.22, 0.56)))  # fmt: skip
    factors = np.stack([np.ones(n), scale, np.zeros(n), x, y], axis=1)
    return sprites.draw(factors, size=16), factors[:, [1, 3, 4]]


rng = np.random.default_rng(0)
train, _ = draw(3000, rng)
test, factors = draw(1000, rng)
print(f"{'':10}{'seed':>5}{'loss':>8}{'KL':>7}{'MI':>7}{'TC':>7}{'MIG':>7}")
for name, (model, beta) in MODELS.items():
    for seed in (0, 1):
        vae = tv.VAE(
            5, model=model, beta=beta, hidden=(200,), activation="gelu", likelihood="bce",
            learning_rate=3e-3, batch_size=100, epochs=25, random_state=seed,
        )  # fmt: skip
        vae.fit(train)
        rows = Rows(test, vae.data_shape_, scale=255.0)
        parts, result = metrics.kl_decomposition(vae.network_, rows), vae.evaluate(test)
        gap = metrics.mutual_information_gap(vae.transform(test), factors).mean()
        print(f"{name:10}{seed:>5}{result.nll:>8.2f}{result.kl:>7.2f}{parts['mi']:>7.2f}"
              f"{parts['tc']:>7.2f}{gap:>7.3f}")  # fmt: skip
