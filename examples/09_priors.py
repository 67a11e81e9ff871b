"""Priors that learn where the codes are: densities in two dimensions, and what they are worth.

    python examples/09_priors.py            # writes priors.png

The same VAE with two latents is trained on the digits with each prior.  The picture has p(z), one
prior after the other, and the codes of the test images in white: N(0, I) asks all codes to lie in
one round heap, a mixture, a VampPrior or a flow goes where they are.  The table: log p(x) of the
test images, and how far the codes' distribution is from the prior, KL(q(z) || p(z)), the part of
the ELBO that a better prior can win (Hoffman and Johnson 2016).
"""

import math

import numpy as np

import tinyvae as tv
from tinyvae import no_grad, ops, plots

PRIORS = ("standard", "gaussian", "mixture:20", "vamp:20", "flow:coupling:6")
AXIS = np.linspace(-4.5, 4.5, 121, dtype=np.float32)
GRID = np.stack(np.meshgrid(AXIS, AXIS[::-1]), axis=-1).reshape(-1, 2)

data = tv.data.load("digits")
train, test = (x.reshape(-1, 64) > 0.5 * data.train.max() for x in (data.train, data.test))
train, test = train.astype(np.float32), test.astype(np.float32)


def aggregate_kl(model):
    """KL(q(z) || p(z)) in nats, q(z) being the mean of the training images' posteriors."""
    mu, logvar = model.encode(train)
    z = model.reparameterize(mu, logvar, random_state=1)
    log_weights = np.full(len(mu), -math.log(len(mu)), np.float32)
    with no_grad():
        log_q = ops.mixture_log_prob(z, log_weights, mu, logvar)
        return float((log_q - model.network_.prior.log_prob(z)).data.mean())


pictures = []
print(f"{'prior':16s}  log p(x)  test ELBO     KL  KL(q(z) || p(z))")
for prior in PRIORS:
    model = tv.VAE(2, prior=prior, hidden=(128,), batch_size=32, epochs=60, learning_rate=2e-3,
                   random_state=0).fit(train)  # fmt: skip
    found = model.evaluate(test)
    log_p = model.log_likelihood(test, 200).mean()
    print(
        f"{prior:16s} {log_p:9.2f} {found.elbo:10.2f} {found.kl:6.2f} {aggregate_kl(model):10.2f}"
    )
    with no_grad():
        density = np.exp(model.network_.prior.log_prob(GRID).data)
    image = 0.85 * (density / density.max()).reshape(len(AXIS), len(AXIS)) ** 0.5
    column, row = (np.rint((model.transform(test) * [1, -1] + 4.5) / 9 * 120).astype(int)).T
    inside = (column >= 0) & (column <= 120) & (row >= 0) & (row <= 120)
    image[row[inside], column[inside]] = 1
    pictures.append(image)
plots.image_grid(np.stack(pictures)[..., None], "priors.png", columns=5, column_labels=PRIORS)
print("wrote priors.png")
