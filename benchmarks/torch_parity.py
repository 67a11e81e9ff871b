"""All parameter gradients of one VAE step, tinyvae against PyTorch: the same weights, eps and x.

    python -m benchmarks.torch_parity

An MLP VAE (784-400-20-400-784, 128 rows) with Bernoulli and with learned-variance Gaussian
likelihood, and a convolutional one (32 rows), in float64 and float32.  Printed per parameter: the
largest difference over the largest gradient, max|a - b| / max|b|.  In float32 each side is also
compared with tinyvae's float64 gradients, which the float64 lines have checked against PyTorch's:
it shows whose rounding a difference is.  Exits with 1 unless all agree to 1e-5 in float32 and to
1e-10 in float64.
"""

from __future__ import annotations

import sys

import numpy as np

from . import _common
from ._cells import CHANNELS, IMAGE, Cell, Z

try:
    import torch

    from . import _torch_vae
except ImportError:
    raise SystemExit("torch_parity needs PyTorch, which is not installed") from None

from tinyvae import likelihoods, objectives
from tinyvae.models import vae

LIMITS = {"float32": 1e-5, "float64": 1e-10}
CASES = [
    ("mlp, bernoulli", Cell("mlp", 128, 400), likelihoods.Bernoulli()),
    ("mlp, gaussian", Cell("mlp", 128, 400), likelihoods.Gaussian(variance="learned")),
    ("conv, bernoulli", Cell("conv", 32, 256), likelihoods.Bernoulli()),
]


def ours(cell: Cell, likelihood: likelihoods.Likelihood, dtype: type) -> tuple:
    """Loss, weights and gradients of tinyvae, all arrays in its own layout.

    Weights, x and eps are drawn in float32, so that both precisions start from the same numbers.
    """
    x = cell.data() if cell.architecture == "conv" else cell.data().reshape(cell.batch, -1)
    if likelihood.name == "gaussian":
        x = np.random.default_rng(1).normal(x, 0.1).astype(np.float32)
    eps = np.random.default_rng(2).standard_normal((cell.batch, Z)).astype(np.float32)
    network = vae.build(
        cell.architecture, x.shape[1:], Z, hidden=(cell.hidden,), channels=CHANNELS,
        likelihood=likelihood, activation="relu", seed=0,
    ).astype(dtype)  # fmt: skip
    x, eps = x.astype(dtype), eps.astype(dtype)
    loss = objectives.elbo(network, x, eps, likelihood=likelihood).loss
    loss.backward()
    weights = [tensor.data for tensor in network.parameters()]
    return loss.item(), weights, [tensor.grad for tensor in network.parameters()], x, eps


def theirs(cell: Cell, outputs: int, weights: list, x: np.ndarray, eps: np.ndarray) -> tuple:
    """Loss, gradients by name, and the functions from our layouts to PyTorch's."""
    model = _torch_vae.network(cell, outputs).to(torch.from_numpy(x).dtype)
    corresponding = list(_torch_vae.from_ours(model))
    with torch.no_grad():
        for (_, parameter, convert), weight in zip(corresponding, weights, strict=True):
            array = np.ascontiguousarray(convert(weight))
            assert array.shape == tuple(parameter.shape)
            parameter.copy_(torch.from_numpy(array))
    images = x.reshape(len(x), *IMAGE).transpose(0, 3, 1, 2).copy()
    data = torch.from_numpy(images if cell.architecture == "conv" else x)
    loss = model(data, torch.from_numpy(eps))
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter, _ in corresponding}
    return loss.item(), gradients, [convert for *_, convert in corresponding]


def both(cell: Cell, likelihood: likelihoods.Likelihood, dtype: type) -> tuple:
    """The difference of the losses, our gradients and PyTorch's, by name, in its layout."""
    our_loss, weights, gradients, x, eps = ours(cell, likelihood, dtype)
    loss, reference, converts = theirs(cell, likelihood.outputs, weights, x, eps)
    named = zip(reference, converts, gradients, strict=True)
    return (our_loss, loss), {name: convert(g) for name, convert, g in named}, reference


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|, in float64."""
    b = b.astype(np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare(title: str, cell: Cell, likelihood: likelihoods.Likelihood) -> tuple[dict, bool]:
    """Print one case's table; returns its figures, and whether the limits hold."""
    losses64, mine64, torch64 = both(cell, likelihood, np.float64)
    losses32, mine32, torch32 = both(cell, likelihood, np.float32)
    figures = {
        name: {
            "float64": difference(mine64[name], torch64[name]),
            "float32": difference(mine32[name], torch32[name]),
            "tinyvae32_to_64": difference(mine32[name], mine64[name]),
            "torch32_to_64": difference(torch32[name], mine64[name]),
        }
        for name in mine64
    }
    loss = {
        dtype: {"tinyvae": a, "torch": b, "relative": abs(a - b) / abs(b)}
        for dtype, (a, b) in {"float64": losses64, "float32": losses32}.items()
    }
    header = ["gradient of", "float64", "float32", "tinyvae 32 to 64", "torch 32 to 64"]
    relative = ", ".join(f"{values['relative']:.1e} ({d})" for d, values in loss.items())
    print(f"{title}: {cell.batch} rows, loss {losses64[0]:.6f} nats, difference / loss {relative}")
    rows = [[name, *(f"{v:.1e}" for v in values.values())] for name, values in figures.items()]
    print(_common.table(header, rows) + "\n")
    within = all(figures[name][d] <= limit for name in figures for d, limit in LIMITS.items())
    within &= all(loss[d]["relative"] <= limit for d, limit in LIMITS.items())
    return {"loss": loss, "gradients": figures}, within


def main() -> int:
    results, agreed = {}, True
    for title, cell, likelihood in CASES:
        results[title], within = compare(title, cell, likelihood)
        agreed &= within
    largest = {
        dtype: max(g[dtype] for case in results.values() for g in case["gradients"].values())
        for dtype in LIMITS
    }
    for dtype, limit in LIMITS.items():
        verdict = "agrees" if largest[dtype] <= limit else "DIFFERS"
        print(f"{dtype}: largest difference {largest[dtype]:.1e}, limit {limit:.0e}: {verdict}")
    about = {"largest": largest, "limits": LIMITS, "agreed": agreed, "cases": results}
    print("written:", _common.write("torch_parity", about))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
