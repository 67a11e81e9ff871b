"""Plain PyTorch formulas of every pair, and arguments for them: what the adapter's tests share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import backends
import tinyvae_kernels as kernels
from tinyvae_kernels import PAIRS
from tinyvae_kernels.adapters import pytorch as adapter

LOG_2PI = math.log(2 * math.pi)
# sums over a batch and patches: PyTorch has sum, and F.unfold and F.fold
LEFT_OUT = {"total", "gaussian_kl_total", "im2col", "col2im"}
# arrays of B and of B K rows in one call: the nll and log_mean_exp do the same in two
LEFT_OUT |= {"reparameterize_samples", "gaussian_log_ratio"}
LEFT_OUT |= {"bernoulli_iwae", "gaussian_iwae", "gaussian_fixed_iwae"}


# ---------------------------------------------------------------------------- plain formulas
def row(each):
    """(B, ...) -> (B,)."""
    return each.flatten(1).sum(1)


def kl(mu, logvar, free_bits=0.0):
    each = (mu**2 + torch.expm1(logvar) - logvar) / 2
    return row(each.clamp(min=free_bits) if free_bits else each)


def kl_between(mu, logvar, mu2, logvar2):
    d = logvar - logvar2
    return row((mu - mu2) ** 2 * torch.exp(-logvar2) + torch.expm1(d) - d) / 2


def bernoulli(logits, x):
    return row(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def gaussian(x_mu, x_logvar, x):
    return row(LOG_2PI + x_logvar + (x - x_mu) ** 2 * torch.exp(-x_logvar)) / 2


def fixed(x_mu, x, variance):
    return gaussian(x_mu, torch.full_like(x, math.log(variance)), x)


def categorical(logits, labels):
    log_p = torch.log_softmax(logits, -1).gather(-1, labels.long()[..., None])
    return -row(log_p.flatten(1))


def beta_density(log_alpha, log_beta, x):
    return -row(torch.distributions.Beta(log_alpha.exp(), log_beta.exp()).log_prob(x))


def logistic_mixture(logit_weight, x_mu, log_scale, x, levels=256):
    """The sigmoids themselves: exact enough where the bins are wide."""
    h, scale = 1 / (levels - 1), log_scale.exp()
    level = torch.round((x + 1) * (levels - 1) / 2)[..., None]
    centre = 2 * level / (levels - 1) - 1
    above = torch.where(level == levels - 1, 1.0, torch.sigmoid((centre + h - x_mu) / scale))
    below = torch.where(level == 0, 0.0, torch.sigmoid((centre - h - x_mu) / scale))
    return -row(((above - below) * logit_weight.softmax(-1)).sum(-1).log())


def elbo(nll):
    def value(*arrays, beta=1.0, free_bits=0.0, **options):
        *given, mu, logvar = arrays
        return -nll(*given, **options) - beta * kl(mu, logvar, free_bits)

    return value


def sample(mu, logvar, **numbers):
    eps = kernels.philox_normal(tuple(mu.shape), dtype=np.float64, **numbers)
    return mu + torch.exp(logvar / 2) * torch.from_numpy(eps)


ACTIVATION_FORMULAS = {
    "identity": lambda u: u,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": lambda u: F.gelu(u, approximate="tanh"),
}


def bias_activation(x, bias, activation):
    return ACTIVATION_FORMULAS[activation](x + bias)


def mixture_terms(z, log_weights, mu, logvar):
    """(B, K, Z) each: the weights, and the logarithms of the densities."""
    log_n = -(LOG_2PI + logvar + (z[:, None] - mu) ** 2 * torch.exp(-logvar)) / 2
    return log_weights[..., None], log_n


def mixture(*arrays):
    weights, log_n = mixture_terms(*arrays)
    return torch.logsumexp(weights[..., 0] + log_n.sum(2), 1)


def mixture_marginal(*arrays):
    return torch.logsumexp(sum(mixture_terms(*arrays)), 1)


FORMULAS = {
    "reparameterize": lambda mu, logvar, eps: mu + torch.exp(logvar / 2) * eps,
    "gaussian_sample": sample,
    "gaussian_kl": kl,
    "gaussian_kl_between": kl_between,
    "bernoulli_nll": bernoulli,
    "gaussian_nll": gaussian,
    "gaussian_fixed_nll": fixed,
    "categorical_nll": categorical,
    "beta_nll": beta_density,
    "logistic_mixture_nll": logistic_mixture,
    "bernoulli_elbo": elbo(bernoulli),
    "gaussian_elbo": elbo(gaussian),
    "gaussian_fixed_elbo": elbo(fixed),
    "log_mean_exp": lambda log_w: torch.logsumexp(log_w, 1) - math.log(log_w.shape[1]),
    "mixture_log_prob": mixture,
    "mixture_marginal_log_prob": mixture_marginal,
    "bias_activation": bias_activation,
}
every_formula = pytest.mark.parametrize("name", FORMULAS)
every_pair = pytest.mark.parametrize("name", sorted(PAIRS.keys() - LEFT_OUT))


# ---------------------------------------------------------------------------------- examples
def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(name: str, B: int = 4, D: int = 6, dtype: Any = torch.float64) -> tuple:
    """Tensors of moderate size, those that are not data on the tape, and the options."""
    case = backends.CASES[name](np.random.default_rng([B, D]), B, D)
    tensors = []
    for i, array in enumerate(case.arrays):
        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            limit = 1.0 if name == "beta_nll" and i == 2 else 3.0  # 3: nothing of size exp(20)
            tensor = tensor.clamp(-limit, limit).to(dtype).requires_grad_(i not in case.data)
        tensors.append(tensor)
    return tensors, dict(case.options)


def function(name: str) -> Any:
    """The adapter's, with the first of its results alone."""

    def call(*tensors, **options):
        results = getattr(adapter, name)(*tensors, **options)
        return results[0] if isinstance(results, tuple) else results

    return call


