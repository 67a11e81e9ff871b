"""What a trained model is worth: the ELBO and its terms, log-likelihood, and use of the latents.

Everything is in nats per row and an average over rows, unless its name says otherwise.
Sizes: B batch, Z latent, D data, K samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from . import devices
from .batches import Batch, Rows
from .models import Model
from .objectives import gaussian_log_prob, kl_terms
from .ops import noise
from .ops.noise import Draw, Stream
from .tensor import Tensor, no_grad

ACTIVE_VARIANCE = 1e-2  # Burda, Grosse and Salakhutdinov 2016, section 5.3
COLLAPSED_KL = 1e-2  # nats: a dimension whose posterior is the prior, for every row


@dataclass(frozen=True)
class Evaluation:
    """Averages over a data set: elbo = -(nll + kl); kl_per_dimension (Z,) sums to kl.

    kl_per_dimension is empty where the KL has no such parts; active_units is 0 where the codes are
    no (N, Z).  log: what else the model reports.
    """

    elbo: float
    nll: float
    kl: float
    kl_per_dimension: tuple[float, ...]
    active_units: int
    rows: int
    log: dict[str, float] = field(default_factory=dict)

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Plain Python values, for a log."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        values |= values.pop("log")
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


def encode(model: Model, rows: Rows, *, batch_size: int = 512) -> tuple:
    """Mean and log-variance of q(z | x) for all rows, each (N, Z)."""
    with no_grad():
        parts = [model.code(batch) for _, batch in rows.in_order(batch_size)]
    columns = (np.concatenate([part[i].data for part in parts]) for i in (0, 1))
    return tuple(devices.to_host(column) for column in columns)


def terms(
    model: Model, rows: Rows, *, seed: int, batch_size: int = 512
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], tuple]:
    """nll and kl of every row, each (N,); what else the model reports, by name; mu and logvar.

    One sample of z a row, drawn by row number: the same for any batch size.
    """
    parts: list[tuple] = []
    with no_grad():
        for start, batch in rows.in_order(batch_size):
            posterior = model.posterior(batch)
            found = model.evaluation(batch, _draw(batch, seed, start), posterior)
            log = {k: np.broadcast_to(_array(v), len(batch)) for k, v in found.log.items()}
            code = posterior if model.gaussian else model.code(batch)
            parts.append((_array(found.nll), _array(found.kl), log, *map(_array, code)))
    nll, kl, mu, logvar = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 3, 4))
    log = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2]}
    return nll, kl, log, (mu, logvar)


def evaluate(model: Model, rows: Rows, *, seed: int = 0, batch_size: int = 512) -> Evaluation:
    """The ELBO of a data set and its terms, KL per dimension and active units.

    Raises ValueError if there are no rows.
    """
    if len(rows) == 0:
        raise ValueError("there are no rows to evaluate")
    nll, kl, log, (mu, logvar) = terms(model, rows, seed=seed, batch_size=batch_size)
    mean_nll, mean_kl = float(nll.mean(dtype=np.float64)), float(kl.mean(dtype=np.float64))
    per_dimension = kl_per_dimension(mu, logvar) if model.gaussian else ()
    return Evaluation(
        elbo=-(mean_nll + mean_kl),
        nll=mean_nll,
        kl=mean_kl,
        kl_per_dimension=tuple(float(v) for v in per_dimension),
        active_units=active_units(mu) if mu.ndim == 2 else 0,
        rows=len(rows),
        log={name: float(values.mean(dtype=np.float64)) for name, values in log.items()},
    )


def log_likelihood_rows(
    model: Model, rows: Rows, *, samples: int = 100, seed: int = 0, batch_size: int = 64
) -> np.ndarray:
    """Importance-weighted estimate of log p(x) of every row, (N,) nats: a lower bound in the mean.

    log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x), z_k ~ q(z | x)       Burda et al. 2016, equation 8
    It does not fall, in expectation, as K = `samples` grows; K = 1 is the ELBO, in expectation.
    Raises ValueError if the model defines no log p(x, z).
    """
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    if not model.has_likelihood:
        raise ValueError(f"{type(model).__name__} defines no log-likelihood")
    if model.likelihood.is_loss:
        raise ValueError(f"{model.likelihood.name} is a plain loss: there is no log-likelihood")
    estimates = []
    with no_grad():
        for start, batch in rows.in_order(batch_size):
            log_w = np.empty((samples, len(batch)), np.float64)  # (K, B)
            posterior = model.posterior(batch)
            for k in range(samples):
                weights = model.log_weights(batch, _draw(batch, seed, start, step=k), posterior)
                log_w[k] = _array(weights)
            largest = log_w.max(axis=0)
            estimates.append(largest + np.log(np.exp(log_w - largest).mean(axis=0)))
    return np.concatenate(estimates)


def kl_decomposition(
    model: Model, rows: Rows, *, seed: int = 0, batch_size: int = 256
) -> dict[str, float]:
    """The KL in three parts, mi, tc and dwkl: means over all rows, in nats.

    q(z) is that of the data set, a mixture of the posteriors of all its rows, not estimated from a
    batch; one sample of z a row.  See objectives.kl_terms; N^2 Z work.
    Raises ValueError for a model whose posterior is no Gaussian, or whose prior is not N(0, I).
    """
    if not model.gaussian:
        raise ValueError(
            f"{type(model).__name__} has no Gaussian posterior under the prior N(0, I)"
        )
    mu, logvar = among = encode(model, rows)
    z = mu + np.exp(logvar / 2) * noise.normal(
        mu.shape, seed=seed, stream=Stream.EVALUATE, dtype=mu.dtype
    )
    weights, zero = np.full(len(mu), -math.log(len(mu)), mu.dtype), np.zeros_like(mu)
    parts = []
    with no_grad():
        for start in range(0, len(mu), batch_size):
            part = slice(start, start + batch_size)
            log_p = gaussian_log_prob(z[part], zero[part], zero[part])
            found = kl_terms(
                z[part], mu[part], logvar[part], log_p=log_p, log_weights=weights, among=among
            )
            parts.append([term.data for term in found])
    means = np.concatenate(parts, axis=1).mean(axis=1, dtype=np.float64)
    return dict(zip(("mi", "tc", "dwkl"), map(float, means), strict=True))


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, *, bins: int = 20) -> np.ndarray:
    """How far one latent alone tells each generating factor, (F,) in [0, 1]; their mean is the MIG.

    (I(z_1; v) - I(z_2; v)) / H(v), z_1 and z_2 the two latents that tell most of v
                                                           Chen et al. 2018, equation 6
    codes: (N, Z), posterior means; factors: (N, F).  What has more than `bins` values is put in so
    many bins of equal counts, so that a factor of real values has an entropy.  With few rows all
    mutual information is overestimated, but the gap less so.
    Raises ValueError if the numbers of rows differ, for Z < 2, or a factor that never changes.
    """
    if len(codes) != len(factors) or codes.ndim != 2 or factors.ndim != 2 or codes.shape[1] < 2:
        raise ValueError(f"codes must be (N, Z), Z >= 2, and factors (N, F), got shapes "
                         f"{codes.shape} and {factors.shape}")  # fmt: skip
    z, v = ([_binned(column, bins) for column in a.T] for a in (codes, factors))
    gaps = []
    for j, factor in enumerate(v):
        entropy = _entropy(factor)
        if entropy == 0:
            raise ValueError(f"factor {j} has one value only")
        told = [_entropy(code) + entropy - _entropy(code * (bins + 1) + factor) for code in z]
        first, second = sorted(told)[:-3:-1]
        gaps.append((first - second) / entropy)
    return np.array(gaps)


def _binned(column: np.ndarray, bins: int) -> np.ndarray:
    """Numbers of the values, or of bins of equal counts if there are many."""
    values, numbers = np.unique(column, return_inverse=True)
    if len(values) <= bins:
        return numbers
    edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, column, side="right")


def _entropy(numbers: np.ndarray) -> float:
    """Of the values' frequencies, in nats."""
    p = np.unique(numbers, return_counts=True)[1] / len(numbers)
    return float(-(p * np.log(p)).sum())


