"""simt/: the stand-in for a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest

import simt
import tinyvae_kernels as kernels

ORDERS = ["forward", "reverse", "shuffle"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 33), (7, 64), (2, 1028), (5, 0), (0, 5)])
def test_gaussian_kl(size, dtype, order, rng):
    mu, logvar = rng.standard_normal((2, *size)).astype(dtype)
    with simt.device(order) as gpu:
        kl, saved = kernels.gaussian_kl_forward(gpu.xp.asarray(mu), gpu.xp.asarray(logvar))
        gradients = kernels.gaussian_kl_backward(kl, saved)
        kl, (dmu, dlogvar) = gpu.xp.asnumpy(kl), map(gpu.xp.asnumpy, gradients)
    m, lv = mu.astype(float), logvar.astype(float)
    expected = 0.5 * (m**2 + np.expm1(lv) - lv).sum(axis=1)
    rtol = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-10}[dtype]
    assert dmu.dtype == dlogvar.dtype == dtype
    np.testing.assert_allclose(kl, expected, rtol=min(rtol, 1e-5))
    np.testing.assert_allclose(dmu, expected[:, None] * m, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(dlogvar, expected[:, None] * np.expm1(lv) / 2, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (4, 0), (10_000, 0), (4099, 3), (5, 2**40 + 1)])
def test_philox(n, offset, order):
    with simt.device(order) as gpu:
        like = gpu.xp.empty(1)
        bits = kernels.philox_bits(n, seed=2**63 + 5, stream=3, step=7, offset=offset, like=like)
        normal = kernels.philox_normal(n, seed=1, offset=offset, dtype="float64", like=like)
        bits, normal = gpu.xp.asnumpy(bits), gpu.xp.asnumpy(normal)
    np.testing.assert_array_equal(
        bits, kernels.philox_bits(n, seed=2**63 + 5, stream=3, step=7, offset=offset)
    )
    with kernels.backend("numpy"):
        expected = kernels.philox_normal(n, seed=1, offset=offset, dtype="float64")
    np.testing.assert_allclose(normal, expected, rtol=1e-13, atol=1e-15)


def test_device_arrays_do_not_mix_with_numpy(rng):
    a = rng.standard_normal((2, 3))
    with simt.device() as gpu:
        x = gpu.xp.asarray(a)
        for mixed in (
            lambda: x + a, lambda: a * x, lambda: np.exp(x, out=a), lambda: np.concatenate([x, a]),
            lambda: gpu.xp.where(x > 0, x, a), lambda: np.asarray(x), lambda: gpu.xp.exp(a),
            lambda: x @ a.T,
        ):  # fmt: skip
            with pytest.raises(TypeError, match=r"Unsupported type|Implicit conversion"):
                mixed()
