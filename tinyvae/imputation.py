"""Missing values filled in by a trained model, with the observed ones held fixed.

    z ~ q(z | x),  x_missing ~ p(x_missing | z),  and again         Rezende et al. 2014, appendix F

is a chain whose distribution is p(x_missing | x_observed) if q is the true posterior.  As it is
not, a new z takes the old one's place with probability min(1, w(z_new) / w(z_old)),

    w(z) = p(x | z) p(z) / q(z | x)                  Mattei and Frellsen 2018, algorithm 1

and then the chain is right whatever q is.  Without that, a chain of a model trained on rows with
holes, whose encoder knows no filled ones, wanders off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import devices, ops
from .batches import Batch, Rows
from .metrics import real
from .models.vae import VAENetwork
from .objectives import gaussian_log_prob
from .ops.noise import Draw, Stream
from .tensor import no_grad


def impute(
    model: VAENetwork,
    rows: Rows,
    *,
    steps: int,
    seed: int,
    mean: bool = True,
    batch_size: int = 512,
) -> np.ndarray:
    """x of all rows, (N, ...), missing values filled in.

    steps: of the chain.  mean: the average of p(x | z)'s means over its second half, which is the
    best guess of each value; else the last draw, which is one possible row.
    """
    parts = []
    with no_grad():
        for number, (start, batch) in enumerate(rows.in_order(batch_size)):
            draws = [
                Draw(len(batch), seed=seed, step=step, first=start, stream=Stream.IMPUTE,
                     dtype=real(batch.x), like=batch.x)
                for step in range(steps)
            ]  # fmt: skip
            x, guess = _chain(model, batch, draws, seed=seed, first_step=number * steps)
            parts.append(devices.to_host(np.where(batch.mask != 0, x, guess) if mean else x))
    return np.concatenate(parts)


def _chain(
    model: VAENetwork, batch: Batch, draws: list[Draw], *, seed: int, first_step: int
) -> tuple[Any, Any]:
    """x at the end of a chain, and the mean of p(x | z)'s means over its second half."""
    x, z, guesses, likelihood = batch.x, None, [], model.likelihood
    for step, draw in enumerate(draws):
        mu, logvar = model.encode(x, batch.y)
        new = ops.reparameterize(mu, logvar, draw.normal(mu.shape[1])).data
        if z is None:
            z = new
        else:
            # of whole rows: the values filled in are data for z
            gain = _log_weight(model, x, new, batch.y, mu, logvar)
            gain = gain - _log_weight(model, x, z, batch.y, mu, logvar)
            z = np.where(np.log(draw.uniform(1)) < gain[:, None], new, z)
        output = model.decode(z, batch.y).data
        drawn = likelihood.sample(output, seed=seed, step=first_step + step)
        x = np.where(batch.mask != 0, x, drawn)
        if step >= len(draws) // 2:
            guesses.append(likelihood.mean(output))
    return x, sum(guesses) / x.dtype.type(len(guesses))


def _log_weight(model: VAENetwork, x: Any, z: Any, y: Any, mu: Any, logvar: Any) -> Any:
    """log p(x | z) + log p(z) - log q(z | x) of each row, (B,) nats."""
    log_p = model.log_prior(z, y) - model.likelihood.nll(model.decode(z, y), x)
    return (log_p - gaussian_log_prob(z, mu, logvar)).data
