"""ops/sequence.py: gradients against finite differences, values against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import opcheck
import strategies
from tinyvae import Tensor, ops
from tinyvae.ops import sequence

NAMES = ["embedding", "layer_norm", "gru"]


def test_this_file_checks_all_ops_of_the_module():
    assert set(NAMES) == {n for n in opcheck.OPS if hasattr(sequence, f"{n}_forward")}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, data):
    opcheck.check_op(name, data.draw(strategies.CASES[name]))


# --------------------------------------------------------------------------------------- embedding
def test_embedding_takes_rows_and_adds_up_their_gradients(rng):
    weight, index = Tensor(rng.normal(size=(6, 2)), True), np.array([[3, 0, 3], [5, 3, 0]])
    out = ops.embedding(weight, index)
    np.testing.assert_array_equal(out.data, weight.data[index])
    dout = rng.normal(size=(2, 3, 2))
    out.backward(dout)
    expected = np.zeros((6, 2))
    np.add.at(expected, index, dout)
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (np.array([0.0]), TypeError, "must be whole numbers, got float64"),
        (np.array([0, 3]), ValueError, r"must lie in \[0, 3\), got 0 to 3"),
        (np.array([-1]), ValueError, r"must lie in \[0, 3\), got -1 to -1"),
    ],
)
def test_an_index_outside_the_table_is_refused(index, error, message):
    """NumPy would take -1 as the last row: padding would be learned as a word."""
    with pytest.raises(error, match=message):
        ops.embedding(np.ones((3, 2)), index)


# -------------------------------------------------------------------------------------- layer_norm
def test_layer_norm_gives_mean_zero_and_variance_one(rng):
    x = 5 + 3 * rng.normal(size=(4, 2, 1000))
    out = ops.layer_norm(x, np.ones(1000), np.zeros(1000)).data
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(axis=-1), 1, rtol=1e-5)


def test_layer_norm_of_equal_numbers_is_the_bias():
    x = Tensor(np.full((2, 3), 1e4, np.float32), True)
    out = ops.layer_norm(x, np.ones(3, np.float32), np.arange(3, dtype=np.float32))
    out.backward(np.ones((2, 3)))
    np.testing.assert_array_equal(out.data, [[0, 1, 2]] * 2)
    assert np.isfinite(x.grad).all()


def test_layer_norm_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), bias \(3,\), x \(2, 4\)"):
        ops.layer_norm(np.ones((2, 4)), np.ones(3), np.ones(3))


# --------------------------------------------------------------------------------------------- gru
def gru_arrays(rng, B=3, T=4, inputs=2, H=5):
    shapes = [(B, T, inputs), (B, H), (inputs, 3 * H), (H, 3 * H), (3 * H,), (3 * H,)]
    return [rng.normal(size=shape) for shape in shapes]


def naive_gru(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step after the other, gate by gate, as the formula is written."""
    out = []
    for t in range(x.shape[1]):
        from_x = np.split(x[:, t] @ weight_ih + bias_ih, 3, axis=1)
        from_h = np.split(h @ weight_hh + bias_hh, 3, axis=1)
        r, u = (special.expit(from_x[k] + from_h[k]) for k in range(2))
        h = (1 - u) * np.tanh(from_x[2] + r * from_h[2]) + u * h
        out.append(h)
    return np.stack(out, axis=1)


def test_gru_is_its_formula(rng):
    arrays = gru_arrays(rng)
    np.testing.assert_allclose(ops.gru(*arrays).data, naive_gru(*arrays), rtol=1e-12)


def test_a_padded_batch_equals_one_by_one(rng):
    """Values and gradients; what lies in the padding does not matter."""
    arrays, lengths = gru_arrays(rng, B=4, T=5), [5, 2, 0, 3]
    mask = np.arange(5) < np.array(lengths)[:, None]
    arrays[0][~mask] = 1e6
    batch = [Tensor(a, True) for a in arrays]
    out = ops.gru(*batch, mask)
    last = rng.normal(size=(4, 5))
    out[:, -1].backward(last)
    alone = [Tensor(a, True) for a in arrays]
    for i, length in enumerate(lengths):
        x, h, *weights = alone
        single = ops.gru(x[i : i + 1, :length], h[i : i + 1], *weights)
        np.testing.assert_allclose(out.data[i, :length], single.data[0], rtol=1e-12)
        np.testing.assert_array_equal(
            out.data[i, length:], np.broadcast_to(out.data[i, -1], (5 - length, 5))
        )
        if length:
            single[:, -1].backward(last[i : i + 1])
        else:
            h[i : i + 1].backward(last[i : i + 1])
            np.testing.assert_array_equal(out.data[i, -1], h.data[i])
    for one, other in zip(batch, alone, strict=True):
        np.testing.assert_allclose(one.grad, other.grad, rtol=1e-12, atol=1e-14)
    assert (batch[0].grad[~mask] == 0).all()


def test_data_get_no_gradient(rng):
    arrays = gru_arrays(rng)
    out, saved = ops.gru.pair[0](*arrays)
    gradients = ops.gru.pair[1](np.ones_like(out), saved, needs=(False, *[True] * 5))
    assert gradients[0] is None


def test_extreme_arguments_give_finite_results(rng):
    arrays = [Tensor(1e4 * a.astype(np.float32), True) for a in gru_arrays(rng)]
    out = ops.gru(*arrays)
    out.backward(np.ones(out.shape))
    assert np.isfinite(out.data).all()
    assert all(np.isfinite(a.grad).all() for a in arrays)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 2), r"x \(B, T, I\) and h \(B, H\), got \(3, 2\)"),
        (1, (2, 5), r"h has shape \(2, 5\), expected \(3, 5\)"),
        (2, (15, 2), r"weight_ih has shape \(15, 2\), expected \(2, 15\)"),
        (3, (5, 5), r"weight_hh has shape \(5, 5\), expected \(5, 15\)"),
        (5, (5,), r"bias_hh has shape \(5,\), expected \(15,\)"),
    ],
)
def test_wrong_sizes_are_named(position, shape, message, rng):
    arrays = gru_arrays(rng)
    arrays[position] = np.ones(shape)
    with pytest.raises(ValueError, match=message):
        ops.gru(*arrays)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(3, 4\)"):
        ops.gru(*gru_arrays(rng), np.ones(3))
