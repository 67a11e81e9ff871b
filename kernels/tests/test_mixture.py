"""mixture.py: log-densities of mixtures of Gaussians, joint and marginal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, norm

import backends
from tinyvae_kernels import PAIRS
from tinyvae_kernels.mixture import mixture_log_prob_forward

ON = ["numpy", "numba", "cuda"]
JOINT, MARGINAL = "mixture_log_prob", "mixture_marginal_log_prob"
TINY = 1e-35  # Numba's e^x in float32 ends at e^-87
both = pytest.mark.parametrize("name", [JOINT, MARGINAL])


def value_and_gradients(name, *arrays, on, dout=None):
    """log_prob, what is saved, and dz, dlog_weights, dmu, dlogvar."""
    forward, backward = PAIRS[name]
    with backends.running_on(on) as (put, get):
        out, saved = forward(*map(put, arrays))
        dout = np.ones(out.shape, arrays[0].dtype) if dout is None else dout
        return get(out), saved, [get(g) for g in backward(put(dout), saved)]


def mixture(rng, B, K, Z, dtype="float64", own=False):
    log_weights = rng.normal(size=(B, K) if own else K)
    arrays = (rng.normal(size=(B, Z)), log_weights, *rng.normal(size=(2, K, Z)))
    return tuple(a.astype(dtype) for a in arrays)


def terms(z, log_weights, mu, logvar):
    """log w_k and log N_kj, (B, K, 1) and (B, K, Z), by scipy."""
    log_weights = np.broadcast_to(log_weights, (len(z), len(mu)))
    return log_weights[:, :, None], norm.logpdf(z[:, None], mu, np.exp(logvar / 2))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("B", "K", "Z"), [(1, 1, 1), (3, 2, 64), (70, 33, 2), (33, 300, 7), (2, 5, 70), (4, 3, 0)]
)
def test_agrees_with_scipy(B, K, Z, own, on, rng):
    arrays = mixture(rng, B, K, Z, own=own)
    weights, log_n = terms(*arrays)
    joint = weights[:, :, 0] + log_n.sum(axis=2)
    found, saved, _ = value_and_gradients(JOINT, *arrays, on=on)
    np.testing.assert_allclose(found, logsumexp(joint, axis=1), rtol=1e-12, atol=1e-12)
    share = saved.responsibilities
    share = share if isinstance(share, np.ndarray) else share.get()
    np.testing.assert_allclose(share, softmax(joint, axis=1), rtol=1e-10, atol=1e-300)
    found, *_ = value_and_gradients(MARGINAL, *arrays, on=on)
    np.testing.assert_allclose(found, logsumexp(weights + log_n, axis=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
def test_one_component_is_its_gaussian(dtype, on, rng):
    z, _, mu, logvar = mixture(rng, 9, 1, 3, dtype)
    arrays = z, np.zeros(1, dtype), mu, logvar
    exact = norm.logpdf(z.astype(float), mu.astype(float), np.exp(logvar.astype(float) / 2))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-13}
    for name, expected in ((JOINT, exact.sum(axis=1)), (MARGINAL, exact)):
        found, _, (dz, dweights, *_) = value_and_gradients(name, *arrays, on=on)
        np.testing.assert_allclose(found, expected, **tolerance)
        np.testing.assert_allclose(dz, (mu - z) * np.exp(-logvar), **tolerance)
        np.testing.assert_allclose(dweights, found.size, rtol=1e-5)


@pytest.mark.parametrize("on", ON)
def test_the_density_integrates_to_one(on, rng):
    _, _, mu, logvar = mixture(rng, 1, 4, 1)
    log_weights = np.log(softmax(rng.normal(size=4)))
    for name in (JOINT, MARGINAL):
        x = np.linspace(-30, 30, 1201)[:, None]
        density = np.exp(value_and_gradients(name, x, log_weights, mu, logvar, on=on)[0])
        assert np.trapezoid(density.ravel(), x.ravel()) == pytest.approx(1, abs=1e-9)


def test_the_marginal_is_the_joint_with_the_other_number_integrated_out(rng):
    _, log_weights, mu, logvar = mixture(rng, 1, 3, 2)
    marginal, *_ = value_and_gradients(
        MARGINAL, np.array([[0.3, 0.0]]), log_weights, mu, logvar, on="numpy"
    )

    def joint(y):
        z = np.array([[0.3, y]])
        return np.exp(mixture_log_prob_forward(z, log_weights, mu, logvar)[0][0])

    assert quad(joint, -20, 20, limit=200)[0] == pytest.approx(np.exp(marginal[0, 0]), rel=1e-7)


@pytest.mark.parametrize("on", ON)
@both
def test_weights_of_each_rows_own_are_the_common_ones_if_all_are_equal(name, on, rng):
    z, log_weights, mu, logvar = mixture(rng, 40, 6, 5)
    common = value_and_gradients(name, z, log_weights, mu, logvar, on=on)
    own = value_and_gradients(name, z, np.tile(log_weights, (40, 1)), mu, logvar, on=on)
    np.testing.assert_allclose(own[0], common[0], rtol=1e-14)
    np.testing.assert_allclose(own[2][1].sum(axis=0), common[2][1], rtol=1e-12)
    for i in (0, 2, 3):
        np.testing.assert_allclose(own[2][i], common[2][i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@both
def test_weights_of_zero(name, dtype, on, rng):
    """-inf switches a component off; where all are, the density is zero and nothing moves it."""
    z, log_weights, mu, logvar = mixture(rng, 5, 4, 3, dtype)
    log_weights[1] = -np.inf
    found, _, gradients = value_and_gradients(name, z, log_weights, mu, logvar, on=on)
    kept = [0, 2, 3]
    expected, _, others = value_and_gradients(
        name, z, log_weights[kept], mu[kept], logvar[kept], on=on
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], others[0], rtol=1e-4, atol=1e-5)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient[1], 0, atol=TINY)
    nothing = np.full(4, -np.inf, dtype)
    found, _, gradients = value_and_gradients(name, z, nothing, mu, logvar, on=on)
    np.testing.assert_array_equal(found, -np.inf)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=TINY)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@both
def test_extreme_arguments_give_finite_results(name, dtype, on):
    """Far from every component, and components that are very narrow or very wide."""
    z = np.array([[0, 0], [1e4, -1e4], [1e-4, 50]], dtype)
    mu = np.array([[0, 0], [100, -100], [0, 1]], dtype)
    logvar = np.array([[-20, 20], [0, 0], [30, -10]], dtype)
    log_weights = np.array([-1e4, 80, 0], dtype)
    found, _, gradients = value_and_gradients(name, z, log_weights, mu, logvar, on=on)
    for value in (found, *gradients):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("on", ["numpy", "numba"])
@both
def test_many_rows(name, on, rng):
    """So many that the reference takes them in parts, and Numba in several threads."""
    arrays = mixture(rng, 5003, 70, 4)
    dout = rng.normal(size=(5003, 4) if name == MARGINAL else 5003)
    found = value_and_gradients(name, *arrays, on=on, dout=dout)
    pieces = [slice(0, 2000), slice(2000, 5003)]
    parts = [
        value_and_gradients(name, arrays[0][p], *arrays[1:], on="numpy", dout=dout[p])
        for p in pieces
    ]
    np.testing.assert_allclose(found[0], np.concatenate([p[0] for p in parts]), rtol=1e-12)
    dz = np.concatenate([p[2][0] for p in parts])
    np.testing.assert_allclose(found[2][0], dz, rtol=1e-10, atol=1e-13)
    for i in (1, 2, 3):
        total = parts[0][2][i] + parts[1][2][i]
        np.testing.assert_allclose(found[2][i], total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("on", ["numba", "cuda"])
@both
def test_the_same_bits_twice(name, on, rng):
    arrays = mixture(rng, 67, 40, 5, "float32")
    first, second = (value_and_gradients(name, *arrays, on=on) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    for a, b in zip(first[2], second[2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gaussian_mixture_in_two_dimensions(rng):
    z, log_weights, mu, logvar = mixture(rng, 6, 3, 2)
    found, *_ = value_and_gradients(JOINT, z, log_weights, mu, logvar, on="numba")
    density = sum(
        np.exp(w) * multivariate_normal(m, np.diag(np.exp(v))).pdf(z)
        for w, m, v in zip(log_weights, mu, logvar, strict=True)
    )
    np.testing.assert_allclose(found, np.log(density), rtol=1e-12)


@both
def test_wrong_arguments_are_named(name):
    forward, z, w, mu = PAIRS[name][0], np.ones((3, 2)), np.ones(4), np.ones((4, 2))
    with pytest.raises(ValueError, match=r"\(B, Z\) and \(K, Z\), got shapes \(3, 2\) and \(4, 1"):
        forward(z, w, mu[:, :1], mu)
    with pytest.raises(ValueError, match=r"logvar has shape \(3, 2\), mu has \(4, 2\)"):
        forward(z, w, mu, mu[:3])
    with pytest.raises(ValueError, match=r"log_weights has shape \(3,\), expected \(4,\) or \(3, "):
        forward(z, w[:3], mu, mu)
    with pytest.raises(ValueError, match="mu holds no component"):
        forward(z, w[:0], mu[:0], mu[:0])
    with pytest.raises(TypeError, match="mu is float32, z is float64"):
        forward(z, w, mu.astype(np.float32), mu)


@pytest.mark.parametrize("on", ON)
@both
def test_wrong_dout_is_refused(name, on, rng):
    arrays = mixture(rng, 3, 2, 4)
    for wrong in (np.ones(4), np.ones((3, 2)), np.ones(())):
        with pytest.raises(ValueError, match=r"dout has shape .*, the output has \(3"):
            value_and_gradients(name, *arrays, on=on, dout=wrong)


@pytest.mark.parametrize("name", ["mixture_log_prob", "mixture_marginal_log_prob"])
def test_the_bits_do_not_depend_on_where_memory_lies(name, rng):
    """Arrays of a few vectors, at places that change from call to call."""
    B = 16
    z, mu, logvar = rng.standard_normal((3, B, 3)).astype(np.float32)
    weights, forward = rng.standard_normal(B).astype(np.float32), PAIRS[name][0]
    kept, found = [], set()
    for _ in range(100):
        kept.append(np.empty(rng.integers(1, 300), np.float32))
        if rng.random() < 0.5:
            kept.pop(rng.integers(len(kept)))
        arrays = (a.copy() for a in (z, weights, mu, logvar))
        found.add(forward(*arrays)[0].tobytes())
    assert len(found) == 1
