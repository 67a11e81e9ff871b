"""What training maximises, written as in the papers.  All per row, in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from . import ops, spelling
from ._text import unknown
from .likelihoods import Likelihood
from .tensor import Tensor

LOG_2PI = math.log(2 * math.pi)
ESTIMATORS = ("mss", "mws")  # of the aggregate posterior, from one batch


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
    free_bits: Any = 0.0,
    batch: int | None = None,
    y: Any = None,
    mask: Any = None,
    seen: Any = None,
) -> Terms:
    """The evidence lower bound with one sample of z a row, as a loss: its negative batch mean.

    E_q[log p(x | z)] - beta KL(q(z | x) || N(0, I))        Kingma and Welling 2014, equation 10
    network: has encode(x) -> mu, logvar and decode(z) -> the likelihood's raw parameters.
    x: (B, ...); eps: (B, Z) standard normal noise; batch: rows of the whole batch, if x is a part.
    free_bits: nats of each dimension, or what the batch's KL costs: Group, Total or Towards.
    y: a condition, which encode and decode take too (Sohn et al. 2015).
    mask: like x, 1 where x is observed: log p(x | z) is that of the observed values (Nazabal et al.
    2020, equation 3).  seen: what the encoder sees, if it is not x (Im et al. 2017, equation 6).
    """
    condition = () if y is None else (y,)
    mu, logvar = network.encode(x if seen is None else seen, *condition)
    output = network.decode(ops.reparameterize(mu, logvar, eps), *condition)
    if callable(free_bits):
        return _pressed(likelihood.nll(output, x, mask), mu, logvar, free_bits, beta)
    loss = likelihood.loss(
        output, x, mu, logvar, beta=beta, free_bits=free_bits, batch=batch or len(x), mask=mask
    )
    return Terms(loss, loss.saved.nll, loss.saved.kl, loss.saved.elbo)


def weighted(nll: Tensor, kl: Tensor, *, beta: Any = 1.0, batch: int) -> Terms:
    """The negative ELBO of its terms, (B,) nats each, as a loss: sum (nll + beta kl) / batch."""
    negative = nll + beta * kl
    return Terms(ops.sum(negative) * (1 / batch), nll.data, kl.data, -negative.data)


def weighed(mu: Any, logvar: Any, eps: Any, prior: tuple | None = None) -> tuple[Any, Any]:
    """A sample z = mu + sigma eps, (B, Z), and log p(z) - log q(z) of it, (B,) float64; arrays.

    prior: mu and logvar of p, N(0, I) by default.  The two Gaussians' constants cancel.
    """
    z = mu + np.exp(logvar / 2) * eps
    away, wide = z, 0.0
    if prior is not None:
        away, wide = (z - prior[0]) * np.exp(-prior[1] / 2), prior[1]
    return z, 0.5 * (eps**2 + logvar - away**2 - wide).sum(axis=1, dtype=np.float64)


def _pressed(nll: Tensor, mu: Tensor, logvar: Tensor, cost: Any, beta: Any) -> Terms:
    """The mean of -log p(x | z), and the cost of a whole batch's KL, in the place of beta KL."""
    each = ops.gaussian_kl(*(ops.reshape(t, (mu.data.size, 1)) for t in (mu, logvar)))
    kl = ops.reshape(each, mu.shape)  # (B Z,) -> (B, Z)
    paid = cost(kl, beta)
    return Terms(ops.mean(nll) + paid, nll.data, kl.data.sum(axis=1), -(nll.data + paid.data))


# --------------------------------------------------------------------- what the KL is pressed with
@dataclass(frozen=True)
class Group:
    """Free bits of groups of latent dimensions: `size` neighbours each, in a batch's mean.

    sum_g max(nats, mean_b KL_bg)                                 Kingma et al. 2016, appendix C.8
    Below the floor a group's KL has no gradient.
    Raises ValueError for a floor below 0, or no size.
    """

    name: ClassVar[str] = "group"
    nats: float
    size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.nats < math.inf and self.size >= 1):
            raise ValueError(f"nats must be >= 0 and size >= 1, got {self.nats} and {self.size}")

    def __call__(self, kl: Tensor, beta: Any) -> Tensor:
        """kl: (B, Z) nats, of each dimension.  Returns beta times the sum, one number."""
        mean, Z = ops.mean(kl, axis=0), kl.shape[1]
        groups = [ops.sum(mean[j : j + self.size]) for j in range(0, Z, self.size)]
        total = ops.clip(groups[0], low=self.nats)
        for group in groups[1:]:
            total = total + ops.clip(group, low=self.nats)
        return beta * total


@dataclass(frozen=True)
class Total(Group):
    """The same with all dimensions in one group: max(nats, mean_b KL_b)."""

    name: ClassVar[str] = "total"
    size: int = field(default=2**31, init=False)


