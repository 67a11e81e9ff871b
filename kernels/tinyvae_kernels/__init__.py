"""Fused kernels for variational autoencoders: arrays in, arrays out, nothing of tinyvae needed.

A kernel is a pair of pure functions:

    noun_forward(arrays..., *, options) -> out, saved
    noun_backward(dout, saved)          -> one gradient per array argument (None for data)

`PAIRS` lists them all.  NumPy arrays run the Numba loops, arrays on a GPU the CUDA kernels, and
`backend("numpy")` the plain reference.  Where the gradient that will come in is known beforehand,
`noun_value_and_grad(arrays..., dout, *, options) -> out, gradients` saves a pass over the data.
"""

from collections.abc import Callable
from typing import Any

from ._cublas import PRECISIONS, precision
from ._cuda import cuda_problem, cupy_device, is_device_array
from ._dispatch import BACKENDS, BackendError, backend, cpu_backend, empty, numba_problem
from ._memory import is_view
from ._memory import release as release_memory
from ._program import Cell, Program, run_programs
from ._threads import cores, threads
from .activation import (
    ACTIVATIONS,
    bias_activation_backward,
    bias_activation_forward,
    bias_activation_value_and_grad,
)
from .arena import Arena, scratch
from .beta import beta_nll_backward, beta_nll_forward
from .categorical import categorical_nll_backward, categorical_nll_forward
from .codebook import CodebookSaved, nearest_code_backward, nearest_code_forward
from .convolution import correlate, correlate_by, spread
from .elbo import (
    ElboSaved,
    bernoulli_elbo_backward,
    bernoulli_elbo_forward,
    bernoulli_elbo_value_and_grad,
    gaussian_elbo_backward,
    gaussian_elbo_forward,
    gaussian_elbo_value_and_grad,
    gaussian_fixed_elbo_backward,
    gaussian_fixed_elbo_forward,
    gaussian_fixed_elbo_value_and_grad,
)
from .gather import gather_bits, gather_rows
from .gaussian import (
    gaussian_kl_backward,
    gaussian_kl_between_backward,
    gaussian_kl_between_forward,
    gaussian_kl_between_value_and_grad,
    gaussian_kl_forward,
    gaussian_kl_value_and_grad,
    gaussian_sample_backward,
    gaussian_sample_forward,
    reparameterize_backward,
    reparameterize_forward,
    reparameterize_value_and_grad,
)
from .importance import (
    ImportanceSaved,
    log_mean_exp_backward,
    log_mean_exp_forward,
    log_mean_exp_value_and_grad,
)
from .iwae import (
    IwaeSaved,
    bernoulli_iwae_backward,
    bernoulli_iwae_forward,
    bernoulli_iwae_value_and_grad,
    gaussian_fixed_iwae_backward,
    gaussian_fixed_iwae_forward,
    gaussian_fixed_iwae_value_and_grad,
    gaussian_iwae_backward,
    gaussian_iwae_forward,
    gaussian_iwae_value_and_grad,
)
from .likelihood import (
    bernoulli_nll_backward,
    bernoulli_nll_forward,
    bernoulli_nll_value_and_grad,
    gaussian_fixed_nll_backward,
    gaussian_fixed_nll_forward,
    gaussian_fixed_nll_value_and_grad,
    gaussian_nll_backward,
    gaussian_nll_forward,
    gaussian_nll_value_and_grad,
)
from .logistic_mixture import logistic_mixture_nll_backward, logistic_mixture_nll_forward
from .mixture import (
    MixtureSaved,
    mixture_log_prob_backward,
    mixture_log_prob_forward,
    mixture_marginal_log_prob_backward,
    mixture_marginal_log_prob_forward,
)
from .optimizer import adam_numbers, adam_update, sgd_update
from .patches import (
    Geometry,
    col2im_backward,
    col2im_forward,
    geometry,
    im2col_backward,
    im2col_forward,
)
from .philox import philox_bits, philox_normal, philox_uniform
from .product import only_product, product, transpose
from .samples import (
    gaussian_log_ratio_backward,
    gaussian_log_ratio_forward,
    reparameterize_samples_backward,
    reparameterize_samples_forward,
)
from .total import (
    add,
    gaussian_kl_total_backward,
    gaussian_kl_total_forward,
    gaussian_kl_total_value_and_grad,
    total_backward,
    total_forward,
)

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "reparameterize": (reparameterize_forward, reparameterize_backward),
    "gaussian_sample": (gaussian_sample_forward, gaussian_sample_backward),
    "gaussian_kl": (gaussian_kl_forward, gaussian_kl_backward),
    "gaussian_kl_total": (gaussian_kl_total_forward, gaussian_kl_total_backward),
    "gaussian_kl_between": (gaussian_kl_between_forward, gaussian_kl_between_backward),
    "bernoulli_nll": (bernoulli_nll_forward, bernoulli_nll_backward),
    "gaussian_nll": (gaussian_nll_forward, gaussian_nll_backward),
    "gaussian_fixed_nll": (gaussian_fixed_nll_forward, gaussian_fixed_nll_backward),
    "categorical_nll": (categorical_nll_forward, categorical_nll_backward),
    "beta_nll": (beta_nll_forward, beta_nll_backward),
    "logistic_mixture_nll": (logistic_mixture_nll_forward, logistic_mixture_nll_backward),
    "bernoulli_elbo": (bernoulli_elbo_forward, bernoulli_elbo_backward),
    "gaussian_elbo": (gaussian_elbo_forward, gaussian_elbo_backward),
    "gaussian_fixed_elbo": (gaussian_fixed_elbo_forward, gaussian_fixed_elbo_backward),
    "log_mean_exp": (log_mean_exp_forward, log_mean_exp_backward),
    "reparameterize_samples": (reparameterize_samples_forward, reparameterize_samples_backward),
    "gaussian_log_ratio": (gaussian_log_ratio_forward, gaussian_log_ratio_backward),
    "bernoulli_iwae": (bernoulli_iwae_forward, bernoulli_iwae_backward),
    "gaussian_iwae": (gaussian_iwae_forward, gaussian_iwae_backward),
    "gaussian_fixed_iwae": (gaussian_fixed_iwae_forward, gaussian_fixed_iwae_backward),
    "mixture_log_prob": (mixture_log_prob_forward, mixture_log_prob_backward),
    "mixture_marginal_log_prob": (
        mixture_marginal_log_prob_forward,
        mixture_marginal_log_prob_backward,
    ),
    "nearest_code": (nearest_code_forward, nearest_code_backward),
    "bias_activation": (bias_activation_forward, bias_activation_backward),
    "total": (total_forward, total_backward),
    "im2col": (im2col_forward, im2col_backward),
    "col2im": (col2im_forward, col2im_backward),
}

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "PAIRS",
    "PRECISIONS",
    "Arena",
    "BackendError",
    "Cell",
    "CodebookSaved",
    "ElboSaved",
    "Geometry",
    "ImportanceSaved",
    "IwaeSaved",
    "MixtureSaved",
    "Program",
    "adam_numbers",
    "adam_update",
    "add",
    "backend",
    "bernoulli_elbo_backward",
    "bernoulli_elbo_forward",
    "bernoulli_elbo_value_and_grad",
    "bernoulli_iwae_backward",
    "bernoulli_iwae_forward",
    "bernoulli_iwae_value_and_grad",
    "bernoulli_nll_backward",
    "bernoulli_nll_forward",
    "bernoulli_nll_value_and_grad",
    "beta_nll_backward",
    "beta_nll_forward",
    "bias_activation_backward",
    "bias_activation_forward",
    "bias_activation_value_and_grad",
    "categorical_nll_backward",
    "categorical_nll_forward",
    "col2im_backward",
    "col2im_forward",
    "cores",
    "correlate",
    "correlate_by",
    "cpu_backend",
    "cuda_problem",
    "cupy_device",
    "empty",
    "gather_bits",
    "gather_rows",
    "gaussian_elbo_backward",
    "gaussian_elbo_forward",
    "gaussian_elbo_value_and_grad",
    "gaussian_fixed_elbo_backward",
    "gaussian_fixed_elbo_forward",
    "gaussian_fixed_elbo_value_and_grad",
    "gaussian_fixed_iwae_backward",
    "gaussian_fixed_iwae_forward",
    "gaussian_fixed_iwae_value_and_grad",
    "gaussian_fixed_nll_backward",
    "gaussian_fixed_nll_forward",
    "gaussian_fixed_nll_value_and_grad",
    "gaussian_iwae_backward",
    "gaussian_iwae_forward",
    "gaussian_iwae_value_and_grad",
    "gaussian_kl_backward",
    "gaussian_kl_between_backward",
    "gaussian_kl_between_forward",
    "gaussian_kl_between_value_and_grad",
    "gaussian_kl_forward",
    "gaussian_kl_total_backward",
    "gaussian_kl_total_forward",
    "gaussian_kl_total_value_and_grad",
    "gaussian_kl_value_and_grad",
    "gaussian_log_ratio_backward",
    "gaussian_log_ratio_forward",
    "gaussian_nll_backward",
    "gaussian_nll_forward",
    "gaussian_nll_value_and_grad",
    "gaussian_sample_backward",
    "gaussian_sample_forward",
    "geometry",
    "im2col_backward",
    "im2col_forward",
    "is_device_array",
    "is_view",
    "log_mean_exp_backward",
    "log_mean_exp_forward",
    "log_mean_exp_value_and_grad",
    "logistic_mixture_nll_backward",
    "logistic_mixture_nll_forward",
    "mixture_log_prob_backward",
    "mixture_log_prob_forward",
    "mixture_marginal_log_prob_backward",
    "mixture_marginal_log_prob_forward",
    "nearest_code_backward",
    "nearest_code_forward",
    "numba_problem",
    "only_product",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "precision",
    "product",
    "release_memory",
    "reparameterize_backward",
    "reparameterize_forward",
    "reparameterize_samples_backward",
    "reparameterize_samples_forward",
    "reparameterize_value_and_grad",
    "run_programs",
    "scratch",
    "sgd_update",
    "spread",
    "threads",
    "total_backward",
    "total_forward",
    "transpose",
]
