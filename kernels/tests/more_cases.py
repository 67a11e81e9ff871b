"""The tables of backends.py and kernel_strategies.py, continued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcheck import Case
from tinyvae_kernels.activation import ACTIVATIONS

Draw = Callable[[st.SearchStrategy], Any]
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([0, 1, 2, 3, 5])
GAP = 0.01  # distance to a kink: no step of 1e-6 crosses it
CLASSES, COMPONENTS, CODES = 5, 4, 7


# ---------------------------------------------------------------------------- backends: CASES
def _logits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A quarter in +-80, the others near each other."""
    far = rng.uniform(-80, 80, shape)
    return np.where(rng.random(shape) < 0.25, far, rng.standard_normal(shape))


def _pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Of 256 levels, a quarter at the two ends."""
    levels = rng.integers(0, 256, shape)
    ends = rng.choice([0, 255], shape)
    return np.where(rng.random(shape) < 0.25, ends, levels) / 127.5 - 1


def _categorical(rng: np.random.Generator, B: int, D: int) -> Case:
    classes = CLASSES if D % 2 else 8  # 8: positions start at multiples of 16 bytes
    labels = rng.integers(0, classes, (B, D))
    return Case((_logits(rng, B, D, classes), labels), data=(1,))


def _beta(rng: np.random.Generator, B: int, D: int) -> Case:
    """Parameters to 1.6: in float32, the gradient's rounding grows with them (test_beta.py)."""
    log_alpha, log_beta = rng.uniform(-5, 0.5, (2, B, D))
    return Case((log_alpha, log_beta, rng.uniform(0.02, 0.98, (B, D))), data=(2,))


def _logistic_mixture(rng: np.random.Generator, B: int, D: int) -> Case:
    """Scales from 0.3: in float32, the gradient's rounding grows as 1 / scale^2."""
    shape = (B, D, COMPONENTS)
    parameters = (_logits(rng, *shape), rng.standard_normal(shape), rng.uniform(-1.2, 3, shape))
    return Case((*parameters, _pixels(rng, B, D)), data=(3,))


def _log_mean_exp(rng: np.random.Generator, B: int, D: int) -> Case:
    return Case((_logits(rng, B, max(D, 1)),))


def _samples(rng: np.random.Generator, B: int, D: int) -> Case:
    """mu, logvar (B, Z) and eps (B, K, Z)."""
    K, logvar = 1 + D % 3, np.where(rng.random((B, D)) < 0.25, 20, 1) * rng.uniform(-1, 1, (B, D))
    return Case((rng.standard_normal((B, D)), logvar, rng.standard_normal((B, K, D))), data=(2,))


def _log_ratio(rng: np.random.Generator, B: int, D: int) -> Case:
    """Samples of a posterior near the prior, as they are where cancellation would show."""
    K, logvar = 1 + D % 3, 0.1 * rng.standard_normal((B, D))
    eps = rng.standard_normal((B, K, D))
    z = 0.1 * rng.standard_normal((B, 1, D)) + np.exp(logvar / 2)[:, None] * eps
    return Case((z, logvar, eps), {"still": False}, data=(2,))


def _iwae(rng: np.random.Generator, B: int, D: int, parameters: int, **options: Any) -> Case:
    """Gaussians near x, for a weight's relative error is the absolute one of a sum over the row."""
    K = 2 + D % 2 if D < 65 else 1
    x = rng.standard_normal((B, D))
    given = [np.repeat(x, K, axis=0) + 0.3 * rng.standard_normal((B * K, D))]
    given += [0.3 * rng.standard_normal((B * K, D)) for _ in range(parameters - 1)]
    arrays = (*given, x, 5 + rng.standard_normal((B, K)))  # 5: no bound lies near 0
    return Case(arrays, {"beta": 0.7} | options, data=(parameters,))


def _bernoulli_iwae(rng: np.random.Generator, B: int, D: int) -> Case:
    """Large logits have the sign that x asks for."""
    case = _iwae(rng, B, D, 1)
    log_ratio = case.arrays[2]
    logits = _logits(rng, B, D)
    x = np.where(np.abs(logits) > 3, logits > 0, rng.random((B, D)) < 0.5).astype(np.float64)
    logits = np.repeat(logits, log_ratio.shape[1], axis=0)
    logits += 0.1 * rng.standard_normal(logits.shape)
    return case._replace(arrays=(logits, x, log_ratio))


def _mixture(rng: np.random.Generator, B: int, D: int) -> Case:
    """Weights for all rows, or of each row's own; means some apart, so that none has all."""
    K, Z = max(D, 1), min(D, 9)
    log_weights = rng.standard_normal(K if D % 2 else (B, K)) - np.log(K)
    z, mu, logvar = (rng.standard_normal((n, Z)) for n in (B, K, K))
    return Case((z, log_weights, mu, logvar))


def _nearest_code(rng: np.random.Generator, B: int, D: int) -> Case:
    return Case((rng.standard_normal((B, D)), rng.standard_normal((CODES, D))), data=(1,))


def _bias_activation(rng: np.random.Generator, B: int, D: int) -> Case:
    """Each size has an activation of its own; test_activation.py has all of them."""
    x = np.where(rng.random((B, 2, D)) < 0.25, 20, 2) * rng.standard_normal((B, 2, D))
    return Case((x, rng.standard_normal(D)), {"activation": ACTIVATIONS[(B + D) % 9]})


