"""VAE-GAN and feature matching: what a discriminator, or a given network, makes of the digits.

    python examples/14_gan.py        writes gan.png, prints a table

Rows of the picture in pairs, reconstructions of the test digits on top, then samples: the plain
VAE; VAE-GAN with the discriminator's features; with pixels; feature matching on the encoder's body
of the first VAE.  With a discriminator samples are less grey; pixels that are not trained on are
further off; and features that were learned for another purpose, as here, are a blurred measure.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots
from tinyvae.likelihoods import FeatureMatching

digits = tv.data.load("digits")
x, test = digits.train, digits.test[:12]
common = {"hidden": (256,), "activation": "gelu", "batch_size": 64, "random_state": 0}
pictures, labels = [test / 16.0 if test.max() > 1 else test], ["test digits"]
plain = None
for name in ("vae", "gan", "gan:1:pixels", "features"):
    options = {"model": "vae" if name == "features" else name, "likelihood": "bce", "epochs": 40}
    if name == "features":
        options["likelihood"] = FeatureMatching(plain.network_.encoder.body, pixels=1.0)
    vae = tv.VAE(10, **common | options).fit(x)
    plain = plain or vae
    made, z = vae.reconstruct(digits.test), vae.sample(500, random_state=0)
    error = np.mean((made - digits.test) ** 2)
    # how much of the ink is neither black nor white: 0 for bits, 1 for all grey
    grey = np.mean(4 * z * (1 - z))
    print(f"{name:14} squared error of a pixel {error:.4f}   grey in samples {grey:.3f}")
    pictures += [made[:12], z[:12]]
    labels += [f"{name}: again", "new"]
plots.image_grid(np.concatenate(pictures).reshape(-1, 8, 8, 1), "gan.png", columns=12,
                 row_labels=labels)  # fmt: skip
print("wrote gan.png")
