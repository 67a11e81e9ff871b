"""Missing values: inpainting by a model of whole digits, and learning from digits with holes.

    python examples/21_missing_values.py

The lower halves of the test digits are hidden, then filled in; a picture shows some.  A second
model is trained on digits of which half of the pixels are missing, and guesses these.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots

digits = tv.data.load("digits")
test = digits.test.astype(np.float64)
options = {"hidden": (200,), "activation": "gelu", "learning_rate": 2e-3, "batch_size": 64,
           "epochs": 60, "random_state": 0}  # fmt: skip


def compare(name, filled, x, hidden):
    """Root mean square error of hidden pixels, of 0..16, beside that of the training mean."""
    mean = np.broadcast_to(digits.train.mean(axis=0), x.shape)
    errors = (16 * np.sqrt(np.mean((guess - x)[hidden] ** 2)) for guess in (filled, mean))
    print("{:28}error of a pixel {:.2f}, of the mean {:.2f}".format(name, *errors))


lower = np.broadcast_to(np.arange(8)[:, None, None] >= 4, test.shape)
vae = tv.VAE(8, likelihood="gaussian:shared", **options).fit(digits.train)
filled = vae.impute(np.where(lower, np.nan, test), steps=200)
compare("lower halves", filled, test, lower)

rng = np.random.default_rng(0)
holes = rng.random(digits.train.shape) < 0.5
vae = tv.VAE(8, likelihood="gaussian:shared", missing=True, **options)
vae.fit(np.where(holes, np.nan, digits.train))
compare("half of the training pixels", vae.impute(np.where(holes, np.nan, digits.train)),
        digits.train, holes)  # fmt: skip

shown = np.concatenate([np.where(lower, 0.5, test)[:12], filled[:12], test[:12]])
plots.image_grid(shown, "inpainting.png", columns=12, limits=(0.0, 1.0))
print("inpainting.png: with a hole, filled in, as it was")
