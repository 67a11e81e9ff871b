"""Which implementation runs this array: the NumPy reference, the Numba loop, or the CUDA kernel.

Every public function checks its arguments, allocates its results with `empty`, and then runs one
of several bodies that fill them. All bodies of a kernel take the same arguments. The choice is one
visible line:

    select(mu, _gaussian_kl_numpy, _gaussian_kl_numba, _gaussian_kl_cuda)(mu, logvar, kl)

Numba and CuPy are imported at the first call that needs them, never before.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import _memory, _threads
from ._cuda import cuda_problem, cupy_device, device_of, is_device_array
from ._program import Cell, flattened, recorder

BACKENDS = ("auto", "numpy", "numba")
_requested: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")
_allocate: contextvars.ContextVar[Callable | None] = contextvars.ContextVar(
    "allocate", default=None
)


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


def select(array: Any, numpy_body: Callable, numba_body: Callable, cuda_body: Callable) -> Callable:
    """The body that runs on this array: an array on a GPU leaves no choice."""
    if not isinstance(array, np.ndarray):
        return cuda_body
    return numpy_body if cpu_backend() == "numpy" else numba_body


def cpu_backend() -> str:
    """What runs NumPy arrays here and now: "numba" or "numpy"."""
    name = _requested.get()
    return _auto() if name == "auto" else name


def empty(shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    """An uninitialised result beside `like`: same device, same dtype unless another is given."""
    dtype = like.dtype if dtype is None else dtype
    allocate = _allocate.get()
    if allocate is not None:
        return allocate(shape, dtype, like)
    return plain_empty(shape, dtype, like)


def empty_gradient(like: Any, wanted: bool) -> Any:
    """Memory for the gradient of `like`; None if it is not wanted, where a body can do without.

    CUDA kernels write it in any case.
    """
    return empty(like.shape, like) if wanted or not isinstance(like, np.ndarray) else None


def plain_empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """Memory beside `like` that nobody else uses."""
    if isinstance(like, np.ndarray):
        return _memory.empty(shape, dtype)
    device = device_of(like)
    assert device is not None
    with device.active(like):
        return device.xp.empty(shape, dtype)


def arithmetic(dtype: Any) -> Any:
    """The type in which a kernel computes and sums: float32 for arrays stored in half precision."""
    return np.float32 if dtype.itemsize == 2 else dtype.type


class jit:
    """Decorator: compile with Numba at the first call, and cache the machine code on disk.

    error_model="numpy" drops Python's division check, without which LLVM does not vectorize
    (measured: 1177 us -> 87 us for 128 x 784 Bernoulli losses on an EPYC with AVX-512);
    nogil lets several threads run their shards at once.
    """

    _lock = threading.RLock()  # shared by all kernels: one may call another

    def __init__(self, function: Callable, exact: bool = False):
        self.function, self.is_exact = function, exact
        self.compiled: Callable | None = None
        functools.update_wrapper(self, function)

    @classmethod
    def exact(cls, function: Callable) -> jit:
        """@jit.exact: every operation rounded as IEEE 754 says, for results that are bits."""
        return cls(function, exact=True)

    def dispatcher(self) -> Callable:
        """Numba's compiled function: one, also if two threads ask for it at once."""
        with self._lock:
            if self.compiled is None:
                from . import _numba

                self.compiled = _numba.compiled(self.function, jit, exact=self.is_exact)
        return self.compiled

    def __call__(self, *args: Any) -> Any:
        program = recorder.get()
        if program is not None:
            program.calls.append((self, args))
            args = tuple(a.memory[0] if type(a) is Cell else a for a in args)
        return (self.compiled or self.dispatcher())(*args)

    def native(self, args: tuple) -> tuple[int, list]:
        """How a program calls the machine code for these arguments."""
        from . import _numba

        values = tuple(a.memory[0] if type(a) is Cell else a for a in args)
        return _numba.address(self.dispatcher(), values), flattened(args)


