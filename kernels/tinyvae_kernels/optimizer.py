"""One pass over parameters, gradients and moments: read each once, write each once.

Policy: these two, alone in this package, overwrite their arguments: the parameters and the state.
`scale` multiplies the gradient on the way in, so that clipping by norm costs no pass of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cuda import is_device_array, over_elements, varying
from ._dispatch import (
    alike,
    apart,
    before_line,
    check_same_shape,
    contiguous,
    jit,
    jit_rows,
    select,
)
from ._program import Cell


def adam_numbers(
    *,
    step: int,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
) -> tuple[float, ...]:
    """What Adam's formula needs of its options, the same for all parameters of a step.

    step: t, counted from 1.  Raises ValueError for step < 1.
    """
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    return (scale, learning_rate, 1 - learning_rate * weight_decay, beta1, 1 - beta1, beta2,
            1 - beta2, eps, 1 / (1 - beta1**step), 1 / (1 - beta2**step))  # fmt: skip


def adam_update(
    parameter: Any,
    gradient: Any,
    m: Any,
    v: Any,
    numbers: Any = None,
    *,
    other: Any = None,
    loss: Any = None,
    **options: Any,
) -> None:
    """Adam in place; with weight_decay, AdamW.

    g = scale gradient      m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
    p = p - lr weight_decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
                       Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019
    parameter, gradient, m, v: one shape, C-contiguous; overwritten: parameter, m, v.
    options: those of adam_numbers, step among them; or `numbers`, what that function returned, on a
    GPU also as an array there.
    other: a second share of the gradient, of another part of the batch, that is added on the way.
    loss: on a GPU, a number in its memory, float64: if it is not finite nothing is changed.
    Raises ValueError for differing shapes, step < 1, or arrays that are not contiguous, TypeError
    for a loss elsewhere.
    """
    flat = _flat(parameter=parameter, gradient=gradient, m=m, v=v)
    numbers = adam_numbers(**options) if numbers is None else numbers
    if loss is not None and not (is_device_array(parameter) and is_device_array(loss)):
        raise TypeError("loss must lie in the memory of the GPU on which the parameter is")
    if loss is not None and loss.dtype != np.float64:
        raise TypeError(f"loss must be float64, got {loss.dtype}")
    if is_device_array(parameter):
        numbers = (varying(numbers, (parameter.dtype, len(numbers))), loss)
    elif type(numbers[0]) is not Cell:  # all of them, or none
        numbers = tuple(np.array(numbers, parameter.dtype))
    if other is not None:
        second = _flat(parameter=parameter, gradient=other)[1]
        select(parameter, _adam_update_two_numpy, _adam_update_two_numba, _adam_update_two_cuda)(
            flat[0], flat[1], second, *flat[2:], *numbers
        )
        return
    select(parameter, _adam_update_numpy, _adam_update_numba, _adam_update_cuda)(*flat, *numbers)


def sgd_update(
    parameter: Any,
    gradient: Any,
    velocity: Any,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Stochastic gradient descent with momentum, in place.

    velocity = momentum velocity + scale gradient + weight_decay p      p = p - lr velocity
    parameter, gradient, velocity: one shape, C-contiguous; overwritten: parameter, velocity.
    Raises ValueError for differing shapes, or arrays that are not contiguous.
    """
    flat = _flat(parameter=parameter, gradient=gradient, velocity=velocity)
    numbers = (scale, learning_rate, momentum, weight_decay)
    constants = (parameter.dtype.type(number) for number in numbers)
    select(parameter, _sgd_update_numpy, _sgd_update_numba, _sgd_update_cuda)(*flat, *constants)


def _flat(**arrays: Any) -> list[Any]:
    """Views of all arrays with one axis; the gradient, which is only read, may be copied."""
    given = list(arrays.values())
    flat = alike(given, same_shape=True) and given[0].ndim == 1
    if flat and all(a.flags.c_contiguous for a in given):
        return given
    if arrays["parameter"].ndim == 0:
        arrays = {name: a.reshape(1) for name, a in arrays.items()}
    checked = check_same_shape(**arrays)
    for name, array in zip(arrays, checked, strict=True):
        if name != "gradient" and not array.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous to be updated in place")
    return [contiguous(a).reshape(-1) for a in checked]


def _adam_update_numpy(p, g, m, v, scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2):
    g = scale * g
    m[:] = b1 * m + c1 * g
    v[:] = b2 * v + c2 * g * g
    p[:] = decay * p - lr * (m * unbias1) / (np.sqrt(v * unbias2) + eps)


@jit
def _adam_numba(p, g, m, v, scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2):
    for i in range(p.size):
        gi = scale * g[i]
        mi = b1 * m[i] + c1 * gi
        vi = b2 * v[i] + c2 * gi * gi
        m[i], v[i] = mi, vi
        p[i] = decay * p[i] - lr * (mi * unbias1) / (np.sqrt(vi * unbias2) + eps)


@jit_rows.moving
def _adam_update_numba(p, g, m, v, scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2):
    # Large arrays begin 16 bytes behind a line of the cache: without the first numbers all vectors
    # lie in line (1.6 million parameters: 300 us and 255, SGD 180 and 120; two threads)
    n, numbers = before_line(p), (scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2)
    _adam_numba(p[:n], g[:n], m[:n], v[:n], *numbers)
    _adam_numba(p[n:], g[n:], m[n:], v[n:], *numbers)


def _adam_update_two_numpy(p, g, other, *arguments):
    _adam_update_numpy(p, g + other, *arguments)


@jit_rows.moving
def _adam_update_two_numba(
    p, g, other, m, v, scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2
):
    # A sum at a time that stays in the first-level cache: with five arrays in one loop LLVM gives
    # up proving that none overlaps another, and does not vectorize.
    total = apart(min(p.size, 2048), p.dtype)
    for first in range(0, p.size, 2048):
        last = min(first + 2048, p.size)
        for i in range(last - first):
            total[i] = g[first + i] + other[first + i]
        _adam_numba(
            p[first:last], total[: last - first], m[first:last], v[first:last],
            scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2,
        )  # fmt: skip


def _adam_update_two_cuda(p, g, other, *arguments):
    _adam_update_cuda(p, g + other, *arguments)  # a GPU is one shard: nobody is in a hurry


def _adam_update_cuda(p, *arguments):
    over_elements("optimizer.cu", "adam_update", p.size, p, *arguments)


def _sgd_update_numpy(p, g, velocity, scale, lr, momentum, weight_decay):
    velocity[:] = momentum * velocity + scale * g + weight_decay * p
    p[:] = p - lr * velocity


@jit
def _sgd_numba(p, g, velocity, scale, lr, momentum, weight_decay):
    for i in range(p.size):
        velocity[i] = momentum * velocity[i] + scale * g[i] + weight_decay * p[i]
        p[i] -= lr * velocity[i]


@jit_rows.moving
def _sgd_update_numba(p, g, velocity, scale, lr, momentum, weight_decay):
    n, numbers = before_line(p), (scale, lr, momentum, weight_decay)  # as for Adam
    _sgd_numba(p[:n], g[:n], velocity[:n], *numbers)
    _sgd_numba(p[n:], g[n:], velocity[n:], *numbers)


def _sgd_update_cuda(p, *arguments):
    over_elements("optimizer.cu", "sgd_update", p.size, p, *arguments)
