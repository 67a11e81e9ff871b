"""_cuda.varying: numbers that kernels read in a GPU's memory, as a recorded launch needs them."""

from __future__ import annotations

import numpy as np
import pytest

import simt
import tinyvae_kernels as kernels

DTYPES = ("float32", "float64")


@pytest.fixture
def gpu():
    with simt.device() as gpu:
        yield gpu


def test_noise_of_a_step_in_memory(gpu):
    step, like = gpu.xp.asarray(np.uint32(7)), gpu.xp.empty(1)
    for draw in (kernels.philox_normal, kernels.philox_uniform):
        for offset in (0, 3):
            expected = draw(13, seed=5, stream=2, step=7, offset=offset, like=like).get()
            found = draw(13, seed=5, stream=2, step=step, offset=offset, like=like).get()
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        kernels.philox_bits(9, seed=5, step=step, like=like).get(),
        kernels.philox_bits(9, seed=5, step=7),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_and_its_backward_at_a_step_in_memory(dtype, gpu, rng):
    mu, logvar, dz = (gpu.xp.asarray(a.astype(dtype)) for a in rng.standard_normal((3, 5, 3)))
    found = []
    for step in (3, gpu.xp.asarray(np.uint32(3))):
        z, saved = kernels.gaussian_sample_forward(mu, logvar, seed=1, step=step)
        found.append([z.get(), *(g.get() for g in kernels.gaussian_sample_backward(dz, saved))])
    for plain, varying in zip(*found, strict=True):
        np.testing.assert_array_equal(varying, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bernoulli_elbo", "gaussian_elbo", "gaussian_fixed_elbo"])
def test_an_elbo_with_beta_in_memory(name, dtype, gpu, rng):
    count = {"gaussian_elbo": 3}.get(name, 2)
    wide, latent = rng.standard_normal((count, 4, 9)), rng.standard_normal((2, 4, 3))
    arrays = [gpu.xp.asarray(a.astype(dtype)) for a in (*wide, *latent)]
    forward, found = kernels.PAIRS[name][0], []
    for beta in (0.25, gpu.xp.asarray(np.dtype(dtype).type(0.25))):
        elbo, saved = forward(*arrays, beta=beta)
        found.append([elbo.get(), *(g.get() for g in saved.gradients() if g is not None)])
    for plain, varying in zip(*found, strict=True):
        np.testing.assert_array_equal(varying, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_importance_weighted_bound_with_beta_in_memory(dtype, gpu, rng):
    logits, x, log_ratio = rng.standard_normal((6, 9)), np.ones((2, 9)), rng.standard_normal((2, 3))
    arrays = [gpu.xp.asarray(a.astype(dtype)) for a in (logits, x, log_ratio)]
    found = []
    for beta in (0.25, gpu.xp.asarray(np.dtype(dtype).type(0.25))):
        bound, (dlogits, _, dlog_ratio) = kernels.bernoulli_iwae_value_and_grad(*arrays, beta=beta)
        found.append([a.get() for a in (bound, dlogits, dlog_ratio)])
    for plain, varying in zip(*found, strict=True):
        np.testing.assert_array_equal(varying, plain)


@pytest.fixture
def adam(gpu, rng):
    """A step of Adam from the same arrays: what becomes of parameter, m and v."""
    start = rng.standard_normal((4, 21))
    start[3] **= 2

    def update(dtype, numbers, **options):
        arrays = [gpu.xp.asarray(a.astype(dtype)) for a in start]
        kernels.adam_update(*arrays, numbers, **options)
        return [arrays[i].get() for i in (0, 2, 3)], start[[0, 2, 3]].astype(dtype)

    return update


@pytest.mark.parametrize("dtype", DTYPES)
def test_adams_numbers_in_memory(dtype, gpu, adam):
    numbers = kernels.adam_numbers(step=3, learning_rate=0.1, weight_decay=0.01, scale=0.5)
    plain, before = adam(dtype, numbers)
    varying, _ = adam(dtype, gpu.xp.asarray(np.array(numbers, dtype)))
    for a, b, c in zip(varying, plain, before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_that_is_not_finite_changes_nothing(dtype, gpu, adam):
    numbers = kernels.adam_numbers(step=3)
    plain, before = adam(dtype, numbers)
    for loss, expected in ((1e300, plain), (np.nan, before), (np.inf, before), (-np.inf, before)):
        found, _ = adam(dtype, numbers, loss=gpu.xp.asarray(np.float64(loss)))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_loss_elsewhere_is_refused(gpu, adam):
    with pytest.raises(TypeError, match="loss must be float64, got float32"):
        adam("float32", kernels.adam_numbers(step=1), loss=gpu.xp.asarray(np.float32(1)))
    with pytest.raises(TypeError, match="loss must lie in the memory of the GPU"):
        adam("float32", kernels.adam_numbers(step=1), loss=np.float64(1))
    arrays = np.ones((4, 3))
    with pytest.raises(TypeError, match="loss must lie in the memory of the GPU"):
        kernels.adam_update(*arrays, step=1, loss=gpu.xp.asarray(np.float64(1)))
