"""Normalizing flows bent onto a density in two dimensions, by the reverse KL.

    python examples/11_flow_densities.py            # writes flow_densities.png

The density is exp(-U), two crescents (Rezende and Mohamed 2015, table 1):
    U(z) = ((|z| - 2) / 0.4)^2 / 2 - log(e^-((z_1 - 2) / 0.6)^2 / 2 + e^-((z_1 + 2) / 0.6)^2 / 2)
A diagonal Gaussian goes through each flow; KL(q || p) is minimised by the very terms of an ELBO.
More planar steps come nearer; who keeps to one crescent misses log 2 = 0.69 nats.  The picture
shows q on a grid, by the inverse of each flow, p itself first.
"""

import math

import numpy as np

import tinyvae as tv
from tinyvae import Tensor, flows, ops, plots
from tinyvae.objectives import gaussian_log_prob
from tinyvae.ops.noise import Draw

SPECS = [None, flows.Householder(2), flows.Radial(16), flows.Planar(4), flows.Planar(24),
         flows.Sylvester(8), flows.Coupling(6), flows.InverseAutoregressive(6)]  # fmt: skip
AXIS, STEP = np.linspace(-4, 4, 101, retstep=True, dtype=np.float64)
GRID = np.stack(np.meshgrid(AXIS, AXIS[::-1]), axis=-1).reshape(-1, 2)


def energy(z):
    """U(z) of each row, (N, 2) -> (N,)."""
    ring = (ops.sqrt(ops.sum(z * z, axis=1)) - 2.0) * (1 / 0.4)
    bumps = [(z[:, :1] - place) * (1 / 0.6) for place in (2.0, -2.0)]
    return ring * ring * 0.5 - ops.logsumexp(
        ops.concatenate([bump * bump * -0.5 for bump in bumps]), axis=1
    )


def fit(spec, steps=1000, rows=256):
    """A flow and a Gaussian, and their KL(q || p) up to p's constant, on new samples."""
    rng = np.random.default_rng(0)
    flow = flows.Flows() if spec is None else spec.build(2, rng=rng)
    mu, logvar = (Tensor(np.zeros((1, 2), np.float32), requires_grad=True) for _ in range(2))
    optimizer = tv.optim.Adam([mu, logvar, *flow.parameters()], learning_rate=5e-3)
    schedule = tv.schedules.parse(f"cosine:0.005:0:{steps}")

    def divergence(n, step):
        eps = Draw(n, seed=1, step=step).normal(2)
        z0 = mu + ops.exp(logvar * 0.5) * eps
        z, logdet = flow.forward(z0)
        return ops.mean(gaussian_log_prob(z0, mu, logvar) - logdet + energy(z))

    for step in range(steps):
        optimizer.learning_rate = schedule(step)
        optimizer.zero_grad()
        divergence(rows, step).backward()
        optimizer.step()
    with tv.no_grad():
        z, logdet = flow.inverse(GRID.astype(np.float32))
        density = np.exp((gaussian_log_prob(z, mu, logvar) + logdet).numpy())
        return divergence(20_000, steps).item(), density


target = np.exp(-energy(Tensor(GRID)).data)
log_constant = math.log(target.sum() * STEP**2)
pictures = [target / math.exp(log_constant)]
for spec in SPECS:
    kl, density = fit(spec)
    pictures.append(density)
    kl += log_constant
    print(f"{'Gaussian alone' if spec is None else str(spec):50s} KL(q || p) {kl:.2f} nats")
sheet = np.stack(pictures).reshape(-1, len(AXIS), len(AXIS), 1)
plots.image_grid(1 - sheet / sheet.max(axis=(1, 2, 3), keepdims=True), "flow_densities.png",
                 columns=3, row_labels=["p; Gaussian; Householder", "radial; planar, 4; planar, 24",
                                        "Sylvester; coupling; inverse autoregressive"])  # fmt: skip
print("wrote flow_densities.png")
