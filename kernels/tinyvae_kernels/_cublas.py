"""Matrix products on a GPU: cuBLAS, called directly, by the library that CuPy has loaded.

CuPy's own calls cannot be recorded in a CUDA graph: each refuses a stream that is capturing.
cuBLAS itself can, if it need not ask for memory meanwhile: so here every stream has a handle of its
own, with a workspace that stays where it is.

    row-major out (N, M) = a b      is      column-major out^T (M, N) = b^T a^T
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

PRECISIONS = ("float32", "tf32", "bf16")
_precision: contextvars.ContextVar[str] = contextvars.ContextVar("precision", default="float32")

# What cuBLAS's headers call CUDA_R_*, CUBLAS_COMPUTE_*, CUBLAS_OP_* and CUBLAS_GEMM_DEFAULT.
KINDS = {"float32": 0, "float64": 1}
COMPUTE = {"float32": 68, "bf16": 75, "tf32": 77}
COMPUTE_DOUBLE, PLAIN, TRANSPOSED, ANY_ALGORITHM = 70, 0, 1, -1
WORKSPACE = 2**25  # bytes: what cuBLAS's documentation recommends for a Hopper GPU, 32 MiB
VERSIONS = (13, 12)

_int, _long, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
SIGNATURES: dict[str, tuple] = {
    "cublasCreate_v2": (ctypes.POINTER(_pointer),),
    "cublasSetStream_v2": (_pointer, _pointer),
    "cublasSetWorkspace_v2": (_pointer, _pointer, ctypes.c_size_t),
    "cublasGemmEx_64": (_pointer, _int, _int, _long, _long, _long, _pointer, _pointer, _int, _long,
                        _pointer, _int, _long, _pointer, _pointer, _int, _long, _int, _int),
}  # fmt: skip


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """How cuBLAS multiplies float32 matrices inside the block; sums are float32 in any case.

    float32: exactly.  tf32, bf16: it rounds the factors to 10 or 7 bits behind the point, for the
    tensor cores.  Without effect on float64, and on the CPU.
    Raises ValueError for an unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: expected one of {', '.join(PRECISIONS)}")
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


def loaded() -> Any:
    """The cuBLAS that this process uses already; OSError if it uses none."""
    for version in VERSIONS:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                library = ctypes.CDLL(f"cublas64_{version}.dll")
            else:
                library = ctypes.CDLL(f"libcublas.so.{version}", os.RTLD_NOLOAD | os.RTLD_NOW)
            for name, types in SIGNATURES.items():
                getattr(library, name).argtypes = types
            return library
    raise OSError(f"no cuBLAS {' or '.join(map(str, VERSIONS))} is loaded")


class Cublas:
    """cuBLAS for one stream of one GPU and one thread.

    library: what `loaded` gives.  stream: its address.  workspace: an array on the GPU.
    There is no end to a handle: a recorded graph may need its workspace at any time.
    """

    def __init__(self, library: Any, stream: int, workspace: Any):
        self.library, self.workspace = library, workspace
        handle = _pointer()
        self._call("cublasCreate_v2", ctypes.byref(handle))
        self.handle = handle.value
        self._call("cublasSetStream_v2", self.handle, stream)
        # behind the stream: to choose one is to forget the workspace
        address, size = workspace.data.ptr, workspace.nbytes
        self._call("cublasSetWorkspace_v2", self.handle, address, size)

    def product(self, a: Any, b: Any, out: Any, accumulate: bool) -> None:
        """out = a b, or out + a b, with the precision of now.

        a: (N, K), b: (K, M), their rows or their columns contiguous; out: (N, M), C-contiguous.
        """
        (N, K), M, name = a.shape, b.shape[1], out.dtype.name
        kind, double = KINDS[name], name == "float64"
        compute = COMPUTE_DOUBLE if double else COMPUTE[_precision.get()]
        number = ctypes.c_double if double else ctypes.c_float
        (a_turned, a_leading), (b_turned, b_leading) = layout(a), layout(b)
        self._call(
            "cublasGemmEx_64", self.handle, b_turned, a_turned, M, N, K, ctypes.byref(number(1)),
            b.data.ptr, kind, b_leading, a.data.ptr, kind, a_leading,
            ctypes.byref(number(accumulate)), out.data.ptr, kind, max(1, M), compute, ANY_ALGORITHM,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with cuBLAS's status {status}")


def is_readable(matrix: Any) -> bool:
    """Whether cuBLAS can read a matrix where it lies, by rows or by columns."""
    return layout(matrix)[1] > 0


def layout(matrix: Any) -> tuple[int, int]:
    """Whether cuBLAS shall read it by columns, and how far apart its rows (then columns) lie.

    That distance is 0 if it can read it neither way.
    """
    for turned, view in ((PLAIN, matrix), (TRANSPOSED, matrix.T)):
        down, across = view.strides
        least = view.dtype.itemsize * max(1, view.shape[1])
        if (across == view.dtype.itemsize or view.shape[1] == 1) and down >= least:
            return turned, down // view.dtype.itemsize
    return PLAIN, 0