@dataclass(frozen=True)
class Towards:
    """gamma |mean_b KL_b - C|: the KL is pressed to C nats, from either side.

    Burgess et al. 2018, equation 8; C comes in beta's place (schedules.Capacity).
    """

    gamma: float

    def __call__(self, kl: Tensor, capacity: Any) -> Tensor:
        """kl: (B, Z) nats, of each dimension; capacity: C.  Returns one number."""
        away = ops.sum(ops.mean(kl, axis=0)) - capacity
        return away * (self.gamma if away.data > 0 else -self.gamma)


FREE_BITS: dict[str, type] = {"group": Group, "total": Total}


def free_bits(value: Any) -> float | Group:
    """Nats for each dimension and row, a number, or of groups: "group:0.5:4", "total:8".

    Raises ValueError for a number below 0 and for a text that is neither.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return spelling.parse(value, FREE_BITS, "free_bits")
    if not 0 <= number < math.inf:
        raise ValueError(f"free_bits must be finite and >= 0, got {value!r}")
    return number


# ------------------------------------------------------------------------------ total correlation
class KLTerms(NamedTuple):
    """The parts of log q(z | x) - log p(z) at a sample z, (B,) nats; each is a KL in the mean.

    mi: log q(z | x) / q(z), mutual information of z and the row.  tc: log q(z) / prod_j q(z_j),
    total correlation.  dwkl: log prod_j q(z_j) / p(z), the dimension-wise KL.
    """

    mi: Tensor
    tc: Tensor
    dwkl: Tensor


def kl_terms(
    z: Any, mu: Any, logvar: Any, *, log_p: Any, log_weights: Any, among: tuple | None = None
) -> KLTerms:
    """The KL taken apart at the aggregate posterior q(z), a mixture of the rows' posteriors.

    q(z) = sum_k exp(log_weights_k) N(z; mu_k, e^logvar_k)       Chen et al. 2018, equation 2
    z, mu, logvar: (B, Z), a sample of each row and the posterior it is from; log_p: log p(z), (B,);
    among: mu and logvar (K, Z) of the mixture, by default these rows'; log_weights: (B, K) or
    (K,), of `aggregate_log_weights` say.
    The three add up to log q(z | x) - log p(z), whatever the weights are.
    """
    among = among or (mu, logvar)
    log_q_x = gaussian_log_prob(z, mu, logvar)
    log_q = ops.mixture_log_prob(z, log_weights, *among)
    log_q_each = ops.sum(ops.mixture_marginal_log_prob(z, log_weights, *among), axis=1)
    return KLTerms(log_q_x - log_q, log_q - log_q_each, log_q_each - log_p)


def aggregate_log_weights(rows: int, total: int, estimator: str = "mss") -> np.ndarray:
    """Weights with which a batch's posteriors stand for those of a whole data set, (B, B), logs.

    mws: 1 / (N B) for each row of the batch                Chen et al. 2018, equation 5
    mss: 1 / N for the row that z was drawn from, (N - 1) / (N (B - 1)) for each of the others:
    their appendix C.2, whose weights of the others depend on the order of the batch; these are
    the mean over all orders, so the estimate of q(z) is as unbiased and varies less.
    rows: B; total: N, rows of the data set.  With B = N mss is q(z) itself; mws is q(z) / N then,
    so that mi is log N too high, tc (Z - 1) log N too high, and dwkl Z log N too low: constants,
    which training does not feel.  Estimates of tc, row by row or in the mean, may be negative.
    Raises ValueError for an unknown estimator, or more rows than the data set has.
    """
    if not 0 < rows <= total:
        raise ValueError(f"a batch of {rows} rows cannot be from a data set of {total}")
    if estimator == "mws":
        return np.full((rows, rows), -math.log(total * rows))
    if estimator != "mss":
        raise unknown("estimator", estimator, ESTIMATORS)
    weights = np.full((rows, rows), (total - 1) / (total * max(rows - 1, 1)))
    np.fill_diagonal(weights, 1 / total)
    return np.log(weights)


# ------------------------------------------------------------------- any prior, flows, many samples
GRADIENTS = ("iwae", "stl", "dreg")  # of the importance-weighted bound


class Samples(NamedTuple):
    """What L samples z ~ q(z | x) of each row say, each (B, L) nats.

    nll: -log p(x | z).  log_ratio: log q(z | x) - log p(z), whose mean is the KL.
    """

    nll: Tensor
    log_ratio: Tensor


def samples(network: Any, x: Any, posterior: tuple, eps: Any, *, mask: Any = None) -> Samples:
    """Draw z ~ q(z | x), pass it through the flow if there is one, and decode it.

    network, posterior, eps: as in latent_samples(), with likelihood and decode; mask: like x, 1
    where it is observed.
    """
    z, log_ratio = latent_samples(network, posterior, eps)
    x, mask = (None if a is None else np.repeat(a, eps.shape[1], axis=0) for a in (x, mask))
    nll = network.likelihood.nll(network.decode(z), x, mask)
    return Samples(ops.reshape(nll, log_ratio.shape), log_ratio)


def latent_samples(
    network: Any, posterior: tuple, eps: Any, *, still: bool = False, rate: Any = None
) -> tuple[Tensor, Tensor]:
    """z ~ q(z | x), after the flow if there is one, (B L, Z); and their log_ratio (B, L).

    log q(z | x) = log N(z0; mu, sigma^2) - logdet,  z = flow(z0)      Rezende, Mohamed 2015, eq. 5
    network: has prior and flow (or None); posterior: mu, logvar (B, Z), and the flow's context;
    eps: (B, L, Z).
    still: take mu and logvar in log q for constants, so that its gradient comes by z alone.
    rate: a function that gives factors (B, L) of the gradient that comes by z, when it comes.
    """
    B, L, Z = eps.shape
    mu, logvar, *_ = posterior
    z = ops.reparameterize_samples(mu, logvar, eps)
    if rate is not None:
        z = ops.scale_gradient(z, rate)
    if network.flow is None:
        log_ratio = network.prior.log_ratio(z, logvar, eps, still=still)
        if log_ratio is not None:
            return ops.reshape(z, (B * L, Z)), log_ratio
    z = ops.reshape(z, (B * L, Z))
    mu, logvar, *context = (_repeated(tensor, L) for tensor in posterior)
    log_q = gaussian_log_prob(z, *((mu.detach(), logvar.detach()) if still else (mu, logvar)))
    if network.flow is not None:
        z, logdet = network.flow.forward(z, *context)
        log_q = log_q - logdet
    return z, ops.reshape(log_q - network.prior.log_prob(z), (B, L))


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """(B, ...) -> (B L, ...), each row so many times."""
    if times == 1:
        return tensor
    B, *row = tensor.shape
    wide = ops.reshape(tensor, (B, 1, *row)) + np.zeros_like(tensor.data, shape=(B, times, *row))
    return ops.reshape(wide, (B * times, *row))


def sampled_elbo(
    network: Any,
    x: Any,
    posterior: tuple,
    eps: Any,
    *,
    beta: float = 1.0,
    closed: bool = True,
    batch: int | None = None,
    mask: Any = None,
) -> Terms:
    """The ELBO for any prior and flow, with L samples a row, as a loss: its negative batch mean.

    1/L sum_l log p(x | z_l) - beta KL,   KL = 1/L sum_l log q(z_l | x) - log p(z_l)
                                               Kingma and Welling 2014, equations 6 and 7
    closed: take the KL in closed form where there is one: a Gaussian prior, and no flow.
    network, posterior, eps, mask: as in samples(); batch: rows of the whole batch, if x is a part.
    """
    found = samples(network, x, posterior, eps, mask=mask)
    nll, kl = ops.mean(found.nll, axis=1), None
    if closed and network.flow is None:
        kl = network.prior.kl(*posterior)
    if kl is None:
        kl = ops.mean(found.log_ratio, axis=1)
    return weighted(nll, kl, beta=beta, batch=batch or len(x))


def iwae(
    network: Any,
    x: Any,
    posterior: tuple,
    eps: Any,
    *,
    gradient: str = "iwae",
    beta: float = 1.0,
    batch: int | None = None,
    mask: Any = None,
) -> Terms:
    """The importance-weighted bound with K samples a row, as a loss: its negative batch mean.

    log 1/K sum_k w_k,   w_k = p(x, z_k) / q(z_k | x)             Burda et al. 2016, equation 8
    gradient, of the encoder (the decoder's is always that of the bound, weights w~ = w / sum w):
        iwae  of the bound itself                                          equation 13
        stl   without the score of q, biased for K > 1     Roeder, Wu and Duvenaud 2017, section 4
        dreg  sum_k w~_k^2 dlog w_k/dz dz/dphi, unbiased            Tucker et al. 2019, equation 8
    eps: (B, K, Z).  beta: factor of log q - log p(z); the bound has 1.  mask: like x, 1 where it is
    observed; then this is MIWAE, Mattei and Frellsen 2019.
    Terms: nll and kl are means over the samples, so that -(nll + kl) is an ELBO, below the bound.
    Raises ValueError for an unknown gradient.
    """
    if gradient not in GRADIENTS:
        raise unknown("gradient", gradient, GRADIENTS)
    loss: Tensor
    rate = (lambda: loss.saved.weights) if gradient == "dreg" else None  # known after z
    z, log_ratio = latent_samples(network, posterior, eps, still=gradient != "iwae", rate=rate)
    loss = network.likelihood.iwae_loss(
        network.decode(z), x, log_ratio, beta=beta, batch=batch or len(x), mask=mask
    )
    saved = loss.saved
    return Terms(loss, saved.nll, saved.kl, saved.elbo, {"bound": saved.elbo})
