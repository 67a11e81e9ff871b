"""What holds for every pair: its gradient, its backends, its memory layouts."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
import kernel_strategies
import tinyvae_kernels as kernels
from gradcheck import check_pair

every_pair = pytest.mark.parametrize("name", kernels.PAIRS)
every_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)
CPU, SHIM = ["numpy", "numba"], ["cuda", "cuda-reverse", "cuda-shuffle"]
GPU = pytest.param("gpu", marks=pytest.mark.cuda)
every_backend = pytest.mark.parametrize("on", [*CPU, "cuda", GPU])
ALONE = [n for n, (f, _) in kernels.PAIRS.items() if "gradient" in inspect.signature(f).parameters]
ONE_PASS = sorted(n.removesuffix("_value_and_grad") for n in kernels.__all__ if "_and_grad" in n)


@pytest.mark.parametrize("on", ["numpy", "auto"])
@pytest.mark.parametrize("name", sorted(kernels.PAIRS.keys() - {"nearest_code"}))
@given(data=st.data())
def test_backward_agrees_with_finite_differences(name, on, data):
    """But nearest_code is straight-through: its backward is no derivative (test_codebook.py)."""
    with kernels.backend(on):
        check_pair(kernels.PAIRS[name], data.draw(kernel_strategies.CASES[name]))


@pytest.mark.parametrize("on", [*CPU, *SHIM, GPU])
@every_dtype
@every_pair
def test_agrees_with_the_float64_reference(name, dtype, on):
    backends.check_agreement(name, dtype, on)


@every_backend
@every_dtype
@every_pair
def test_layout_makes_no_difference(name, dtype, on):
    backends.check_layouts(name, dtype, on)


@every_backend
@every_dtype
@pytest.mark.parametrize("name", sorted(kernels.PAIRS.keys() - {"col2im"}))
def test_nan_is_not_swallowed(name, dtype, on):
    """But col2im drops what lies outside the image, NaN or not."""
    backends.check_nan_shows(name, dtype, on)


@every_backend
@every_dtype
@pytest.mark.parametrize("name", ONE_PASS)
def test_value_and_grad_is_forward_and_backward(name, dtype, on):
    backends.check_value_and_grad(name, dtype, on)


@every_backend
@every_dtype
@pytest.mark.parametrize("name", ALONE)
def test_values_alone_are_those_with_a_gradient(name, dtype, on):
    backends.check_value_alone(name, dtype, on)
