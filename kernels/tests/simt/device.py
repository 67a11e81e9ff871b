"""Arrays on a GPU, as far as the kernels' Python side can tell, and what runs kernels on them.

`Array` behaves like cupy.ndarray where that differs from NumPy: it does not mix with NumPy arrays,
and becomes one by `get` alone; reductions stay on the device, as arrays without axes; an index out
of range wraps around. Its memory is allocated in its exact size, so that AddressSanitizer knows
its ends, and filled with NaN (0xFF bytes), so that an output nobody wrote shows.

All work goes through `start`. While a `Graph` captures, work is remembered with its arguments as
they are, and is not done: memory is as it was when the capture ends, and what was allocated
meanwhile holds NaN. Nobody may look at an array then, or bring one from the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyvae_kernels import _cuda
from tinyvae_kernels._cublas import Cublas

from . import build
from .cublas import FakeCublas

ALIGNMENT = 256  # bytes, of what CUDA allocates
_libc = ctypes.CDLL(None)  # under a sanitizer, its allocator
_libc.posix_memalign.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_libc.free.restype, _libc.free.argtypes = None, (ctypes.c_void_p,)


# ---------------------------------------------------------------------------------------- capture
_alive: weakref.WeakSet[_Memory] = weakref.WeakSet()
_capturing: Graph | None = None  # one at a time is enough here


def start(work: Callable[[], Any]) -> Any:
    """Do some work on arrays, and remember it if a graph captures: its result."""
    if _capturing is not None:
        _capturing.work.append(work)
    return work()


def not_captured(what: str) -> None:
    """RuntimeError in a capture."""
    if _capturing is not None:
        raise RuntimeError(f"{what} while a stream is capturing")


class Graph:
    """Stands for a CUDA graph and the stream that captures it."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []
        self.allocated: list[_Memory] = []
        self.launches = 0

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        global _capturing
        before = [(memory, memory.bytes()) for memory in _alive]
        _capturing = self
        try:
            yield
        finally:
            _capturing = None
            for memory, content in before:  # nothing was done
                ctypes.memmove(memory.pointer, content, memory.size)
            for memory in self.allocated:
                ctypes.memset(memory.pointer, 0xFF, memory.size)

    def launch(self) -> None:
        self.launches += 1
        for work in self.work:
            work()


class _Memory:
    """Bytes of device memory; NumPy keeps it alive as the base of its arrays."""

    def __init__(self, size: int):
        address = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(address), ALIGNMENT, max(size, 1)):
            raise MemoryError(f"{size} bytes")
        self.pointer: int = address.value or 0
        self.size = size
        ctypes.memset(self.pointer, 0xFF, size)
        _alive.add(self)
        if _capturing is not None:
            _capturing.allocated.append(self)
        self.__array_interface__ = {
            "version": 3, "shape": (size,), "typestr": "|u1", "data": (self.pointer, False)
        }  # fmt: skip

    def bytes(self) -> bytes:
        """What it holds."""
        return ctypes.string_at(self.pointer, self.size)

    def __del__(self) -> None:
        _libc.free(self.pointer)


def allocate(shape: tuple[int, ...], dtype: Any, order: str = "C") -> np.ndarray:
    """A NumPy view of fresh device memory."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.asarray(_Memory(size)).view(dtype).reshape(shape, order=order)


class _Data:
    """array.data, of which the kernels need the address."""

    def __init__(self, pointer: int):
        self.ptr = pointer


class _Id:
    """array.device."""

    id = 0

    def __enter__(self) -> _Id:
        return self

    def __exit__(self, *error: object) -> None:
        pass


SCALARS = (bool, int, float, complex, np.generic)


def host(value: Any) -> Any:
    """What NumPy computes with: TypeError for a NumPy array among device arrays, as in CuPy."""
    if isinstance(value, Array):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(host(item) for item in value)
    if isinstance(value, dict):
        return {key: host(item) for key, item in value.items()}
    return value


def on_device(result: Any) -> Any:
    """A NumPy result as device arrays: a view of device memory stays one, all else is moved."""
    if isinstance(result, np.ndarray):
        root = result
        while isinstance(root.base, np.ndarray):
            root = root.base
        return Array(result, root) if isinstance(root.base, _Memory) else copied(result)
    if isinstance(result, np.generic):
        return copied(np.asarray(result))
    if type(result) in (tuple, list):
        return type(result)(on_device(item) for item in result)
    return result


def copied(array: Any, dtype: Any = None) -> Array:
    """NumPy's numbers in device memory of their own."""
    array = np.asarray(array, dtype)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    memory = allocate(array.shape, array.dtype, order)
    memory[...] = array
    return Array(memory)


