"""The fused kernels on the tape; their pairs, with formulas, stand in tinyvae_kernels.

An ELBO's result carries its two terms: `elbo.saved.nll` and `elbo.saved.kl`, each (B,) in nats.  An
`elbo_loss` is the negative mean of an ELBO, or of an importance-weighted bound, as one op: it knows
the gradient that will come in, so that value and gradients cost one pass over the data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyvae_kernels import PAIRS

from .. import devices
from ..tensor import differentiable

gaussian_kl = differentiable(*PAIRS["gaussian_kl"])
gaussian_kl_total = differentiable(*PAIRS["gaussian_kl_total"])
gaussian_kl_between = differentiable(*PAIRS["gaussian_kl_between"])
bernoulli_nll = differentiable(*PAIRS["bernoulli_nll"])
gaussian_nll = differentiable(*PAIRS["gaussian_nll"])
gaussian_fixed_nll = differentiable(*PAIRS["gaussian_fixed_nll"])
categorical_nll = differentiable(*PAIRS["categorical_nll"])
beta_nll = differentiable(*PAIRS["beta_nll"])
logistic_mixture_nll = differentiable(*PAIRS["logistic_mixture_nll"])
bernoulli_elbo = differentiable(*PAIRS["bernoulli_elbo"])
gaussian_elbo = differentiable(*PAIRS["gaussian_elbo"])
gaussian_fixed_elbo = differentiable(*PAIRS["gaussian_fixed_elbo"])
log_mean_exp = differentiable(*PAIRS["log_mean_exp"])
gaussian_log_ratio = differentiable(*PAIRS["gaussian_log_ratio"])
bernoulli_iwae = differentiable(*PAIRS["bernoulli_iwae"])
gaussian_iwae = differentiable(*PAIRS["gaussian_iwae"])
gaussian_fixed_iwae = differentiable(*PAIRS["gaussian_fixed_iwae"])
mixture_log_prob = differentiable(*PAIRS["mixture_log_prob"])
mixture_marginal_log_prob = differentiable(*PAIRS["mixture_marginal_log_prob"])
bias_activation = differentiable(*PAIRS["bias_activation"])
# straight through: its gradient is not the derivative, so it is no op that `gradcheck` could check
nearest_code = differentiable(*PAIRS["nearest_code"])
total = differentiable(*PAIRS["total"])
im2col = differentiable(*PAIRS["im2col"])
col2im = differentiable(*PAIRS["col2im"])


class LossSaved(NamedTuple):
    """What a loss keeps: the ELBO and its two terms, (B,) nats, and the loss's gradients.

    weights: of the samples, (B, K), if it is an importance-weighted bound.
    """

    elbo: Any
    nll: Any
    kl: Any
    gradients: tuple
    weights: Any = None


def elbo_loss_forward(*arrays: Any, elbo: str, batch: int, **options: Any) -> Any:
    """loss = -sum_i elbo_i / batch, the negative mean if all rows of the batch are here.

    elbo: the name of an ELBO or of an importance-weighted bound, "bernoulli_iwae", whose arrays and
    options these are; batch: rows of the whole batch.
    Returns loss (), saved.
    """
    values, saved = PAIRS[elbo][0](*arrays, dout=-1.0 / batch, **options)
    loss = np.asarray(values.sum(dtype=np.float64) / -batch, values.dtype, like=values)
    weights = getattr(saved, "weights", None)
    return loss, LossSaved(values, saved.nll, saved.kl, saved.gradients(), weights)


def elbo_loss_backward(dout: Any, saved: LossSaved) -> tuple:
    """darray = dloss g, with the gradients g that the forward made for a dloss of 1.

    dout: dloss ().  Returns one gradient for each array, None for x.
    """
    if dout == 1 if isinstance(dout, np.ndarray) else dout is devices.one(dout):
        return saved.gradients
    return tuple(None if g is None else dout * g for g in saved.gradients)


elbo_loss = differentiable(elbo_loss_forward, elbo_loss_backward)
