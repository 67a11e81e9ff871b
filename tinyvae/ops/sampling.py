"""The reparameterized Gaussian sample; its pairs stand in tinyvae_kernels/gaussian.py.

`reparameterize` takes its noise, `gaussian_sample` draws it, and again in the backward.
"""

from __future__ import annotations

from tinyvae_kernels import PAIRS

from ..tensor import differentiable

reparameterize = differentiable(*PAIRS["reparameterize"])
gaussian_sample = differentiable(*PAIRS["gaussian_sample"])
