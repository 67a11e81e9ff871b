"""The JAX adapter: values and gradients beside plain jnp formulas, under JAX's transformations."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the package jax is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import backends  # noqa: E402
import simt  # noqa: E402
import tinyvae_kernels as kernels  # noqa: E402
from simt.device import _Memory  # noqa: E402
from tinyvae_kernels import PAIRS, _dispatch, _threads  # noqa: E402
from tinyvae_kernels.adapters import jax as adapter  # noqa: E402

LOG_2PI = np.log(2 * np.pi)
JAX_HAS_ITS_OWN = {"gaussian_kl_total", "total", "im2col", "col2im", "bias_activation"}
# arrays of B and of B K rows in one call: the nll and log_mean_exp do the same in two
JAX_HAS_ITS_OWN |= {"reparameterize_samples", "gaussian_log_ratio"}
JAX_HAS_ITS_OWN |= {"bernoulli_iwae", "gaussian_iwae", "gaussian_fixed_iwae"}


@pytest.fixture(autouse=True)
def x64():
    """Both precisions; JAX's default, float32 alone, is tested in a process of its own below."""
    with jax.enable_x64(True):
        yield


# ---------------------------------------------------------------------------- plain formulas
def kl_each(mu, logvar, free_bits=0.0):
    return jnp.maximum((mu**2 + jnp.expm1(logvar) - logvar) / 2, free_bits or -jnp.inf)


def bernoulli(logits, x):
    return jnp.logaddexp(0, logits) - logits * x


def gaussian(x_mu, x_logvar, x):
    return (LOG_2PI + x_logvar + (x - x_mu) ** 2 * jnp.exp(-x_logvar)) / 2


def fixed(x_mu, x, variance):
    return gaussian(x_mu, jnp.log(variance), x)


def kl_between(mu, logvar, mu2, logvar2):
    d = logvar - logvar2
    return ((mu - mu2) ** 2 * jnp.exp(-logvar2) + jnp.expm1(d) - d) / 2


def row(each):
    """(B, ...) -> (B,)."""
    return each.sum(tuple(range(1, each.ndim)))


def elbo(nll):
    def value(*arrays, beta, free_bits, **options):
        *given, mu, logvar = arrays
        return -row(nll(*given, **options)) - beta * row(kl_each(mu, logvar, free_bits))

    return value


def sample(mu, logvar, **key):
    eps = kernels.philox_normal(mu.shape, dtype=mu.dtype, **key)
    return mu + jnp.exp(logvar / 2) * eps


