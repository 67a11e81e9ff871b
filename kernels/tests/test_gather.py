"""gather.py: what NumPy's indexing, division and comparison give, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae_kernels as kernels

KEY = {"seed": 7, "stream": 3, "step": 11}


def stored(kind: str, rng, shape=(20, 33)):
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    return pixels if kind == "uint8" else (pixels / 255).astype(kind)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(20, 33), (20, 1), (3, 5000), (20, 0)])
def test_rows_and_bits(kind, dtype, shape, backend, rng):
    array, index = stored(kind, rng, shape), rng.integers(0, shape[0], 17)
    scale = dtype(255 if kind == "uint8" else 1)
    grey = array[index].astype(dtype) / scale
    rows, bits = np.full((2, 17, shape[1]), np.nan, dtype)
    with kernels.backend(backend):
        kernels.gather_rows(array, index, rows, scale=scale)
        kernels.gather_bits(array, index, bits, scale=scale, offset=5, **KEY)
    np.testing.assert_array_equal(rows, grey)
    u = kernels.philox_uniform(grey.shape, dtype=dtype, offset=5, **KEY)
    np.testing.assert_array_equal(bits, (grey > u).astype(dtype))


def test_other_layouts(rng):
    array, index = stored("uint8", rng), np.array([3, 1, 3])
    expected = array[index].astype(np.float32) / np.float32(255)
    for layout in (np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]):
        out = np.empty((3, 33), np.float32)
        kernels.gather_rows(layout, index, out, scale=255)
        np.testing.assert_array_equal(out, expected)


def test_what_does_not_fit_is_refused(rng):
    array, out = stored("uint8", rng), np.empty((2, 33), np.float32)
    for index in ([0, 20], [-1, 0]):
        with pytest.raises(IndexError, match=r"index must be in \[0, 20\)"):
            kernels.gather_rows(array, np.array(index), out)
    with pytest.raises(ValueError, match=r"out must be \(3, D\) for array \(N, D\), got \(2, 33\)"):
        kernels.gather_bits(array, np.array([0, 1, 2]), out, seed=0)
