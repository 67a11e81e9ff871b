"""Gradients through discrete latents: every estimator's bias and variance, side by side.

    python examples/17_estimators.py        writes estimators.png

A VAE with 8 bits as its latents has 256 states, so the gradient of its bound is known exactly.  The
encoder is trained a little, with that gradient; then each estimator is asked for the same gradient
many times, from fresh samples.  Bias and variance are those of the encoder's gradient (a mean over
100 rows), relative to the exact one's length; each sample costs one pass through the decoder.
VIMCO's bound is that of 5 samples: its variance is relative to its own mean.
"""

import numpy as np
from matplotlib.figure import Figure

import tinyvae as tv
from tinyvae import estimators as est
from tinyvae import nn, ops
from tinyvae.plots import BLUE, GREEN, GREY, ORANGE

N, DRAWS = 8, 400
rng = np.random.default_rng(0)
digits = tv.data.load("digits").train.reshape(-1, 64)
x = (digits[:100] > 0.5).astype(np.float64)

encoder = nn.Linear(64, N, rng=rng, dtype=np.float64)
decoder = nn.Sequential(
    nn.Linear(N, 64, rng=rng, dtype=np.float64), ops.tanh,
    nn.Linear(64, 64, rng=rng, dtype=np.float64),
)  # fmt: skip
network = nn.Sequential(nn.Linear(64, 1, rng=rng, dtype=np.float64))  # NVIL's baseline
states = est.enumerate_bits(N, np.float64)[:, None]  # (S, 1, N)


def log_p(z):
    """log p(x, z) of bits z (..., B, N), with a uniform prior; (..., B) nats."""
    output = decoder(z)
    return ops.sum(output * x - ops.softplus(output), axis=-1) - N * np.log(2)


def exact_bound():
    log_q = est.bernoulli_log_prob(encoder(x), states)
    return est.expectation(log_q, log_p(np.broadcast_to(states, (256, len(x), N))) - log_q)


def gradient(bound):
    """Of the mean of a bound (B,), with respect to the encoder's weights."""
    for tensor in [*encoder.parameters(), *decoder.parameters(), *network.parameters()]:
        tensor.grad = None
    ops.mean(bound).backward()
    return np.concatenate([tensor.grad.ravel() for tensor in encoder.parameters()])


optimizer = tv.optim.Adam(encoder.parameters() + decoder.parameters(), learning_rate=1e-2)
for _ in range(60):
    ops.mean(-exact_bound()).backward()
    optimizer.step()
    optimizer.zero_grad()
exact = gradient(exact_bound())
running, nvil = est.Baseline(dtype=np.float64), est.Baseline(network, dtype=np.float64)


def sampled(baseline=None):
    """One score-function estimate; the baseline learns afterwards."""
    logits = encoder(x)
    z = est.sample_bits(logits, rng.random(logits.shape))
    b = 0.0 if baseline is None else baseline(x)
    log_q = est.bernoulli_log_prob(logits, z)
    bound = est.score_function(log_p(z) - log_q.detach(), log_q, b)
    if baseline is not None:
        baseline.update(bound.data)
    return bound


def vimco(K=5):
    logits = encoder(x)
    z = est.sample_bits(logits, rng.random((K, *logits.shape)))  # (K, B, N)
    log_q = est.bernoulli_log_prob(logits, z)
    log_w = log_p(z) - log_q
    return est.vimco(ops.transpose(log_w), ops.transpose(log_q))  # each (K, B) -> (B, K)


def gumbel(temperature, hard=False):
    """A bit is a variable of two classes, the first with logit 0; its KL is in closed form."""
    logits = encoder(x)
    pair = ops.reshape(logits, (*logits.shape, 1)) * np.array([0.0, 1.0])
    z = est.gumbel_softmax(pair, rng.random(pair.shape), temperature=temperature, hard=hard)
    nll = -log_p(z[..., 1]) - N * np.log(2)
    return -nll - ops.sum(est.bernoulli_kl(logits), axis=-1)


# the baseline's network learns from the samples' own f, as it would during training
baseline_optimizer = tv.optim.Adam(network.parameters(), learning_rate=1e-2)
for _ in range(500):
    f = sampled(nvil).data
    ops.mean(nvil.loss(f, nvil(x))).backward()
    baseline_optimizer.step()
    baseline_optimizer.zero_grad()
for _ in range(50):
    sampled(running)

cases = {
    "score function": sampled,
    "running mean": lambda: sampled(running),
    "NVIL": lambda: sampled(nvil),
    "VIMCO, K = 5": vimco,
    "Gumbel, T = 0.1": lambda: gumbel(0.1),
    "Gumbel, T = 0.5": lambda: gumbel(0.5),
    "Gumbel, T = 1": lambda: gumbel(1.0),
    "straight through, T = 0.5": lambda: gumbel(0.5, hard=True),
}
print(f"{'':26s} variance    bias   noise of the bias")
variances, biases, floors = [], [], []
for name, bound in cases.items():
    found = np.array([gradient(bound()) for _ in range(DRAWS)])
    other = name.startswith("VIMCO")
    length = ((found.mean(axis=0) if other else exact) ** 2).sum()
    variances.append(found.var(axis=0, ddof=1).sum() / length)
    floors.append(np.nan if other else np.sqrt(variances[-1] / DRAWS))
    biases.append(np.nan if other else np.linalg.norm(found.mean(axis=0) - exact) / length**0.5)
    print(f"{name:26s} {variances[-1]:8.4f} {biases[-1]:7.4f} {floors[-1]:7.4f}")

figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
place = np.arange(len(cases))
colours = [GREY, BLUE, BLUE, GREEN, *[ORANGE] * 4]
left.barh(place, variances, color=colours)
left.set(xscale="log", xlabel="variance / |gradient|²", yticks=place, yticklabels=cases)
left.invert_yaxis()
right.barh(place, biases, color=colours)
right.plot(floors, place, "k|", markersize=11, label="what sampling noise alone gives")
right.text(0.02, 3, "of another bound", va="center", fontsize=8, color="0.4")
right.set(xlabel="|mean - exact| / |exact|", xlim=(0, None))
right.legend(fontsize=8, frameon=False, loc="lower right")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
figure.savefig("estimators.png")
print("wrote estimators.png")
