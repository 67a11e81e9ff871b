"""What a trained model is worth: the ELBO and its terms, log-likelihood, and use of the latents.

Everything is in nats per row and an average over rows, unless its name says otherwise.
Sizes: B batch, Z latent, D data, K samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import devices, ops
from .batches import Rows
from .likelihoods import Likelihood
from .models.vae import VAENetwork
from .ops import noise
from .ops.noise import Stream
from .tensor import no_grad

ACTIVE_VARIANCE = 1e-2  # Burda, Grosse and Salakhutdinov 2016, section 5.3
COLLAPSED_KL = 1e-2  # nats: a dimension whose posterior is the prior, for every row


@dataclass(frozen=True)
class Evaluation:
    """Averages over a data set: elbo = -(nll + kl); kl_per_dimension (Z,) sums to kl."""

    elbo: float
    nll: float
    kl: float
    kl_per_dimension: tuple[float, ...]
    active_units: int
    rows: int

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Plain Python values, for a log."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {prefix + key: value for key, value in values.items()}


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """-nats / (D log 2): the code length of a row under a log-likelihood, per value."""
    return -nats / (dimensions * math.log(2))


def kl_per_dimension(mu: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """Mean KL of each latent dimension to N(0, 1), (Z,) nats, from mu, logvar (B, Z)."""
    mu, logvar = mu.astype(np.float64), logvar.astype(np.float64)
    return 0.5 * (mu**2 + np.expm1(logvar) - logvar).mean(axis=0)


def active_units(mu: np.ndarray) -> int:
    """How many dimensions the posterior means use: Var_x[mu_j(x)] > 0.01.  mu: (N, Z).

    Burda, Grosse and Salakhutdinov 2016, section 5.3.
    """
    return int((mu.astype(np.float64).var(axis=0) > ACTIVE_VARIANCE).sum())


def encode(network: VAENetwork, rows: Rows, *, batch_size: int = 512) -> tuple:
    """Mean and log-variance of q(z | x) for all rows, each (N, Z)."""
    with no_grad():
        parts = [network.encode(x) for _, x in rows.in_order(batch_size)]
    columns = (np.concatenate([part[i].data for part in parts]) for i in (0, 1))
    return tuple(devices.to_host(column) for column in columns)


def elbo_rows(
    network: VAENetwork, rows: Rows, likelihood: Likelihood, *, seed: int, batch_size: int = 512
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """nll and kl of every row, each (N,), and mu and logvar, each (N, Z).

    One sample of z a row, drawn by row number: the same for any batch size.
    """
    parts: list[tuple] = []
    with no_grad():
        for start, x in rows.in_order(batch_size):
            mu, logvar = network.encode(x)
            z = ops.reparameterize(mu, logvar, _eps(mu.data, seed, start))
            nll, kl = likelihood.nll(network.decode(z), x), ops.gaussian_kl(mu, logvar)
            parts.append((nll.data, kl.data, mu.data, logvar.data))
    columns = [devices.to_host(np.concatenate(column)) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


def evaluate(
    network: VAENetwork, rows: Rows, likelihood: Likelihood, *, seed: int = 0, batch_size: int = 512
) -> Evaluation:
    """The ELBO of a data set and its terms, KL per dimension and active units.

    Raises ValueError if there are no rows.
    """
    if len(rows) == 0:
        raise ValueError("there are no rows to evaluate")
    nll, kl, mu, logvar = elbo_rows(network, rows, likelihood, seed=seed, batch_size=batch_size)
    mean_nll, mean_kl = float(nll.mean(dtype=np.float64)), float(kl.mean(dtype=np.float64))
    return Evaluation(
        elbo=-(mean_nll + mean_kl),
        nll=mean_nll,
        kl=mean_kl,
        kl_per_dimension=tuple(float(v) for v in kl_per_dimension(mu, logvar)),
        active_units=active_units(mu),
        rows=len(rows),
    )


def log_likelihood_rows(
    network: VAENetwork,
    rows: Rows,
    likelihood: Likelihood,
    *,
    samples: int = 100,
    seed: int = 0,
    batch_size: int = 64,
) -> np.ndarray:
    """Importance-weighted estimate of log p(x) of every row, (N,) nats: a lower bound in the mean.

    log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x), z_k ~ q(z | x)       Burda et al. 2016, equation 8
    It does not fall, in expectation, as K = `samples` grows; K = 1 is the ELBO, in expectation.
    """
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    estimates = []
    with no_grad():
        for start, x in rows.in_order(batch_size):
            mu, logvar = (t.data for t in network.encode(x))
            log_w = np.empty((samples, len(x)), np.float64, like=mu)  # (K, B)
            for k in range(samples):
                eps = _eps(mu, seed, start, step=k)
                z = mu + np.exp(logvar / 2) * eps
                # log p(z) - log q(z | x): the constants of the two Gaussians cancel
                log_ratio = 0.5 * (eps**2 + logvar - z**2).sum(axis=1, dtype=np.float64)
                log_w[k] = log_ratio - likelihood.nll(network.decode(z), x).data
            largest = log_w.max(axis=0)
            estimates.append(largest + np.log(np.exp(log_w - largest).mean(axis=0)))
    return devices.to_host(np.concatenate(estimates))


def _eps(mu: Any, seed: int, start: int, step: int = 0) -> Any:
    """Noise of the rows from `start` on, (B, Z), where mu lies."""
    offset = start * mu.shape[1]
    return noise.normal(
        mu.shape, seed=seed, stream=Stream.EVALUATE, step=step, offset=offset, dtype=mu.dtype,
        like=mu,
    )  # fmt: skip


def collapse_warning(kl_dimensions: Any, active: int) -> str | None:
    """A plain sentence if the posterior has collapsed, with the remedies that help; else None.

    Collapsed: q(z_j | x) is the prior for every x and j, KL near 0 and variance near 1 (not near
    0), so that the decoder learns nothing from z.  Some unused dimensions beside active ones are
    normal, and not warned of.
    """
    if active > 0 or np.max(kl_dimensions) >= COLLAPSED_KL:
        return None
    return (
        "the posterior has collapsed: in every latent dimension q(z|x) equals the prior, so the "
        "decoder ignores z. What helps: beta < 1, KL annealing (kl_schedule='linear:0:1:10'), "
        "free_bits > 0, or a weaker decoder"
    )


__all__ = [
    "Evaluation",
    "active_units",
    "bits_per_dimension",
    "collapse_warning",
    "elbo_rows",
    "encode",
    "evaluate",
    "kl_per_dimension",
    "log_likelihood_rows",
]
