"""Importance weights: a tighter bound, and three gradients of it with very different noise.

    python examples/08_iwae_gradients.py

A VAE is trained a little on the digits.  Then its K-sample bound is measured (it rises with K), and
the encoder's gradient of that bound is asked for many times with fresh samples, in the three ways
of tinyvae.objectives.iwae.  Signal: the length of its mean, without what noise adds to it; noise:
the square root of the variance, summed over all weights.  The signal of `iwae` drowns as K grows
(Rainforth et al. 2018); `dreg` has the same mean; `stl` has not, for K > 1.
"""

import math

import numpy as np

import tinyvae as tv
from tinyvae import no_grad, objectives

DRAWS, ROWS = 100, 30
rng = np.random.default_rng(0)
images = tv.data.load("digits").train.reshape(-1, 64)
x = (images > 0.5 * images.max()).astype(np.float32)
model = tv.VAE(8, model="iwae:5", hidden=(64,), batch_size=32, epochs=20, random_state=0).fit(x)
net, few = model.network_.astype(np.float64), x[:ROWS].astype(np.float64)


def gradient(K, name):
    """The encoder's, of the mean bound of some rows, from fresh samples."""
    eps = rng.standard_normal((ROWS, K, 8))
    net.zero_grad()
    objectives.iwae(net, few, net.base(few), eps, gradient=name).loss.backward()
    return np.concatenate([tensor.grad.ravel() for tensor in net.encoder.parameters()])


print(f"{'K':>3} {'bound':>8}   " + "".join(f"{name:>24}" for name in objectives.GRADIENTS))
print(" " * 15 + "        noise  signal/noise" * 3)
for K in (1, 5, 25):
    with no_grad():
        noise = rng.standard_normal((ROWS, 1000, 8))
        nll, ratio = objectives.samples(net, few, net.base(few), noise)
    log_w = -(nll.data + ratio.data).reshape(ROWS, -1, K)  # the same samples, in groups of K
    bound = (np.logaddexp.reduce(log_w, axis=2) - math.log(K)).mean()
    columns = []
    for name in objectives.GRADIENTS:
        draws = np.stack([gradient(K, name) for _ in range(DRAWS)])
        variance = draws.var(axis=0, ddof=1).sum()
        signal = math.sqrt(max(0.0, (draws.mean(axis=0) ** 2).sum() - variance / DRAWS))
        columns.append(f"{math.sqrt(variance):13.3f} {signal / math.sqrt(variance):13.2f}")
    print(f"{K:3d} {bound:8.3f}    " + " ".join(columns))
