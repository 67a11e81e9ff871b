"""Large batches are cut over the cores: kernels whose rows are independent run in several threads.

The machine code releases the GIL. A caller that has threads of its own says `with threads(1)`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Elements of a kernel's largest array from which a second thread pays for waking it, some 80 us on
# an EPYC under KVM: that many for each thread if the kernel computes (0.7 ns an element and more
# there), and more if it only moves memory (0.1 ns).
WORTH_A_THREAD = 150_000
WORTH_A_THREAD_LIGHT = 1_000_000

_limit: contextvars.ContextVar[int | None] = contextvars.ContextVar("threads", default=None)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Kernels called inside the block use at most that many threads; the default is every core.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, cores() - 1), "tinyvae-kernel")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def parts(arguments: tuple, light: bool = False) -> int:
    """In how many parts a call is cut; light: the kernel does little more than move memory."""
    worth = WORTH_A_THREAD_LIGHT if light else WORTH_A_THREAD
    for array in arguments:  # most calls end here: keep them cheap
        if isinstance(array, np.ndarray) and array.size >= 2 * worth:
            break
    else:
        return 1
    elements = max(a.size for a in arguments if isinstance(a, np.ndarray))
    return max(1, min(_limit.get() or cores(), len(arguments[0]), elements // worth))


def run_in_parts(body: Callable, arguments: tuple, whole: frozenset[int], count: int) -> None:
    """body(*arguments) on `count` slices of the rows at the same time.

    Every array but those at the positions in `whole` is cut along its first axis, whose length is
    the number of rows or a multiple of it.
    """
    rows = len(arguments[0])
    cuts = [rows * k // count for k in range(count + 1)]

    def cut(position: int, value: object, part: int) -> object:
        if not isinstance(value, np.ndarray) or position in whole:
            return value
        each = len(value) // rows  # a row of x may be several of patches
        return value[cuts[part] * each : cuts[part + 1] * each]

    def run(part: int) -> None:
        body(*(cut(i, a, part) for i, a in enumerate(arguments)))

    at_once(run, count)


def at_once(part: Callable[[int], None], count: int) -> None:
    """part(0) ... part(count - 1), in as many threads; the first error reaches the caller."""
    waiting = [_pool().submit(part, k) for k in range(1, count)]
    try:
        part(0)
    finally:
        for future in waiting:  # nobody may still be writing when the caller goes on
            future.exception()
    for future in waiting:
        future.result()
