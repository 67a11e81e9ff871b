"""ops/sampling.py and ops/noise.py: the sampler on the tape, and where its noise comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opcheck
import strategies
import tinyvae_kernels as kernels
from tinyvae import Tensor, ops
from tinyvae.ops import noise


@given(data=st.data())
@pytest.mark.parametrize("name", ["reparameterize", "gaussian_sample"])
def test_backward_agrees_with_finite_differences(name, data):
    opcheck.check_op(name, data.draw(strategies.CASES[name]))


def test_gaussian_sample_is_reparameterize_with_the_same_noise(rng):
    values, dout, gradients = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 3)), []
    eps = noise.normal((5, 3), seed=7, stream=2, step=3, dtype=np.float64)
    for drawn in (True, False):
        mu, logvar = (Tensor(value, True) for value in values)
        key = {"seed": 7, "stream": 2, "step": 3}
        z = ops.gaussian_sample(mu, logvar, **key) if drawn else ops.reparameterize(mu, logvar, eps)
        z.backward(dout)
        gradients.append((z.data, mu.grad, logvar.grad))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_is_the_formula_in_elementwise_ops(rng):
    values, eps, dout = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    gradients = []
    for fused in (True, False):
        mu, logvar = (Tensor(value, True) for value in values)
        z = ops.reparameterize(mu, logvar, eps) if fused else mu + ops.exp(logvar / 2) * eps
        z.backward(dout)
        gradients.append((z.data, mu.grad, logvar.grad))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_noise_gets_no_gradient(rng):
    """Even if it is asked for: eps is data."""
    mu, logvar, eps = (Tensor(rng.normal(size=(5, 3)), True) for _ in range(3))
    ops.reparameterize(mu, logvar, eps).backward(np.ones((5, 3)))
    assert eps.grad is None


def test_every_stream_has_a_number_of_its_own():
    numbers = [int(stream) for stream in noise.Stream]
    assert len(set(numbers)) == len(numbers)
    assert list(noise.Stream.__members__) == [stream.name for stream in noise.Stream]


def test_streams_are_philox_streams():
    found = noise.normal(8, seed=3, stream=noise.Stream.SAMPLE, step=2)
    expected = kernels.philox_normal(8, seed=3, stream=4, step=2)
    np.testing.assert_array_equal(found, expected)
    assert noise.uniform is kernels.philox_uniform
