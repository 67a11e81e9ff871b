"""A CUDA graph by CuPy: what a stream is asked to do, captured once and launched again.

What is captured keeps its addresses.  So all memory that is asked for meanwhile comes from a pool
of the graph's own, which nobody else is given a piece of; within the graph a piece is used again as
soon as it is free, since its work has one order.  And nothing may come from the host: CuPy would
copy it by way of pinned memory, which it uses again for something else before the next launch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class Graph:
    """Work on one GPU.

    xp: the module cupy.  stream: one that is not the default one, which only captures.
    """

    def __init__(self, xp: Any, stream: Any):
        self.xp, self.stream = xp, stream
        self.pool = xp.cuda.MemoryPool()
        self._graph: Any = None

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        with self.stream, self.xp.cuda.using_allocator(self.pool.malloc):
            yield

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Inside the block work is done, on the stream that will capture and in its memory.

        Libraries prepare themselves at their first call on a stream, which cannot be captured.
        """
        self.xp.cuda.get_current_stream().synchronize()
        with self._apart():
            yield
            self.stream.synchronize()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Inside the block nothing is done: it is remembered.

        Raises what CUDA or CuPy raise for what cannot be captured; there is nothing to launch then.
        """
        with self._apart(), _nothing_from_the_host(self.xp):
            self.stream.begin_capture()
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # it says once more what was wrong
                    self.stream.end_capture()
                raise
            self._graph = self.stream.end_capture()

    def launch(self) -> None:
        """Do it, on the current stream."""
        self._graph.launch()


@contextlib.contextmanager
def _nothing_from_the_host(xp: Any) -> Iterator[None]:
    """Inside the block CuPy finds no pinned memory for this thread; for others, and afterwards, its
    default pool gives it.
    """
    thread, usual = threading.get_ident(), xp.get_default_pinned_memory_pool().malloc

    def allocate(size: int) -> Any:
        if threading.get_ident() != thread:
            return usual(size)
        raise RuntimeError(f"{size} bytes were to be copied from the host while a stream captures")

    xp.cuda.set_pinned_memory_allocator(allocate)
    try:
        yield
    finally:
        xp.cuda.set_pinned_memory_allocator(usual)
