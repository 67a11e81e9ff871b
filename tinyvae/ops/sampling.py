"""The reparameterized Gaussian sample; its pair stands in tinyvae_kernels/gaussian.py."""

from __future__ import annotations

from tinyvae_kernels import PAIRS

from ..tensor import differentiable

reparameterize = differentiable(*PAIRS["reparameterize"])
