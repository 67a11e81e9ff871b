"""stirling.py: what is left of log Gamma and of digamma."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, gammaln

from tinyvae_kernels.stirling import stirling, stirling_numba

Z = np.concatenate([10.0 ** np.arange(-8, 4), np.linspace(7.9, 8.1, 21), np.linspace(0.1, 20, 50)])


@pytest.mark.parametrize("body", [stirling, stirling_numba])
def test_agrees_with_scipy(body):
    if body is stirling:
        T, D = stirling(Z, np.log(Z))
    else:
        T, D = np.empty_like(Z), np.empty_like(Z)
        stirling_numba(Z, np.log(Z), T, D)
    gamma = Z * np.log(Z) - Z + 0.5 * np.log(2 * np.pi) + T
    np.testing.assert_allclose(gamma, gammaln(Z), rtol=1e-13, atol=2e-13)
    np.testing.assert_allclose(np.log(Z) + D / Z, digamma(Z), rtol=1e-12, atol=1e-12)


def test_one_number_is_like_an_array():
    for number in (0.5, 12.0):
        z = np.asarray(number, np.float32)
        found, expected = stirling(z, np.log(z)), stirling(z[None], np.log(z[None]))
        for one, many in zip(found, expected, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, many[0])
