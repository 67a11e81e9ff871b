"""checking.py: the checker is checked, with gradients that are wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest

import opcheck as independent
import strategies
from tinyvae import GradientError, Tensor, checking, differentiable, gradcheck, nn, ops


def square_forward(x):
    """out = x^2, elementwise."""
    return x * x, (x,)


def right(dout, saved):
    return (2 * saved[0] * dout,)


def too_large_by_a_thousandth(dout, saved):
    return (1.001 * 2 * saved[0] * dout,)


def transposed(dout, saved):
    return ((2 * saved[0] * dout).T.copy(),)


def ignores_dout(dout, saved):
    return (2 * saved[0],)


def one_wrong_element(dout, saved):
    gradient = 2 * saved[0] * dout
    gradient[1, 2] *= 1.01
    return (gradient,)


def one_missing_element(dout, saved):
    gradient = 2 * saved[0] * dout
    gradient[1, 2] = 0
    return (gradient,)


def wrong_sign(dout, saved):
    return (-2 * saved[0] * dout,)


def none_at_all(dout, saved):
    return (np.zeros_like(dout),)


def nothing_but_nan(dout, saved):
    return (np.full_like(dout, np.nan),)


WRONG = [too_large_by_a_thousandth, transposed, ignores_dout, one_wrong_element,
         one_missing_element, wrong_sign, none_at_all, nothing_but_nan]  # fmt: skip


@pytest.mark.parametrize("backward", WRONG)
@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_gradient_fails(backward, seed, rng):
    x, square = rng.normal(size=(4, 4)), differentiable(square_forward, backward)
    with pytest.raises(GradientError, match=r"gradient 0 \(shape \(4, 4\)\): finite difference"):
        gradcheck(square, x, seed=seed)


@pytest.mark.parametrize("backward", WRONG)
def test_a_wrong_gradient_fails_the_independent_check_too(backward, rng):
    case = independent.Case((rng.normal(size=(4, 4)),))
    with pytest.raises(AssertionError, match="finite difference"):
        independent.check_pair((square_forward, backward), case)


@pytest.mark.parametrize("seed", range(5))
def test_a_right_gradient_passes(seed, rng):
    x, square = rng.normal(size=(4, 4)), differentiable(square_forward, right)
    assert gradcheck(square, x, seed=seed) < 1e-8
    independent.check_pair((square_forward, right), independent.Case((x,)))


def test_one_missing_element_among_many_fails(rng):
    """One of 10,000 elements is 1e-4 of the sum that errors are measured by."""
    x, square = rng.normal(size=(100, 100)), differentiable(square_forward, one_missing_element)
    with pytest.raises(GradientError):
        gradcheck(square, x)


def test_the_second_argument_is_checked_too(rng):
    wrong = differentiable(
        ops.mul.pair[0], lambda dout, saved: (dout * saved[1], 1.001 * dout * saved[0])
    )
    with pytest.raises(GradientError, match="gradient 1"):
        gradcheck(wrong, rng.normal(size=3), rng.normal(size=3))


def test_a_function_with_a_kink_in_the_way_fails():
    with pytest.raises(GradientError):
        gradcheck(ops.relu, np.array([1e-8, -1e-8, 2e-8]))


def test_float32_is_refused():
    with pytest.raises(TypeError, match="gradcheck needs float64, got float32"):
        gradcheck(ops.exp, Tensor(np.ones(3, np.float32), True))
    with pytest.raises(TypeError, match="at least one float64 array"):
        gradcheck(ops.exp, np.ones(3, np.float32))
    with pytest.raises(TypeError, match="at least one float64 array"):
        gradcheck(ops.exp, Tensor(np.ones(3)))


def test_parameters_that_a_function_closes_over(rng):
    layer = nn.Linear(3, 2, rng=rng, dtype=np.float64)
    x = rng.normal(size=(4, 3))
    before = layer.weight.data.copy()
    assert gradcheck(lambda *_: layer(x), *layer.parameters()) < 1e-8
    np.testing.assert_array_equal(layer.weight.data, before)


def test_values_are_put_back_after_an_error():
    x, calls = Tensor(np.ones(2), True), []

    def fails_the_second_time(x):
        calls.append(1)
        if len(calls) > 1:
            raise KeyError
        return ops.exp(x)

    with pytest.raises(KeyError):
        gradcheck(fails_the_second_time, x)
    np.testing.assert_array_equal(x.data, 1)


def test_a_constant_direction_is_no_false_alarm():
    """Zero gradients are right where the function does not change."""
    assert gradcheck(lambda x: x * 0.0, np.ones(3)) == 0


def test_rtol_decides():
    square = differentiable(square_forward, too_large_by_a_thousandth)
    error = gradcheck(square, np.ones((2, 2)), rtol=1e-2)
    assert 5e-4 < error < 2e-3


# ------------------------------------------------------------------------------- the table of cases
def test_every_op_has_its_row():
    assert set(checking.CASES) == set(independent.OPS) == set(strategies.CASES)


@pytest.mark.parametrize("name", checking.CASES)
def test_every_op_passes(name):
    for seed in range(3):
        assert checking.check_op(name, seed=seed) < 1e-6


@pytest.mark.parametrize("name", checking.CASES)
def test_a_planted_error_fails_in_every_op(name, monkeypatch):
    """What `tinyvae gradcheck` shows would be red: each row of the table can fail."""
    forward, backward = independent.OPS[name].pair

    def wrong_backward(dout, saved):
        return tuple(None if g is None else 1.001 * g for g in backward(dout, saved))

    wrong = differentiable(forward, wrong_backward)
    if name == "concatenate":
        monkeypatch.setattr(ops, name, lambda arrays, **options: wrong(*arrays, **options))
    else:
        monkeypatch.setattr(ops, name, wrong)
    with pytest.raises(GradientError):
        checking.check_op(name)


@pytest.mark.parametrize("name", checking.CASES)
def test_formulas_are_shown(name):
    forward, backward = checking.formula(name)
    assert forward
    assert backward
    assert "\n" not in forward + backward
