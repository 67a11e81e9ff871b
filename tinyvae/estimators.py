"""Gradients of an expectation over discrete latents: relaxed, enumerated, or by the score function.

    grad_phi E_q(z|x; phi)[f(x, z)],    z bits or classes: there is no z = mu + sigma eps to follow

Three ways, from most to least assumed: sum over all z (`enumerate_bits`, `enumerate_classes`,
`expectation`: exact, for few latents); let gradients through a continuous stand-in for z
(`gumbel_softmax`: biased, little variance); weigh grad log q by how well a sample did
(`score_function`, `vimco`: unbiased, with more variance, which baselines lower).

An estimator returns the bound of its samples as the value, and carries the estimate as the
gradient: these two are different functions, so finite differences of the value say nothing about
it; the tests compare its exact mean over all z with the gradient of the enumerated bound.

Sizes: B rows, N latents a row, C classes, K samples a row, S states that N latents can take.
Classes are one-hot: z (..., N, C); bits are z (..., N) of 0 and 1.  Everything per row, in nats.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from . import ops
from .nn import Buffer, Module
from .tensor import Tensor

MOST_STATES = 2**16  # that are enumerated: a batch holds so many times its rows


# ----------------------------------------------------------------------- distributions of latents
def bernoulli_log_prob(logits: Any, z: Any) -> Tensor:
    """log q(z) of N independent bits, in nats.

    log q = sum_n z_n l_n - softplus(l_n)
    logits: (..., N); z: (..., N), 0 or 1; leading axes broadcast.  Returns (...).
    """
    return ops.sum(logits * z - ops.softplus(logits), axis=-1)


def categorical_log_prob(logits: Any, z: Any) -> Tensor:
    """log q(z) of N independent variables of C classes, in nats.

    log q = sum_n sum_c z_nc log softmax(l_n)_c
    logits: (..., N, C); z: (..., N, C), one-hot; leading axes broadcast.  Returns (...).
    """
    return ops.sum(ops.log_softmax(logits) * z, axis=(-2, -1))


def bernoulli_kl(logits: Tensor, prior_logits: Any = None) -> Tensor:
    """KL(q || p) of each of N bits, in nats; p uniform by default.

    KL = q (log q - log p) + (1 - q) (log (1 - q) - log (1 - p)),    q = sigmoid(l)
       = q (l - l_p) - softplus(l) + softplus(l_p)
    logits: (..., N); prior_logits: None or an array that broadcasts against them.
    Returns (..., N), of each bit: sum it for the row's.
    """
    if prior_logits is None:
        return ops.sigmoid(logits) * logits - ops.softplus(logits) + math.log(2)
    gap = ops.sigmoid(logits) * (logits - prior_logits)
    return gap - ops.softplus(logits) + ops.softplus(prior_logits)


def categorical_kl(logits: Tensor, prior_logits: Any = None) -> Tensor:
    """KL(q || p) of each of N variables of C classes, in nats; p uniform by default.

    KL = sum_c q_c (log q_c - log p_c),    q = softmax(l), log p_c = -log C if uniform
    logits: (..., N, C); prior_logits: None or an array that broadcasts against them.
    Returns (..., N), of each variable: sum it for the row's.       Jang, Gu and Poole 2017, sec. 3
    """
    log_q = ops.log_softmax(logits)
    uniform = -math.log(logits.shape[-1])
    log_p = uniform if prior_logits is None else ops.log_softmax(prior_logits)
    return ops.sum(ops.exp(log_q) * (log_q - log_p), axis=-1)


# -------------------------------------------------------------------------------------- samples
def sample_bits(logits: Any, u: Any) -> Any:
    """Bits z = [u < sigmoid(logits)], an array of the logits' dtype.

    logits: (..., N); u: uniform in (0, 1), (..., N), or more samples in front.
    """
    return (u < ops.sigmoid(logits).data).astype(u.dtype)


def sample_classes(logits: Any, u: Any) -> Any:
    """One-hot z, z_c = [c = argmax_c (l_c + g_c)],  g = -log(-log u): the Gumbel-max trick.

    logits: (..., N, C); u: uniform in (0, 1), (..., N, C), or more samples in front.
    Its argmax is distributed as softmax(logits).                     Maddison et al. 2017, eq. 8
    """
    return one_hot((_values(logits) + gumbel(u)).argmax(axis=-1), u.shape[-1], like=u)


def one_hot(codes: Any, classes: int, *, like: Any) -> Any:
    """Integers (...) -> (..., C), a one at each integer's place; like: array that gives the dtype.

    Raises ValueError for an integer outside [0, C).
    """
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < classes:
        raise ValueError(f"codes must be in [0, {classes}), got {codes.min()} to {codes.max()}")
    every = np.arange(classes, like=like).astype(codes.dtype)
    return (codes[..., None] == every).astype(like.dtype)  # (...) -> (..., C)


def gumbel(u: Any) -> Any:
    """Standard Gumbel noise from uniform noise in (0, 1): g = -log(-log u)."""
    return -np.log(-np.log(u))


def gumbel_softmax(logits: Any, u: Any, *, temperature: float, hard: bool = False) -> Tensor:
    """A continuous stand-in for a one-hot sample, on the simplex; differentiable in the logits.

    z = softmax((l + g) / temperature),  g = -log(-log u)
                                       Jang, Gu and Poole 2017, eq. 2; Maddison et al. 2017, eq. 10
    logits: (..., C); u: uniform in (0, 1) of that shape; temperature > 0: towards 0 z becomes
    one-hot and its gradient's bias vanishes, while the variance grows.
    hard: straight through: the value is one-hot, exactly; the gradient is that of the soft z.  It
    stays biased at any temperature, as it looks at f's slope at the corners alone.
    Raises ValueError unless temperature is positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    soft = ops.softmax((logits + gumbel(u)) * (1 / temperature))
    if not hard:
        return soft
    return value_with_gradient(one_hot(soft.data.argmax(axis=-1), u.shape[-1], like=u), soft)


