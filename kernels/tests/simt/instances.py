"""Which instances of each kernel template exist: what the shim and the NVRTC test compile.

`KERNELS[file][kernel]` lists the template arguments in C++, "float, 4" and so on: what over_rows,
over_elements and over_noise in _cuda.py can ask for. A new kernel is a new line here.
"""

from __future__ import annotations

from tinyvae_kernels.activation import ACTIVATIONS

SIZES = {"float": 4, "double": 8, "tinyvae::half": 2, "tinyvae::bfloat16": 2}
FLOATS = ("float", "double")
HALVES = ("tinyvae::half", "tinyvae::bfloat16")
VECTOR = 16  # bytes


def wide(types: tuple[str, ...] = FLOATS) -> tuple[str, ...]:
    """One element at a time and 16 bytes' worth: over_rows and over_elements."""
    return tuple(f"{name}, {width}" for name in types for width in (1, VECTOR // SIZES[name]))


def noise(types: tuple[str, ...] = FLOATS) -> tuple[str, ...]:
    """One element at a time and a whole Philox block: over_noise."""
    return tuple(f"{name}, {width}" for name in types for width in (1, 4))


def each(instances: tuple[str, ...], choices: int) -> tuple[str, ...]:
    """These once for every choice, a number behind the other arguments."""
    return tuple(f"{arguments}, {k}" for arguments in instances for k in range(choices))


ALL = FLOATS + HALVES

KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "philox.cu": {
        "philox_bits": ("1", "4"),
        "philox_uniform": noise(),
        "philox_normal": noise(),
    },
    "gaussian.cu": {
        "reparameterize_forward": wide(ALL),
        "reparameterize_backward": wide(ALL),
        "reparameterize_value_and_grad": wide(ALL),
        "gaussian_sample_forward": noise(ALL),
        "gaussian_sample_backward": noise(ALL),
        "gaussian_kl_forward": wide(ALL),
        "gaussian_kl_backward": wide(ALL),
        "gaussian_kl_value_and_grad": wide(ALL),
        "gaussian_kl_between_forward": wide(ALL),
        "gaussian_kl_between_backward": wide(ALL),
        "gaussian_kl_between_value_and_grad": wide(ALL),
    },
    "likelihood.cu": {
        "bernoulli_nll": wide(ALL),
        "gaussian_nll": wide(ALL),
        "gaussian_fixed_nll": wide(ALL),
        "scale_rows": wide(ALL),
    },
    "elbo.cu": {
        "bernoulli_elbo": wide(ALL),
        "gaussian_elbo": wide(ALL),
        "gaussian_fixed_elbo": wide(ALL),
    },
    "categorical.cu": {"categorical_nll_forward": wide(ALL)},
    "logistic_mixture.cu": {"logistic_mixture_nll_forward": tuple(f"{name}, 1" for name in ALL)},
    "beta.cu": {"beta_nll_forward": wide()},
    "codebook.cu": {"nearest_code_forward": ("float, 1", "double, 1")},
    "importance.cu": {"log_mean_exp_forward": wide()},
    "iwae.cu": {
        "bernoulli_iwae": wide(),
        "gaussian_iwae": wide(),
        "gaussian_fixed_iwae": wide(),
        "importance_weights": ("float, 1", "double, 1"),
        "weigh_rows": wide(),
    },
    "samples.cu": {
        "reparameterize_samples_forward": ("float, 1", "double, 1"),
        "reparameterize_samples_backward": ("float, 1", "double, 1"),
        "gaussian_log_ratio_forward": wide(),
        "gaussian_log_ratio_backward": ("float, 1", "double, 1"),
    },
    "mixture.cu": {
        "mixture_log_prob_forward": ("float, 1", "double, 1"),
        "mixture_marginal_log_prob_forward": ("float, 1", "double, 1"),
        "mixture_dz": each(("float, 1", "double, 1"), 2),
        "mixture_dparameters": each(("float, 1", "double, 1"), 2),
        "mixture_marginal_shares": ("float, 1", "double, 1"),
    },
    "patches.cu": {"im2col": wide(), "col2im": wide()},
    "optimizer.cu": {"adam_update": wide(), "sgd_update": wide()},
    "activation.cu": {
        "bias_activation_forward": each(wide(), len(ACTIVATIONS)),
        "bias_activation_backward": each(wide(), len(ACTIVATIONS)),
        "bias_activation_value_and_grad": each(wide(), len(ACTIVATIONS)),
        "column_sums": ("float, 1", "double, 1"),
    },
    "total.cu": {"total": FLOATS, "spread": FLOATS},
}


def names(file: str) -> list[str]:
    """The C++ names of all instances of a file's kernels: "tinyvae::philox_bits<1>" ..."""
    return [
        f"tinyvae::{kernel}<{arguments}>"
        for kernel, instances in KERNELS[file].items()
        for arguments in instances
    ]


def bytes_at_once(arguments: str) -> int:
    """What a thread of this instance moves at once: "float, 4" -> 16; "4" are words, -> 16."""
    size = SIZES.get(arguments.split(", ")[0], 4)
    numbers = [int(part) for part in arguments.split(", ") if part.isdigit()]
    return size * numbers[0] if numbers else size
