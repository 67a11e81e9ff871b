"""product.py and _program.py: matrix products, and kernel calls as one native function."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import backends
import simt
import tinyvae_kernels as kernels
from tinyvae_kernels._program import Program, flattened
from tinyvae_kernels.product import product

VIEWS = {
    "rows": lambda a: a.copy(),
    "columns": lambda a: np.asfortranarray(a),
    "strided": lambda a: backends.strided(a, np.asarray),
    "part": lambda a: np.hstack([a, a])[:, : a.shape[1]],
    "backwards": lambda a: a[::-1].copy()[::-1],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("second", VIEWS)
@pytest.mark.parametrize("first", VIEWS)
def test_product(first, second, dtype, rng):
    for N, K, M in ((3, 4, 5), (1, 7, 1), (1, 1, 1), (2, 0, 3), (0, 2, 3), (2, 3, 0), (33, 1, 31)):
        a = rng.standard_normal((N, K)).astype(dtype)
        b = rng.standard_normal((K, M)).astype(dtype)
        start = rng.standard_normal((N, M)).astype(dtype)
        out, total = np.full((N, M), np.nan, dtype), start.copy()
        product(VIEWS[first](a), VIEWS[second](b), out)
        product(VIEWS[first](a), VIEWS[second](b), total, accumulate=True)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"atol": 1e-13}
        np.testing.assert_allclose(out, a @ b, **tolerance)
        np.testing.assert_allclose(total, start + a @ b, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_rows_times_a_large_transposed_matrix(dtype, rng):
    """The large matrix is copied first, in squares that do not fit its sides."""
    a, b = (
        rng.standard_normal((17, 300)).astype(dtype),
        rng.standard_normal((150, 300)).astype(dtype),
    )
    out, program = np.full((17, 150), np.nan, dtype), Program()
    with program.record():
        product(a, b.T, out)
    names = [kernel.__name__ for kernel, _ in program.calls]
    assert names == ["_transpose_numba", "_product_numba"]
    program.compile()
    np.testing.assert_allclose(out, a @ b.T, rtol=1e-4, atol=1e-4)
    expected = out.copy()
    out[:] = np.nan
    program()
    np.testing.assert_array_equal(out, expected)


def test_product_on_a_gpu(rng):
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    with simt.device() as gpu:
        out = gpu.xp.asarray(np.ones((3, 5)))
        product(gpu.xp.asarray(a), gpu.xp.asarray(b), out, accumulate=True)
        np.testing.assert_allclose(out.get(), 1 + a @ b, rtol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 5), (2, 5)), r"shapes \(2, 3\) and \(4, 5\)"),
        (((2, 3), (3, 5), (5, 2)), r"out has shape \(5, 2\), the product \(2, 5\)"),
        (((2,), (2, 5), (2, 5)), r"shapes \(2,\) and \(2, 5\)"),
    ],
)
def test_shapes_must_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        product(*(np.ones(shape) for shape in shapes))


def test_out_must_be_contiguous():
    with pytest.raises(ValueError, match="out must be C-contiguous"):
        product(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)).T[:, ::-1])


# ------------------------------------------------------------------------------------- programs
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("name", kernels.PAIRS)
def test_a_program_repeats_what_it_recorded(name, dtype):
    """On other numbers in the same memory, to the same bits as the kernels called one by one."""
    case, dout = backends.example(name, 31, 33, dtype)
    forward, backward = kernels.PAIRS[name]
    arrays, dout = [a.copy() for a in case.arrays], np.array(dout)
    program = Program()
    with kernels.threads(1), program.record():
        out, saved = forward(*arrays, **case.options)
        gradients = backward(dout, saved)
    program.compile()
    made = [out, *(g for g in gradients if g is not None and g is not dout)]
    for array in arrays:
        if array.dtype.kind == "f":
            array[...] = array[::-1].copy()
    with kernels.threads(1):
        again, saved_again = forward(*arrays, **case.options)
        expected = [again, *(g for g in backward(dout, saved_again) if g is not None)]
    for array in made:
        array.fill(0)
    gc.collect()
    program()
    for found, wanted in zip(made, [e for e in expected if e is not dout], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_program_multiplies(rng):
    a, b, out = rng.standard_normal((3, 4)), rng.standard_normal((5, 4)), np.zeros((3, 5))
    program = Program()
    with program.record():
        product(a, b.T, out)
        product(a, b.T, out, accumulate=True)
    program.compile()
    a *= 2
    program()
    np.testing.assert_allclose(out, 2 * a @ b.T, rtol=1e-13)


def test_nothing_is_recorded_outside_the_block(rng):
    program = Program()
    with program.record():
        pass
    kernels.gaussian_kl_forward(*rng.standard_normal((2, 3, 4)))
    assert program.calls == []


def test_an_argument_without_machine_form_is_refused():
    with pytest.raises(TypeError, match="a kernel in a program cannot take a str"):
        flattened("relu")
