"""ops/fused.py: the kernel pairs on the tape; the pairs themselves have files of their own."""

from __future__ import annotations

import numpy as np
import pytest

import tinyvae_kernels as kernels
from tinyvae import Tensor, checking, no_grad, ops
from tinyvae.ops import fused

NAMES = sorted(set(kernels.PAIRS) - {"reparameterize"})
ELBOS = [name for name in NAMES if name.endswith("elbo")]


@pytest.mark.parametrize("on", ["numpy", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_the_tape(name, on):
    assert getattr(fused, name) is getattr(ops, name)
    with kernels.backend(on):
        assert checking.check_op(name) < 1e-6


@pytest.mark.parametrize("name", ELBOS)
def test_an_elbo_carries_its_terms(name):
    inputs, options = checking.CASES[name](np.random.default_rng(0))
    arrays = [a.data if isinstance(a, Tensor) else a for a in inputs]
    bound = getattr(ops, name)(*arrays, **options | {"beta": 1.0, "free_bits": 0.0})
    assert bound.saved.nll.shape == bound.saved.kl.shape == bound.shape == (5,)
    np.testing.assert_allclose(bound.data, -(bound.saved.nll + bound.saved.kl), rtol=1e-13)


@pytest.mark.parametrize("name", ELBOS)
def test_an_elbo_carries_its_terms_without_a_graph_too(name):
    inputs, options = checking.CASES[name](np.random.default_rng(0))
    with no_grad():
        bound = getattr(ops, name)(*inputs, **options | {"beta": 1.0, "free_bits": 0.0})
    np.testing.assert_allclose(bound.data, -(bound.saved.nll + bound.saved.kl), rtol=1e-13)


def test_data_get_no_gradient():
    logits, x = Tensor(np.ones((2, 3)), True), Tensor(np.ones((2, 3)), True)
    ops.bernoulli_nll(logits, x).backward(np.ones(2))
    assert logits.grad is not None
    assert x.grad is None