def value_with_gradient(value: Any, surrogate: Tensor) -> Tensor:
    """A tensor that holds `value`, bit for bit, and passes its gradient on to `surrogate`.

    out = value + (s - s)       the difference is exactly zero for any finite surrogate s
    """
    return (surrogate - surrogate.detach()) + value


# ---------------------------------------------------------------------------------- enumeration
def enumerate_bits(latents: int, dtype: Any = np.float32) -> np.ndarray:
    """All states of N bits, (S, N) with S = 2^N.  Raises ValueError if S is above 2^16."""
    return enumerate_classes(latents, 2, dtype)[:, :, 1]


def enumerate_classes(latents: int, classes: int, dtype: Any = np.float32) -> np.ndarray:
    """All states of N variables of C classes, one-hot, (S, N, C) with S = C^N.

    Raises ValueError if S is above 2^16, or a size is below 1.
    """
    if latents < 1 or classes < 1:
        raise ValueError(f"latents and classes must be >= 1, got {latents} and {classes}")
    if latents * math.log(classes) > math.log(MOST_STATES) + 1e-9:
        raise ValueError(
            f"{classes}^{latents} states are too many to enumerate (at most {MOST_STATES}): "
            "use a sampled estimator"
        )
    codes = np.array(list(itertools.product(range(classes), repeat=latents)))  # (S, N)
    return np.eye(classes, dtype=dtype)[codes]


def expectation(log_q: Tensor, f: Any) -> Tensor:
    """E_q[f] = sum_s q(s) f(s), exactly.  log_q, f: (S, B).  Returns (B,)."""
    return ops.sum(ops.exp(log_q) * f, axis=0)


