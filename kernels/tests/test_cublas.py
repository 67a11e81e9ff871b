"""_cublas.py: the arguments of cuBLAS's functions, which a stand-in takes at their word."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
import simt
import tinyvae_kernels as kernels
from simt import build
from simt.cublas import FakeCublas, rounded
from tinyvae_kernels import _cublas, product

VIEWS = {
    "rows": lambda a, put: put(a),
    "columns": lambda a, put: put(np.ascontiguousarray(a.T)).T,
    "strided": backends.strided,
    "part": lambda a, put: put(np.hstack([a, a]))[:, : a.shape[1]],
    "turned part": lambda a, put: put(np.hstack([a.T, a.T]))[:, : a.shape[0]].T,
    "backwards": lambda a, put: put(a[::-1].copy())[::-1],
}


@pytest.fixture
def gpu():
    with simt.device() as gpu:
        yield gpu


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("second", VIEWS)
@pytest.mark.parametrize("first", VIEWS)
def test_product(first, second, dtype, gpu, rng):
    put = gpu.xp.asarray
    for N, K, M in ((3, 4, 5), (1, 7, 1), (1, 1, 1), (2, 0, 3), (0, 2, 3), (2, 3, 0), (33, 1, 31)):
        a, b, start = (rng.standard_normal(s).astype(dtype) for s in ((N, K), (K, M), (N, M)))
        out, total = gpu.xp.empty((N, M), dtype), put(start)
        product(VIEWS[first](a, put), VIEWS[second](b, put), out)
        product(VIEWS[first](a, put), VIEWS[second](b, put), total, accumulate=True)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"atol": 1e-13}
        np.testing.assert_allclose(out.get(), a @ b, **tolerance)
        np.testing.assert_allclose(total.get(), start + a @ b, **tolerance)


def test_what_can_be_read_is_not_copied(gpu, rng):
    a = gpu.xp.asarray(rng.standard_normal((4, 6)))
    for view, found in ((a, (0, 6)), (a.T, (1, 6)), (a[:, :3], (0, 6)), (a[:2].T, (1, 6))):
        assert _cublas.layout(view) == found
    for view in (a[:, ::2], a[::-1]):
        assert not _cublas.is_readable(view)


# -------------------------------------------------------------------------------------- precision
BITS = {"float32": 23, "tf32": 10, "bf16": 7}


@pytest.mark.parametrize("name", kernels.PRECISIONS)
def test_precision(name, gpu, rng):
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((5, 70), (70, 3)))
    out = gpu.xp.empty((5, 3), np.float32)
    with kernels.precision(name):
        product(gpu.xp.asarray(a), gpu.xp.asarray(b), out)
    expected = rounded(a, BITS[name]).astype(float) @ rounded(b, BITS[name]).astype(float)
    np.testing.assert_allclose(out.get(), expected, rtol=1e-5, atol=1e-5)
    exact = np.abs(out.get() - a.astype(float) @ b).max()
    assert (exact < 1e-5) == (name == "float32")


def test_float64_is_exact_with_any_precision(gpu, rng):
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((7, 3))
    out = gpu.xp.empty((5, 3))
    with kernels.precision("bf16"):
        product(gpu.xp.asarray(a), gpu.xp.asarray(b), out)
    np.testing.assert_allclose(out.get(), a @ b, atol=1e-13)


def test_an_unknown_precision_is_refused():
    error = pytest.raises(
        ValueError, match="unknown precision 'fp8': expected one of float32, tf32"
    )
    with error, kernels.precision("fp8"):
        pass


def test_rounding_in_the_stand_in():
    """Checked where the bits are known: 1 + 2^-8 is halfway between two bfloat16 numbers."""
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -1 - 2**-8 - 2**-20], np.float32)
    np.testing.assert_array_equal(rounded(x, 7), [1, 1 + 2**-6, 1 + 2**-7, -1 - 2**-7])


# -------------------------------------------------------------------------------------- the library
class Workspace:
    """An array on the GPU, as far as a handle needs one."""

    nbytes = 64

    class data:
        ptr = 4096


def test_the_stream_is_chosen_before_the_workspace():
    """To choose a stream is to forget the workspace."""
    library = FakeCublas(lambda work: work())
    _cublas.Cublas(library, 17, Workspace())
    (create, *_), (stream, _, address), (workspace, _, *memory) = library.calls
    names = create, stream, workspace
    assert names == ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2")
    assert (address, memory) == (17, [4096, 64])


def test_an_error_of_cublas_is_raised():
    library = FakeCublas(lambda work: work())
    library.cublasSetStream_v2 = lambda *arguments: 13
    with pytest.raises(RuntimeError, match="cublasSetStream_v2 failed with cuBLAS's status 13"):
        _cublas.Cublas(library, 17, Workspace())


def test_without_cublas_the_error_says_so():
    with pytest.raises(OSError, match="no cuBLAS 13 or 12 is loaded"):
        _cublas.loaded()


def test_the_library_gets_its_signatures(monkeypatch):
    """The widths of all arguments: addresses and sizes have 64 bits."""

    class Library:
        def __getattr__(self, name):
            self.__dict__[name] = function = type("Function", (), {})()
            return function

    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *a: asked.append(a[0]) or Library())
    library = _cublas.loaded()
    assert asked == ["libcublas.so.13"]
    assert library.cublasGemmEx_64.argtypes.count(ctypes.c_int64) == 6
    assert len(library.cublasGemmEx_64.argtypes) == 19


LIBRARY = """
#include <cstddef>
#include <cstdint>
extern "C" {
int cublasCreate_v2(void** handle) { *handle = (void*)0x123456789ab; return 0; }
int cublasSetStream_v2(void* handle, void* stream) { return stream != (void*)0x1234567890; }
int cublasSetWorkspace_v2(void* handle, void* memory, size_t bytes) { return bytes != 64; }
int cublasGemmEx_64(void* handle, int ta, int tb, int64_t m, int64_t n, int64_t k,
                    const void* alpha, const void* a, int at, int64_t lda, const void* b, int bt,
                    int64_t ldb, const void* beta, void* c, int ct, int64_t ldc, int compute,
                    int algorithm) {
    const float *A = (const float*)a, *B = (const float*)b;
    if (handle != (void*)0x123456789ab || at || bt || ct || compute != 68 || algorithm != -1)
        return 7;
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
            float sum = 0, &out = ((float*)c)[i + j * ldc];
            for (int64_t l = 0; l < k; ++l)
                sum += A[ta ? l + i * lda : i + l * lda] * B[tb ? j + l * ldb : l + j * ldb];
            out = *(const float*)alpha * sum + *(const float*)beta * out;
        }
    return 0;
}
}
"""
CALLER = """
import ctypes, sys, types
import numpy as np
from tinyvae_kernels import _cublas

ctypes.CDLL(sys.argv[1])  # as CuPy does
class Device(np.ndarray):
    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))
def put(a):
    return np.array(a, np.float32).view(Device)
rng = np.random.default_rng(0)
a, b, out = put(rng.random((3, 5))), put(rng.random((4, 5))), put(rng.random((3, 4)))
expected = np.asarray(out) + np.asarray(a) @ np.asarray(b).T
blas = _cublas.Cublas(_cublas.loaded(), 0x1234567890, put(np.zeros(16)))
blas.product(a, b.T, out, True)
np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-6)
"""


def test_a_library_of_c_gets_what_it_expects(tmp_path):
    """It is found by its name once it is loaded, and all arguments arrive in their widths."""
    source, library = tmp_path / "cublas.cpp", tmp_path / "libcublas.so.13"
    source.write_text(LIBRARY)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcublas.so.13"]
    subprocess.run([build.COMPILER, *flags, str(source), "-o", str(library)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALLER, str(library)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(kernels.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
