"""VQ-VAE on the digits: 4 of 32 codes a digit, and a prior over the codes that makes new digits.

    python examples/19_vq.py        writes vq.png

A digit is 20 bits of code.  The picture: digits, what their codes decode to, digits from codes that
the prior draws one after the other, and from codes drawn at random, which fit together less.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots

digits = tv.data.load("digits")
train, test = ((x > 0.5).astype(np.float32) for x in (digits.train, digits.test))
vae = tv.VAE(
    model="vq:codes=32:size=8", architecture="conv", channels=(32, 64), learning_rate=2e-3,
    epochs=60, random_state=0,
)  # fmt: skip
vae.fit(train)

for record in vae.history_[9::10]:
    elbo, used = record["elbo"], record["perplexity"]
    print(f"epoch {record['epoch']:2d}  ELBO {elbo:7.2f} nats  perplexity {used:4.1f} of 32 codes")
result, positions = vae.evaluate(test), vae.network_.code_prior.positions
uniform = positions * np.log(32)
print(
    f"test: bound on log p(x) {result.elbo:.2f} nats: nll {result.nll:.2f}, codes {result.kl:.2f}"
)
print(
    f"under a uniform prior the codes cost {uniform:.2f}, the bound is {-result.nll - uniform:.2f}"
)

rng = np.random.default_rng(0)
random = vae.network_.quantizer.codebook.data[rng.integers(0, 32, (16, positions))]
rows = [test[:16], vae.reconstruct(test[:16]), vae.sample(16, random_state=0),
        vae.decode(random.reshape(16, -1))]  # fmt: skip
plots.image_grid(
    np.concatenate(rows), "vq.png", columns=16,
    row_labels=("digits", "decoded codes", "codes from the prior", "random codes"),
)  # fmt: skip
print("wrote vq.png")
