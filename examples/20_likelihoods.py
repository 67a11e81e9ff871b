"""Five likelihoods of the same counts: which one knows best how the digits' pixels scatter?

    python examples/20_likelihoods.py

The digits' pixels are counts of ink from 0 to 16, so that all five are probabilities of the same
values, and their ELBOs can be compared.  A Gaussian's density cannot be compared with them.
"""

import numpy as np

import tinyvae as tv

digits = tv.data.load("digits")
counts = {split: np.rint(16 * getattr(digits, split)) for split in ("train", "test")}
options = {"hidden": (200,), "activation": "gelu", "learning_rate": 2e-3, "batch_size": 64}

print(f"{'likelihood':24}{'test ELBO, nats':>16}{'mean error of a pixel':>23}")
for text in ("poisson", "negative_binomial", "logistic:17", "mixture_logistic:3:17",
             "categorical:17"):  # fmt: skip
    scale = 16 if "logistic" in text else 1  # a logistic's levels are 0, 1/16, ... 1
    x = {split: rows / scale for split, rows in counts.items()}
    vae = tv.VAE(8, likelihood=text, epochs=25, random_state=0, **options).fit(x["train"])
    error = np.abs(vae.reconstruct(x["test"]) - x["test"]).mean() * scale
    print(f"{text:24}{vae.score(x['test']):16.1f}{error:23.2f}")