CASES: dict[str, Callable[[np.random.Generator, int, int], Case]] = {
    "categorical_nll": _categorical,
    "beta_nll": _beta,
    "logistic_mixture_nll": _logistic_mixture,
    "log_mean_exp": _log_mean_exp,
    "reparameterize_samples": _samples,
    "gaussian_log_ratio": _log_ratio,
    "bernoulli_iwae": _bernoulli_iwae,
    "gaussian_iwae": lambda rng, B, D: _iwae(rng, B, D, 2),
    "gaussian_fixed_iwae": lambda rng, B, D: _iwae(rng, B, D, 1, variance=0.3),
    "mixture_log_prob": _mixture,
    "mixture_marginal_log_prob": _mixture,
    "nearest_code": _nearest_code,
    "bias_activation": _bias_activation,
}


# ------------------------------------------------------------- kernel_strategies: CASES
def _rng(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(SEEDS))


def _shape(draw: Draw) -> tuple[int, ...]:
    return draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))


@st.composite
def categoricals(draw: Draw) -> Case:
    rng, shape, C = _rng(draw), _shape(draw), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    labels = rng.integers(0, C, shape).astype(dtype)
    return Case((rng.standard_normal((*shape, C)), labels), data=(1,))


@st.composite
def betas(draw: Draw) -> Case:
    """Also parameters beyond 8, where Stirling's series needs no recurrence."""
    rng, shape = _rng(draw), _shape(draw)
    log_alpha, log_beta = rng.uniform(-4, 6, (2, *shape))
    return Case((log_alpha, log_beta, rng.uniform(0.01, 0.99, shape)), data=(2,))


@st.composite
def logistic_mixtures(draw: Draw) -> Case:
    rng, shape, K = _rng(draw), _shape(draw), draw(st.integers(1, 4))
    levels = draw(st.sampled_from([2, 3, 256]))
    parameters = (rng.standard_normal((*shape, K)) for _ in range(3))
    x = 2 * rng.integers(0, levels, shape) / (levels - 1) - 1
    return Case((*parameters, x), {"levels": levels}, data=(3,))


@st.composite
def log_mean_exps(draw: Draw) -> Case:
    rng = _rng(draw)
    return Case((3 * rng.standard_normal((draw(SIZES), draw(st.integers(1, 5)))),))


@st.composite
def samples(draw: Draw) -> Case:
    rng, B, K, Z = _rng(draw), draw(SIZES), draw(st.integers(1, 4)), draw(SIZES)
    return Case((*rng.standard_normal((2, B, Z)), rng.standard_normal((B, K, Z))), data=(2,))


@st.composite
def log_ratios(draw: Draw) -> Case:
    """With q still it is not the derivative (test_samples.py)."""
    rng, B, K, Z = _rng(draw), draw(SIZES), draw(st.integers(1, 4)), draw(SIZES)
    z, eps = rng.standard_normal((2, B, K, Z))
    return Case((z, rng.standard_normal((B, Z)), eps), data=(2,))


@st.composite
def iwaes(draw: Draw, parameters: int, bits: bool = False, **options: Any) -> Case:
    """Parameters (B K, ...), x (B, ...), log_ratio (B, K)."""
    rng, B, K = _rng(draw), draw(SIZES), draw(st.integers(1, 4))
    row = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    x = rng.integers(0, 2, (B, *row)) * 1.0 if bits else rng.standard_normal((B, *row))
    given = rng.standard_normal((parameters, B * K, *row))
    chosen = {name: draw(strategy) for name, strategy in options.items()}
    chosen["beta"] = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0]))
    return Case((*given, x, rng.standard_normal((B, K))), chosen, data=(parameters,))


@st.composite
def mixtures(draw: Draw) -> Case:
    rng, B, K, Z = _rng(draw), draw(SIZES), draw(st.integers(1, 5)), draw(SIZES)
    log_weights = rng.standard_normal(draw(st.sampled_from([(K,), (B, K)])))
    return Case((rng.standard_normal((B, Z)), log_weights, *rng.standard_normal((2, K, Z))))


@st.composite
def nearest_codes(draw: Draw) -> Case:
    """No gradient to check by differences: it is not the derivative (test_codebook.py)."""
    rng, Z, K = _rng(draw), draw(SIZES), draw(st.integers(1, 5))
    return Case((rng.standard_normal((draw(SIZES), Z)), rng.standard_normal((K, Z))), data=(1,))


@st.composite
def bias_activations(draw: Draw) -> Case:
    rng, shape = _rng(draw), _shape(draw)
    u, bias = 2 * rng.standard_normal(shape), rng.standard_normal(shape[-1])
    u = np.where(np.abs(u) < GAP, u + 3 * GAP, u)  # relu, leaky_relu and elu bend at 0
    return Case((u - bias, bias), {"activation": draw(st.sampled_from(ACTIVATIONS))})


STRATEGIES: dict[str, st.SearchStrategy[Case]] = {
    "categorical_nll": categoricals(),
    "beta_nll": betas(),
    "logistic_mixture_nll": logistic_mixtures(),
    "log_mean_exp": log_mean_exps(),
    "reparameterize_samples": samples(),
    "gaussian_log_ratio": log_ratios(),
    "bernoulli_iwae": iwaes(1, bits=True),
    "gaussian_iwae": iwaes(2),
    "gaussian_fixed_iwae": iwaes(1, variance=st.sampled_from([0.1, 1.0, 3.0])),
    "mixture_log_prob": mixtures(),
    "mixture_marginal_log_prob": mixtures(),
    "nearest_code": nearest_codes(),
    "bias_activation": bias_activations(),
}