class jit_rows(jit):
    """A jit whose rows are independent: a call on a large batch is cut over the cores.

    The first argument is an array with the rows along its first axis, and so is every other array
    but those named in `whole`.  light: it does little more than move memory.  each: parts for each
    thread; 1 where a part must first prepare what all rows share.  times: an argument with whose
    rows, codes for example, every element is computed.
    """

    def __init__(
        self,
        function: Callable,
        whole: tuple[str, ...] = (),
        light: bool = False,
        each: int = _threads.PARTS,
        times: str | None = None,
    ):
        super().__init__(function)
        names = function.__code__.co_varnames
        self.times = None if times is None else names.index(times)
        self.whole = frozenset(names.index(name) for name in whole)
        self.bits = sum(1 << position for position in self.whole)
        self.light, self.each = light, each
        self.latest = (0, 0)  # for which types, by _parts.py's key; machine code's address
        self._addresses: dict[int, int] = {}

    @classmethod
    def sharing(
        cls, *whole: str, each: int = _threads.PARTS, times: str | None = None
    ) -> Callable[[Callable], jit_rows]:
        """@jit_rows.sharing("codebook"): that argument is the same for all rows."""
        return lambda function: cls(function, whole, each=each, times=times)

    @classmethod
    def moving(cls, function: Callable) -> jit_rows:
        """@jit_rows.moving: a kernel that only moves memory."""
        return cls(function, light=True)

    def __call__(self, *args: Any) -> Any:
        times = 1 if self.times is None else len(args[self.times])
        count = _threads.parts(args, self.light, self.each, times)
        if count == 1 or recorder.get() is not None:  # a program runs in one thread
            return super().__call__(*args)
        if _threads.worth_it(args, self.light, times):
            _threads.run(self, args, count)
        else:
            super().__call__(*args)
        _threads.ended()
        return None

    def find(self, key: int, args: tuple) -> None:
        """Remember the machine code for arguments of these types, to which `key` belongs."""
        if key not in self._addresses:
            from . import _numba

            self._addresses[key] = _numba.address(self.dispatcher(), args)
        self.latest = (key, self._addresses[key])


@jit
def apart(size, dtype):
    """A kernel's temporary memory: at a line of the cache, 64 numbers to each side that are unused.

    Whether a loop runs in SIMD is decided when it begins: not if what it writes lies less than a
    few vectors behind what it reads.  For arrays shorter than that, malloc would decide, and with
    it the last bits.  And where vectors of 64 bytes cross the lines of the cache, each costs two
    accesses: distances to 512 codes took 1,320 ns a row, in line 890.
    """
    memory = np.empty(size + 144, dtype)
    start = 64 + before_line(memory)
    return memory[start : start + size]


@jit
def before_line(array):
    """How many elements of an array lie before the first line of the cache that it fills."""
    return min(array.size, -np.int64(array.ctypes.data) % 64 // array.itemsize)


# ------------------------------------------------------------------ checks shared by all kernels
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")  # storage only, on a GPU: the arithmetic is float32


def as_array(name: str, value: Any) -> Any:
    """A NumPy array or a GPU array, as it is; anything that can share its memory, without a copy.

    Through DLPack (`__dlpack__`: PyTorch, JAX ...) or `__cuda_array_interface__`.
    Raises TypeError for anything else, also for lists: no copy is made behind the caller's back.
    """
    if isinstance(value, np.ndarray) or is_device_array(value):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return cupy_array(name, value)
    if hasattr(value, "__dlpack_device__"):
        kind, _ = value.__dlpack_device__()
        if kind in (1, 3):  # kDLCPU, kDLCUDAHost
            return np.from_dlpack(value)
        if kind in (2, 13):  # kDLCUDA, kDLCUDAManaged
            return cupy_array(name, value)
        raise TypeError(f"{name} lies on a device that is neither a CPU nor CUDA (DLPack {kind})")
    raise TypeError(f"{name} must be an array, got {type(value).__name__}")


def cupy_array(name: str, value: Any) -> Any:
    """The same GPU memory as an array of CuPy's; TypeError with the reason if CUDA cannot run."""
    if problem := cuda_problem():
        raise TypeError(f"{name} lies on a GPU, and CUDA cannot be used: {problem}")
    cupy = cupy_device().xp
    if hasattr(value, "__dlpack__"):
        return cupy.from_dlpack(value)
    return cupy.asarray(value)


def place(array: Any) -> str:
    """cpu, or cuda:0 ..."""
    device = None if isinstance(array, np.ndarray) else device_of(array)
    return "cpu" if device is None else device.place(array)


def alike(values: Sequence, same_shape: bool = False) -> bool:
    """Whether these are NumPy arrays with nothing to find fault with: the usual case, quickly."""
    first = values[0]
    if type(first) is not np.ndarray:
        return False
    dtype, shape = first.dtype, first.shape
    if (dtype is not FLOAT32 and dtype is not FLOAT64) or (same_shape and not shape):
        return False
    for array in values:
        if type(array) is not np.ndarray or array.dtype is not dtype:
            return False
        if same_shape and array.shape != shape:
            return False
    return True


def check_floats(*, halves: bool = False, **arrays: Any) -> tuple:
    """The arrays, of one float type and on one device; TypeError names the one that is not.

    halves: whether float16 and bfloat16 will do for arrays on a GPU.
    """
    values = tuple(arrays.values())
    if alike(values):
        return values
    first_name = ""
    found: list[Any] = []
    for name, value in arrays.items():
        array = as_array(name, value)
        dtype = array.dtype
        if dtype != np.float32 and dtype != np.float64:
            allowed = FLOATS if not halves or isinstance(array, np.ndarray) else FLOATS + HALVES
            if dtype.name not in allowed:
                more = " (float16 and bfloat16 on a GPU only)" if dtype.name in HALVES else ""
                raise TypeError(f"{name} must be {' or '.join(FLOATS)}, got {dtype}{more}")
        if not found:
            first_name = name
        elif dtype != found[0].dtype:
            raise TypeError(f"{name} is {dtype}, {first_name} is {found[0].dtype}")
        elif type(array) is not np.ndarray and place(array) != place(found[0]):
            raise TypeError(
                f"{name} lies on {place(array)}, {first_name} on {place(found[0])}: "
                "move them to one device"
            )
        elif type(found[0]) is not np.ndarray and type(array) is np.ndarray:
            raise TypeError(
                f"{name} lies on cpu, {first_name} on {place(found[0])}: move them to one device"
            )
        found.append(array)
    return tuple(found)


def check_same_shape(*, halves: bool = False, **arrays: Any) -> tuple:
    """The arrays, of one float type and one shape with at least a batch axis."""
    values = tuple(arrays.values())
    if alike(values, same_shape=True):
        return values
    found = check_floats(halves=halves, **arrays)
    first = found[0]
    if first.ndim == 0:
        raise ValueError(f"{next(iter(arrays))} needs a batch axis, got a single number")
    for name, array in zip(arrays, found, strict=True):
        if array.shape != first.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, {next(iter(arrays))} has {first.shape}"
            )
    return found


