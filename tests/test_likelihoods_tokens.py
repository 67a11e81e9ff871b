"""likelihoods/tokens.py: sequences of symbols with an end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import log_softmax

from tinyvae import Tensor, gradcheck, likelihoods
from tinyvae.likelihoods import Categorical, Tokens

T, S = 3, 2
WORDS = np.array([
    (*word, *(-1,) * (T - length))
    for length in range(T + 1)
    for word in itertools.product(range(S), repeat=length)
])  # fmt: skip


def test_all_sequences_up_to_the_last_step_sum_to_one(rng):
    output = np.repeat(rng.normal(size=(1, (S + 1) * T)), len(WORDS), axis=0)
    log_p = -Tokens(S).nll(output, WORDS.astype(float)).data
    assert np.exp(log_p).sum() == pytest.approx(1, rel=1e-12)


def test_the_end_is_scored_and_nothing_behind_it(rng):
    output = rng.normal(size=(2, (S + 1) * T))
    each = Tokens(S).nll_each(output, np.array([[1.0, -1, -1], [0, 1, 1]])).data
    expected = -log_softmax(output.reshape(2, S + 1, T), axis=1)  # blocks: class by class
    np.testing.assert_allclose(each[0], [expected[0, 1, 0], expected[0, S, 1], 0], rtol=1e-12)
    np.testing.assert_allclose(each[1], [expected[1, 0, 0], *expected[1, 1, 1:]], rtol=1e-12)


def test_without_an_end_it_is_categorical(rng):
    output, x = rng.normal(size=(5, (S + 1) * T)), rng.integers(0, S, (5, T)).astype(float)
    found, expected = (p.nll(output, x).data for p in (Tokens(S), Categorical(S + 1)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradients(rng):
    x = WORDS.astype(float)
    mask = rng.random(x.shape) < 0.7
    output = rng.normal(size=(len(x), (S + 1) * T))
    gradcheck(lambda o: Tokens(S).nll(o, x), output)
    gradcheck(lambda o: Tokens(S).nll(o, x, mask), output)


def test_what_is_masked_or_behind_the_end_has_no_gradient(rng):
    x = np.array([[0.0, -1, -1], [1, np.nan, 0]])
    mask = np.array([[1, 1, 1], [1, 0, 1]])
    output = Tensor(rng.normal(size=(2, (S + 1) * T)), True)
    Tokens(S).nll(output, x, mask).backward(np.ones(2))
    seen = output.grad.reshape(2, S + 1, T).any(axis=1)
    np.testing.assert_array_equal(seen, [[True, True, False], [True, False, True]])


def test_samples_and_the_likeliest_sequence_end_once(rng):
    output = np.repeat(rng.normal(size=(1, (S + 1) * T)), 50_000, axis=0)
    tokens = Tokens(S)
    x = tokens.sample(output, seed=1)
    tokens.check(x)
    assert x.dtype == np.int64
    p = np.exp(-tokens.nll(output[: len(WORDS)], WORDS.astype(float)).data)
    found = (x[:, None] == WORDS).all(axis=2).mean(axis=0)
    assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / len(x))).all()
    steps = output[:1].reshape(S + 1, T).argmax(axis=0)
    ended = np.maximum.accumulate(steps == S)
    np.testing.assert_array_equal(tokens.mean(output[:1])[0], np.where(ended, -1, steps))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0, 2, -1]], r"X has 2 at .*, but 2 symbols are whole numbers 0 to 1, and -1 from"),
        ([[0.5, 1, -1]], "X has 0.5 at"),
        ([[0, -2, -1]], "X has -2 at"),
        ([[0, 1, 1], [0, -1, 1]], r"X has a symbol behind the end \(-1\) of row 1"),
    ],
)
def test_check_names_what_is_wrong(x, message):
    with pytest.raises(ValueError, match=message):
        Tokens(S).check(np.array(x, float))
    Tokens(S).check(WORDS)


def test_text_and_back():
    assert likelihoods.resolve("tokens:27") == Tokens(27)
    assert likelihoods.spell(Tokens(27))[0] == "tokens:27"
    with pytest.raises(ValueError, match="symbols must be a whole number >= 1, got 0"):
        Tokens(0)