def categorical(logits, labels):
    """(B, ..., C), (B, ...) -> (B, ...)."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[..., None].astype(int), -1)[..., 0]


def beta_density(log_alpha, log_beta, x):
    a, b = jnp.exp(log_alpha), jnp.exp(log_beta)
    log_norm = jax.scipy.special.betaln(a, b)
    return log_norm - (a - 1) * jnp.log(x) - (b - 1) * jnp.log1p(-x)


def logistic_mixture(logit_weight, x_mu, log_scale, x, levels=256):
    """(B, ..., K), (B, ...) -> (B, ...)."""
    x, h = jnp.rint((x + 1) / 2 * (levels - 1)) / (levels - 1) * 2 - 1, 1 / (levels - 1)
    x = x[..., None]
    a = jnp.where(x > 1 - h, jnp.inf, (x + h - x_mu) * jnp.exp(-log_scale))
    b = jnp.where(x < h - 1, -jnp.inf, (x - h - x_mu) * jnp.exp(-log_scale))
    log_p = jax.nn.log_sigmoid(a) + jax.nn.log_sigmoid(-b) + jnp.log(-jnp.expm1(b - a))
    return -jax.nn.logsumexp(jax.nn.log_softmax(logit_weight) + log_p, -1)


def mixture_terms(z, log_weights, mu, logvar):
    """(B, K, Z) each: the weights, and the logarithms of the densities."""
    log_n = -(LOG_2PI + logvar + (z[:, None] - mu) ** 2 * jnp.exp(-logvar)) / 2
    return log_weights[..., None], log_n


def mixture(*arrays):
    weights, log_n = mixture_terms(*arrays)
    return jax.nn.logsumexp(weights[..., 0] + log_n.sum(2), 1)


def mixture_marginal(*arrays):
    return jax.nn.logsumexp(sum(mixture_terms(*arrays)), 1)


def nearest(z, codebook):
    distance = ((z[:, None] - codebook) ** 2).sum(2)
    return z + jax.lax.stop_gradient(codebook[distance.argmin(1)] - z)


FORMULAS = {
    "reparameterize": lambda mu, logvar, eps: mu + jnp.exp(logvar / 2) * eps,
    "gaussian_sample": sample,
    "gaussian_kl": lambda mu, logvar, free_bits: row(kl_each(mu, logvar, free_bits)),
    "gaussian_kl_between": lambda *arrays: row(kl_between(*arrays)),
    "bernoulli_nll": lambda *arrays: row(bernoulli(*arrays)),
    "gaussian_nll": lambda *arrays: row(gaussian(*arrays)),
    "gaussian_fixed_nll": lambda *arrays, variance: row(fixed(*arrays, variance)),
    "categorical_nll": lambda *arrays: row(categorical(*arrays)),
    "beta_nll": lambda *arrays: row(beta_density(*arrays)),
    "logistic_mixture_nll": lambda *arrays, **levels: row(logistic_mixture(*arrays, **levels)),
    "bernoulli_elbo": elbo(bernoulli),
    "gaussian_elbo": elbo(gaussian),
    "gaussian_fixed_elbo": elbo(fixed),
    "log_mean_exp": lambda log_w: jax.nn.logsumexp(log_w, 1) - jnp.log(log_w.shape[1]),
    "mixture_log_prob": mixture,
    "mixture_marginal_log_prob": mixture_marginal,
    "nearest_code": nearest,
}
every_pair = pytest.mark.parametrize("name", [name for name in FORMULAS if name in PAIRS])


# What the plain formula loses: its gradients are differences of differences of sigmoids.
ROUNDING = {"logistic_mixture_nll": 1e-12}


def example(name, B=31, D=33, dtype="float64"):
    """The pair's function and its formula, of the arrays that have gradients; those, and dout.

    Numbers, data and options are those of the backends' table; the formula computes in float64.
    """
    case, dout = backends.example(name, B, D, dtype)
    wanted = [i for i in range(len(case.arrays)) if i not in case.data]

    def of(function, dtype):
        def value(*parameters):
            arrays = [jnp.asarray(a, dtype if a.dtype.kind == "f" else None) for a in case.arrays]
            for i, parameter in zip(wanted, parameters, strict=True):
                arrays[i] = parameter.astype(dtype)
            out = function(*arrays, **case.options)
            return out[0] if isinstance(out, tuple) else out  # the codes of nearest_code aside

        return value

    parameters = tuple(jnp.asarray(case.arrays[i]) for i in wanted)
    function = of(getattr(adapter, name), dtype)
    return function, of(FORMULAS[name], jnp.float64), parameters, jnp.asarray(dout)


def with_gradients(function, parameters, dout):
    value, backward = jax.vjp(function, *parameters)
    return value, backward(dout.astype(value.dtype))


def close(found, expected, dtype="float64", D=33, name=""):
    """As the backends are compared, and closer in float64."""
    rtol, size = (1e-5, 1e-6) if dtype == "float32" else (1e-12, ROUNDING.get(name, 1e-14))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        atol = size if a.ndim > 1 else size * 2 * max(D, 1)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------ every function
def test_there_is_a_function_for_every_pair():
    assert set(adapter.__all__) == set(PAIRS) - JAX_HAS_ITS_OWN == set(FORMULAS)


@every_pair
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_value_and_gradient_agree_with_the_formula(name, dtype):
    function, formula, parameters, dout = example(name, dtype=dtype)
    expected = with_gradients(formula, parameters, dout)
    for transform in (lambda f: f, jax.jit, jax.checkpoint):
        found = with_gradients(transform(function), parameters, dout)
        close(found, expected, dtype, name=name)
        assert {a.dtype for a in jax.tree.leaves(found)} == {np.dtype(dtype)}


@every_pair
@pytest.mark.parametrize(("B", "D"), [(1, 1), (257, 1), (0, 5), (5, 0)])
def test_odd_and_empty_sizes(name, B, D):
    function, formula, parameters, dout = example(name, B, D)
    found = jax.jit(functools.partial(with_gradients, function))(parameters, dout)
    close(found, with_gradients(formula, parameters, dout), D=D, name=name)


@pytest.mark.parametrize("name", sorted(FORMULAS.keys() & PAIRS.keys() - {"nearest_code"}))
def test_the_gradient_is_that_of_finite_differences(name):
    function, _, parameters, _ = example(name, 3, 4)
    parameters = jax.tree.map(lambda p: jnp.clip(p, -2, 2), parameters)
    check_grads(function, parameters, order=1, modes=("rev",))


@every_pair
def test_vmap_is_a_loop(name):
    function, _, parameters, dout = example(name, 3, 4)
    stacked = jax.tree.map(lambda p: jnp.stack([p, -p, 2 * p]), (parameters, dout))
    each = [jax.tree.map(lambda p, k=k: p[k], stacked) for k in range(3)]
    value_and_gradients = functools.partial(with_gradients, function)
    for transform in (jax.vmap, lambda f: jax.jit(jax.vmap(f))):
        found = transform(value_and_gradients)(*stacked)
        expected = jax.tree.map(lambda *a: jnp.stack(a), *(value_and_gradients(*e) for e in each))
        close(found, expected)


@every_pair
def test_scan_adds_gradients_up(name):
    function, formula, parameters, dout = example(name, 3, 4)

    def total(of):
        def step(carry, scale):
            return carry, jnp.sum(dout * of(*(scale * p for p in carry)))

        return lambda *p: jax.lax.scan(step, p, jnp.array([0.5, 1.0]))[1].sum()

    positions = tuple(range(len(parameters)))
    found = jax.jit(jax.value_and_grad(total(function), positions))(*parameters)
    close(found, jax.value_and_grad(total(formula), positions)(*parameters), name=name)


@every_pair
def test_nested_vmap_and_one_argument_mapped(name):
    function, _, parameters, _ = example(name, 2, 3)
    first, *others = parameters
    grid = jnp.stack([jnp.stack([first, 2 * first]), jnp.stack([-first, 0 * first])])
    found = jax.vmap(jax.vmap(lambda p: function(p, *others)))(grid)
    expected = [jnp.stack([function(p, *others) for p in line]) for line in grid]
    close(found, jnp.stack(expected))


# --------------------------------------------------------------------------------------- options
def elbo_arrays(B=5, D=7, Z=3, dtype="float64"):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (B, D))
    logits, (mu, logvar) = rng.standard_normal((B, D)), rng.standard_normal((2, B, Z))
    return tuple(jnp.asarray(a, dtype) for a in (logits, x, mu, logvar))


@pytest.mark.parametrize("free_bits", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.7, np.float32(2.0)])
def test_beta_may_be_traced_and_has_a_gradient(beta, free_bits):
    logits, x, mu, logvar = elbo_arrays()

    def loss(of, beta, logits, mu, logvar):
        return of(logits, x, mu, logvar, beta=beta, free_bits=free_bits).sum()

    gradient = functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    found = jax.jit(gradient(functools.partial(loss, adapter.bernoulli_elbo)))
    expected = gradient(functools.partial(loss, FORMULAS["bernoulli_elbo"]))
    close(found(float(beta), logits, mu, logvar), expected(float(beta), logits, mu, logvar))
    fixed_beta = adapter.bernoulli_elbo(logits, x, mu, logvar, beta=beta, free_bits=free_bits)
    np.testing.assert_allclose(fixed_beta.sum(), found(beta, logits, mu, logvar)[0], rtol=1e-14)


def test_beta_may_differ_from_row_to_row():
    arrays, beta = elbo_arrays(), jnp.arange(5.0)
    each = [adapter.bernoulli_elbo(*arrays, beta=b)[i] for i, b in enumerate(beta)]
    close(adapter.bernoulli_elbo(*arrays, beta=beta), jnp.stack(each))


def test_images_are_rows():
    images = [a.reshape(5, 7, 1, 1) for a in elbo_arrays()[:2]]
    gradient = jax.grad(lambda a: adapter.bernoulli_nll(a, images[1]).sum())(images[0])
    assert gradient.shape == (5, 7, 1, 1)
    close(adapter.bernoulli_nll(*images), adapter.bernoulli_nll(*elbo_arrays()[:2]))


def test_the_noise_is_philox_with_numbers_known_at_run_time():
    _, _, mu, logvar = elbo_arrays()
    draw = jax.jit(lambda seed, step: adapter.gaussian_sample(mu, logvar, seed=seed, step=step))
    for seed, step in ((0, 0), (2**63 - 1, 1), (5, 2**32 - 1)):
        expected, _ = kernels.gaussian_sample_forward(
            np.asarray(mu), np.asarray(logvar), seed=seed, step=step
        )
        np.testing.assert_array_equal(draw(seed, step), expected)
        found = adapter.gaussian_sample(mu, logvar, seed=seed, step=step)
        np.testing.assert_array_equal(found, expected)
    steps = jnp.arange(3)
    found = jax.vmap(lambda step: adapter.gaussian_sample(mu, logvar, seed=1, step=step))(steps)
    close(found, jnp.stack([draw(1, step) for step in range(3)]))
    largest = adapter.gaussian_sample(mu, logvar, seed=2**64 - 1, offset=2**61)
    expected, _ = kernels.gaussian_sample_forward(
        np.asarray(mu), np.asarray(logvar), seed=2**64 - 1, offset=2**61
    )
    np.testing.assert_array_equal(largest, expected)


@pytest.mark.parametrize(("wide", "integer"), [(True, "int64"), (False, "int32")])
def test_nearest_code_tells_which_code_it_is(wide, integer):
    with jax.enable_x64(wide):
        z, codebook = jnp.asarray([[0.1], [2.2], [0.9]]), jnp.asarray([[0.0], [1.0], [2.0]])
        for transform in (lambda f: f, jax.jit):
            quantized, codes = transform(adapter.nearest_code)(z, codebook)
            np.testing.assert_array_equal(codes, [0, 2, 1])
            np.testing.assert_array_equal(quantized, codebook[codes])
            assert codes.dtype == integer
        with pytest.raises(TypeError, match="nearest_code has no gradient for codebook"):
            jax.grad(lambda book: adapter.nearest_code(z, book)[0].sum())(codebook)


# ---------------------------------------------------------------------------------------- errors
def test_errors_are_the_pairs_own_at_tracing():
    logits, x, mu, logvar = elbo_arrays()
    elbo = jax.jit(adapter.bernoulli_elbo)
    with pytest.raises(ValueError, match=r"x has shape \(5, 6\), logits has \(5, 7\)"):
        elbo(logits, x[:, :6], mu, logvar)
    with pytest.raises(ValueError, match="mu has 4 rows, x has 5"):
        elbo(logits, x, mu[:4], logvar[:4])
    with pytest.raises(TypeError, match="x is float32, logits is float64"):
        elbo(logits, x.astype(jnp.float32), mu, logvar)
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        elbo(logits, x.astype(int), mu, logvar)
    with pytest.raises(TypeError, match="logits must be an array, got list"):
        adapter.bernoulli_nll([[0.0]], x)
    with pytest.raises(ValueError, match="logits needs a batch axis"):
        adapter.bernoulli_nll(logits[0, 0], x[0, 0])


def test_options_out_of_range():
    logits, x, mu, logvar = elbo_arrays()
    with pytest.raises(ValueError, match="beta must be finite and >= 0, got -1"):
        adapter.bernoulli_elbo(logits, x, mu, logvar, beta=-1)
    with pytest.raises(ValueError, match="free_bits must be finite and >= 0, got -1"):
        adapter.bernoulli_elbo(logits, x, mu, logvar, free_bits=-1)
    with pytest.raises(ValueError, match="beta must be a number or"):
        adapter.bernoulli_elbo(logits, x, mu, logvar, beta=jnp.ones(3))
    with pytest.raises(ValueError, match="variance must be positive and finite, got 0"):
        adapter.gaussian_fixed_nll(logits, x, variance=0)
    with pytest.raises(TypeError, match="variance must be a Python number"):
        jax.jit(lambda v: adapter.gaussian_fixed_nll(logits, x, variance=v))(1.0)
    with pytest.raises(ValueError, match="seed must be in"):
        adapter.gaussian_sample(mu, logvar, seed=-1)
    with pytest.raises(TypeError, match="step must be an integer, got float64"):
        adapter.gaussian_sample(mu, logvar, seed=0, step=jnp.ones(()))


def test_data_have_no_gradient_and_gradients_none():
    logits, x, mu, logvar = elbo_arrays()
    with pytest.raises(TypeError, match="bernoulli_nll has no gradient for x, which is data"):
        jax.grad(lambda x: adapter.bernoulli_nll(logits, x).sum())(x)
    stopped = jax.grad(lambda x: adapter.bernoulli_nll(logits, jax.lax.stop_gradient(x)).sum())(x)
    np.testing.assert_array_equal(stopped, 0)
    with pytest.raises(NotImplementedError, match="gaussian_kl has first derivatives only"):
        jax.hessian(lambda mu: adapter.gaussian_kl(mu, logvar).sum())(mu)
    with pytest.raises(NotImplementedError, match="gaussian_kl has first derivatives only"):
        jax.jacrev(jax.grad(lambda mu: adapter.gaussian_kl(mu, logvar).sum()))(mu)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(adapter.gaussian_kl, (mu, logvar), (mu, logvar))


def test_what_a_kernel_raises_reaches_the_caller(monkeypatch):
    def fails(*arrays):
        raise ValueError("the kernel's own words")

    logits, x, *_ = elbo_arrays()
    call = jax.jit(adapter.bernoulli_nll).lower(logits, x).compile()
    monkeypatch.setitem(PAIRS, "bernoulli_nll", (fails, fails))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the kernel's own words"):
        jax.block_until_ready(call(logits, x))


# ------------------------------------------------------------------------------ memory, settings
def test_gradients_are_computed_in_the_memory_of_the_results(monkeypatch):
    allocated, before = [], adapter.plain_empty

    def counted(shape, dtype, like):
        allocated.append(shape)
        return before(shape, dtype, like)

    monkeypatch.setattr(adapter, "plain_empty", counted)
    logits, x, mu, logvar = elbo_arrays()
    function = jax.jit(jax.grad(lambda *a: adapter.gaussian_elbo(*a).sum(), (0, 1, 3, 4)))
    jax.block_until_ready(function(logits, logits, x, mu, logvar))
    assert allocated
    assert not [shape for shape in allocated if len(shape) > 1]


def test_results_that_lie_in_each_others_place_are_told_apart(monkeypatch):
    """A kernel may allocate in another order than that of the results."""
    logits, x = elbo_arrays()[:2]
    forward, backward = PAIRS["gaussian_nll"]

    def reversed_order(*arrays):
        nll, (dx_mu, dx_logvar) = contextvars.Context().run(forward, *arrays)
        second, first = (_dispatch.empty(x.shape, arrays[0]) for _ in range(2))
        first[:], second[:] = dx_mu, dx_logvar
        return nll, (first, second)

    gradient = jax.grad(lambda a, b: adapter.gaussian_nll(a, b, x).sum(), (0, 1))
    expected = gradient(logits, logits)
    monkeypatch.setitem(PAIRS, "gaussian_nll", (reversed_order, backward))
    close(gradient(logits, logits), expected)


def test_donated_arguments():
    logits, x, *_ = elbo_arrays()

    def step(logits):
        return logits + jax.grad(lambda a: adapter.bernoulli_nll(a, x).sum())(logits)

    expected, given = step(logits), jnp.array(logits)
    np.testing.assert_array_equal(jax.jit(step, donate_argnums=0)(given), expected)
    assert given.is_deleted()


def test_arguments_are_not_modified():
    arrays = elbo_arrays()
    before = [np.array(a) for a in arrays]
    jax.block_until_ready(jax.jit(jax.vmap(adapter.bernoulli_elbo))(*(a[None] for a in arrays)))
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_settings_are_those_of_the_tracing(monkeypatch):
    seen, kernel = [], adapter._KERNELS["bernoulli_nll"]

    def values(*call):
        seen.append((_dispatch._requested.get(), _threads._limit.get()))
        return kernel.values(*call)

    monkeypatch.setitem(adapter._KERNELS, "bernoulli_nll", kernel._replace(values=values))
    logits, x, *_ = elbo_arrays()
    with kernels.backend("numpy"), kernels.threads(3):
        call = jax.jit(lambda *a: adapter.bernoulli_nll(*a)).lower(logits, x).compile()
    seen.clear()
    with kernels.threads(2):
        jax.block_until_ready(call(logits, x))
    assert seen == [("numpy", 3)]
    jax.block_until_ready(adapter.bernoulli_nll(logits, x))
    assert seen[-1] == ("auto", None)


# ------------------------------------------------------------------------------------------- CUDA
class _Lent(_Memory):
    """XLA's memory, which counts as the stand-in device's."""

    def __init__(self, host):
        self.__array_interface__ = host.__array_interface__

    def __del__(self):
        pass


class _StandIn:
    """Buffers on the CPU as arrays of the stand-in for a GPU."""

    def active(self, context):
        return contextlib.nullcontext()

    def array(self, buffer):
        host = adapter._Host().array(buffer)
        return simt.Array(np.asarray(_Lent(host)).view(host.dtype))

    def numbers(self, array):
        return array.get()


@every_pair
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_the_cuda_kernels_run_on_the_buffers(name, dtype, monkeypatch):
    function, formula, parameters, dout = example(name, dtype=dtype)
    expected = with_gradients(formula, parameters, dout)
    with simt.device() as gpu:
        monkeypatch.setattr(adapter, "_memory", lambda buffer: _StandIn())
        found = jax.block_until_ready(with_gradients(function, parameters, dout))
    assert gpu.launched
    close(found, expected, dtype, name=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_for_storage_on_a_gpu(dtype, monkeypatch):
    arrays = elbo_arrays(dtype=dtype)

    def value_and_gradients(function, arrays):
        logits, x, mu, logvar = arrays
        value, backward = jax.vjp(lambda *p: function(p[0], x, *p[1:]), logits, mu, logvar)
        return value, backward(value)

    with pytest.raises(jax.errors.JaxRuntimeError, match=f"got {dtype} .* on a GPU only"):
        jax.block_until_ready(adapter.bernoulli_elbo(*arrays))
    with simt.device():
        monkeypatch.setattr(adapter, "_memory", lambda buffer: _StandIn())
        value, gradients = jax.jit(functools.partial(value_and_gradients, adapter.bernoulli_elbo))(
            arrays
        )
        jax.block_until_ready(gradients)
    assert value.dtype == jnp.float32
    assert {g.dtype.name for g in gradients} == {dtype}
    wide = tuple(a.astype(jnp.float32) for a in arrays)
    formula = functools.partial(FORMULAS["bernoulli_elbo"], beta=1.0, free_bits=0.0)
    expected = value_and_gradients(formula, wide)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for found, gradient in zip(gradients, expected[1], strict=True):
        tolerance = 2 * float(jnp.finfo(dtype).eps)  # a rounding of the factor, and of the product
        np.testing.assert_allclose(found.astype(jnp.float32), gradient, rtol=tolerance, atol=1e-6)


@pytest.mark.skipif(kernels.cuda_problem() is None, reason="CUDA can be used here")
def test_why_cuda_cannot_be_used_is_said():
    class Buffer:
        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(kernels.BackendError, match="JAX's arrays lie on a GPU, and CUDA cannot"):
        adapter._memory(Buffer())


@pytest.mark.cuda
@every_pair
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_on_a_gpu(name, dtype):
    try:
        gpu = jax.devices("gpu")[0]
    except RuntimeError as error:
        pytest.skip(f"jax sees no GPU: {error}")
    function, formula, parameters, dout = example(name, dtype=dtype)
    expected = with_gradients(formula, parameters, dout)
    with jax.default_device(gpu):
        there = jax.device_put((parameters, dout), gpu)
        found = jax.jit(functools.partial(with_gradients, function))(*there)
        assert {d for a in jax.tree.leaves(found) for d in a.devices()} == {gpu}
    close(jax.device_get(found), jax.device_get(expected), dtype, name=name)


# -------------------------------------------------------------------------------------- training
def test_a_tiny_vae_learns_as_one_of_plain_formulas_does():
    rng = np.random.default_rng(0)
    B, D, H, Z = 64, 20, 16, 2
    x = jnp.asarray((rng.random((B, 1)) < 0.5) ^ (rng.random((B, D)) < 0.1), jnp.float32)
    shapes = {"encode": (D, H), "mu": (H, Z), "logvar": (H, Z), "decode": (Z, H), "logits": (H, D)}
    start = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    eps = jnp.asarray(rng.standard_normal((B, Z)), jnp.float32)

    def loss(of, p, step):
        h = jnp.tanh(x @ p["encode"])
        mu, logvar = h @ p["mu"], h @ p["logvar"]
        z = of["reparameterize"](mu, logvar, eps)
        logits = jnp.tanh(z @ p["decode"]) @ p["logits"]
        beta = jnp.minimum(1.0, 0.5 + step / 20)
        return -of["bernoulli_elbo"](logits, x, mu, logvar, beta=beta, free_bits=0.01).mean()

    def losses(of):
        @functools.partial(jax.jit, donate_argnums=0)
        def train(p, step):
            value, gradient = jax.value_and_grad(functools.partial(loss, of))(p, step)
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient), value

        p, values = jax.tree.map(jnp.copy, start), []
        for step in range(20):
            p, value = train(p, jnp.int32(step))
            values.append(float(value))
        return values

    found = losses(vars(adapter))
    assert found[-1] < 0.8 * found[0]
    np.testing.assert_allclose(found, losses(FORMULAS), rtol=1e-4)


# ------------------------------------------------------------------------------------- processes
HEADER = """
import faulthandler
faulthandler.dump_traceback_later(100, exit=True)  # a deadlock
import jax, jax.numpy as jnp, numpy as np
from tinyvae_kernels.adapters.jax import bernoulli_elbo, bernoulli_nll
"""


def run_alone(program, first=""):
    """What a process of its own prints."""
    folder = str(Path(kernels.__file__).parents[1])
    command = [sys.executable, "-c", "\n".join([first, HEADER, program])]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": folder}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LARGE = """