# --------------------------------------------------------------------------- the score function
def score_function(f: Any, log_q: Tensor, baseline: Any = 0.0) -> Tensor:
    """f of one sample a row, with the score-function estimate of grad E_q[f] as its gradient.

    value:     f(x, z),                                                     z ~ q(z | x)
    gradient:  grad f(x, z) + (f - baseline) grad log q(z | x)
                                                Williams 1992; Mnih and Gregor 2014, eq. 6 and 7
    f, log_q: (B,), of the sampled z; baseline: a number or (B,), which may depend on x but not on
    z: the estimate then has no bias, whatever it is (E[grad log q] = 0).  For the ELBO, f is
    log p(x, z) - log q(z | x); give it log q detached, whose own gradient is noise of mean zero; or
    f is log p(x | z), beside a KL in closed form.  Nothing learns from the baseline here; see
    `Baseline`.
    """
    value, baseline = _values(f), _values(baseline)
    if np.shape(baseline) not in ((), value.shape):
        expected = f"a number or {value.shape}"
        raise ValueError(f"baseline must be {expected}, got shape {np.shape(baseline)}")
    return value_with_gradient(value, f + (value - baseline) * log_q)


def vimco(log_w: Any, log_q: Tensor) -> Tensor:
    """The bound of K samples a row, with VIMCO's estimate as its gradient, in nats.

    value:     L = log 1/K sum_k w_k,   w_k = p(x, z_k) / q(z_k | x)
    gradient:  sum_k w_k / sum w grad log w_k + sum_k (L - L_k) grad log q(z_k | x)
               L_k: L with log w_k replaced by the mean of the other samples' log w
                                                              Mnih and Rezende 2016, eq. 8 to 10
    log_w, log_q: (B, K), K >= 2, of independent samples; log_w with its whole gradient, that of
    -log q too: under the weights it has no mean of zero.  Returns (B,).
    Raises ValueError for K < 2: the other samples are the baseline.
    """
    if log_q.ndim != 2 or log_q.shape[1] < 2:
        raise ValueError(f"vimco needs log_q of shape (B, K), K >= 2, got {log_q.shape}")
    bound = ops.log_mean_exp(log_w)
    signal = bound.data[:, None] - leave_one_out(_values(log_w))  # (B, K)
    return value_with_gradient(bound.data, bound + ops.sum(signal * log_q, axis=1))


def leave_one_out(log_w: Any) -> Any:
    """L_k of `vimco`: the bound as it would be without sample k's own weight, (B, K)."""
    K = log_w.shape[1]
    means = (log_w.sum(axis=1, keepdims=True) - log_w) / (K - 1)
    k = np.arange(K, like=log_w)
    swapped = np.where(k[:, None] == k, means[:, :, None], log_w[:, None, :])  # (B, K) -> (B, K, K)
    return ops.logsumexp(swapped, axis=2).data - math.log(K)


class Baseline(Module):
    """What a sample's f is compared with: a running mean of f, and a network's guess from x.

    b(x) = mean + network(x)                          Mnih and Gregor 2014, section 2.3 (NVIL)
    network: None, or x (B, ...) -> (B, 1); it learns by `loss`.  decay: of the running mean.
    The mean is updated after the step (`update`): a baseline that has seen the sample which it is
    compared with would bias the gradient.  It is the mean of whole batches, so that training keeps
    them in one piece.  NVIL's variance normalisation is left out: it rescales the encoder's
    gradient, which Adam does anyway.
    """

    couples_rows = True

    def __init__(self, network: Any = None, *, decay: float = 0.9, dtype: Any = np.float32):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.network, self.decay = network, decay
        self.mean = Buffer(np.zeros((), dtype))
        self.updates = Buffer(np.zeros((), dtype))

    def __call__(self, x: Any) -> Tensor:
        """b(x), a number () or (B,) with a network, in nats."""
        if self.network is None:
            return self.mean
        return ops.reshape(self.network(x), (len(x),)) + self.mean

    def loss(self, f: Any, baseline: Tensor) -> Any:
        """(f - b(x))^2 of each row, (B,): what the network learns from; f: (B,) array."""
        return (baseline - f) ** 2

    def update(self, f: Any) -> None:
        """Let the running mean move towards a batch's mean of f; f: (B,) or (B, K) array.

        mean <- decay mean + (1 - decay) f, the first time f itself.
        """
        decay = self.decay if self.updates.data > 0 else 0.0
        self.mean.data[...] = decay * self.mean.data + (1 - decay) * f.mean(dtype=np.float64)
        self.updates.data += 1


def _values(x: Any) -> Any:
    """The array of a tensor, or what else it is."""
    return x.data if isinstance(x, Tensor) else x
