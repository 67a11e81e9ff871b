"""ops/fused.py: the kernel pairs on the tape; the pairs themselves have files of their own."""

from __future__ import annotations

import numpy as np
import pytest

import backends
import tinyvae_kernels as kernels
from tinyvae import Tensor, checking, no_grad, ops
from tinyvae.ops import fused

SAMPLERS = {"reparameterize", "reparameterize_samples", "gaussian_sample"}  # of ops/sampling.py
NAMES = sorted(set(kernels.PAIRS) - SAMPLERS - {"nearest_code"})
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


def unfused(name, parameters, x, mu, logvar, beta, free_bits, options):
    """The same bound out of one op for each sign in its formula."""
    nll = getattr(ops, name.replace("elbo", "nll"))(*parameters, x, **options)
    each = (mu * mu + ops.exp(logvar) - 1.0 - logvar) * 0.5
    paid = ops.where(each.data > free_bits, each, free_bits)
    return -nll - beta * ops.sum(paid, axis=1)


@pytest.mark.parametrize("on", ["numpy", "numba"])
@pytest.mark.parametrize(("beta", "free_bits"), [(1.0, 0.0), (0.25, 0.1), (4.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("name", ELBOS)
def test_gradients_are_those_of_the_unfused_graph(name, beta, free_bits, on, rng):
    """Through a decoder, so that mu and logvar are reached both by z and by the KL."""
    case, _ = backends.example(name, 7, 6, "float64")
    options = {key: value for key, value in case.options.items() if key == "variance"}
    *parameters, x, mu, logvar = case.arrays
    values = {
        "mu": mu[:, :3], "logvar": np.clip(logvar[:, :3], -2, 2),
        **{f"weight {i}": rng.normal(size=(3, x.shape[1])) for i in range(len(parameters))},
    }  # fmt: skip
    eps, dout, gradients = rng.normal(size=(7, 3)), rng.normal(size=7), []
    for whole in (True, False):
        leaves = {key: Tensor(value, True) for key, value in values.items()}
        latent = leaves["mu"], leaves["logvar"]
        z = ops.reparameterize(*latent, eps)
        decoded = [z @ leaves[f"weight {i}"] for i in range(len(parameters))]
        with kernels.backend(on):
            if whole:
                weights = {"beta": beta, "free_bits": free_bits}
                bound = getattr(ops, name)(*decoded, x, *latent, **weights, **options)
            else:
                bound = unfused(name, decoded, x, *latent, beta, free_bits, options)
            bound.backward(dout)
        gradients.append({key: leaf.grad for key, leaf in leaves.items()})
    for key in values:
        np.testing.assert_allclose(gradients[0][key], gradients[1][key], rtol=1e-9, atol=1e-12)


def test_data_get_no_gradient():
    logits, x = Tensor(np.ones((2, 3)), True), Tensor(np.ones((2, 3)), True)
    ops.bernoulli_nll(logits, x).backward(np.ones(2))
    assert logits.grad is not None
    assert x.grad is None
