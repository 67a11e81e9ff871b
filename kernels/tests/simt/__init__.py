"""A CUDA device for tests on machines without one: the kernels' own source, compiled by g++.

with simt.device() as gpu:
    mu = gpu.xp.asarray(numpy_array)            # stands for a CuPy array
    kl, saved = gaussian_kl_forward(mu, mu)     # the launch of _cuda.py, the kernel of gaussian.cu
    gpu.xp.asnumpy(kl)
"""

from .device import Array, SimtDevice, allocate, device

__all__ = ["Array", "SimtDevice", "allocate", "device"]
