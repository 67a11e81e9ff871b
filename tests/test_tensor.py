"""tensor.py: operators, the tape, and what `backward` does with it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opcheck
import strategies
from tinyvae import NonFiniteError, Tensor, detect_nonfinite, differentiable, no_grad, ops, tensor

NAMES = ["add", "sub", "mul", "div", "neg", "pow", "matmul", "getitem"]


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, float), requires_grad=True)


# -------------------------------------------------------------------------------------- operators
def test_this_file_checks_all_ops_of_the_module():
    assert set(NAMES) == {n for n in opcheck.OPS if hasattr(tensor, f"{n}_forward")}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, data):
    opcheck.check_op(name, data.draw(strategies.CASES[name]))


def test_operators_are_numpys(rng):
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    x, y = Tensor(a), Tensor(b)
    found_and_expected = [
        (x + y, a + b), (x + 2, a + 2), (2 + x, 2 + a), (x + b, a + b), (a + y, a + b),
        (x - y, a - b), (x - 2, a - 2), (2 - x, 2 - a), (x - b, a - b), (a - y, a - b),
        (x * y, a * b), (x * 2, a * 2), (2 * x, 2 * a), (x * b, a * b), (a * y, a * b),
        (x / y, a / b), (x / 2, a / 2), (2 / x, 2 / a), (x / b, a / b), (a / y, a / b),
        (x**2, a**2), (-x, -a), (x @ b.T, a @ b.T), (a @ Tensor(b.T), a @ b.T),
        (x[1], a[1]), (x[:, ::2], a[:, ::2]), (x[[0, 2]], a[[0, 2]]), (x[a > 0], a[a > 0]),
        (np.float64(2) * x, 2 * a), (x / np.float64(2), a / 2), (x[Tensor([0, 2])], a[[0, 2]]),
    ]  # fmt: skip
    for i, (found, expected) in enumerate(found_and_expected):
        assert isinstance(found, Tensor), i
        np.testing.assert_allclose(found.data, expected, rtol=1e-14, err_msg=f"row {i}")


def test_a_numpy_array_on_the_left_asks_the_tensor():
    x = leaf(1, 2, 3)
    out = np.array([2.0, 3.0, 4.0]) * x - np.ones(3) / x
    assert isinstance(out, Tensor)
    out.backward(np.ones(3))
    np.testing.assert_allclose(x.grad, [2 + 1, 3 + 1 / 4, 4 + 1 / 9])


def test_exponent_must_be_a_number_that_fits_the_sign():
    for exponent in (leaf(2), np.ones(1)):
        with pytest.raises(TypeError, match="the exponent must be a number, got"):
            leaf(1) ** exponent
    with pytest.raises(ValueError, match=r"a negative number to the power 0\.5 is not real"):
        leaf(1, -2) ** 0.5


def test_matrices_must_fit():
    with pytest.raises(ValueError, match=r"cannot multiply matrices of shapes \(2, 3\) and \(2, 3"):
        Tensor(np.ones((2, 3))) @ np.ones((2, 3))
    with pytest.raises(ValueError, match="cannot multiply matrices"):
        Tensor(np.ones((2, 3))) @ np.ones(3)


def test_a_tensor_shows_what_it_is():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float64, 2)
    assert repr(leaf(1)) == "Tensor(array([1.]), requires_grad=True)"
    assert "op=mul" in repr(x * 2)
    assert x.numpy() is x.data
    assert ops.sum(x).item() == 15.0
    assert len({x, x, leaf(1)}) == 2  # hashed by identity


# ---------------------------------------------------------------------------------------- backward
def test_gradients_accumulate_over_backward_calls():
    x = leaf(1, 2)
    for _ in range(3):
        (x * x).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [6, 120])


def test_a_tensor_used_twice_gets_both_gradients():
    x = leaf(3)
    y = x * x  # both arguments of one op
    z = y * 2 + y * y + x  # an inner tensor used three times
    z.backward()
    np.testing.assert_array_equal(x.grad, [2 * 6 + 2 * 9 * 6 + 1])


def test_a_diamond_is_walked_in_order():
    """The far node of a diamond must wait for both of its users."""
    x = leaf(2)
    a = x * 3
    b = a * a
    c = b * a + a  # a^3 + a, a = 3 x
    c.backward()
    np.testing.assert_array_equal(x.grad, [3 * (3 * 36 + 1)])


def test_a_deep_graph_needs_no_recursion():
    x, depth = leaf(1), 10_000
    y = x
    for _ in range(depth):
        y = y + x
    y.backward()
    np.testing.assert_array_equal(x.grad, [depth + 1])
    y = x
    for _ in range(depth):
        y = y + x
    del y  # taking it apart without a backward must not recurse either


def test_backward_starts_from_any_tensor_and_any_dout(rng):
    x, dout = Tensor(rng.normal(size=(2, 3)), True), rng.normal(size=(2, 3))
    x.backward(dout)  # a leaf itself
    np.testing.assert_array_equal(x.grad, dout)
    assert x.grad is not dout
    y = Tensor(np.ones((1, 1)), True)
    (y * 3).backward()  # one element of any shape
    np.testing.assert_array_equal(y.grad, [[3]])


def test_backward_refuses_what_it_cannot_do():
    x = leaf(1, 2)
    with pytest.raises(ValueError, match=r"backward\(\) on shape \(2,\) needs dout of that shape"):
        (x * x).backward()
    with pytest.raises(ValueError, match=r"dout has shape \(3,\), the tensor has \(2,\)"):
        (x * x).backward(np.ones(3))
    with pytest.raises(ValueError, match=r"dout has shape \(\), the tensor has \(2,\)"):
        (x * x).backward(1.0)
    with pytest.raises(RuntimeError, match="a tensor that needs no gradient"):
        Tensor(np.ones(1)).backward()
    assert x.grad is None


@pytest.mark.parametrize("data", [np.ones(2, int), np.ones(2, bool), np.ones(2, np.float16), 3])
def test_only_float32_and_float64_have_gradients(data):
    with pytest.raises(TypeError, match="only float32 and float64 have gradients, got"):
        Tensor(data, requires_grad=True)
    assert not Tensor(data).requires_grad


def test_constants_get_no_gradient():
    x, constant = leaf(1, 2), Tensor(np.array([3.0, 4.0]))
    (x * constant + constant).backward(np.ones(2))
    assert constant.grad is None
    assert not (constant * constant).requires_grad


def test_detach_stops_the_gradient():
    x = leaf(3)
    (x * (x * x).detach()).backward()
    np.testing.assert_array_equal(x.grad, [9])
    assert x.detach().data is x.data


def test_a_second_backward_says_what_to_do():
    x = leaf(2)
    y = x * x
    z = y * 3
    z.backward()
    for graph in (z, y, y + 1):
        with pytest.raises(RuntimeError, match=r"op 'mul' was freed .* or call the first backward"):
            graph.backward()
    np.testing.assert_array_equal(x.grad, [12])  # nothing half-done was added


def test_a_retained_graph_gives_the_gradients_again():
    x = leaf(2)
    y = x * x * x
    y.backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad, [12])
    y.backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad, [24])
    y.backward()
    np.testing.assert_array_equal(x.grad, [36])
    with pytest.raises(RuntimeError, match="freed"):
        y.backward()


# ------------------------------------------------------------------------- modes, threads, errors
def test_no_grad_records_nothing():
    x = leaf(1)
    with no_grad():
        with no_grad():
            pass
        y = x * 2
    assert not y.requires_grad
    assert y.node is None
    assert (x * 2).requires_grad


def test_modes_are_put_back_after_an_error():
    x = leaf(1)
    with pytest.raises(KeyError), no_grad(), detect_nonfinite():
        raise KeyError
    assert (x * 2).requires_grad
    with np.errstate(divide="ignore"):
        assert np.isinf((x / 0).data).all()


def test_every_thread_has_its_own_modes():
    x, found = leaf(0), {}

    def work():
        found["records"] = (x * 2).requires_grad
        with np.errstate(divide="ignore"):
            found["log"] = ops.log(x).data

    with no_grad(), detect_nonfinite():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not (x * 2).requires_grad
    assert found["records"]
    np.testing.assert_array_equal(found["log"], [-np.inf])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_detect_nonfinite_names_op_and_place():
    x = Tensor(np.array([[1.0, 2.0], [3.0, 0.0]]), True)
    message = r"op 'log' gave -inf at \(1, 1\) of its output \(2, 2\); input 0 .* magnitude 3$"
    with detect_nonfinite():
        with pytest.raises(NonFiniteError, match=message):
            ops.log(x) * 0
        with pytest.raises(NonFiniteError, match=r"op 'div' gave nan at \(\)"):
            Tensor(0.0) / 0.0
        with pytest.raises(NonFiniteError, match="op 'where' gave inf"):
            ops.where(np.array([True, False]), np.inf, 1.0)
        assert (x * 2).shape == (2, 2)
    assert np.isinf(ops.log(x).data).any()
    assert issubclass(NonFiniteError, ArithmeticError)


def test_op_of_a_pair_keeps_its_docstring_and_its_pair():
    def triple_forward(a):
        """out = 3 a."""
        return 3 * a, ()

    def triple_backward(dout, saved):
        return (3 * dout,)

    triple = differentiable(triple_forward, triple_backward)
    assert triple.__name__ == "triple"
    assert triple.__doc__ == "out = 3 a."
    assert triple.pair == (triple_forward, triple_backward)
    x = leaf(2)
    triple(x).backward()
    np.testing.assert_array_equal(x.grad, [3])
