"""optimizer.py: one step of Adam and of gradient descent."""

from __future__ import annotations

import numpy as np
import pytest

import backends
import tinyvae_kernels as kernels

ON = ["numpy", "numba"]
ADAM = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.3}
SGD = {"learning_rate": 0.02, "momentum": 0.7, "weight_decay": 0.3}


def adam_by_the_formula(p, g, m, v, *, t, scale):
    g = scale * g
    m = ADAM["beta1"] * m + (1 - ADAM["beta1"]) * g
    v = ADAM["beta2"] * v + (1 - ADAM["beta2"]) * g**2
    m_hat, v_hat = m / (1 - ADAM["beta1"] ** t), v / (1 - ADAM["beta2"] ** t)
    step = m_hat / (np.sqrt(v_hat) + ADAM["eps"]) + ADAM["weight_decay"] * p
    return p - ADAM["learning_rate"] * step, m, v


def sgd_by_the_formula(p, g, velocity, *, scale):
    velocity = SGD["momentum"] * velocity + scale * g + SGD["weight_decay"] * p
    return p - SGD["learning_rate"] * velocity, velocity


def close(dtype):
    """float32: a parameter is a sum of four steps, each rounded."""
    return {"rtol": 1e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-15}


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("size", [0, 1, 31, 33, 257])
def test_adam_is_its_formula(size, dtype, on, rng):
    arrays = [rng.normal(size=size), np.zeros(size), np.zeros(size)]
    p, m, v = (a.astype(dtype) for a in arrays)
    for t in (1, 2, 3, 4):
        g = rng.normal(size=size).astype(dtype)
        arrays = adam_by_the_formula(arrays[0], g.astype(float), *arrays[1:], t=t, scale=0.6)
        with kernels.backend(on):
            kernels.adam_update(p, g, m, v, step=t, scale=0.6, **ADAM)
        for found, expected in zip((p, m, v), arrays, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected, **close(dtype))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("size", [0, 1, 31, 33, 257])
def test_two_shares_of_a_gradient_are_their_sum(size, dtype, on, rng):
    g, other = rng.normal(size=(2, size)).astype(dtype)
    found = []
    for gradients in ({"gradient": g, "other": other}, {"gradient": g + other}):
        p, m, v = (np.ones(size, dtype) for _ in range(3))
        with kernels.backend(on):
            kernels.adam_update(p, m=m, v=v, step=3, scale=0.6, **gradients, **ADAM)
        found.append((p, m, v))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("size", [0, 1, 31, 33, 257])
def test_sgd_is_its_formula(size, dtype, on, rng):
    arrays = [rng.normal(size=size), np.zeros(size)]
    p, velocity = (a.astype(dtype) for a in arrays)
    for _ in range(4):
        g = rng.normal(size=size).astype(dtype)
        arrays = sgd_by_the_formula(arrays[0], g.astype(float), arrays[1], scale=0.6)
        with kernels.backend(on):
            kernels.sgd_update(p, g, velocity, scale=0.6, **SGD)
        for found, expected in zip((p, velocity), arrays, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected, **close(dtype))


@pytest.mark.parametrize("on", ON)
def test_adam_three_steps_by_hand(on):
    """beta1 = 1/2, beta2 = 3/4, gradients 1, 2, -1.

    m = 1/2, 5/4, 1/8, unbiased 1, 5/3, 1/7; v = 1/4, 19/16, 73/64, unbiased 1, 19/7, 73/37.
    """
    p, m, v = (np.zeros(1) for _ in range(3))
    steps = [1, 5 / 3 / np.sqrt(19 / 7), 1 / 7 / np.sqrt(73 / 37)]
    options = {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 1e-14}
    for t, gradient in enumerate([1.0, 2.0, -1.0], start=1):
        with kernels.backend(on):
            kernels.adam_update(p, np.array([gradient]), m, v, step=t, **options)
        np.testing.assert_allclose(p, [-0.1 * sum(steps[:t])], rtol=1e-12)
    np.testing.assert_allclose([m[0], v[0]], [1 / 8, 73 / 64], rtol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_gradient_of_any_layout_is_read_and_not_modified(on, rng):
    for change in (backends.as_it_is, backends.strided, backends.read_only):
        p, m, v = np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
        g = change(rng.normal(size=(3, 4)), np.asarray)
        copy = g.copy()
        with kernels.backend(on):
            kernels.adam_update(p, g, m, v, step=1, learning_rate=0.1)
        np.testing.assert_allclose(p, -0.1 * np.sign(copy), rtol=1e-5)
        np.testing.assert_array_equal(g, copy)


@pytest.mark.parametrize("on", ON)
def test_a_single_number_is_updated_too(on):
    p, g, velocity = np.array(1.0), np.array(2.0), np.array(0.0)
    with kernels.backend(on):
        kernels.sgd_update(p, g, velocity, learning_rate=0.25)
    assert p == 0.5


@pytest.mark.parametrize("on", ON)
def test_a_gradient_of_zero_is_no_division_by_zero(on):
    p, g, m, v = np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3)
    with kernels.backend(on):
        kernels.adam_update(p, g, m, v, step=1)
    np.testing.assert_array_equal(p, 1)


def test_wrong_arguments_are_named():
    one, two = np.ones(1), np.ones(2)
    with pytest.raises(ValueError, match="step counts from 1, got 0"):
        kernels.adam_update(one, one, one.copy(), one.copy(), step=0)
    with pytest.raises(ValueError, match=r"gradient has shape \(2,\), parameter has \(1,\)"):
        kernels.adam_update(one, two, one, one, step=1)
    with pytest.raises(TypeError, match="gradient is float32, parameter is float64"):
        kernels.sgd_update(one, one.astype(np.float32), one, learning_rate=1.0)
    wide = np.ones((4, 4))
    with pytest.raises(ValueError, match="parameter must be C-contiguous"):
        kernels.sgd_update(wide[:, ::2], np.ones((4, 2)), np.ones((4, 2)), learning_rate=1.0)
    with pytest.raises(ValueError, match="velocity must be C-contiguous"):
        kernels.sgd_update(np.ones((4, 2)), np.ones((4, 2)), wide[:, ::2], learning_rate=1.0)
