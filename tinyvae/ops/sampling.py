"""Reparameterized Gaussian samples; their pairs stand in tinyvae_kernels: gaussian.py, samples.py.

`reparameterize` takes its noise, `gaussian_sample` draws it, and again in the backward;
`reparameterize_samples` takes noise for several samples a row.
"""

from __future__ import annotations

from tinyvae_kernels import PAIRS

from ..tensor import differentiable

reparameterize = differentiable(*PAIRS["reparameterize"])
gaussian_sample = differentiable(*PAIRS["gaussian_sample"])
reparameterize_samples = differentiable(*PAIRS["reparameterize_samples"])
