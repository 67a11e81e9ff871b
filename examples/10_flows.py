"""Flows in the posterior on the digits, beside the plain VAE.

    python examples/10_flows.py

A flow lets q(z | x) leave the diagonal Gaussian: z = flow(z0), and
log q(z | x) = log N(z0; mu, sigma^2) - logdet; the KL is taken from the sample.  With two latent
dimensions the true posterior is far from a Gaussian.
"""

import tinyvae as tv

digits = tv.data.load("digits")
options = {
    "hidden": (128,), "activation": "silu", "binarize": "dynamic", "epochs": 150,
    "learning_rate": 2e-3, "random_state": 0,
}  # fmt: skip
for flow in (None, "planar:8", "coupling:4", "iaf:4"):
    vae = tv.VAE(2, flow=flow, **options).fit(digits.train)
    bound = vae.score(digits.test)
    estimate = vae.log_likelihood(digits.test, samples=100, random_state=0).mean()
    print(f"{flow or 'no flow':10s} test ELBO {bound:.2f}, log-likelihood {estimate:.2f} nats")
