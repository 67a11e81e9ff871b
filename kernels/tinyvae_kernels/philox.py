"""Counter-based noise: the same bits in NumPy, Numba and CUDA, for any shard and thread count.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").
One call turns a counter of four 32-bit words and a key of two into four random words:

    key = (seed low, seed high)      counter = (block low, block high, stream, step)

Element e of the result is word e % 4 of block e // 4, so that any part of an array can be drawn
alone (`offset`). `stream` separates uses (shuffling, sampling, binarizing), `step` the training
steps; nothing is stored, and the backward pass can draw its noise again.

NumPy's own Philox is the 4x64 variant: its numbers differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _threads
from ._cuda import over_noise
from ._dispatch import as_array, empty, jit, jit_rows, select
from ._math import cos_turn, log01, sin_turn
from ._program import recorder, scalar, varies

MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 0xFFFFFFFF


def philox_bits(
    n: int, *, seed: int, stream: int = 0, step: int = 0, offset: int = 0, like: Any = None
) -> Any:
    """n random words, (n,) uint32: elements offset .. offset + n of the sequence.

    like: any array; the words are made where it lies, by default in a NumPy array.
    Raises ValueError for a seed outside [0, 2^64), a stream or step outside [0, 2^32).
    """
    words = numbers(n, seed, stream, step, offset)
    bits = _empty(n, np.uint32, like)
    select(bits, _philox_bits_numpy, _philox_bits_numba, _philox_bits_cuda)(bits, *words)
    return bits


def philox_uniform(
    shape: int | tuple[int, ...],
    *,
    seed: int,
    stream: int = 0,
    step: int = 0,
    offset: int = 0,
    dtype: Any = np.float32,
    like: Any = None,
) -> Any:
    """Uniform numbers in the open interval (0, 1): u = (2 floor(bits / 2^9) + 1) / 2^24.

    Exact in float32, hence equal in float32 and float64.
    shape: of the result; offset: index of its first element in the sequence; like: any array, the
    numbers are made where it lies, by default in a NumPy array.
    """
    uniform = _empty(shape, _check_dtype(dtype), like)
    words = numbers(uniform.size, seed, stream, step, offset)
    select(uniform, _philox_uniform_numpy, _uniform_in_parts, _philox_uniform_cuda)(
        uniform.reshape(-1), *words
    )
    return uniform


def philox_normal(
    shape: int | tuple[int, ...],
    *,
    seed: int,
    stream: int = 0,
    step: int = 0,
    offset: int = 0,
    dtype: Any = np.float32,
    like: Any = None,
) -> Any:
    """Standard normal numbers, two from two uniform ones (Box and Muller 1958).

    n0 = sqrt(-2 log u0) cos(2 pi u1)      n1 = sqrt(-2 log u0) sin(2 pi u1)
    shape: of the result; offset: index of its first element in the sequence; like: any array, the
    numbers are made where it lies, by default in a NumPy array.
    """
    normal = _empty(shape, _check_dtype(dtype), like)
    words = numbers(normal.size, seed, stream, step, offset)
    select(normal, _philox_normal_numpy, normal_in_parts, _philox_normal_cuda)(
        normal.reshape(-1), *words
    )
    return normal


def _empty(shape: int | tuple[int, ...], dtype: Any, like: Any) -> Any:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    return np.empty(sizes, dtype) if like is None else empty(sizes, as_array("like", like), dtype)


def numbers(n: int, seed: int, stream: int, step: int, offset: int) -> tuple[np.integer, ...]:
    """The numbers in the types the bodies take: key low, key high, stream, step, offset.

    Raises ValueError for one that is out of range.
    """
    bounds = {
        "seed": (seed, 64),
        "stream": (stream, 32),
        "step": (step, 32),
        "offset": (offset, 62),
    }
    for name, (value, bits) in bounds.items():
        if not varies(value) and not 0 <= value < 2**bits:
            raise ValueError(f"{name} must be in [0, 2^{bits}), got {value}")
    return (
        np.uint32(int(seed) & LOW),
        np.uint32(int(seed) >> 32),
        np.uint32(stream),
        scalar(step, np.uint32),
        np.int64(offset),
    )


def _check_dtype(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


# ------------------------------------------------------------------------------ NumPy reference
def philox4x32(counter: Any, key: Any) -> np.ndarray:
    """The block function itself: counter (4, n) uint32, key (2,) uint32 -> (4, n) uint32.

    A round: (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
    after which the key moves on by the Weyl constants.     Salmon et al. 2011, section 4.3
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(ROUNDS):
        first, second = np.uint64(MULTIPLIER[0]) * c0, np.uint64(MULTIPLIER[1]) * c2
        c0 = (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & np.uint64(LOW), first & np.uint64(LOW)
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def _blocks(n: int, key0: Any, key1: Any, stream: Any, step: Any, offset: Any) -> np.ndarray:
    """The words of every block that elements offset .. offset + n touch, (blocks, 4)."""
    block = np.arange(int(offset) // 4, (int(offset) + n + 3) // 4, dtype=np.uint64)
    counter = (block & np.uint64(LOW), block >> np.uint64(32), np.full_like(block, stream))
    words = philox4x32((*counter, np.full_like(block, step)), (key0, key1))
    return words.T  # (4, blocks) -> (blocks, 4)


def _uniform(words: np.ndarray) -> np.ndarray:
    """float64, exact."""
    return (2.0 * (words >> 9) + 1.0) * 2.0**-24


def _part(values: np.ndarray, n: int, offset: Any) -> np.ndarray:
    """Elements offset .. offset + n out of whole blocks."""
    first = int(offset) % 4
    return values.reshape(-1)[first : first + n]


def _philox_bits_numpy(bits, key0, key1, stream, step, offset):
    words = _blocks(bits.size, key0, key1, stream, step, offset)
    bits[:] = _part(words, bits.size, offset)


def _philox_uniform_numpy(uniform, key0, key1, stream, step, offset):
    words = _blocks(uniform.size, key0, key1, stream, step, offset)
    uniform[:] = _part(_uniform(words), uniform.size, offset)


def _philox_normal_numpy(normal, key0, key1, stream, step, offset):
    u = _uniform(_blocks(normal.size, key0, key1, stream, step, offset))  # (blocks, 4)
    radius, turn = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
    pairs = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=2)  # (blocks, 2, 2)
    normal[:] = _part(pairs, normal.size, offset)


# ----------------------------------------------------------------------------------- Numba bodies
CHUNK = 256  # blocks at a time, so that words and values stay in the first-level cache


@jit
def _philox_words(words, first, count, key0, key1, stream, step):
    """words[:, :count] = the words of blocks first .. first + count; the loop vectorizes."""
    m0, m1, half = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(32)
    for i in range(count):
        block = np.uint64(first + i)
        c0, c1, c2, c3 = np.uint32(block), np.uint32(block >> half), stream, step
        k0, k1 = key0, key1
        for _ in range(10):
            a, b = m0 * np.uint64(c0), m1 * np.uint64(c2)
            c0 = np.uint32(b >> half) ^ c1 ^ k0
            c2 = np.uint32(a >> half) ^ c3 ^ k1
            c1, c3 = np.uint32(b), np.uint32(a)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        words[0, i], words[1, i], words[2, i], words[3, i] = c0, c1, c2, c3


@jit
def _copy_part(out, values, first, count, offset):
    """out[e - offset] = values of element e, for those elements of the blocks that out holds."""
    low = max(4 * first, offset)
    high = min(4 * (first + count), offset + out.size)
    for e in range(low, high):
        out[e - offset] = values[e - 4 * first]


@jit
def _philox_bits_numba(bits, key0, key1, stream, step, offset):
    words, values = np.empty((4, CHUNK), np.uint32), np.empty(4 * CHUNK, np.uint32)
    last = (offset + bits.size + 3) // 4
    for first in range(offset // 4, last, CHUNK):
        count = min(CHUNK, last - first)
        _philox_words(words, first, count, key0, key1, stream, step)
        for i in range(count):
            for lane in range(4):
                values[4 * i + lane] = words[lane, i]
        _copy_part(bits, values, first, count, offset)


@jit
def _philox_uniform_numba(uniform, key0, key1, stream, step, offset):
    dtype = uniform.dtype.type
    words, values = np.empty((4, CHUNK), np.uint32), np.empty(4 * CHUNK, uniform.dtype)
    unit = dtype(2.0**-24)
    last = (offset + uniform.size + 3) // 4
    for first in range(offset // 4, last, CHUNK):
        count = min(CHUNK, last - first)
        _philox_words(words, first, count, key0, key1, stream, step)
        for i in range(count):
            for lane in range(4):
                odd = np.int32(words[lane, i] >> np.uint32(9)) * np.int32(2) + np.int32(1)
                values[4 * i + lane] = dtype(odd) * unit
        _copy_part(uniform, values, first, count, offset)


@jit
def _philox_normal_numba(normal, key0, key1, stream, step, offset):
    dtype = normal.dtype.type
    words, values = np.empty((4, CHUNK), np.uint32), np.empty(4 * CHUNK, normal.dtype)
    unit, minus_two = dtype(2.0**-24), dtype(-2)
    last = (offset + normal.size + 3) // 4
    for first in range(offset // 4, last, CHUNK):
        count = min(CHUNK, last - first)
        _philox_words(words, first, count, key0, key1, stream, step)
        for pair in range(0, 4, 2):
            for i in range(count):
                odd = np.int32(words[pair, i] >> np.uint32(9)) * np.int32(2) + np.int32(1)
                radius = np.sqrt(minus_two * log01(dtype(odd) * unit))
                odd = np.int32(words[pair + 1, i] >> np.uint32(9)) * np.int32(2) + np.int32(1)
                turn = dtype(odd) * unit
                values[4 * i + pair] = radius * cos_turn(turn)
                values[4 * i + pair + 1] = radius * sin_turn(turn)
        _copy_part(normal, values, first, count, offset)


# A part of the sequence is drawn alone by moving its offset, so several threads can draw at once:
# the rows that are cut are the parts' numbers.
@jit_rows.sharing("cuts", "out")
def _uniform_parts(parts, cuts, out, key0, key1, stream, step, offset):
    for k in parts:
        part = out[cuts[k] : cuts[k + 1]]
        _philox_uniform_numba(part, key0, key1, stream, step, offset + cuts[k])


@jit_rows.sharing("cuts", "out")
def _normal_parts(parts, cuts, out, key0, key1, stream, step, offset):
    for k in parts:
        part = out[cuts[k] : cuts[k + 1]]
        _philox_normal_numba(part, key0, key1, stream, step, offset + cuts[k])


def _in_parts(draw: Any, parts: Any, out: np.ndarray, numbers: tuple) -> None:
    count = 1 if recorder.get() is not None else _threads.parts((out,))
    if count == 1:
        draw(out, *numbers)
        return
    cuts = np.array([out.size * k // count // 4 * 4 for k in range(count)] + [out.size])
    parts(np.arange(count), cuts, out, *numbers)


def _uniform_in_parts(uniform, *numbers):
    _in_parts(_philox_uniform_numba, _uniform_parts, uniform, numbers)


def normal_in_parts(normal, *numbers):
    """Fill normal (n,) on the CPU, by several threads if it is large."""
    _in_parts(_philox_normal_numba, _normal_parts, normal, numbers)


# ------------------------------------------------------------------------------------ CUDA bodies
def _philox_bits_cuda(bits, *numbers):
    over_noise("philox.cu", "philox_bits", bits.size, bits, *numbers)


def _philox_uniform_cuda(uniform, *numbers):
    over_noise("philox.cu", "philox_uniform", uniform.size, uniform, *numbers)


def _philox_normal_cuda(normal, *numbers):
    over_noise("philox.cu", "philox_normal", normal.size, normal, *numbers)
