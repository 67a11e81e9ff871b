"""tensor.py: whose memory a gradient is, when a graph lets go of its own, and broken pairs."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from tinyvae import Tensor, differentiable, no_grad, ops
from tinyvae.tensor import unbroadcast


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, float), requires_grad=True)


def pair(backward):
    """An op out = a + b with the given backward."""

    def plus_forward(a, b):
        return a + b, (a, b)

    return differentiable(plus_forward, backward)


# ---------------------------------------------------------------------------------------- aliasing
def test_two_leaves_of_a_sum_have_gradients_of_their_own():
    """add hands on dout itself for both."""
    a, b = leaf(1, 2), leaf(3, 4)
    (a + b).backward(np.array([5.0, 6.0]))
    a.grad *= 100
    np.testing.assert_array_equal(b.grad, [5, 6])


def test_the_callers_dout_is_not_handed_out():
    a, dout = leaf(1, 2), np.array([5.0, 6.0])
    (a + 1).backward(dout)
    a.grad *= 100
    np.testing.assert_array_equal(dout, [5, 6])


def test_views_of_a_gradient_are_copied():
    """reshape, transpose and concatenate hand on views; sum a broadcast one."""
    a, b, c = (Tensor(np.ones((2, 2)), True) for _ in range(3))
    joined = ops.concatenate([ops.reshape(a, (4,)), ops.reshape(ops.transpose(b), (4,))])
    out = ops.sum(joined) + ops.sum(c)
    out.backward()
    for one, others in ((a, (b, c)), (b, (a, c)), (c, (a, b))):
        one.grad[...] = 7
        for other in others:
            other.grad[...] = 1
        np.testing.assert_array_equal(one.grad, 7)


def test_one_array_for_two_leaves_is_copied():
    """A pair may compute a gradient once and give it to both of its arguments."""

    def backward(dout, saved):
        gradient = 2 * dout
        return gradient, gradient

    a, b = leaf(1, 2), leaf(3, 4)
    pair(backward)(a, b).backward(np.ones(2))
    a.grad *= 100
    np.testing.assert_array_equal(b.grad, [2, 2])


def test_accumulating_leaves_an_earlier_gradient_alone():
    a = leaf(1, 2)
    (a * 3).backward(np.ones(2))
    first = a.grad
    (a * 3).backward(np.ones(2))
    np.testing.assert_array_equal(first, [3, 3])
    np.testing.assert_array_equal(a.grad, [6, 6])


def test_leaves_far_apart_have_gradients_of_their_own():
    """Both sums hand on the one dout of the last."""
    a, b = leaf(1, 2), leaf(3, 4)
    ((a + 1) + (b + 1)).backward(np.ones(2))
    a.grad *= 100
    np.testing.assert_array_equal(b.grad, [1, 1])


def test_inner_gradients_are_not_mixed_up():
    """Two inner tensors wait with one array: what is added to one must not reach the other."""
    x, y = leaf(1, 2), leaf(3, 4)
    a, b = x * 1, y * 1
    doubled = a * 2
    out = (a + b) + doubled
    out.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [3, 3])
    np.testing.assert_array_equal(y.grad, [1, 1])


# --------------------------------------------------------------------------- dtype, kind of a grad
def test_gradient_of_a_single_number_is_an_array():
    x = Tensor(np.array(2.0), True)
    (x * 3.0).backward()
    assert isinstance(x.grad, np.ndarray)
    x.grad[...] = 5  # as clipping in place does


@pytest.mark.parametrize("constant", [np.full(2, 3.0), np.float64(3), Tensor(np.full(2, 3.0))])
def test_gradient_has_the_leafs_dtype_beside_a_float64_constant(constant):
    x = Tensor(np.ones(2, np.float32), True)
    (x * constant).backward(np.ones(2))
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_gradients_of_a_sum_of_both_dtypes():
    x, y = Tensor(np.ones(2, np.float32), True), Tensor(np.ones(2), True)
    ops.sum(x * y + x).backward()
    assert x.grad.dtype == np.float32
    assert y.grad.dtype == np.float64


# --------------------------------------------------------------------------------- freeing memory
def chain(x: Tensor) -> tuple[Tensor, list[weakref.ref]]:
    """sum(tanh(exp(x) x)); the result and weak references to the arrays between."""
    a = ops.exp(x)
    b = a * x
    c = ops.tanh(b)
    return ops.sum(c), [weakref.ref(t.data) for t in (a, b, c)]


def test_backward_frees_the_graphs_memory():
    loss, arrays = chain(Tensor(np.linspace(0, 1, 5), True))
    assert all(array() is not None for array in arrays[:1])
    loss.backward()
    assert all(array() is None for array in arrays)
    assert loss.item() > 0


def test_a_retained_graph_keeps_its_memory():
    loss, arrays = chain(Tensor(np.linspace(0, 1, 5), True))
    loss.backward(retain_graph=True)
    assert arrays[0]() is not None


def test_a_graph_goes_with_its_last_tensor():
    """No reference cycle: nothing waits for the garbage collector."""
    loss, arrays = chain(Tensor(np.linspace(0, 1, 5), True))
    del loss
    assert all(array() is None for array in arrays)


def test_an_inner_tensor_keeps_only_itself_after_backward():
    x = Tensor(np.linspace(0, 1, 5), True)
    a = ops.exp(x)
    b = a * x
    loss, array = ops.sum(b), weakref.ref(a.data)
    del a
    loss.backward()
    assert array() is None, "b's tensor still holds what mul saved"
    assert b.shape == (5,)


def test_without_a_graph_nothing_is_kept_alive():
    with no_grad():
        a = ops.exp(np.linspace(0, 1, 5))
        b, array = a * a, weakref.ref(a.data)
        del a
    assert array() is None, "b holds its argument though no gradient will ever need it"
    assert b.shape == (5,)


# ------------------------------------------------------------------------------------ broken pairs
def test_too_few_gradients_are_an_error():
    op = pair(lambda dout, saved: (dout,))
    with pytest.raises(RuntimeError, match="plus_backward gave 1 of 2 gradients"):
        op(leaf(1), leaf(2)).backward()
    a = leaf(1)
    op(a, np.ones(1)).backward()  # the second argument needs none
    np.testing.assert_array_equal(a.grad, [1])


def test_a_gradient_of_the_wrong_shape_is_an_error():
    op = pair(lambda dout, saved: (dout[:1], dout))
    with pytest.raises(RuntimeError, match=r"a gradient of shape \(1,\) for a tensor of \(2,\)"):
        op(leaf(1, 2), leaf(3, 4)).backward(np.ones(2))


def test_none_means_no_gradient():
    op, a, b = pair(lambda dout, saved: (None, dout)), leaf(1), leaf(2)
    op(a, b).backward()
    assert a.grad is None
    np.testing.assert_array_equal(b.grad, [1])


def test_a_backward_that_asks_is_told_which_gradients_are_needed():
    asked = []

    def backward(dout, saved, *, needs):
        asked.append(needs)
        return dout, dout

    a, b = leaf(1), leaf(2)
    for arguments in ((a, b), (a, b.data), (Tensor(a.data), b)):
        pair(backward)(*arguments).backward()
    assert asked == [(True, True), (True, False), (False, True)]


def test_options_by_position_are_not_arguments():
    x = leaf(-1, 2)
    ops.leaky_relu(x, 0.5).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [0.5, 1])
    ops.sum(x, 0).backward()
    np.testing.assert_array_equal(x.grad, [1.5, 2])


@pytest.mark.parametrize("op", [ops.mul, ops.linear])
def test_a_tensor_by_keyword_is_not_lost_silently(op):
    """Either its gradient arrives, or the call is refused with words that name the argument."""
    x, last = Tensor(np.ones((2, 2)), True), Tensor(np.full((2, 2), 3.0), True)
    name = "b" if op is ops.mul else "weight"
    try:
        out = op(x, **{name: last})
    except TypeError as error:
        assert name in str(error)  # noqa: PT017  (both ways out are right)
    else:
        out.backward(np.ones((2, 2)))
        assert last.grad is not None


# -------------------------------------------------------------------------------------- unbroadcast
@pytest.mark.parametrize(
    ("shape", "stretched"),
    [((3,), (2, 3)), ((2, 1), (2, 3)), ((), (2, 3)), ((1, 1), (2, 3)), ((2, 3), (2, 3)),
     ((1,), (0,)), ((1, 3), (4, 0, 3)), ((1,), (5, 4, 3)), ((4, 1), (5, 4, 3))],
)  # fmt: skip
def test_unbroadcast_is_the_adjoint_of_broadcasting(shape, stretched, rng):
    x, dout = rng.normal(size=shape), rng.normal(size=stretched)
    gradient = unbroadcast(dout, shape)
    assert gradient.shape == shape
    np.testing.assert_allclose(
        np.sum(gradient * x), np.sum(dout * np.broadcast_to(x, stretched)), rtol=1e-12, atol=1e-12
    )
