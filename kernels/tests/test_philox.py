"""philox.py: known answers, equal bits everywhere, and numbers that look random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import backends
import tinyvae_kernels as kernels
from tinyvae_kernels import philox

ON = ["numpy", "numba"]
N = 1_000_000
MANY = 10_000_000
ANYWHERE = [*ON, "cuda"]

# Random123 (Salmon et al. 2011), kat_vectors, philox4x32 10: counter, key, answer
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_the_reference(counter, key, answer):
    found = philox.philox4x32(words(counter)[:, None], words(key))
    np.testing.assert_array_equal(found[:, 0], words(answer))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_the_numba_loop(counter, key, answer):
    low, high, stream, step = (int(word) for word in words(counter))
    block = np.uint64(high << 32 | low).astype(np.int64)
    found = np.zeros((4, 3), np.uint32)
    philox._philox_words(found, block, 1, *words(key), np.uint32(stream), np.uint32(step))
    np.testing.assert_array_equal(found[:, 0], words(answer))


@pytest.mark.parametrize("on", ANYWHERE)
def test_public_function_puts_the_numbers_where_its_docstring_says(on):
    numbers = {"seed": 0x299F31D0A4093822, "stream": 0x13198A2E, "step": 0x03707344}
    block = 0x05A308D3243F6A88  # the highest that an offset can reach is 2^60
    counter = words("243f6a88 05a308d3 13198a2e 03707344")
    expected = philox.philox4x32(counter[:, None], words("a4093822 299f31d0"))[:, 0]
    with backends.running_on(on) as (put, get):
        like = put(np.empty(1))
        bits = get(kernels.philox_bits(4, offset=4 * block, like=like, **numbers))
        first = get(kernels.philox_bits(4, seed=0, like=like))
    np.testing.assert_array_equal(bits, expected)
    np.testing.assert_array_equal(first, words(KNOWN[0][2]))


SEED = st.integers(0, 2**64 - 1)
WORD = st.integers(0, 2**32 - 1)
OFFSET = st.integers(0, 5000) | st.integers(2**34 - 50, 2**34) | st.integers(2**62 - 50, 2**62 - 1)


@given(seed=SEED, stream=WORD, step=WORD, offset=OFFSET, n=st.integers(0, 3000))
def test_numpy_and_numba_give_the_same_bits(seed, stream, step, offset, n):
    numbers = {"seed": seed, "stream": stream, "step": step, "offset": offset}
    found = {}
    for on in ON:
        with kernels.backend(on):
            found[on] = (
                kernels.philox_bits(n, **numbers),
                kernels.philox_uniform(n, **numbers),
                kernels.philox_uniform(n, dtype=np.float64, **numbers),
                kernels.philox_normal(n, dtype=np.float64, **numbers),
                kernels.philox_normal(n, **numbers),
            )
    bits, single, double, normal, normal32 = zip(*found.values(), strict=True)
    np.testing.assert_array_equal(*bits)
    np.testing.assert_array_equal(*single)
    np.testing.assert_array_equal(*double)
    np.testing.assert_array_equal(single[0], double[0])
    np.testing.assert_allclose(*normal, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(*normal32, rtol=0, atol=1e-6)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    "draw", [kernels.philox_bits, kernels.philox_uniform, kernels.philox_normal]
)
@given(cuts=st.lists(st.integers(0, 2500), min_size=1, max_size=4), start=st.integers(0, 9))
def test_parts_drawn_alone_are_parts_of_the_whole(draw, on, cuts, start):
    edges = [0, *sorted(cuts), 2500]
    with kernels.backend(on):
        whole = draw(2500, seed=11, stream=2, step=3, offset=start)
        parts = [
            draw(high - low, seed=11, stream=2, step=3, offset=start + low)
            for low, high in itertools.pairwise(edges)
        ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("on", ON)
def test_shape_orders_the_same_sequence(on):
    with kernels.backend(on):
        flat, shaped = kernels.philox_normal(60, seed=5), kernels.philox_normal((3, 4, 5), seed=5)
        single = kernels.philox_uniform((), seed=5)
    np.testing.assert_array_equal(shaped.reshape(-1), flat)
    assert single.shape == ()


@pytest.mark.parametrize("on", ON)
def test_uniform_is_strictly_inside_the_unit_interval(on):
    """Its formula on the smallest and the largest word."""
    edges = np.array([[0, 2**32 - 1]], np.uint32)
    np.testing.assert_array_equal(philox._uniform(edges), [[2.0**-24, 1 - 2.0**-24]])
    with kernels.backend(on):
        u = kernels.philox_uniform(N, seed=1)
        bits = kernels.philox_bits(N, seed=1)
    assert u.dtype == np.float32
    assert u.min() > 0
    assert u.max() < 1
    np.testing.assert_array_equal(u.astype(float), (2.0 * (bits >> 9) + 1) / 2**24)


@pytest.mark.parametrize("on", ANYWHERE)
def test_normals_agree_with_box_and_muller_in_float64(on):
    """A million of them: float32 loses 1e-6 at most."""
    u = kernels.philox_uniform((N // 2, 2), seed=1, dtype=np.float64)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    with backends.running_on(on) as (put, get):
        like = put(np.empty(1))
        normal = get(kernels.philox_normal(N, seed=1, like=like))
        normal64 = get(kernels.philox_normal(N, seed=1, dtype=np.float64, like=like))
    np.testing.assert_allclose(normal, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(normal64, expected, rtol=0, atol=1e-13)


def test_distributions():
    """Seeds are fixed, so these either pass for ever or not at all."""
    u, normal = kernels.philox_uniform(MANY, seed=7), kernels.philox_normal(MANY, seed=8)
    assert stats.kstest(u[:N], "uniform").pvalue > 1e-3
    assert stats.kstest(normal[:N], "norm").pvalue > 1e-3
    assert stats.chisquare(np.bincount((u * 1000).astype(int))).pvalue > 1e-3
    lowest = kernels.philox_bits(MANY, seed=7) & 0xFF
    assert stats.chisquare(np.bincount(lowest)).pvalue > 1e-3
    assert abs(stats.kurtosis(normal)) < 0.006


def test_pairs_of_neighbours_fill_the_square():
    u = kernels.philox_uniform((MANY // 2, 2), seed=9)
    cells = (u * 30).astype(int) @ [30, 1]
    assert stats.chisquare(np.bincount(cells, minlength=900)).pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 1024])
def test_neighbours_are_not_correlated(lag):
    normal = kernels.philox_normal(MANY, seed=3, dtype=np.float64)
    assert abs(np.mean(normal[lag:] * normal[:-lag])) < 4 / np.sqrt(MANY)


@pytest.mark.parametrize("changed", ["seed", "stream", "step"])
def test_seeds_streams_and_steps_are_independent(changed):
    numbers = {"seed": 3, "stream": 4, "step": 5}
    a = kernels.philox_normal(N, dtype=np.float64, **numbers)
    b = kernels.philox_normal(N, dtype=np.float64, **numbers | {changed: numbers[changed] + 1})
    assert abs(np.mean(a * b)) < 4 / np.sqrt(N)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, "seed must be"),
        ({"seed": 0, "stream": 2**32}, r"stream must be in \[0, 2\^32\)"),
        ({"seed": 0, "step": -1}, "step must be"),
        ({"seed": 0, "offset": -1}, "offset must be"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    for draw in (kernels.philox_bits, kernels.philox_uniform, kernels.philox_normal):
        with pytest.raises(ValueError, match=message):
            draw(4, **numbers)


def test_seeds_may_be_numpy_integers():
    for seed in (np.uint64(2**64 - 1), np.int64(7)):
        found = kernels.philox_bits(8, seed=seed, stream=np.uint32(2), step=np.int64(3))
        expected = kernels.philox_bits(8, seed=int(seed), stream=2, step=3)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "int"])
def test_dtype_must_be_a_float(dtype):
    for draw in (kernels.philox_uniform, kernels.philox_normal):
        with pytest.raises(TypeError, match="dtype must be float32 or float64"):
            draw(4, seed=0, dtype=dtype)