def _draw(batch: Batch, seed: int, start: int, step: int = 0) -> Draw:
    """Noise of the rows from `start` on, where they lie."""
    return Draw(
        len(batch), seed=seed, step=step, first=start, stream=Stream.EVALUATE,
        dtype=real(batch.x), like=batch.x,
    )  # fmt: skip


def real(x: Any) -> Any:
    """The type of the floats that go with x: its own, or float32 beside whole numbers."""
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)


def _array(values: Any) -> np.ndarray:
    """A tensor, an array of either device or a number, as an array on the CPU."""
    return devices.to_host(values.data if isinstance(values, Tensor) else values)


def collapse_warning(kl_dimensions: Any, active: int) -> str | None:
    """A plain sentence if the posterior has collapsed, with the remedies that help; else None.

    Collapsed: q(z_j | x) is the prior for every x and j, KL near 0 and variance near 1 (not near
    0), so that the decoder learns nothing from z.  Some unused dimensions beside active ones are
    normal, and not warned of.
    """
    if active > 0 or len(kl_dimensions) == 0 or np.max(kl_dimensions) >= COLLAPSED_KL:
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
    "encode",
    "evaluate",
    "kl_decomposition",
    "kl_per_dimension",
    "log_likelihood_rows",
    "mutual_information_gap",
    "real",
    "terms",
]
