"""categorical.py: -log p(labels) from logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import log_softmax

import backends
import simt
from tinyvae_kernels import bernoulli_nll_forward
from tinyvae_kernels.categorical import categorical_nll_backward, categorical_nll_forward

ON = ["numpy", "numba", "cuda"]


def nll_and_gradient(logits, labels, on, dout=None):
    with backends.running_on(on) as (put, get):
        nll, saved = categorical_nll_forward(put(logits), put(labels))
        dout = np.ones(nll.shape, logits.dtype) if dout is None else dout
        dlogits, dlabels = categorical_nll_backward(put(dout), saved)
        assert dlabels is None
        return get(nll), get(dlogits)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("C", [1, 2, 3, 31, 33, 256, 1025])
def test_agrees_with_scipy(C, on, rng):
    logits, labels = rng.normal(0, 3, (5, 3, 7, C)), rng.integers(0, C, (5, 3, 7))
    log_p = log_softmax(logits, axis=-1)
    nll, dlogits = nll_and_gradient(logits, labels, on)
    chosen = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(nll, -chosen.sum(axis=(1, 2)), rtol=1e-12, atol=1e-13)
    onehot = np.arange(C) == labels[..., None]
    np.testing.assert_allclose(dlogits, np.exp(log_p) - onehot, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("on", ON)
def test_sums_to_one_over_all_labels(on, rng):
    labels = np.array(list(itertools.product(range(3), repeat=4)))
    logits = np.broadcast_to(rng.normal(0, 2, (4, 3)), (*labels.shape, 3))
    probability = np.exp(-nll_and_gradient(logits, labels, on)[0])
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_two_classes_are_bernoulli(on, rng):
    logits, bits = rng.normal(0, 3, (6, 9)), rng.integers(0, 2, (6, 9))
    expected, _ = bernoulli_nll_forward(logits, bits.astype(float))
    both = np.stack([np.zeros_like(logits), logits], axis=-1)
    np.testing.assert_allclose(nll_and_gradient(both, bits, on)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("on", ON)
def test_a_class_may_be_impossible(on):
    logits = np.array([[0.0, -np.inf, 0.0]])
    nll, dlogits = nll_and_gradient(logits, np.array([2]), on)
    np.testing.assert_allclose(nll, np.log([2.0]), rtol=1e-14)
    np.testing.assert_allclose(dlogits, [[0.5, 0, -0.5]], rtol=1e-14, atol=1e-37)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    logits = np.array([[[80, -80, 0], [1e30, 1e30, -1e30]], [[-1e30] * 3, [1e30] * 3]], dtype)
    nll, dlogits = nll_and_gradient(logits, np.array([[1, 0], [2, 1]]), on)
    np.testing.assert_allclose(nll, [160 + np.log(2), 2 * np.log(3)], rtol=1e-6)
    assert np.isfinite(dlogits).all()


@pytest.mark.parametrize("on", ON)
def test_the_logarithm_does_not_drown_in_the_logits(on):
    """log 2 beside logits of 1e7, in float32, at each of 500 positions."""
    logits = np.full((1, 500, 2), 1e7, np.float32)
    nll, _ = nll_and_gradient(logits, np.zeros((1, 500), np.int64), on)
    np.testing.assert_allclose(nll, [500 * np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("integer", [np.int64, np.int32, np.int8, np.uint8, np.uint64])
def test_labels_of_any_integer_type(integer, on, rng):
    logits, labels = rng.normal(size=(4, 3, 5)), rng.integers(0, 5, (4, 3))
    expected = nll_and_gradient(logits, labels, on)
    for found, wanted in zip(
        nll_and_gradient(logits, labels.astype(integer), on), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("on", ["numpy", "numba"])
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_out_of_range_is_named(label, on, rng):
    labels = np.array([[0, 4], [label, 1]])
    with pytest.raises(ValueError, match=f"labels holds {label}, logits has classes 0 to 4"):
        nll_and_gradient(rng.normal(size=(2, 2, 5)), labels, on)


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_on_a_gpu_a_label_out_of_range_shows_as_nan(label, rng):
    """There the labels cannot be looked at without waiting for the device."""
    nll, _ = nll_and_gradient(rng.normal(size=(2, 2, 5)), np.array([[0, 4], [label, 1]]), "cuda")
    np.testing.assert_array_equal(np.isnan(nll), [False, True])


@pytest.mark.parametrize("C", [5, 8])
def test_storage_in_half_precision(C, rng):
    logits, labels = rng.normal(0, 3, (3, 4, C)).astype(np.float16), rng.integers(0, C, (3, 4))
    expected, dlogits = nll_and_gradient(logits.astype(np.float32), labels, "cuda")
    with simt.device() as gpu:
        nll, saved = categorical_nll_forward(gpu.xp.asarray(logits), gpu.xp.asarray(labels))
        gradient, _ = categorical_nll_backward(gpu.xp.ones(3, np.float32), saved)
        assert (nll.dtype, gradient.dtype) == (np.float32, np.float16)
        np.testing.assert_allclose(nll.get(), expected, rtol=1e-6)
        np.testing.assert_allclose(gradient.get(), dlogits, rtol=1e-3, atol=1e-3)


def test_wrong_arguments_are_named(rng):
    logits, labels = rng.normal(size=(3, 4, 5)), rng.integers(0, 5, (3, 4))
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        categorical_nll_forward(logits, labels.astype(float))
    with pytest.raises(TypeError, match="labels must be integers, got bool"):
        categorical_nll_forward(logits, labels > 2)
    with pytest.raises(TypeError, match="labels must be an array, got list"):
        categorical_nll_forward(logits, [[1]])
    with pytest.raises(TypeError, match="logits must be float32 or float64, got int64"):
        categorical_nll_forward(labels, labels)
    with pytest.raises(ValueError, match=r"labels has shape \(4,\), logits without .* \(3, 4\)"):
        categorical_nll_forward(logits, labels[0])
    with pytest.raises(ValueError, match=r"logits must be \(B, ..., C\) with C >= 1, got .*\(3,\)"):
        categorical_nll_forward(logits[:, 0, 0], labels[:, 0])
    with pytest.raises(ValueError, match=r"with C >= 1, got shape \(3, 4, 0\)"):
        categorical_nll_forward(logits[..., :0], labels)
    with simt.device() as gpu, pytest.raises(TypeError, match="labels lies on cpu, logits on cuda"):
        categorical_nll_forward(gpu.xp.asarray(logits), labels)


@pytest.mark.parametrize("on", ON)
def test_wrong_dout_is_refused(on, rng):
    logits, labels = rng.normal(size=(3, 4, 5)), rng.integers(0, 5, (3, 4))
    for wrong in (np.ones(2), np.ones((3, 4)), np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3,\)"):
            nll_and_gradient(logits, labels, on, wrong)
