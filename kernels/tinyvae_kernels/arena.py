"""Results in memory that is used again: the k-th array of a step lies where the last step's did.

A loop that calls the same kernels on the same shapes need not ask for memory again:

    arena = Arena()
    for x in batches:
        with arena:
            elbo, saved = bernoulli_elbo_forward(logits, x, mu, logvar)
            ...

What a kernel returned inside a block is overwritten by the next block.
"""

from __future__ import annotations

import contextvars
import math
import threading
from typing import Any

import numpy as np

from ._dispatch import _allocate, place, plain_empty
from ._program import recorder


class Arena:
    """Buffers in the order in which they were asked for; one thread uses it at a time."""

    def __init__(self) -> None:
        self._buffers: list[Any] = []
        self._used = 0
        self._token: contextvars.Token | None = None

    def __enter__(self) -> Arena:
        if self._token is not None:
            raise RuntimeError("this arena is in use: a step inside a step needs its own")
        self._used, self._token = 0, _allocate.set(self._empty)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _allocate.reset(self._token)
        self._token = None

    def _empty(self, shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
        """The buffer of this turn, if it fits; else a new one in its place."""
        turn, self._used = self._used, self._used + 1
        if turn < len(self._buffers):
            buffer = self._buffers[turn]
            if buffer.shape == shape and buffer.dtype == dtype and _beside(buffer, like):
                return buffer
            self._buffers[turn] = plain_empty(shape, dtype, like)
        else:
            self._buffers.append(plain_empty(shape, dtype, like))
        return self._buffers[turn]


def _beside(buffer: Any, like: Any) -> bool:
    if type(buffer) is np.ndarray:
        return isinstance(like, np.ndarray)
    return not isinstance(like, np.ndarray) and place(buffer) == place(like)


class _ScratchOfThread(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[Any, np.ndarray] = {}


_of_thread = _ScratchOfThread()


def scratch(shape: tuple[int, ...], like: Any) -> Any:
    """Memory for a moment: the next call in this thread (in this program) gets the same again."""
    if not isinstance(like, np.ndarray):
        return plain_empty(shape, like.dtype, like)
    program, size = recorder.get(), math.prod(shape)
    buffers = _of_thread.buffers if program is None else program.scratch
    buffer = buffers.get(like.dtype)
    if buffer is None or buffer.size < size:
        buffer = buffers[like.dtype] = np.empty(size, like.dtype)
    return buffer[:size].reshape(shape)
