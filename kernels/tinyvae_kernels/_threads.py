"""Large batches are cut over the cores: kernels whose rows are independent run in several threads.

The threads are a team (`_team.py`), whose jobs are machine code; where LLVM cannot make one, those
of a pool, which take longer to wake.  A caller that has threads of its own says `with threads(1)`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ._team import Team

# Elements of a kernel's largest array from which a second thread pays, for each thread: fewer if
# the kernel computes (0.5 ns an element and more on an EPYC) than if it only moves memory (0.1 ns).
# A helper that is awake costs 2 us.  One that sleeps costs the caller 30, and comes 80 us late: it
# is woken for a large job, or for a small one that begins RECENT seconds after the last, or sooner.
WORTH_A_THREAD, WORTH_WAKING = 12_500, 100_000
WORTH_A_THREAD_LIGHT, WORTH_WAKING_LIGHT = 40_000, 500_000
RECENT = 300e-6
PARTS = 4  # for each thread, so that none waits long for another

_latest = 0.0  # when the last call ended that might have been cut
_limit: contextvars.ContextVar[int | None] = contextvars.ContextVar("threads", default=None)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_cores = functools.cache(cores)  # of the team, once it is made


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
def team() -> Team | None:
    """The process's team, made at the first call; None where it cannot be made."""
    try:
        return Team(_cores() - 1)
    except (ImportError, AttributeError, RuntimeError):  # no llvmlite; not CPython; LLVM 14
        return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, cores() - 1), "tinyvae-kernel")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=team.cache_clear)
    os.register_at_fork(after_in_child=_pool.cache_clear)


def parts(arguments: tuple, light: bool = False, each: int = PARTS, times: int = 1) -> int:
    """In how many parts a call may be cut: the same for the same sizes and number of threads.

    light: the kernel does little more than move memory; each: parts for each thread; times: how
    often an element is computed with.
    """
    worth = max(1, (WORTH_A_THREAD_LIGHT if light else WORTH_A_THREAD) // max(1, times))
    size = _first(arguments, 2 * worth)
    if size == 0:
        return 1
    count = min(_limit.get() or _cores(), size // worth)
    return max(1, min(len(arguments[0]), count * each)) if count > 1 else 1


def _first(arguments: tuple, size: int) -> int:
    """The size of the first array that has this size or more; 0 if there is none."""
    for array in arguments:
        if isinstance(array, np.ndarray) and array.size >= size:
            return array.size
    return 0


def worth_it(arguments: tuple, light: bool = False, times: int = 1) -> bool:
    """Whether a call that may be cut is worth a helper now, which may be asleep."""
    if time.perf_counter() - _latest < RECENT:
        return True
    worth = (WORTH_WAKING_LIGHT if light else WORTH_WAKING) // max(1, times)
    return _first(arguments, 2 * max(1, worth)) > 0


def ended() -> None:
    """A call that might have been cut has ended: the next may be near."""
    global _latest
    _latest = time.perf_counter()


def run(kernel: Any, arguments: tuple, count: int) -> None:
    """kernel(*arguments) in `count` parts of the rows, by as many threads as are allowed.

    Every array but those that the kernel knows to be whole is cut along its first axis, whose
    length is the number of rows or a multiple of it.
    """
    helpers = team()
    if helpers is None:
        _cut_in_pool(kernel.compiled or kernel.dispatcher(), arguments, kernel.whole, count)
        return
    launch, most = _launch(), min(_limit.get() or sys.maxsize, helpers.helpers + 1)
    for _ in range(2):
        key, address = kernel.latest
        failed = launch(helpers.run, key, address, kernel.bits, count, most - 1, *arguments)
        if failed <= 1:
            break
        kernel.find(failed, arguments)  # other types than last time
    if failed:  # in one piece Numba raises what went wrong
        kernel.dispatcher()(*arguments)
        raise RuntimeError(f"kernel {kernel.__name__} failed")


@functools.cache
def _launch() -> Callable:
    """Imported when it is needed, for Numba comes with it."""
    from ._parts import launch

    return launch


def _cut_in_pool(body: Callable, arguments: tuple, whole: frozenset[int], count: int) -> None:
    """The same without a team: one call of body a part."""
    rows = len(arguments[0])
    cuts = [rows * k // count for k in range(count + 1)]

    def cut(position: int, value: object, part: int) -> object:
        if not isinstance(value, np.ndarray) or position in whole:
            return value
        each = len(value) // rows  # a row of x may be several of patches
        return value[cuts[part] * each : cuts[part + 1] * each]

    def part(k: int) -> None:
        body(*(cut(i, a, k) for i, a in enumerate(arguments)))

    in_pool(part, count)


def in_pool(part: Callable[[int], Any], count: int) -> None:
    """part(0) ... part(count - 1), in as many threads; the first error reaches the caller."""
    waiting = [_pool().submit(part, k) for k in range(1, count)]
    try:
        part(0)
    finally:
        for future in waiting:  # nobody may still be writing when the caller goes on
            future.exception()
    for future in waiting:
        future.result()
