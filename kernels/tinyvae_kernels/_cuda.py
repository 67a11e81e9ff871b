"""How a CUDA kernel is found, compiled and launched.

The kernels are C++ templates in `.cu` files without host code. A body that runs on a GPU names the
file and the kernel, and hands over its arguments; the sizes follow behind them:

    over_rows("gaussian.cu", "gaussian_kl_forward", mu.shape, mu, logvar, kl)

launches `tinyvae::gaussian_kl_forward<float, 4>(mu, logvar, kl, B, D)`, one block a row.

Arrays belong to a `Device`: CuPy's here, another one in the tests, which runs the same source on
the CPU. Both know one launcher protocol: function(grid, block, args, shared_mem=0), where every
argument is a NumPy scalar of the parameter's own width, pointers too, or a struct as a NumPy array
without axes. CuPy is imported only when one of its arrays is there or a GPU is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import _cublas
from ._cublas import Cublas
from ._graph import Graph

HERE = Path(__file__).parent
TYPES = {"float32": "float", "float64": "double", "float16": "half", "bfloat16": "bfloat16"}
VECTOR = 16  # bytes that one thread loads at once
OLDEST = (7, 5)  # compute capability
BY_VALUE = (np.generic, np.ndarray)  # arguments that are no pointers: numbers, and one struct each
INCLUDE = re.compile(r'^#include "(\w+\.cu)"$', re.MULTILINE)


class Device(Protocol):
    """A kind of arrays, and what runs kernels on them.

    xp: the namespace with empty, asarray, ascontiguousarray ... of these arrays.
    An array has shape, dtype, ndim, size, reshape, flags.c_contiguous and `data.ptr`.
    """

    xp: Any

    def function(self, file: str, kernel: str) -> Callable[..., None]:
        """A compiled kernel: "philox.cu", "tinyvae::philox_bits" -> function(grid, block, args)."""

    def place(self, array: Any) -> str:
        """Where the array lies: "cuda:0"."""

    def active(self, array: Any) -> contextlib.AbstractContextManager:
        """Inside the block, kernels and new arrays go where that array lies."""

    def blocks(self) -> int:
        """How many blocks keep the device busy; a grid-stride kernel needs no more."""


class Accelerator(Device, Protocol):
    """A device of arrays that are computed with in full, and not by these kernels alone."""

    def cublas(self) -> Cublas:
        """What multiplies matrices on the current stream."""

    def graph(self) -> Graph:
        """Something to capture work in, and to launch it again."""


_devices: dict[type, Device] = {}


def device_of(array: Any) -> Device | None:
    """The device whose array this is, or None."""
    device = _devices.get(type(array))
    if device is None and (cupy := sys.modules.get("cupy")) and isinstance(array, cupy.ndarray):
        device = _devices[type(array)] = cupy_device()
    return device


def is_device_array(array: Any) -> bool:
    """Whether kernels run on this array by CUDA."""
    return type(array) in _devices or device_of(array) is not None


# ---------------------------------------------------------------------------------- source text
@functools.cache
def source(file: str) -> str:
    """The text of a `.cu` file with its own includes put in place, each once.

    One text, so that CuPy's cache of compiled kernels, which ignores included headers, sees a
    change anywhere.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return INCLUDE.sub(lambda match: text(match[1]), (HERE / name).read_text("utf-8"))

    return text(file)


# ------------------------------------------------------------------------------------- launching
def pointer(array: Any) -> np.uintp:
    """The address of an array's first element, as a kernel takes it; 0 for None."""
    return np.uintp(0 if array is None else array.data.ptr)


def varying(value: Any, dtype: Any) -> np.ndarray:
    """A number as a kernel takes one that may vary, Varying<T> of common.cu: where it lies, or it.

    value: a number, or an array on the device with as many as dtype has, which must stay alive for
    as long as the launch may be repeated.
    """
    argument = np.zeros((), _varying(np.dtype(dtype)))
    if is_device_array(value):
        argument["at"] = value.data.ptr
    else:
        argument["value"] = value
    return argument


@functools.cache
def _varying(dtype: np.dtype) -> np.dtype:
    return np.dtype([("at", np.uintp), ("value", dtype)], align=True)


def launch(
    file: str, kernel: str, grid: int, block: int, arguments: tuple, shared: int = 0
) -> None:
    """Run a kernel on the arrays' own device and current stream; all arguments in their own width.

    Nothing is launched when there is nothing to do (grid 0), which CUDA would call an error.
    """
    if grid == 0:
        return
    array = next(a for a in arguments if is_device_array(a))
    device = _devices[type(array)]
    args = tuple(a if isinstance(a, BY_VALUE) else pointer(a) for a in arguments)
    with device.active(array):
        device.function(file, kernel)((grid,), (block,), args, shared_mem=shared)


def typed(kernel: str, dtype: Any, *numbers: int) -> str:
    """The name of an instance: ("gaussian_kl_forward", float32, 4) -> its C++ name."""
    name = dtype.name
    if name == "uint32":
        return f"tinyvae::{kernel}<{numbers[0]}>"
    type_name = TYPES[name] if name in ("float32", "float64") else f"tinyvae::{TYPES[name]}"
    return f"tinyvae::{kernel}<{', '.join([type_name, *map(str, numbers)])}>"


def vector_width(dtype: Any, length: int, arrays: tuple) -> int:
    """How many elements a thread may load at once: 16 bytes' worth if every row starts aligned."""
    width = VECTOR // dtype.itemsize
    aligned = all(a.data.ptr % VECTOR == 0 for a in arrays)
    return width if length % width == 0 and aligned else 1


