"""How the Numba bodies are compiled, and vectorizable float32 versions of `_math`.

Imported at the first Numba call only. Each float32 function is a range reduction and a short
polynomial, straight-line code that LLVM turns into SIMD; float64 uses the C library, for it serves
checks, not speed. Coefficients of exp: Cephes expf (Moshier 1989); logarithms:
2 atanh(s) with s = u / (2 + u); sine and cosine: Taylor on [-pi/4, pi/4].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, typeof, types
from numba.extending import intrinsic, overload, typeof_impl

from . import _cache, _math
from . import _tile as _tile  # the overloads of tiles and transpose_square

f32 = np.float32
FASTMATH = _math.FASTMATH


def compiled(function: Callable, lazy: type, *, exact: bool = False) -> Callable:
    """`function` compiled for whatever argument types it is called with.

    lazy: the class of kernels that are not compiled yet, which `function` may call.  exact: no
    division becomes a product with a reciprocal, and the like.
    """
    _register(lazy)
    fastmath = set() if exact else FASTMATH
    dispatcher = njit(function, fastmath=fastmath, error_model="numpy", nogil=True)
    _cache.enable(dispatcher)
    return dispatcher


def address(dispatcher: Any, args: tuple) -> int:
    """Where the machine code for these arguments begins; compiled, or read from disk, if need be.

    Its convention: int function(return value *, exception **, arguments..., arrays in parts).
    """
    signature = tuple(typeof(a) for a in args)
    if signature not in dispatcher.overloads:
        dispatcher.compile(signature)
    result = dispatcher.overloads[signature]
    return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


@functools.cache
def _register(lazy: type) -> None:
    """To Numba, a lazy kernel is its dispatcher."""
    typeof_impl.register(lazy)(lambda value, context: typeof_impl(value.dispatcher(), context))


def _bits(result: types.Type, argument: types.Type) -> Callable:
    """An intrinsic that reads the bits of one 32-bit type as another."""

    @intrinsic
    def bitcast(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(result))

        return result(argument), generate

    return bitcast


_float_from_bits = _bits(types.float32, types.int32)
_bits_from_float = _bits(types.int32, types.float32)

_inline: dict[str, Any] = {"inline": "always", "jit_options": {"fastmath": FASTMATH, "nogil": True}}
_helper = njit(fastmath=FASTMATH, error_model="numpy", nogil=True)


@_helper
def _reduce(x):
    """x = n log 2 + r with |r| <= log(2)/2; returns e^r - 1 and n. log 2 in two parts, exactly."""
    n = np.floor(x * f32(1.44269504) + f32(0.5))
    r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return p * r * r + r, n


@_helper
def _power_of_two(n):
    """2^n for n in [-126, 127], by writing the exponent's bits."""
    return _float_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@overload(_math.exp, **_inline)
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def body(x):
        x = min(max(x, f32(-87.3)), f32(89.0))
        q, n = _reduce(x)
        # 2^128 has no float32: take half the power twice, so that large x overflows to infinity
        return (q + f32(1)) * _power_of_two(n - f32(1)) * f32(2)

    return body