def wrapped_index(index: Any, shape: tuple[int, ...]) -> Any:
    """An index in NumPy's terms, with arrays of integers taken modulo the axis, as CuPy does."""
    parts = list(index) if isinstance(index, tuple) else [index]
    axes = sum(_consumed(part) for part in parts)
    at, found = 0, []
    for part in parts:
        if part is Ellipsis:
            at += len(shape) - axes
        elif isinstance(part, Array) and part.dtype.kind in "iu":
            part = part._host % max(shape[at], 1)
            at += 1
        else:
            at += _consumed(part)
            part = host(part)
        found.append(part)
    if not any(part is Ellipsis for part in found):
        found.append(Ellipsis)  # one element is a view, too, and not a number
    return tuple(found)


def _consumed(part: Any) -> int:
    """How many axes a part of an index stands for."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.ndim if isinstance(part, Array) and part.dtype == bool else 1


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for cupy.ndarray. `_host` is a NumPy view of its memory."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, memory: np.ndarray, base: Any = None):
        self._host, self.base = memory, base  # base: not None for a view

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: Array(self._host.T, self))
    data = property(lambda self: _Data(self._host.ctypes.data if self.size else 0))
    device = property(lambda self: _Id())

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self._host
        strides = None if host.flags.c_contiguous else host.strides
        return {
            "version": 3, "shape": host.shape, "typestr": host.dtype.str, "descr": host.dtype.descr,
            "data": (self.data.ptr, False), "strides": strides, "stream": 1,
        }  # fmt: skip

    # ---------------------------------------------------------------------- from and to the host
    def get(self) -> np.ndarray:
        not_captured("an array was copied to the host")
        return self._host.copy(order="A")

    def set(self, array: np.ndarray) -> None:
        not_captured("an array was copied from the host")
        if not isinstance(array, np.ndarray) or array.shape != self.shape:
            raise ValueError("set needs a NumPy array of the same shape")
        self._host[...] = array

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def item(self, *args: int) -> Any:
        return self.get().item(*args)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Array]:
        rows = (self._host[i : i + 1] for i in range(len(self)))
        return (Array(row.reshape(self.shape[1:]), self) for row in rows)

    def __repr__(self) -> str:
        return repr(self._host)

    # ------------------------------------------------------------------------- NumPy's functions
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        for value in inputs:
            if not isinstance(value, (Array, *SCALARS)):
                raise TypeError(f"Unsupported type {type(value)}")
        if ufunc is np.matmul:
            not_captured("CuPy called cuBLAS")
        return _call(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: tuple, options: dict) -> Any:
        if "device" in options:  # np.ones and np.full with like= hand it over
            raise TypeError("got an unexpected keyword argument 'device'")
        module = functools.reduce(getattr, function.__module__.split(".")[1:], Namespace())
        return getattr(module, function.__name__)(*args, **options)

    # ------------------------------------------------------------------------------------ methods
    def __getitem__(self, index: Any) -> Array:
        _check_index(index)
        return _call(lambda a: a[wrapped_index(index, a.shape)], (self,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if not isinstance(value, (Array, np.ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")
        _check_index(index)
        value = value._host if isinstance(value, Array) else value
        start(lambda: self._host.__setitem__(wrapped_index(index, self.shape), value))

    def astype(self, dtype: Any, order: Any = "K", copy: bool = True) -> Array:
        if not copy and self.dtype == dtype:
            return self
        return _call(lambda a: a.astype(dtype, order=order), (self,), {})

    def copy(self, order: Any = "C") -> Array:
        return _call(lambda a: a.copy(order=order), (self,), {})

    def fill(self, value: Any) -> None:
        self[...] = value


def _check_index(index: Any) -> None:
    """An index of booleans has as many results as are true: the device is asked for the number."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Array) and part.dtype == bool for part in parts):
        not_captured("an index of booleans was counted")


def _method(name: str) -> Callable:
    def method(self: Array, *args: Any, **options: Any) -> Any:
        if name == "dot":
            not_captured("CuPy called cuBLAS")
        return _call(getattr(self._host, name), args, options)

    method.__name__ = name
    return method


for _name in (
    "reshape", "ravel", "flatten", "transpose", "swapaxes", "squeeze", "view", "diagonal", "sum",
    "mean", "prod", "max", "min", "any", "all", "argmax", "argmin", "argsort", "cumsum", "std",
    "var", "clip", "round", "repeat", "take", "dot",
):  # fmt: skip
    setattr(Array, _name, _method(_name))


