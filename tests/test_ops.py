"""ops/__init__.py: what holds for every op."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import backends
import strategies
import tinyvae_kernels as kernels
from opcheck import OPS
from tinyvae import Tensor, checking, ops


def call(name: str, dtype: type, layout=np.ascontiguousarray) -> tuple[Tensor, list[Tensor]]:
    """The op on its row of checking.CASES, all floats of one dtype; the result and the leaves."""
    inputs, options = checking.CASES[name](np.random.default_rng(0))
    leaves: list[Tensor] = []

    def convert(value):
        if isinstance(value, list):
            return [convert(v) for v in value]
        if isinstance(value, Tensor):  # data
            labels = value.data.dtype.kind in "iu"
            return Tensor(layout(value.data if labels else value.data.astype(dtype)))
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            leaves.append(Tensor(layout(value.astype(dtype)), True))
            return leaves[-1]
        return value

    return OPS[name](*(convert(value) for value in inputs), **options), leaves


def test_every_op_and_every_pair_is_in_the_gradient_table():
    assert set(strategies.CASES) == set(OPS)
    assert set(kernels.PAIRS) - {"nearest_code"} <= set(OPS)  # straight-through: no derivative


def test_every_pair_is_the_pair_of_its_op():
    for name in set(kernels.PAIRS) & set(OPS):
        pair = kernels.PAIRS[name]
        assert OPS[name].pair == pair


def test_what_is_exported_is_an_op_or_the_geometry():
    assert set(ops.__all__) - set(OPS) == {"conv_geometry"}
    assert ops.conv_geometry is kernels.geometry


def test_all_ops_of_the_issue_are_there():
    wanted = (
        "add sub mul div pow neg exp log sqrt relu leaky_relu elu gelu silu tanh sigmoid softplus "
        "log_softmax logsumexp matmul linear conv2d conv_transpose2d sum mean max reshape "
        "transpose concatenate getitem where clip reparameterize"
    )
    assert set(wanted.split()) <= set(OPS)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(name, dtype):
    out, leaves = call(name, dtype)
    assert out.dtype == dtype
    out.backward(np.full(out.shape, 0.5, dtype))
    assert leaves
    for leaf in leaves:
        assert isinstance(leaf.grad, np.ndarray)
        assert leaf.grad.dtype == dtype
        assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("name", OPS)
def test_float32_gradients_are_those_of_float64(name):
    single, double = call(name, np.float32), call(name, np.float64)
    dout = np.random.default_rng(1).standard_normal(single[0].shape)
    for out, _ in (single, double):
        out.backward(dout)
    for leaf, exact in zip(single[1], double[1], strict=True):
        np.testing.assert_allclose(leaf.grad, exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_no_op_modifies_its_arguments(name):
    _, before = call(name, np.float64)
    out, leaves = call(name, np.float64)
    out.backward(np.ones(out.shape))
    for leaf, fresh in zip(leaves, before, strict=True):
        np.testing.assert_array_equal(leaf.data, fresh.data)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: backends.strided(a, np.asarray),
    "read_only": lambda a: backends.read_only(a, np.asarray),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_makes_no_difference(name, layout):
    """Views, transposed arrays and broadcast gradients are everyday inputs."""
    rng, results = np.random.default_rng(1), []
    dout = np.asarray(rng.standard_normal(call(name, np.float64)[0].shape))
    for change in (np.ascontiguousarray, layout):
        out, leaves = call(name, np.float64, change)
        out.backward(change(dout) if dout.ndim else dout)
        results.append([out.data, *(leaf.grad for leaf in leaves)])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPS)
def test_no_two_leaves_share_a_gradient(name):
    out, leaves = call(name, np.float64)
    out.backward(np.ones(out.shape))
    for i, leaf in enumerate(leaves):
        leaf.grad[...] = np.nan
        for other in leaves[i + 1 :]:
            assert not np.isnan(other.grad).any()


@pytest.mark.parametrize("name", OPS)
def test_constants_need_no_gradient(name):
    inputs, options = checking.CASES[name](np.random.default_rng(0))
    out = OPS[name](*inputs, **options)
    assert not out.requires_grad
    assert out.node is None


@pytest.mark.parametrize("name", OPS)
def test_an_op_carries_its_name_and_its_formula(name):
    forward, backward = OPS[name].pair
    assert OPS[name].__name__ == name
    assert forward.__name__ == f"{name}_forward"
    assert backward.__name__ == f"{name}_backward"
    for function in (forward, backward):
        assert function.__doc__
    assert "=" in checking.formula(name)[1] or name == "concatenate"


@pytest.mark.parametrize("name", OPS)
def test_forward_and_backward_are_neighbours(name):
    """A reader looks for the gradient of an op right below its formula."""
    forward, backward = OPS[name].pair
    assert inspect.getsourcefile(forward) == inspect.getsourcefile(backward)
    source = Path(inspect.getsourcefile(forward)).read_text()
    end = inspect.getsourcelines(forward)[1] + len(inspect.getsourcelines(forward)[0])
    between = source.splitlines()[end - 1 : inspect.getsourcelines(backward)[1] - 1]
    assert not [line for line in between if line.strip()], between


UNARY = ["neg", "exp", "log", "log1p", "sqrt", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh",
         "sigmoid", "softplus", "clip", "sum", "mean", "max", "logsumexp"]  # fmt: skip
BINARY = ["add", "sub", "mul", "div"]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("number", [2, 2.5])
def test_python_numbers_do_not_widen_float32(name, number):
    x = Tensor(np.full((2, 3), 1.5, np.float32), True)
    for out in (OPS[name](x, number), OPS[name](number, x)):
        assert out.dtype == np.float32
        out.backward(np.ones((2, 3), np.float32))
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("name", UNARY)
def test_float32_of_any_shape_stays_float32(name, shape):
    x = Tensor(np.full(shape, 0.7, np.float32), True)
    out = OPS[name](x)
    out.backward(np.full(out.shape, 0.3, np.float32))
    assert out.dtype == np.float32
    assert (x.grad.dtype, x.grad.shape) == (np.float32, shape)


@pytest.mark.parametrize("number", [2, 2.5, np.float32(2.5)])
def test_where_and_pow_with_numbers_stay_float32(number):
    x = Tensor(np.full(3, 1.5, np.float32), True)
    results = [
        ops.where(np.array([True, False, True]), x, number),
        ops.where(np.array([True, False, True]), number, x),
        ops.pow(x, number),
        ops.clip(x, 0, number),
        ops.leaky_relu(x, number),
        ops.elu(x, number),
    ]
    for out in results:
        assert out.dtype == np.float32
        out.backward(np.ones(3, np.float32))
        assert x.grad.dtype == np.float32
