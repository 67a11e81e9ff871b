"""elbo.py: the fused ELBO is its parts, put together."""

from __future__ import annotations

import numpy as np
import pytest

import backends
import tinyvae_kernels as kernels

NAMES = ["bernoulli_elbo", "gaussian_elbo", "gaussian_fixed_elbo"]
ON = ["numpy", "numba"]
WEIGHTS = [(1.0, 0.0), (0.25, 0.1), (4.0, 0.5), (0.0, 0.0)]  # beta, free_bits


def example(name: str) -> tuple[tuple, tuple, dict]:
    """The likelihood's arrays, then mu and logvar, and the likelihood's options."""
    case, _ = backends.example(name, 7, 6, "float64")
    options = {key: value for key, value in case.options.items() if key == "variance"}
    return case.arrays[:-2], case.arrays[-2:], options


def kl_each(mu, logvar):
    return 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("beta", "free_bits"), WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_is_the_likelihood_minus_the_weighted_kl(name, beta, free_bits, on):
    likelihood, latent, options = example(name)
    with kernels.backend(on):
        nll, _ = kernels.PAIRS[name.replace("elbo", "nll")][0](*likelihood, **options)
        kl, _ = kernels.gaussian_kl_forward(*latent)
        elbo, saved = kernels.PAIRS[name][0](
            *likelihood, *latent, beta=beta, free_bits=free_bits, **options
        )
    paid = np.maximum(kl_each(*latent), free_bits).sum(axis=1)
    np.testing.assert_allclose(elbo, -nll - beta * paid, rtol=1e-12)
    np.testing.assert_allclose(saved.nll, nll, rtol=1e-13)
    np.testing.assert_allclose(saved.kl, kl, rtol=1e-13)  # as it is: neither weight is in it


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_below_the_free_bits(name, on, rng):
    likelihood, (mu, logvar), options = example(name)
    free_bits = 0.3
    below = kl_each(mu, logvar) < free_bits
    assert below.any()
    assert not below.all()
    with kernels.backend(on):
        _, saved = kernels.PAIRS[name][0](*likelihood, mu, logvar, free_bits=free_bits, **options)
        *_, dmu, dlogvar = kernels.PAIRS[name][1](rng.normal(size=7), saved)
    assert (dmu[below] == 0).all()
    assert (dlogvar[below] == 0).all()
    assert (dmu[~below] != 0).all()
    assert (dlogvar[~below] != 0).all()


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_extreme_arguments_give_finite_results(dtype, on):
    logits = np.array([[80.0, -80.0, 1e30, -1e30]], dtype)
    x = np.array([[0.0, 1.0, 0.0, 1.0]], dtype)
    latent = np.array([[1e15, 0.0, -3.0]], dtype), np.array([[-1e30, 80.0, -80.0]], dtype)
    calls = {
        "bernoulli_elbo": (logits, x, *latent),
        "gaussian_elbo": (x, -x * 60, x, *latent),
        "gaussian_fixed_elbo": (x + 1e15, x, *latent),
    }
    for name, arrays in calls.items():
        forward, backward = kernels.PAIRS[name]
        with kernels.backend(on):
            out, saved = forward(*arrays, free_bits=0.1)
            gradients = backward(np.full_like(out, 0.5), saved)
        for value in (out, saved.nll, saved.kl, *(g for g in gradients if g is not None)):
            assert np.isfinite(value).all(), (name, value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "weights",
    [{"beta": -1.0}, {"beta": np.nan}, {"beta": np.inf}, {"free_bits": -0.1},
     {"free_bits": np.nan}, {"free_bits": np.inf}],
)  # fmt: skip
def test_weights_must_be_finite_and_not_negative(name, weights):
    likelihood, latent, options = example(name)
    with pytest.raises(ValueError, match=f"{next(iter(weights))} must be finite and >= 0"):
        kernels.PAIRS[name][0](*likelihood, *latent, **weights, **options)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_named(name):
    forward, first = kernels.PAIRS[name][0], "logits" if name == "bernoulli_elbo" else "x_mu"
    (*parameters, x), (mu, logvar), _ = example(name)
    with pytest.raises(ValueError, match="mu has 6 rows, x has 7"):
        forward(*parameters, x, mu[:-1], logvar[:-1])
    with pytest.raises(ValueError, match=r"logvar has shape \(7, 3\), mu has \(7, 4\)"):
        forward(*parameters, x, mu, logvar[:, 1:])
    with pytest.raises(ValueError, match=rf"x has shape \(7, 5\), {first} has \(7, 6\)"):
        forward(*parameters, x[:, 1:], mu, logvar)
    with pytest.raises(TypeError, match="mu is float32, x is float64"):
        forward(*parameters, x, mu.astype(np.float32), logvar.astype(np.float32))
    with pytest.raises(TypeError, match="x must be float32 or float64, got uint8"):
        forward(*parameters, x.astype(np.uint8), mu, logvar)
    with pytest.raises(TypeError, match=f"{first} must be an array, got list"):
        forward([[1.0]], *parameters[1:], x, mu, logvar)


@pytest.mark.parametrize("variance", [0.0, -1.0, np.inf, np.nan])
def test_variance_must_be_positive_and_finite(variance):
    likelihood, latent, _ = example("gaussian_fixed_elbo")
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        kernels.gaussian_fixed_elbo_forward(*likelihood, *latent, variance=variance)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_dout_is_refused(name):
    likelihood, latent, _ = example(name)
    _, saved = kernels.PAIRS[name][0](*likelihood, *latent)
    with pytest.raises(ValueError, match=r"dout has shape \(6,\), the output has \(7,\)"):
        kernels.PAIRS[name][1](np.ones(6), saved)
