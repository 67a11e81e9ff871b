"""Two layers of latents on the digits, bottom-up and as a ladder, beside a plain VAE.

    python examples/12_ladder.py

The prior of z_1 is learned, p(z_1 | z_2), and the log tells how many nats each layer carries.  The
KL is warmed up, without which the upper layer stays unused (Sonderby et al. 2016, section 2.3).
"""

import tinyvae as tv

digits = tv.data.load("digits")
options = {
    "hidden": (128,), "activation": "silu", "binarize": "dynamic", "epochs": 120,
    "learning_rate": 2e-3, "kl_schedule": "linear:0:1:60", "random_state": 0,
}  # fmt: skip
for model in ("vae", "bottomup:8", "ladder:8"):
    vae = tv.VAE(16, model=model, **options).fit(digits.train)
    result = vae.evaluate(digits.test)
    estimate = vae.log_likelihood(digits.test, samples=100, random_state=0).mean()
    layers = ", ".join(f"{name} {nats:.2f}" for name, nats in result.log.items())
    print(f"{model:11s} test ELBO {result.elbo:.2f}, log-likelihood {estimate:.2f} nats  {layers}")