@overload(_math.exp_negative, **_inline)
def _exp_negative(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def body(x):
        q, n = _reduce(max(x, f32(-87.3)))
        return (q + f32(1)) * _power_of_two(n)

    return body


@overload(_math.expm1, **_inline)
def _expm1(x):
    if x != types.float32:
        return lambda x: math.expm1(x)

    def body(x):
        x = min(max(x, f32(-87.0)), f32(89.0))
        q, n = _reduce(x)
        half = _power_of_two(n - f32(1))
        return (q * half + (half - f32(0.5))) * f32(2)  # n = 0 gives q, with nothing cancelled

    return body


@_helper
def _atanh_series(t):
    """(atanh(s) / s - 1) / t for t = s^2 in [0, 1/9]: Chebyshev interpolation, error 1.6e-8."""
    p = f32(1.3425749e-1)
    p = p * t + f32(1.4118310e-1)
    p = p * t + f32(2.0003780e-1)
    return p * t + f32(3.3333320e-1)


@_helper
def _log1p_small(u):
    """log(1 + u) = 2 atanh(s), s = u / (2 + u), for u in [-0.3, 1]."""
    s = u / (f32(2) + u)
    t = s * s
    return f32(2) * s * (_atanh_series(t) * t + f32(1))


@overload(_math.log1p01, **_inline)
def _log1p01(u):
    if u != types.float32:
        return lambda u: math.log1p(u)
    return lambda u: _log1p_small(u)


@overload(_math.log1p01_and_inverse, **_inline)
def _log1p01_and_inverse(u):
    if u != types.float32:
        return lambda u: (math.log1p(u), 1 / (1 + u))

    def body(u):
        # a vector division costs as much as ten products: divide once, by (1 + u) (2 + u)
        one, two = f32(1) + u, f32(2) + u
        d = f32(1) / (one * two)
        s = u * d * one
        t = s * s
        return f32(2) * s * (_atanh_series(t) * t + f32(1)), d * two

    return body


@overload(_math.log01, **_inline)
def _log01(u):
    if u != types.float32:
        return lambda u: math.log(u)

    def body(u):
        # u = 2^n m with m in [sqrt(1/2), sqrt(2)), so that log m stays small and exact near 1
        bits = _bits_from_float(u)
        n = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
        m = _float_from_bits(bits - (n << np.int32(23)))
        return f32(n) * f32(0.69314718) + _log1p_small(m - f32(1))

    return body


@_helper
def _sin_quarter(a):
    """sin(a) for |a| <= pi/2 (Taylor to a^11)."""
    t = a * a
    p = f32(-1 / 39916800)
    p = p * t + f32(1 / 362880)
    p = p * t + f32(-1 / 5040)
    p = p * t + f32(1 / 120)
    p = p * t + f32(-1 / 6)
    return a + a * t * p


@overload(_math.sin_turn, **_inline)
def _sin_turn(t):
    if t != types.float32:
        return lambda t: math.sin(2 * math.pi * t)

    def body(t):
        # fold the turn to [-1/4, 1/4]: sin(2 pi t) = sin(2 pi (1/2 - t))
        s = t - np.floor(t + f32(0.5))
        a = f32(0.25) - abs(abs(s) - f32(0.25))
        return _sin_quarter(f32(6.2831853) * (a if s >= f32(0) else -a))

    return body


@overload(_math.cos_turn, **_inline)
def _cos_turn(t):
    if t != types.float32:
        return lambda t: math.cos(2 * math.pi * t)

    def body(t):
        # cos(2 pi t) = sin(2 pi (1/4 - |s|)) with s in [-1/2, 1/2]
        s = t - np.floor(t + f32(0.5))
        return _sin_quarter(f32(6.2831853) * (f32(0.25) - abs(s)))

    return body


@_helper
def _log1p_reduced(x, u):
    """log x, where u is x - 1, perhaps more exactly than x; infinities and NaN come through."""
    bits = _bits_from_float(x)
    n = np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23)  # x = 2^n m, as in log01
    m = _float_from_bits(bits - (n << np.int32(23)))
    value = f32(n) * f32(0.69314718) + _log1p_small(u if n == 0 else m - f32(1))
    return value if x < f32(np.inf) else x


@overload(_math.log, **_inline)
def _log(x):
    if x != types.float32:
        return lambda x: math.log(x)
    return lambda x: _log1p_reduced(x, x - f32(1))


@overload(_math.log1p, **_inline)
def _log1p(u):
    if u != types.float32:
        return lambda u: math.log1p(u)
    return lambda u: _log1p_reduced(f32(1) + u, u)


@overload(_math.row_max, jit_options={"fastmath": FASTMATH, "nogil": True})
def _row_max(row):
    if row.dtype != types.float32:

        def plain(row):
            top = row[0]
            for k in range(1, row.shape[0]):
                top = max(top, row[k])
            return top

        return plain

    def body(row):
        # in integers of the same order: a maximum of floats is not vectorized, for fear of NaN
        sign = np.int32(0x7FFFFFFF)
        top = np.int32(-0x80000000)
        for k in range(row.shape[0]):
            bits = _bits_from_float(row[k])
            top = max(top, bits ^ ((bits >> np.int32(31)) & sign))
        return _float_from_bits(top ^ ((top >> np.int32(31)) & sign))

    return body