def _call(function: Callable, args: tuple, options: dict) -> Any:
    """NumPy's function on device arrays, its results on the device."""
    out, given, more = options.get("out"), host(args), host(options)
    if out is not None:
        start(lambda: function(*given, **more))
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    result = on_device(function(*given, **more))
    if _capturing is not None:
        _capturing.work.append(lambda: _refill(result, function(*given, **more)))
    return result


def _refill(results: Any, values: Any) -> None:
    """The results once more, in the same memory; a view has them already."""
    if isinstance(results, Array) and results.base is None:
        results._host[...] = values
    elif type(results) in (tuple, list):
        for result, value in zip(results, values, strict=True):
            _refill(result, value)


PRODUCTS = {"dot", "matmul", "einsum", "tensordot", "inner", "outer", "vdot"}


class Namespace:
    """cupy: NumPy's functions on device arrays. TypeError if a NumPy array is among them."""

    ndarray = Array

    def __init__(self, module: Any = np):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name == "linalg":
            return Namespace(found)
        if isinstance(found, type) or not callable(found):
            if type(found) is type(np):
                raise AttributeError(f"the stand-in for cupy has no module {name}")
            return found
        if name in PRODUCTS:
            not_captured("CuPy called cuBLAS")
        return lambda *args, **options: _call(found, args, options)

    def asarray(self, a: Any, dtype: Any = None, order: Any = None) -> Array:
        if isinstance(a, Array) and dtype in (None, a.dtype):
            return a if order is None else _call(np.asarray, (a,), {"order": order})
        return self.array(a, dtype)

    def array(self, a: Any, dtype: Any = None) -> Array:
        if isinstance(a, (tuple, list)) and any(isinstance(item, Array) for item in a):
            return _call(np.array, (a, dtype), {})
        if isinstance(a, Array):
            return a.astype(a.dtype if dtype is None else dtype)
        if np.ndim(a):  # a single number would be a kernel's argument
            not_captured("an array was copied from the host")
        made = copied(a, dtype)
        start(lambda: _refill(made, a))
        return made

    def asnumpy(self, a: Any) -> np.ndarray:
        return a.get() if isinstance(a, Array) else np.asarray(a)

    def ascontiguousarray(self, a: Array, dtype: Any = None) -> Array:
        if isinstance(a, Array) and a.flags.c_contiguous and dtype in (None, a.dtype):
            return a
        return _call(np.ascontiguousarray, (a, dtype), {})

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> Array:
        sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        return Array(allocate(sizes, dtype, order))

    def empty_like(self, a: Array, dtype: Any = None) -> Array:
        return self.empty(a.shape, a.dtype if dtype is None else dtype)


class SimtDevice:
    """The Device of _cuda.py for `Array`: kernels run in the shim, in one order of threads."""

    def __init__(self, order: str = "forward", build: str = "plain"):
        self.order, self.build, self.xp = order, build, Namespace()
        self.launched: list[str] = []
        self.library = FakeCublas(start)
        self._cublas = Cublas(self.library, 0, self.xp.empty(4, np.uint8))

    def function(self, file: str, kernel: str) -> Callable[..., None]:
        self.launched.append(kernel)  # and the seed of a shuffled order is another each time
        library = build.library(file, self.build)
        function = build.Function(library, kernel, self.order, len(self.launched))

        def launch(grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
            kept = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in args)
            start(lambda: function(grid, block, kept, shared_mem=shared_mem))

        return launch

    def place(self, array: Array) -> str:
        return "cuda:0"

    def active(self, array: Array) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def blocks(self) -> int:
        return 4  # so few that grid-stride loops go round

    def cublas(self) -> Cublas:
        return self._cublas

    def graph(self) -> Graph:
        return Graph()


@contextlib.contextmanager
def device(order: str = "forward", build: str = "plain") -> Iterator[SimtDevice]:
    """Inside the block `gpu.xp` makes device arrays, and the kernels accept them.

    order: of the threads and blocks: forward, reverse, shuffle or ahead (each warp as far as it can
    get); build: plain, address or thread.
    """
    if Array in _cuda._devices:
        raise RuntimeError("a stand-in device is active already")
    _cuda._devices[Array] = gpu = SimtDevice(order, build)
    try:
        yield gpu
    finally:
        del _cuda._devices[Array]
