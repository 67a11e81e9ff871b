"""VAEs with discrete latents on the digits, and what their codes mean.

    python examples/18_discrete_latents.py        writes discrete_latents.png

First row: the 16 classes of a model with one latent variable, summed out: each is a cluster of
digits.  Below, a model of 8 variables with 4 classes each, trained by Gumbel-softmax: digits, what
it makes of them through 16 bits of code, and samples from uniform codes.
"""

import numpy as np

import tinyvae as tv
from tinyvae import plots

digits = tv.data.load("digits")
train, test = ((x > 0.5).astype(np.float32) for x in (digits.train, digits.test))
models = ["categorical:16", "gumbel:8:4", "gumbel:8:4:hard=true", "bernoulli:16:vimco:5",
          "bernoulli:16:nvil", "bernoulli:16:mean", "bernoulli:16:reinforce"]  # fmt: skip
fitted = {}
for text in models:
    vae = tv.VAE(model=text, hidden=(200,), epochs=40, learning_rate=3e-3, random_state=0)
    fitted[text] = vae.fit(train)
    bound, likelihood = vae.score(test), vae.log_likelihood(test, 100).mean()
    print(f"{text:24s} test ELBO {bound:7.2f} nats   log p(x) {likelihood:7.2f}")

clusters = fitted["categorical:16"].decode(np.eye(16, dtype=np.float32))
gumbel = fitted["gumbel:8:4"]
rows = [clusters, test[:16], gumbel.reconstruct(test[:16]), gumbel.sample(16, random_state=1)]
plots.image_grid(
    np.concatenate(rows), "discrete_latents.png", columns=16,
    row_labels=("classes", "digits", "reconstruction", "samples"),
)  # fmt: skip
print("wrote discrete_latents.png")
