"""The kernels as a user of tinyvae_kernels calls them: the public functions, on arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import tinyvae_kernels as kernels

from ._kernel_cases import IMAGE, Kernel

Call = Callable[[], list]


def call(
    kernel: Kernel, B: int, D: int, mode: str, *, asarray: Callable, dtype: Any = np.float32
) -> Call:
    """A function that makes one call and returns its arrays, None for those without a gradient.

    asarray: where the arrays go, numpy.asarray or CuPy's; dtype: of those that are not integers.
    """
    arrays = [
        asarray(a.astype(dtype, copy=False) if a.dtype.kind == "f" else a)
        for a in kernel.arrays(B, D)
    ]
    dout = None
    if mode == "gradient":
        dout = asarray(kernel.dout(B, D).astype(dtype, copy=False))
    options = dict(kernel.options)
    if kernel.name == "col2im":
        geometry = kernels.geometry(IMAGE, **kernel.options)
        options = {"batch": len(kernel.dout(B, D)), "geometry": geometry}
    if kernel.function:
        return _function(kernel, (B, D), arrays, options, asarray)
    return _pair(kernel.pair or kernel.name, arrays, dout, options)


def _function(
    kernel: Kernel, shape: tuple[int, int], arrays: list, options: dict, asarray: Callable
) -> Call:
    function = getattr(kernels, kernel.name)
    if arrays:  # an update in place

        def update() -> list:
            function(*arrays, **options)
            return [arrays[0]]

        return update
    like = asarray(np.empty(1, np.float32))
    return lambda: [function(shape, **options, like=like)]


def _pair(name: str, arrays: list, dout: Any, options: dict) -> Call:
    """One pass where the package has it, else forward and backward; values alone by themselves."""
    forward, backward = kernels.PAIRS[name]
    if dout is None:
        if "gradient" in inspect.signature(forward).parameters:
            options |= {"gradient": False}
        return lambda: [forward(*arrays, **options)[0]]
    if at_once := getattr(kernels, f"{name}_value_and_grad", None):

        def value_and_grad() -> list:
            out, gradients = at_once(*arrays, dout, **options)
            return [out, *gradients]

        return value_and_grad

    def pair() -> list:
        out, saved = forward(*arrays, **options)
        return [out, *backward(dout, saved)]

    return pair
