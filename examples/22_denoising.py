"""Denoising: a VAE that sees damaged digits and has to give the clean ones.

python examples/22_denoising.py
"""

import numpy as np

import tinyvae as tv

digits = tv.data.load("digits")
rng = np.random.default_rng(0)
options = {"hidden": (200,), "activation": "gelu", "learning_rate": 2e-3, "batch_size": 64,
           "epochs": 60, "random_state": 0, "likelihood": "gaussian:shared"}  # fmt: skip
damage = {
    "noise:0.3": digits.test + rng.normal(0, 0.3, digits.test.shape),
    "mask:0.3": digits.test * (rng.random(digits.test.shape) > 0.3),
}
plain = tv.VAE(8, **options).fit(digits.train)
print(f"{'damage':12}{'as it is':>10}{'plain VAE':>11}{'denoising VAE':>15}    (error, 0..16)")
for text, damaged in damage.items():
    vae = tv.VAE(8, corruption=text, **options).fit(digits.train)
    guesses = (damaged, plain.reconstruct(damaged), vae.reconstruct(damaged))
    errors = [16 * np.sqrt(np.mean((guess - digits.test) ** 2)) for guess in guesses]
    print("{:12}{:10.2f}{:11.2f}{:15.2f}".format(text, *errors))
