"""Which implementation runs this array: the NumPy reference, the Numba loop, or the CUDA kernel.

Every public function checks its arguments, allocates its results with `empty`, and then runs one
of several bodies that fill them. All bodies of a kernel take the same arguments. The choice is one
visible line:

    select(mu, _gaussian_kl_forward_numpy, _gaussian_kl_forward_numba)(mu, logvar, kl)

Numba is imported at the first call that needs it, never before.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BACKENDS = ("auto", "numpy", "numba")
_requested: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run here."""


@functools.cache
def numba_problem() -> str | None:
    """Why Numba cannot be used here, or None if it can (without importing it)."""
    if importlib.util.find_spec("numba") is None:
        return "the package numba is not installed"
    return None


@functools.cache
def _auto() -> str:
    problem = numba_problem()
    if problem is None:
        return "numba"
    warnings.warn(
        f"tinyvae_kernels runs on plain NumPy, which is slower: {problem}",
        RuntimeWarning,
        stacklevel=4,
    )
    return "numpy"


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the kernels called inside the block on one backend: "auto", "numpy" or "numba".

    Raises ValueError for an unknown name, BackendError if that backend cannot run here.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    if name == "numba" and (problem := numba_problem()):
        raise BackendError(f"backend 'numba' cannot run: {problem}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def select(array: np.ndarray, numpy_body: Callable, numba_body: Callable) -> Callable:
    """The body that runs on this array. CUDA arrays get their own body with the CUDA kernels."""
    name = _requested.get()
    if name == "auto":
        name = _auto()
    return numpy_body if name == "numpy" else numba_body


def empty(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """An uninitialised result beside `like`: same device, same dtype."""
    return np.empty(shape, like.dtype)


class jit:
    """Decorator: compile with Numba at the first call, and cache the machine code on disk.

    error_model="numpy" drops Python's division check, without which LLVM does not vectorize
    (measured: 1177 us -> 87 us for 128 x 784 Bernoulli losses on an EPYC with AVX-512);
    nogil lets several threads run their shards at once.
    """

    _lock = threading.RLock()  # shared by all kernels: one may call another

    def __init__(self, function: Callable):
        self.function = function
        self.compiled: Callable | None = None
        functools.update_wrapper(self, function)

    def dispatcher(self) -> Callable:
        """Numba's compiled function: one, also if two threads ask for it at once."""
        with self._lock:
            if self.compiled is None:
                from . import _numba

                self.compiled = _numba.compiled(self.function, jit)
        return self.compiled

    def __call__(self, *args: Any) -> Any:
        return (self.compiled or self.dispatcher())(*args)


# ------------------------------------------------------------------ checks shared by all kernels
def check_floats(**arrays: np.ndarray) -> None:
    """All arrays are float32 or all are float64; TypeError names the one that is not."""
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}")
        if array.dtype != np.float32 and array.dtype != np.float64:
            raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
        if array.dtype != first.dtype:
            raise TypeError(f"{name} is {array.dtype}, {first_name} is {first.dtype}")


def check_same_shape(**arrays: np.ndarray) -> None:
    """All arrays have one dtype (float32 or float64) and one shape with at least a batch axis."""
    check_floats(**arrays)
    first_name, first = next(iter(arrays.items()))
    if first.ndim == 0:
        raise ValueError(f"{first_name} needs a batch axis, got a single number")
    for name, array in arrays.items():
        if array.shape != first.shape:
            raise ValueError(f"{name} has shape {array.shape}, {first_name} has {first.shape}")


def check_dout(dout: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The incoming gradient, contiguous, of the output's dtype; ValueError if its shape differs."""
    if dout.shape != shape:
        raise ValueError(f"dout has shape {dout.shape}, the output has {shape}")
    # writeable, too: Numba compiles a kernel once more for read-only arrays
    return np.require(dout, dtype, ["C", "W"])


def rows(array: np.ndarray) -> np.ndarray:
    """(B, ...) -> (B, D), contiguous: a view where it can be, else one copy."""
    size = 1
    for n in array.shape[1:]:
        size *= n
    return np.ascontiguousarray(array).reshape(array.shape[0], size)  # (B, H, W, C) -> (B, H*W*C)
