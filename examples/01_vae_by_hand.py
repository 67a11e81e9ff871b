"""A VAE's whole training step, written out: encoder, sample, decoder, ELBO, backward, Adam.

    python examples/01_vae_by_hand.py

Every function called here has its backward written next to it; ask any of them: `ops.linear.pair`.
"""

import numpy as np

import tinyvae as tv
from tinyvae import nn, ops

digits = tv.data.load("digits")
train = (digits.train.reshape(-1, 64) > 0.5).astype(np.float32)  # (N, 64) bits
test = (digits.test.reshape(-1, 64) > 0.5).astype(np.float32)
rng = np.random.default_rng(0)
Z = 8

body = nn.Sequential(nn.Linear(64, 256, rng=rng), ops.relu)  # x -> h
to_mu, to_logvar = nn.Linear(256, Z, rng=rng), nn.Linear(256, Z, rng=rng)  # h -> q(z | x)
decoder = nn.Sequential(nn.Linear(Z, 256, rng=rng), ops.relu, nn.Linear(256, 64, rng=rng))
parameters = [p for part in (body, to_mu, to_logvar, decoder) for p in part.parameters()]
optimizer = tv.optim.Adam(parameters, learning_rate=3e-3)


def elbo(x):
    """ELBO of each row, (B,) nats: log p(x | z) - KL(q(z | x) || N(0, I)), one z a row."""
    h = body(x)
    mu, logvar = to_mu(h), to_logvar(h)
    eps = rng.standard_normal(mu.shape, dtype=np.float32)
    z = ops.reparameterize(mu, logvar, eps)  # z = mu + exp(logvar / 2) eps
    return ops.bernoulli_elbo(decoder(z), x, mu, logvar)


for epoch in range(30):
    for start in range(0, len(train), 100):
        loss = -ops.mean(elbo(train[start : start + 100]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if epoch % 5 == 4:
        with tv.no_grad():
            bound = elbo(test)
        nll, kl = bound.saved.nll.mean(), bound.saved.kl.mean()
        print(f"epoch {epoch + 1:2d}  test ELBO {-nll - kl:.2f} nats  nll {nll:.2f}  KL {kl:.2f}")
