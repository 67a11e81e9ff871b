"""_dispatch.py: which body runs, and the checks that all kernels share."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import backends
import tinyvae_kernels as kernels
from tinyvae_kernels import _dispatch, _math

KERNELS = Path(__file__).parents[1]


def numpy_body():
    """Stands for a kernel's NumPy loop."""


def numba_body():
    """Stands for a kernel's Numba loop."""


def cuda_body():
    """Stands for the launch of a CUDA kernel."""


def chosen():
    return _dispatch.select(np.ones(1), numpy_body, numba_body, cuda_body)


def test_every_pair_is_in_the_backend_table():
    assert set(backends.CASES) == set(kernels.PAIRS)


def test_every_pair_is_exported_under_its_name():
    for name, (forward, backward) in kernels.PAIRS.items():
        assert forward is getattr(kernels, f"{name}_forward")
        assert backward is getattr(kernels, f"{name}_backward")
    public = {name for name in kernels.__all__ if name.endswith(("_forward", "_backward"))}
    assert public == {f"{name}_{way}" for name in kernels.PAIRS for way in ("forward", "backward")}


def test_all_names_exist():
    assert all(hasattr(kernels, name) for name in kernels.__all__)


def test_backend_chooses_the_body_inside_the_block_alone():
    assert chosen() is numba_body
    with kernels.backend("numpy"):
        assert chosen() is numpy_body
        with kernels.backend("numba"):
            assert chosen() is numba_body
        assert chosen() is numpy_body
        with kernels.backend("auto"):
            assert chosen() is numba_body
    assert chosen() is numba_body


def test_backend_is_put_back_after_an_error():
    with pytest.raises(KeyError), kernels.backend("numpy"):
        raise KeyError
    assert chosen() is numba_body


def test_another_thread_keeps_its_own_backend():
    found = []
    with kernels.backend("numpy"):
        thread = threading.Thread(target=lambda: found.append(chosen()))
        thread.start()
        thread.join()
    assert found == [numba_body]


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"unknown backend 'cupy': expected one of auto, numpy"):
        kernels.backend("cupy").__enter__()


@pytest.fixture
def without_numba(monkeypatch):
    """As on a machine where the package is not installed."""
    monkeypatch.setattr(_dispatch.importlib.util, "find_spec", lambda name: None)
    for cached in (_dispatch.numba_problem, _dispatch._auto):
        cached.cache_clear()
    yield
    for cached in (_dispatch.numba_problem, _dispatch._auto):
        cached.cache_clear()


def test_without_numba_numpy_runs_after_one_warning(without_numba):
    with pytest.warns(RuntimeWarning, match="slower: the package numba is not installed") as caught:
        kernels.gaussian_kl_forward(np.ones((1, 1)), np.ones((1, 1)))
    assert len(caught) == 1
    assert chosen() is numpy_body  # a second warning would be an error


def test_without_numba_asking_for_it_by_name_raises(without_numba):
    with pytest.raises(kernels.BackendError, match="'numba' cannot run: the package numba"):
        kernels.backend("numba").__enter__()


def test_numba_is_imported_at_the_first_call_that_needs_it():
    code = f"""
import sys; sys.path.insert(0, {str(KERNELS)!r})
import numpy as np, tinyvae_kernels as kernels
assert kernels.numba_problem() is None
x = np.ones((2, 3))
with kernels.backend("numpy"):
    kernels.philox_normal(3, seed=0)
    for name in ("gaussian_kl", "reparameterize"):
        kernels.PAIRS[name][0](*[x] * (2 if name == "gaussian_kl" else 3))
assert "numba" not in sys.modules, "imported too early"
kernels.gaussian_kl_forward(x, x)
assert "numba" in sys.modules
assert "tinyvae" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_fastmath_may_not_assume_that_there_is_no_nan():
    """Whether a NaN then survives is the compiler's mood: it did in LLVM 20, by luck."""
    assert not {"nnan", "ninf", "fast"} & set(_math.FASTMATH)


def test_empty_has_the_dtype_of_its_neighbour():
    for dtype in (np.float32, np.float64):
        array = _dispatch.empty((2, 3), np.ones(1, dtype))
        assert (array.shape, array.dtype) == ((2, 3), dtype)


def test_rows_flattens_without_a_copy_where_it_can():
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(_dispatch.rows(x), x.reshape(2, 12))
    assert np.shares_memory(_dispatch.rows(x), x)
    swapped = x.swapaxes(1, 2)
    np.testing.assert_array_equal(_dispatch.rows(swapped), swapped.reshape(2, 12))
    assert _dispatch.rows(np.ones((0, 3, 4))).shape == (0, 12)
    assert _dispatch.rows(np.ones((3, 0, 4))).shape == (3, 0)
    assert _dispatch.rows(np.ones(3)).shape == (3, 1)


def test_dout_becomes_contiguous_in_the_outputs_dtype():
    dout = _dispatch.check_dout(np.arange(6.0)[::2], (3,), np.ones(1, np.float32))
    assert dout.flags.c_contiguous
    assert dout.dtype == np.float32
    np.testing.assert_array_equal(dout, [0, 2, 4])