def _arrays(arguments: tuple) -> tuple:
    return tuple(a for a in arguments if a is not None and not isinstance(a, BY_VALUE))


def over_rows(
    file: str, kernel: str, shape: tuple[int, int], *arguments: Any, more: tuple = ()
) -> None:
    """kernel(arguments..., B, D, more...): one block a row, 32 to 256 threads as D asks for.

    The kernel is compiled for the type of the first array of (B, D); a row's totals, (B,), may be
    of another.
    """
    B, D = shape
    wide = tuple(a for a in _arrays(arguments) if a.ndim == 2)
    width = vector_width(wide[0].dtype, D, wide)
    threads = min(256, max(32, 1 << (-(-D // width) - 1).bit_length())) if D else 32
    sizes = tuple(np.int64(n) for n in (B, D, *more))
    name = typed(kernel, wide[0].dtype, width)
    launch(file, name, min(B, 2**31 - 1), threads, (*arguments, *sizes))


def over_elements(file: str, kernel: str, n: int, *arguments: Any) -> None:
    """kernel(arguments..., n): a grid-stride loop over n elements, some at a time."""
    launch_gather(file, kernel, n, n, *arguments, np.int64(n))


def launch_gather(file: str, kernel: str, n: int, length: int, *arguments: Any) -> None:
    """kernel(arguments...) with a grid-stride loop over n results, of which `length` lie together.

    A thread moves some of those at once.
    """
    arrays = _arrays(arguments)
    width = vector_width(arrays[0].dtype, length, arrays)
    device = device_of(arrays[0])
    assert device is not None
    grid = min(-(-n // (256 * width)), device.blocks())
    launch(file, typed(kernel, arrays[0].dtype, width), grid, 256, arguments)


def over_noise(file: str, kernel: str, n: int, *arguments: Any) -> None:
    """kernel(arrays..., n, key0, key1, stream, step, offset): one Philox block of 4 a thread."""
    arrays, (*key, step, offset) = arguments[:-5], arguments[-5:]
    size = arrays[0].dtype.itemsize
    whole = n % 4 == 0 and offset % 4 == 0 and all(a.data.ptr % (4 * size) == 0 for a in arrays)
    device = device_of(arrays[0])
    assert device is not None
    grid = min(-(-(n + 3) // (4 * 256)), device.blocks()) if n else 0
    name = typed(kernel, arrays[0].dtype, 4 if whole else 1)
    launch(file, name, grid, 256, (*arrays, np.int64(n), *key, varying(step, np.uint32), offset))


# ------------------------------------------------------------------------------------------ CuPy
def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, in one line, or None if it can."""
    if importlib.util.find_spec("cupy") is None:
        return "the package cupy is not installed (pip install cupy-cuda12x or cupy-cuda13x)"
    return _cupy_problem()


@functools.cache
def _cupy_problem() -> str | None:
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, or one too old: CuPy's own error types
        return f"the CUDA driver does not answer ({error})"
    if count == 0:
        return "no CUDA device is visible"
    capability = cupy.cuda.Device().compute_capability  # "75", "100"
    major, minor = int(capability[:-1]), int(capability[-1])
    if (major, minor) < OLDEST:
        return f"compute capability {major}.{minor} is below {OLDEST[0]}.{OLDEST[1]}"
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        return f"NVRTC, which compiles the kernels, cannot be loaded ({error})"
    return None


class CupyDevice:
    """CuPy's arrays, and kernels that its RawModule compiles by NVRTC and keeps on disk."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._functions: dict[tuple[int, str], Callable] = {}
        self._of_thread = threading.local()  # Cublas of each GPU and stream

    def function(self, file: str, kernel: str) -> Callable[..., None]:
        """Compiled at the first call on each GPU."""
        key = (self.xp.cuda.runtime.getDevice(), kernel)
        if key not in self._functions:
            module = self.xp.RawModule(
                code=source(file), options=("-std=c++17",), name_expressions=(kernel,)
            )
            self._functions[key] = module.get_function(kernel)
        return self._functions[key]

    def place(self, array: Any) -> str:
        """cuda:0, cuda:1 ..."""
        return f"cuda:{array.device.id}"

    def active(self, array: Any) -> contextlib.AbstractContextManager:
        """CuPy's own device context; nothing where that GPU is current anyway."""
        if array.device.id == self.xp.cuda.runtime.getDevice():
            return contextlib.nullcontext()
        return array.device

    def blocks(self) -> int:
        """Eight blocks of 256 threads fill a multiprocessor."""
        return 8 * _multiprocessors(self.xp.cuda.runtime.getDevice())

    def cublas(self) -> Cublas:
        """Made at the first product on each stream, which must not be a recorded one."""
        handles: dict[Any, Any] = self._of_thread.__dict__
        cuda = self.xp.cuda
        key = (cuda.runtime.getDevice(), cuda.get_current_stream().ptr)
        if key not in handles:
            cuda.get_cublas_handle()  # CuPy loads the library
            workspace = self.xp.empty(_cublas.WORKSPACE, np.uint8)
            handles[key] = Cublas(_cublas.loaded(), key[1], workspace)
        return handles[key]

    def graph(self) -> Graph:
        """One stream of each GPU captures all graphs, so that there is one workspace for them."""
        streams: dict[Any, Any] = self._of_thread.__dict__
        key = ("graphs", self.xp.cuda.runtime.getDevice())
        if key not in streams:
            streams[key] = self.xp.cuda.Stream(non_blocking=True)
        return Graph(self.xp, streams[key])


@functools.cache
def _multiprocessors(device: int) -> int:
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(device)["multiProcessorCount"]


@functools.cache
def cupy_device() -> CupyDevice:
    """The one CupyDevice."""
    return CupyDevice()
