"""What training maximises, written as in the papers.  All per row, in nats."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import ops
from .likelihoods import Likelihood
from .tensor import Tensor

LOG_2PI = math.log(2 * math.pi)


def gaussian_log_prob(z: Any, mu: Any, logvar: Any) -> Tensor:
    """log N(z; mu, diag(e^logvar)) of each row, (B,) nats, with a gradient for z too.

    z, mu, logvar: (B, Z).
    """
    away = z - mu
    return ops.sum(away * away * ops.exp(-logvar) + logvar + LOG_2PI, axis=1) * -0.5


class Terms(NamedTuple):
    """loss: a single number to call backward() on; nll, kl: (B,), unweighted, for the log.

    elbo: (B,), what the loss is the negative mean of.  log: more to report, name -> (B,) or number.
    """

    loss: Tensor
    nll: Any
    kl: Any
    elbo: Any
    log: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def elbo(
    network: Any,
    x: Any,
    eps: Any,
    *,
    likelihood: Likelihood,
    beta: float = 1.0,
    free_bits: float = 0.0,
    batch: int | None = None,
    y: Any = None,
) -> Terms:
    """The evidence lower bound with one sample of z a row, as a loss: its negative batch mean.

    E_q[log p(x | z)] - beta KL(q(z | x) || N(0, I))        Kingma and Welling 2014, equation 10
    network: has encode(x) -> mu, logvar and decode(z) -> the likelihood's raw parameters.
    x: (B, ...); eps: (B, Z) standard normal noise; batch: rows of the whole batch, if x is a part.
    y: a condition, which encode and decode take too (Sohn et al. 2015).
    """
    condition = () if y is None else (y,)
    mu, logvar = network.encode(x, *condition)
    z = ops.reparameterize(mu, logvar, eps)
    loss = likelihood.loss(
        network.decode(z, *condition),
        x,
        mu,
        logvar,
        beta=beta,
        free_bits=free_bits,
        batch=batch or len(x),
    )
    return Terms(loss, loss.saved.nll, loss.saved.kl, loss.saved.elbo)
