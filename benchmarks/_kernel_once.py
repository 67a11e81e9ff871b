"""Every kernel once on the GPU, at small odd sizes: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck python -m benchmarks._kernel_once

Each array gets memory of its own from the driver, so that a step outside it is outside all memory.
Results are compared with the NumPy reference, loosely: the tests look closely.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np

import tinyvae_kernels as kernels

from ._kernel_cases import Kernel, there
from ._kernel_ours import call

SIZES = [(3, 257), (2, 1024)]  # rows that start anywhere, and rows that start on 16 bytes
TOLERANCES = {"float32": 1e-4, "float64": 1e-8, "float16": 1e-2}  # of the norm of an array


def check(
    kernel: Kernel, size: tuple[int, int], dtype: str, asarray: Callable, numpy: Callable
) -> str | None:
    """What is wrong with a call on the GPU, or None; half precision only where it is supported."""
    mode = kernel.modes[-1]
    try:
        found = call(kernel, *size, mode, asarray=asarray, dtype=dtype)()
    except TypeError:
        if dtype == "float16":
            return None
        raise

    def rounded(a: np.ndarray) -> np.ndarray:  # the reference reads the very same numbers
        return a.astype(dtype).astype(np.float64) if a.dtype.kind == "f" else a

    with kernels.backend("numpy"):
        expected = call(kernel, *size, mode, asarray=rounded, dtype=np.float64)()
    for position, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a is None:
            continue
        a = numpy(a)
        error = np.linalg.norm((a.astype(np.float64) - b).ravel())
        if not error <= TOLERANCES[a.dtype.name] * (1e-6 + np.linalg.norm(np.ravel(b))):
            return f"result {position} of {kernel.name} {dtype} {size} is wrong: {error:.3g}"
    return None


def check_all(asarray: Callable, numpy: Callable) -> list[str]:
    """What is wrong with the kernels that are there."""
    found = []
    for kernel in there(kernels):
        for size, dtype in itertools.product(SIZES, TOLERANCES):
            try:
                found.append(check(kernel, size, dtype, asarray, numpy))
            except Exception as error:
                found.append(f"{kernel.name} {dtype} {size}: {type(error).__name__}: {error}")
    return [text for text in found if text]


def main() -> int:
    if problem := kernels.cuda_problem():
        print(f"no GPU to run on: {problem}", file=sys.stderr)
        return 2
    import cupy

    cupy.cuda.set_allocator(None)  # no pool: plain cudaMalloc
    wrong = check_all(cupy.asarray, cupy.asnumpy)
    cupy.cuda.get_current_stream().synchronize()
    print(*wrong, f"{len(there(kernels))} kernels, {len(wrong)} wrong results", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
