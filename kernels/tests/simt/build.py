"""CUDA source to a shared library, by g++ and shim.h, and its kernels as CuPy would call them.

One library holds all instances of one `.cu` file that instances.py lists: compiling them together
costs little more than compiling one. Libraries are kept on disk under a hash of everything that
goes into them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from tinyvae_kernels._cuda import INCLUDE, source

from . import instances

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".pytest_cache" / "simt"
COMPILER = os.environ.get("CXX", "g++")
BUILDS = {  # what the comment at the top of shim.h says
    "plain": ["-O1"],
    # unoptimised: compiled four times as fast, and little is run
    "address": ["-O0", "-g1", "-fsanitize=address,undefined,float-cast-overflow"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
# no-gnu-unique and hidden: else the linker makes one variable of all libraries' static ones
FLAGS = [
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-Wno-unknown-pragmas",
]
ORDERS = ("forward", "reverse", "shuffle", "ahead")  # as in shim.h
LARGEST_GRID, LARGEST_BLOCK = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
LARGEST_SHARED = 48 * 1024  # bytes, without asking the driver for more

SHARED = re.compile(
    r"(?P<dynamic>extern\s+)?__shared__\s+(?P<type>\w[\w:<>, ]*?)\s+"
    r"(?P<names>\w+(?:\[[^\]]*\])*(?:,\s*\w+(?:\[[^\]]*\])*)*)\s*;"
)


# ------------------------------------------------------------------------------------- compiling
def text_of(file: str) -> str:
    """The source of a kernel file, or of a test's own `.cu` file beside this module."""
    if (HERE / file).exists():
        own = (HERE / file).read_text("utf-8")
        return INCLUDE.sub(lambda match: source(match[1]), own)
    return source(file)


def in_shim(text: str) -> str:
    """The source with shared memory declared as shim.h has it; nothing else is changed.

    Raises ValueError for a declaration that is not `__shared__ type name[size], ...;`.
    """

    def declare(match: re.Match) -> str:
        declared = []
        for name, sizes in re.findall(r"(\w+)((?:\[[^\]]*\])*)", match["names"]):
            if match["dynamic"]:
                declared.append(f"SIMT_DYNAMIC_SHARED({name}, {match['type']});")
            else:
                declared.append(f"SIMT_SHARED({name}, {match['type']}{sizes});")
        return " ".join(declared)

    text = SHARED.sub(declare, text)
    if "__shared__" in re.sub(r"//.*", "", text):
        raise ValueError("shared memory must be declared as `__shared__ type name[size];`")
    return text


def library_text(file: str, kernels: Sequence[str]) -> str:
    """What g++ compiles: the shim, the kernels, and a table of the instances."""
    rows = "".join(f"    SIMT_KERNEL({kernel}),\n" for kernel in kernels)
    table = f"SIMT_EXPORT const simt::Kernel simt_kernels[] = {{\n{rows}}};\n"
    return (HERE / "shim.h").read_text("utf-8") + in_shim(text_of(file)) + table


LAUNCH = re.compile(r"([\w:]+<[^;<>]*>)<<<([^,]+),([^>]+)>>>\((.*?)\);", re.DOTALL)


