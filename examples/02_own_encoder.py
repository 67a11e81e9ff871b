"""Your own networks in the estimator: a residual encoder and a decoder with a learned scale.

    python examples/02_own_encoder.py

An encoder maps x (B, ...) to (mu, logvar), each (B, Z); a decoder maps z (B, Z) to the raw
parameters of p(x | z).  Any tv.nn.Module will do, and any op may be your own: `swish` is one.
"""

import numpy as np

import tinyvae as tv
from tinyvae import nn, ops

Z, WIDTH = 8, 128


def swish_forward(x, gate):
    """out = x sigmoid(gate x), one learned gate a column.     Ramachandran et al. 2017."""
    s = 1 / (1 + np.exp(-gate * x))
    return x * s, (x, gate, s)


def swish_backward(dout, saved):
    """dx = dout (s + gate x s (1 - s))      dgate = sum_rows dout x^2 s (1 - s)."""
    x, gate, s = saved
    slope = x * s * (1 - s)
    return dout * (s + gate * slope), (dout * x * slope).sum(axis=0)


swish = tv.differentiable(swish_forward, swish_backward)
rng = np.random.default_rng(0)
error = tv.gradcheck(swish, rng.standard_normal((5, 3)), rng.standard_normal(3))
print(f"swish: largest relative error of its gradients {error:.1e}")


class ResidualEncoder(nn.Module):
    """h = inner(x);  h = h + swish(linear(h)), twice;  two heads."""

    def __init__(self):
        self.first = nn.Linear(64, WIDTH, rng=rng)
        self.blocks = [nn.Linear(WIDTH, WIDTH, rng=rng) for _ in range(2)]
        self.gates = [tv.Tensor(np.ones(WIDTH, np.float32), requires_grad=True) for _ in range(2)]
        self.mu, self.logvar = nn.Linear(WIDTH, Z, rng=rng), nn.Linear(WIDTH, Z, rng=rng)

    def __call__(self, x):
        h = self.first(ops.reshape(x, (len(x), 64)))  # (B, 8, 8, 1) -> (B, 64)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            h = h + swish(block(h), gate)
        return self.mu(h), self.logvar(h)


decoder = nn.Sequential(
    nn.Linear(Z, WIDTH, rng=rng), ops.silu, nn.Linear(WIDTH, 64, rng=rng), nn.Reshape(8, 8, 1)
)
digits = tv.data.load("digits")
vae = tv.VAE(
    Z, encoder=ResidualEncoder(), decoder=decoder, binarize="dynamic", epochs=40, random_state=0
)
vae.fit(digits.train, validation=digits.validation)
result = vae.evaluate(digits.test)
print(f"test ELBO {result.elbo:.2f} nats, {result.active_units} of {Z} latent dimensions in use")