rng = np.random.default_rng(0)
l = jnp.asarray(rng.standard_normal((2048, 784)), jnp.float32)
x, m, eye = (l > 0).astype(l.dtype), l[:, :16], jnp.eye(784)

def loss(l, rows=2048):
    return bernoulli_elbo(l @ eye, x[:rows], m[:rows], m[:rows]).mean()
"""
THREADS = """
import threading

def work(rows):
    part, step = l[:rows], jax.jit(lambda part: part + jax.grad(loss)(part, rows))
    for _ in range(8):
        part = step(part)
    part.block_until_ready()

workers = [threading.Thread(target=work, args=(rows,)) for rows in (1, 64, 512, 2048)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print("done")
"""
NO_WAITING = """
step = jax.jit(jax.grad(loss))
for _ in range(6):
    gradient = step(l)
print("done")
"""
SHARDS = """
from jax.sharding import NamedSharding, PartitionSpec
mesh, rows = jax.make_mesh((2,), ("rows",)), PartitionSpec("rows")
there = jax.device_put((l, x), NamedSharding(mesh, rows))
alone = bernoulli_nll(l, x)
np.testing.assert_allclose(jax.jit(bernoulli_nll)(*there), alone, rtol=1e-6)
mapped = jax.shard_map(bernoulli_nll, mesh=mesh, in_specs=rows, out_specs=rows)
np.testing.assert_allclose(jax.jit(mapped)(*there), alone, rtol=1e-6)
print(jax.device_count(), alone.dtype)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_calls_from_several_threads_on_one_core():
    first = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert run_alone(LARGE + THREADS, first) == "done\n"


def test_calls_from_several_threads():
    assert run_alone(LARGE + THREADS) == "done\n"


def test_a_process_may_end_with_calls_on_their_way():
    assert run_alone(LARGE + NO_WAITING) == "done\n"


def test_sharded_arrays_in_jaxs_default_precision():
    first = "import jax; jax.config.update('jax_num_cpu_devices', 2)"
    assert run_alone(LARGE + SHARDS, first) == "2 float32\n"