def program(path: Path, folder: Path) -> Path:
    """A C++ program that launches kernels, compiled to run on the CPU; RuntimeError with errors.

    Its includes of kernel files are put in place; the rest is left to the compiler.
    """
    text = INCLUDE.sub(lambda match: source(match[1]), path.read_text("utf-8"))
    text = LAUNCH.sub(r"SIMT_START(\2, \3, SIMT_LIST(\4), \1);", in_shim(text))
    headers = "".join((HERE / name).read_text("utf-8") for name in ("shim.h", "host.h"))
    cpp, target = folder / f"{path.stem}.cpp", folder / path.stem
    cpp.write_text("#include <cmath>\n#include <cstdio>\n" + headers + text, "utf-8")
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fvisibility=hidden")]
    done = subprocess.run(
        [COMPILER, *flags, "-O1", str(cpp), "-o", str(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{path.name} does not compile:\n{done.stderr[:5000]}")
    return target


@functools.cache
def compiler_version() -> str:
    """g++ --version; RuntimeError with what to install if there is none."""
    try:
        return subprocess.run(
            [COMPILER, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        raise RuntimeError(
            f"the CUDA kernels' tests need a C++ compiler, g++ 12 or newer, and {COMPILER} is not "
            "installed (Debian, Ubuntu: apt install g++)"
        ) from None


def cache() -> Path:
    """Where libraries are kept; a folder of this process's own if nothing can be written there."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        return CACHE
    except OSError:
        return Path(tempfile.mkdtemp(prefix="simt-"))


def compiled(file: str, kernels: Sequence[str], build: str) -> Path:
    """The shared library, compiled unless it is in the cache. RuntimeError with g++'s errors."""
    text, flags = library_text(file, kernels), FLAGS + BUILDS[build]
    key = "\0".join([text, *flags, compiler_version()])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = cache() / f"{Path(file).stem}-{build}-{digest}.so"
    if path.exists():
        return path
    # both under their own names until they are whole: another process may do the same
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        cpp, library = path.with_suffix(".cpp"), Path(folder) / path.name
        (Path(folder) / cpp.name).write_text(text, "utf-8")
        (Path(folder) / cpp.name).replace(cpp)  # stays: a sanitizer's report names its lines
        command = [COMPILER, *flags, "-x", "c++", str(cpp), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{file} does not compile:\n{done.stderr[:5000]}")
        library.replace(path)
    return path


# --------------------------------------------------------------------------------------- calling
class _Launch(ctypes.Structure):  # mirrors shim.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_ulonglong),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("pretend", ctypes.c_int),
        ("pretended", ctypes.c_uint * 12),
    )


class _Kernel(ctypes.Structure):  # mirrors shim.h
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("kinds", ctypes.c_char_p),
        ("sizes", ctypes.POINTER(ctypes.c_int)),
    )


class Library:
    """A loaded library. The interpreter's lock is held in calls: the shim runs one at a time."""

    _machines: ClassVar[dict[str, int]] = {}  # one for all libraries of a build

    def __init__(self, file: str, kernels: Sequence[str], build: str = "plain"):
        self.path = compiled(file, kernels, build)
        self._library = ctypes.PyDLL(str(self.path))
        self._library.simt_error.restype = ctypes.c_char_p
        self._library.simt_machine.restype = ctypes.c_void_p
        machine = self._library.simt_machine(ctypes.c_void_p(Library._machines.get(build)))
        Library._machines[build] = machine
        self._table = (_Kernel * len(kernels)).in_dll(self._library, "simt_kernels")
        self.kernels = dict(zip(kernels, self._table, strict=True))

    def run(self, kernel: _Kernel, launch: _Launch, pointers: ctypes.Array) -> None:
        """Run to the end. RuntimeError if the threads hang at a barrier."""
        if self._library.simt_run(ctypes.byref(kernel), ctypes.byref(launch), pointers):
            name, error = kernel.name.decode(), self._library.simt_error().decode()
            raise RuntimeError(f"{name}: {error} (lines of {self.path.with_suffix('.cpp').name})")


@functools.cache
def library(file: str, build: str = "plain") -> Library:
    """All instances of a kernel file."""
    return Library(file, instances.names(file), build)


def packed(kernel: _Kernel, args: Sequence[np.generic]) -> tuple[list[np.ndarray], ctypes.Array]:
    """The arguments in memory, and their addresses; TypeError unless they are what is declared."""
    name = kernel.name.decode()
    if len(args) != kernel.count:
        raise TypeError(f"{name}: {len(args)} arguments for {kernel.count} parameters")
    for i, arg in enumerate(args):
        struct = isinstance(arg, np.ndarray) and arg.dtype.kind == "V" and arg.ndim == 0
        if not (isinstance(arg, np.generic) or struct):
            raise TypeError(f"{name}: argument {i} is no NumPy scalar but {type(arg).__name__}")
        wanted = f"{kernel.kinds[i : i + 1].decode()}{kernel.sizes[i]}"
        if wanted not in (f"{arg.dtype.kind}{arg.dtype.itemsize}", f"V{arg.dtype.itemsize}"):
            raise TypeError(f"{name}: argument {i} is {arg.dtype}, the parameter is {wanted}")
    kept = [np.array(arg) for arg in args]
    return kept, (ctypes.c_void_p * len(kept))(*(value.ctypes.data for value in kept))


def three(what: str, sizes: Sequence[int], largest: tuple[int, int, int]) -> tuple[int, int, int]:
    """A grid or block in full, within CUDA's limits."""
    x, y, z = (*map(int, sizes), 1, 1)[:3]
    if len(sizes) > 3 or not all(
        1 <= n <= most for n, most in zip((x, y, z), largest, strict=True)
    ):
        raise ValueError(f"{what} {tuple(sizes)} is outside CUDA's limits, 1 to {largest}")
    return x, y, z


class Function:
    """A kernel, called as CuPy's RawKernel is, with NumPy scalars."""

    def __init__(self, library: Library, kernel: str, order: str = "forward", seed: int = 0):
        self.library, self.order, self.seed = library, ORDERS.index(order), seed
        if kernel not in library.kernels:
            raise KeyError(f"{kernel} is not in the table of tests/simt/instances.py")
        self.kernel = library.kernels[kernel]

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[np.generic],
        *,
        shared_mem: int = 0,
    ) -> None:
        grid, block = three("grid", grid, LARGEST_GRID), three("block", block, LARGEST_BLOCK)
        if block[0] * block[1] * block[2] > 1024:
            raise ValueError(f"block {block} has more than 1024 threads")
        if not 0 <= shared_mem <= LARGEST_SHARED:
            raise ValueError(f"shared_mem {shared_mem} is outside 0 .. {LARGEST_SHARED}")
        launch = _Launch(grid, block, shared_mem, self.order, self.seed)
        kept, pointers = packed(self.kernel, args)
        self.library.run(self.kernel, launch, pointers)
        del kept

    def pretend(self, args: Sequence[np.generic], *told: tuple[int, int, int]) -> None:
        """One thread alone, told any threadIdx, blockIdx, blockDim and gridDim."""
        flat = tuple(n for three in told for n in three)
        launch = _Launch((1, 1, 1), (1, 1, 1), 0, 0, 0, 1, flat)
        kept, pointers = packed(self.kernel, args)
        self.library.run(self.kernel, launch, pointers)
        del kept
