"""The kernels as differentiable functions of other libraries: pytorch, jax."""
