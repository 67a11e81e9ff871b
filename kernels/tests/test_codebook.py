"""codebook.py: the nearest code, and the straight-through gradient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import backends
import simt
from tinyvae_kernels.codebook import nearest_code_backward, nearest_code_forward

ON = ["numpy", "numba", "cuda"]


def quantized_and_codes(z, codebook, on):
    with backends.running_on(on) as (put, get):
        quantized, saved = nearest_code_forward(put(z), put(codebook))
        return get(quantized), get(saved.codes)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize(
    ("N", "K", "Z"),
    [(1, 1, 1), (2, 3, 4), (63, 65, 17), (64, 64, 16), (130, 129, 33), (5, 300, 2), (3, 2, 0)],
)
def test_agrees_with_all_distances(N, K, Z, dtype, on, rng):
    z, codebook = (rng.normal(size=(n, Z)).astype(dtype) for n in (N, K))
    quantized, codes = quantized_and_codes(z, codebook, on)
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes, cdist(z, codebook).argmin(axis=1) if Z else 0)
    np.testing.assert_array_equal(quantized, codebook[codes])


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_of_equal_codes_the_first(dtype, on, rng):
    codebook = np.tile(rng.normal(size=(10, 7)), (8, 1)).astype(dtype)
    _, codes = quantized_and_codes(rng.normal(size=(200, 7)).astype(dtype), codebook, on)
    assert codes.max() < 10


@pytest.mark.parametrize("on", ON)
def test_near_codes_far_from_the_origin(on, rng):
    """|e|^2 - 2 z e has four digits left there in float32; the differences have all."""
    codebook = (1000 + 0.01 * rng.normal(size=(50, 8))).astype(np.float32)
    z = (codebook[rng.integers(0, 50, 300)] + 0.002 * rng.normal(size=(300, 8))).astype(np.float32)
    _, codes = quantized_and_codes(z, codebook, on)
    exact = cdist(z.astype(float), codebook.astype(float)).argmin(axis=1)
    np.testing.assert_array_equal(codes, exact)


@pytest.mark.parametrize("on", ON)
def test_the_gradient_goes_straight_through(on, rng):
    z, codebook, dout = rng.normal(size=(9, 5)), rng.normal(size=(4, 5)), rng.normal(size=(9, 5))
    with backends.running_on(on) as (put, get):
        _, saved = nearest_code_forward(put(z), put(codebook))
        dz, dcodebook = nearest_code_backward(put(dout), saved)
        np.testing.assert_array_equal(get(dz), dout)
        assert dcodebook is None


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("sign", [1, -1])  # of the NaN
def test_nan_shows(sign, dtype, on, rng):
    z, codebook = (rng.normal(size=(n, 6)).astype(dtype) for n in (5, 70))
    clean, codes = quantized_and_codes(z, codebook, on)
    z[3, 4] = np.copysign(np.nan, sign)
    quantized, found = quantized_and_codes(z, codebook, on)
    assert np.isnan(quantized[3]).all()
    assert found[3] == 0
    np.testing.assert_array_equal(np.delete(quantized, 3, 0), np.delete(clean, 3, 0))
    np.testing.assert_array_equal(np.delete(found, 3), np.delete(codes, 3))
    codebook[66, 0] = np.copysign(np.nan, sign)
    quantized, found = quantized_and_codes(z, codebook, on)
    assert np.isnan(quantized).all()
    np.testing.assert_array_equal(found, [66, 66, 66, 0, 66])


@pytest.mark.parametrize("on", ["numba", "cuda"])
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    """Where the distances overflow they are equal: the first code (NumPy warns, rightly)."""
    z = np.array([[1e30, -1e30], [1e-30, 0], [1e19, 1e19]], dtype)
    codebook = np.array([[0, 0], [1, 1], [-1e-30, 0]], dtype)
    quantized, codes = quantized_and_codes(z, codebook, on)
    assert np.isfinite(quantized).all()
    assert codes[0] == 0


@pytest.mark.parametrize("on", ["numpy", "numba"])
def test_many_rows(on, rng):
    """So many that the reference takes them in parts, and Numba in several threads."""
    z, codebook = rng.normal(size=(40_001, 9)).astype(np.float32), rng.normal(size=(13, 9))
    codebook = codebook.astype(np.float32)
    _, codes = quantized_and_codes(z, codebook, on)
    np.testing.assert_array_equal(codes, cdist(z, codebook).argmin(axis=1))


def test_wrong_arguments_are_named():
    z = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"must be \(N, Z\) and \(K, Z\), got shapes \(3, 2\) and"):
        nearest_code_forward(z, np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"got shapes \(3, 2, 1\) and \(4, 2\)"):
        nearest_code_forward(z[..., None], np.ones((4, 2)))
    with pytest.raises(ValueError, match="codebook holds no code"):
        nearest_code_forward(z, np.ones((0, 2)))
    with pytest.raises(TypeError, match="codebook is float32, z is float64"):
        nearest_code_forward(z, np.ones((4, 2), np.float32))
    with simt.device() as gpu, pytest.raises(TypeError, match="codebook lies on cpu, z on cuda:0"):
        nearest_code_forward(gpu.xp.asarray(z), z)


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on):
    with backends.running_on(on) as (put, _):
        _, saved = nearest_code_forward(put(np.ones((3, 2))), put(np.ones((4, 2))))
        for wrong in (np.ones(3), np.ones((4, 2)), np.ones(())):
            with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3, 2\)"):
                nearest_code_backward(put(wrong), saved)
