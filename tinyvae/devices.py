"""Where arrays live: on "cpu", as NumPy's, or on "cuda", as CuPy's.

All else in tinyvae is written once, in NumPy's functions: NumPy hands a call with an array of
CuPy's over to CuPy (NEPs 13 and 18), and `like=` makes a new array beside another (NEP 35).  Arrays
of the two kinds never mix; they are moved from one place to the other by `move` alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tinyvae_kernels import (
    PRECISIONS,
    BackendError,
    Cell,
    Program,
    add,
    cores,
    cpu_backend,
    cuda_problem,
    cupy_device,
    empty,
    is_device_array,
    is_view,
    only_product,
    precision,
    product,
    run_programs,
    threads,
)

from ._text import one_line, unknown

DEVICES = ("auto", "cpu", "cuda")


# --------------------------------------------------------------------------------------- the choice
def resolve(name: str) -> str:
    """What a name means here, "cpu" or "cuda": "auto" is cuda where it can be used, else cpu.

    Raises ValueError for an unknown name, BackendError with the reason if "cuda" cannot be used.
    """
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    if name == "cpu":
        return "cpu"
    reason = problem()
    if reason is None:
        return "cuda"
    if name == "cuda":
        raise BackendError(f"device 'cuda' cannot be used: {reason}")
    if importlib.util.find_spec("cupy") is not None:
        _warn(reason)
    return "cpu"


@functools.cache
def _warn(reason: str) -> None:
    """Once: who has installed CuPy expects a GPU at work."""
    warnings.warn(f"device 'auto' is the CPU here: {reason}", RuntimeWarning, stacklevel=3)


def problem() -> str | None:
    """Why CUDA cannot be used here, in one line, or None if it can."""
    return cuda_problem() or _products_problem()


@functools.cache
def _products_problem() -> str | None:
    """CuPy loads cuBLAS at the first product: too late to find that it is missing."""
    xp = cupy_device().xp
    try:
        one = xp.ones((2, 2), np.float32)
        product(one, one, one @ one)
    except Exception as error:  # ImportError, or CuPy's own error types
        return f"cuBLAS, which multiplies matrices, cannot be used ({one_line(error)})"
    return None


def describe() -> str:
    """The GPU that "cuda" means, in one line."""
    cupy = cupy_device().xp
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    capability = cupy.cuda.Device().compute_capability  # "75", "100"
    capability = f"{capability[:-1]}.{capability[-1]}"
    return f"{name}, compute capability {capability}, CuPy {cupy.__version__}"


# --------------------------------------------------------------------------------------- the arrays
def as_array(value: Any) -> Any:
    """An array as it is, on either device; a NumPy array of anything else."""
    return value if is_device_array(value) else np.asarray(value)


def of(array: Any) -> str:
    """Where an array lies, "cpu" or "cuda"."""
    return "cuda" if is_device_array(array) else "cpu"


def move(array: Any, device: str) -> Any:
    """The array on "cpu" or "cuda": itself if it lies there, else a copy."""
    if device == "cuda":
        return cupy_device().xp.asarray(array)
    return array.get() if is_device_array(array) else np.asarray(array)


_ones: dict[tuple[int, Any], Any] = {}


def one(like: Any) -> Any:
    """The number 1 of like's type beside it, (): nobody may write to it.

    On a GPU it is the same array every time, so that it is known without a look, for which the GPU
    would have to be waited for.
    """
    if not is_device_array(like):
        return np.ones((), like.dtype)
    key = like.device.id, like.dtype
    if key not in _ones:
        _ones[key] = np.ones_like(like, shape=())
    return _ones[key]


def to_host(array: Any) -> np.ndarray:
    """The array as NumPy's: itself, or a copy from the GPU, which is waited for."""
    return move(array, "cpu")


def graph() -> Any:
    """Something to capture a GPU's work in, and to launch it again: tinyvae_kernels/_graph.py."""
    return cupy_device().graph()


# --------------------------------------------------------------------------------------- the memory
def peak_memory() -> float:
    """The most memory that this process has had in use so far, MB (2^20 bytes); NaN if unknown."""
    with contextlib.suppress(OSError):  # ru_maxrss would include the parent's memory at the fork
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return int(status["VmHWM"].split()[0]) / 2**10
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return math.nan


__all__ = [
    "DEVICES",
    "PRECISIONS",
    "BackendError",
    "Cell",
    "Program",
    "add",
    "as_array",
    "cores",
    "cpu_backend",
    "describe",
    "empty",
    "graph",
    "is_device_array",
    "is_view",
    "move",
    "of",
    "one",
    "only_product",
    "peak_memory",
    "precision",
    "problem",
    "product",
    "resolve",
    "run_programs",
    "threads",
    "to_host",
]
