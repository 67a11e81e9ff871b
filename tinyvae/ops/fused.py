"""The fused kernels on the tape; their pairs, with formulas, stand in tinyvae_kernels.

An ELBO's result carries its two terms: `elbo.saved.nll` and `elbo.saved.kl`, each (B,) in nats.
"""

from __future__ import annotations

from tinyvae_kernels import PAIRS

from ..tensor import differentiable

gaussian_kl = differentiable(*PAIRS["gaussian_kl"])
gaussian_kl_total = differentiable(*PAIRS["gaussian_kl_total"])
gaussian_kl_between = differentiable(*PAIRS["gaussian_kl_between"])
bernoulli_nll = differentiable(*PAIRS["bernoulli_nll"])
gaussian_nll = differentiable(*PAIRS["gaussian_nll"])
gaussian_fixed_nll = differentiable(*PAIRS["gaussian_fixed_nll"])
bernoulli_elbo = differentiable(*PAIRS["bernoulli_elbo"])
gaussian_elbo = differentiable(*PAIRS["gaussian_elbo"])
gaussian_fixed_elbo = differentiable(*PAIRS["gaussian_fixed_elbo"])
total = differentiable(*PAIRS["total"])
im2col = differentiable(*PAIRS["im2col"])
col2im = differentiable(*PAIRS["col2im"])
