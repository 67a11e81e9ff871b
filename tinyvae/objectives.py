"""What training maximises, written as in the papers.  All per row, in nats."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import ops
from .likelihoods import Likelihood
from .tensor import Tensor


class Elbo(NamedTuple):
    """loss: a single number to call backward() on; nll, kl: (B,), unweighted, for the log."""

    loss: Tensor
    nll: Any
    kl: Any


def elbo(
    network: Any,
    x: Any,
    eps: Any,
    *,
    likelihood: Likelihood,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Elbo:
    """The evidence lower bound with one sample of z a row, as a loss: its negative batch mean.

    E_q[log p(x | z)] - beta KL(q(z | x) || N(0, I))        Kingma and Welling 2014, equation 10
    network: has encode(x) -> mu, logvar and decode(z) -> the likelihood's raw parameters.
    x: (B, ...); eps: (B, Z) standard normal noise.
    """
    mu, logvar = network.encode(x)
    z = ops.reparameterize(mu, logvar, eps)
    bound = likelihood.elbo(network.decode(z), x, mu, logvar, beta=beta, free_bits=free_bits)
    return Elbo(-ops.mean(bound), bound.saved.nll, bound.saved.kl)