def check_weight(**weights: float) -> None:
    """Weights such as beta and free_bits: ValueError unless all are finite and not negative."""
    for name, value in weights.items():
        if is_device_array(value):
            continue  # to look at it would be to wait for the GPU
        value = float(value.memory[0]) if type(value) is Cell else value
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and >= 0, got {value}")


def kl_floor(free_bits: float, number: Any) -> Any:
    """The KL that a latent is charged at least: for 0 none at all, so that rounding below 0 is
    not mistaken for a KL under the floor, which has no gradient.
    """
    return number(free_bits if free_bits > 0 else -np.inf)


def check_dout(dout: Any, shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    """The incoming gradient, contiguous, in like's dtype (or the one given) and on its device.

    Raises ValueError if its shape is not the output's, TypeError if it lies elsewhere.
    """
    dout = as_array("dout", dout)
    dtype = like.dtype if dtype is None else dtype
    if dout.shape != shape:
        raise ValueError(f"dout has shape {dout.shape}, the output has {shape}")
    if isinstance(like, np.ndarray) and isinstance(dout, np.ndarray):
        if dout.dtype == dtype and dout.flags.carray:
            return dout
        # writeable, too: Numba compiles a kernel once more for read-only arrays
        return np.require(dout, dtype, ["C", "W"])
    if place(dout) != place(like):
        raise TypeError(f"dout lies on {place(dout)}, the output on {place(like)}")
    return contiguous(dout.astype(dtype, copy=False))


def known_dout(dout: Any, shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    """The gradient that will come in, known beforehand: None is 1, a number is for all elements."""
    if dout is None or isinstance(dout, (int, float, np.number)):
        given = empty(shape, like, dtype)
        given.fill(1 if dout is None else dout)
        return given
    return check_dout(dout, shape, like, dtype)


def check_rate(dout: Any, like: Any) -> Any:
    """The same for a value of each row of `like`, (B,)."""
    return known_dout(dout, like.shape[:1], like, arithmetic(like.dtype))


def contiguous(array: Any) -> Any:
    """The array in C order: itself, or one copy."""
    if array.flags.c_contiguous:
        return array
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    device = device_of(array)
    assert device is not None
    return device.xp.ascontiguousarray(array)


def rows(array: Any) -> Any:
    """(B, ...) -> (B, D), contiguous: a view where it can be, else one copy; None stays None."""
    if array is None:
        return None
    shape = array.shape
    if len(shape) == 2:
        return contiguous(array)
    size = math.prod(shape[1:])
    return contiguous(array).reshape(shape[0], size)  # (B, H, W, C) -> (B, H*W*C)
