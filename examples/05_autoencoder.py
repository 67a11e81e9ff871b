"""What the KL is for: an autoencoder beside a VAE with the same networks.

    python examples/05_autoencoder.py        writes autoencoder.png

The autoencoder reconstructs better, for nothing keeps its codes together; for the same reason there
is nothing to draw new codes from.  A Gaussian fitted to them (Ghosh et al. 2020) helps a little.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots

digits = tv.data.load("digits")
options = {"hidden": (200, 100), "binarize": "dynamic", "learning_rate": 2e-3, "epochs": 100}
samples = []
for name in ("ae", "vae"):
    model = tv.VAE(10, model=name, random_state=0, **options).fit(digits.train)
    error = np.mean((model.reconstruct(digits.test) - digits.test) ** 2)
    codes = model.transform(digits.train)
    print(f"{name:4s} nll {model.evaluate(digits.test).nll:.2f} nats, squared error of a pixel "
          f"{error:.4f}, codes of mean square {np.mean(codes**2):.2f}")  # fmt: skip
    samples.append(model.sample(24, 0))
rows = np.concatenate(samples)
names = ["ae", "", "vae", ""]
plots.image_grid(rows, "autoencoder.png", columns=12, row_labels=names)
print("wrote autoencoder.png: samples of both")
