"""Every kernel in one build of the shim, in several orders: `python -m simt.sanitized BUILD`.

A sanitizer that finds something ends the process with its report. What is computed is checked
elsewhere (test_pairs.py), in the plain build.
"""

from __future__ import annotations

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

import backends
import tinyvae_kernels as kernels
from tinyvae_kernels.activation import (
    ACTIVATIONS,
    bias_activation_backward,
    bias_activation_forward,
    bias_activation_value_and_grad,
)

from . import build, instances
from .device import SimtDevice, device

# (B, D), of which 1032 is more than a block moves at once; 1038 gives 520 latents, whole packs
SIZES = [(1, 1), (3, 33), (5, 1032), (2, 1038), (0, 5), (5, 0)]
# of a mixture D is K, for which there are K blocks of 256 threads: enough for their loops over K to
# turn twice, a quarter of the time
AT_MOST = {"mixture_log_prob": 300, "mixture_marginal_log_prob": 300}
ORDERS = ("forward", "ahead")  # what the sanitizers see depends little on the order
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
DTYPES = (*HALVES, np.dtype(np.float32), np.dtype(np.float64))


def moved(gpu: SimtDevice, value: Any) -> Any:
    """A case's argument on the device."""
    return gpu.xp.asarray(value) if isinstance(value, np.ndarray) else value


def run_pair(gpu: SimtDevice, name: str, B: int, D: int, dtype: np.dtype) -> None:
    """Forward and backward of a pair, and both at once, unless it refuses half precision."""
    case, dout = backends.example(name, B, D, dtype)
    forward, backward = kernels.PAIRS[name]
    options = {key: moved(gpu, value) for key, value in case.options.items()}
    arrays = [moved(gpu, array) for array in case.arrays]
    try:
        out, saved = forward(*arrays, **options)
    except TypeError as error:
        if dtype in HALVES and "must be float32 or float64" in str(error):
            return
        raise
    dout = moved(gpu, dout.astype(out.dtype))
    backward(dout, saved)
    if at_once := getattr(kernels, f"{name}_value_and_grad", None):
        at_once(*arrays, dout, **options)


def run_other_instances(gpu: SimtDevice, dtype: np.dtype) -> None:
    """Those of the pairs' kernels that their cases do not reach: whole packs, options."""
    mu = gpu.xp.asarray(np.ones((2, 1032), dtype))
    _, saved = kernels.gaussian_sample_forward(mu, mu, seed=1)
    kernels.gaussian_sample_backward(mu, saved)
    if dtype in HALVES:
        return
    x = gpu.xp.asarray(np.ones((2, 5, 4, 8), dtype))
    kernels.im2col_backward(*kernels.im2col_forward(x, kernel=(3, 2), padding=1))
    run_wide_mixtures(gpu, dtype)
    for activation, width in itertools.product(ACTIVATIONS, (33, 64)):
        x = gpu.xp.asarray(np.ones((40, width), dtype))
        bias_activation_backward(*bias_activation_forward(x, x[0], activation=activation))
        bias_activation_value_and_grad(x, x[0], activation=activation)


def run_wide_mixtures(gpu: SimtDevice, dtype: np.dtype) -> None:
    """More latents than a warp has lanes: loops over Z turn twice, with barriers between."""
    z, mu = (gpu.xp.asarray(np.ones((n, 40), dtype)) for n in (2, 9))
    for name in AT_MOST:
        forward, backward = kernels.PAIRS[name]
        backward(*forward(z, gpu.xp.asarray(np.zeros(9, dtype)), mu, mu))


def run_others(gpu: SimtDevice, dtype: np.dtype) -> None:
    """Kernels that belong to no pair."""
    for n, offset in ((1, 0), (8200, 0), (8191, 3)):
        p, g, m, v = (gpu.xp.asarray(np.ones(n, dtype)) for _ in range(4))
        kernels.philox_bits(n, seed=1, offset=offset, like=p)
        for draw in (kernels.philox_uniform, kernels.philox_normal):
            draw(n, seed=1, offset=offset, dtype=dtype, like=p)
        kernels.adam_update(p, g, m, v, step=1)
        kernels.sgd_update(p, g, v, learning_rate=0.1, momentum=0.9)


def run_all(in_build: str) -> set[str]:
    """Every kernel; the names of the instances that were launched."""
    launched: set[str] = set()
    for order in ORDERS:
        with device(order, in_build) as gpu:
            for name, (B, D), dtype in itertools.product(backends.CASES, SIZES, DTYPES):
                run_pair(gpu, name, B, min(D, AT_MOST.get(name, D)), dtype)
            for dtype in DTYPES[len(HALVES) :]:
                run_others(gpu, dtype)
            launched.update(gpu.launched)
    # last, and once: a block of 1024 threads makes ThreadSanitizer slow from then on
    with device("shuffle", in_build) as gpu:
        for dtype in DTYPES:
            run_other_instances(gpu, dtype)
        return launched.union(gpu.launched)


def main() -> None:
    """Run all; exit with a message if an instance of the table was never launched."""
    in_build = sys.argv[1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # g++ works beside g++
        list(pool.map(lambda f: build.compiled(f, instances.names(f), in_build), instances.KERNELS))
    launched = run_all(in_build)
    missing = {name for file in instances.KERNELS for name in instances.names(file)} - launched
    if missing:
        sys.exit("never launched:\n" + "\n".join(sorted(missing)))
    print(f"{len(launched)} instances, all of the table, without a report")


if __name__ == "__main__":
    main()