def on_tape(tensors: list) -> list:
    return [t for t in tensors if t.requires_grad]


def value_and_gradients(call: Any, tensors: list, options: dict, dout: Any = None) -> list:
    out = call(*tensors, **options)
    dout = torch.ones_like(out) if dout is None else dout
    return [out.detach(), *torch.autograd.grad(out, on_tape(tensors), dout.to(out.dtype))]


def assert_close(found: list, expected: list, tolerance: float, message: str = "") -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * size,
            msg=lambda text: f"{message} {text}",
        )  # fmt: skip


def model(*sizes: int) -> Any:
    """A perceptron with the same weights in every run."""
    layers: list[Any] = []
    for k, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        layer = torch.nn.Linear(wide, narrow)
        with torch.no_grad():
            layer.weight.copy_(normal(narrow, wide, seed=k) / math.sqrt(wide))
            layer.bias.zero_()
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def strided(t: Any) -> Any:
    """The same numbers, every other element of a larger tensor, last axis first in memory."""
    other = math.nan if t.is_floating_point() else -7
    wide = torch.full((*reversed(t.shape), 2), other, dtype=t.dtype)
    wide[..., 0] = t.permute(*reversed(range(t.ndim)))
    return wide[..., 0].permute(*reversed(range(t.ndim)))


def negated(t: Any) -> Any:
    """A tensor whose memory holds the negative numbers, with PyTorch's negative bit."""
    return torch._neg_view(-t)


def options_of(pair: Any, options: dict) -> list:
    """As the operator takes them, in order."""
    signature = adapter.inspect.signature(pair.run_pair).parameters
    return [options.get(o, signature[o].default) for o in pair.options]


def training_loss(logits, x, mu, logvar, beta, step):
    z = adapter.gaussian_sample(mu, logvar, seed=3, step=step)
    eps = torch.ones_like(mu)
    z = z + adapter.reparameterize(mu, logvar, eps)
    bound = adapter.bernoulli_elbo(logits * z.sum(1, keepdim=True), x, mu, logvar, free_bits=0.1)
    return (beta * adapter.gaussian_kl(mu, logvar) - bound.sigmoid()).mean()
