"""Data-parallel steps on one machine: the batch is split into shards, one thread each.

Inside a shard everything is serial, BLAS too; the threads meet once a step, to add up their
gradients.  That beats one thread that calls a threaded BLAS: two pools do not fight, and all that
is not a matrix product runs on all cores as well.  The noise of a step is drawn before the split,
so it does not depend on the number of shards; the sums over the batch do, in the last bits.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from . import devices
from .devices import cores
from .nn import Module

T = TypeVar("T")

# Work of a step, in multiply-adds, from which a second thread pays for waking it.
WORTH_A_THREAD = 4_000_000


def thread_count(network: Module, batch_size: int) -> int:
    """How many threads a step of that size is worth: one for each core, or one if it is small.

    A network that decodes several samples of z for a row says so by `samples`.
    """
    rows = batch_size * getattr(network, "samples", 1)
    work = rows * sum(tensor.size for tensor in network.parameters())
    return max(1, min(cores(), batch_size, work // WORTH_A_THREAD))


def shard_count(network: Module, batch_size: int) -> int:
    """How many shards a step is cut into: as many as it is worth threads.

    One, if the network couples the rows of a batch (`Module.couples_rows`) or lies on a GPU.
    """
    return 1 if network.couples() or on_gpu(network) else thread_count(network, batch_size)


def on_gpu(network: Module) -> bool:
    """Whether the network lies on a GPU, which is one shard, whatever the number of cores."""
    return any(devices.is_device_array(tensor.data) for tensor in network.parameters())


def _groups(sizes: list[int], count: int) -> list[list[int]]:
    """The numbers of all sizes in `count` groups of about the same sum: the largest first."""
    groups: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        min(groups, key=lambda group: sum(sizes[j] for j in group)).append(i)
    return groups


class Shards:
    """A network and its replicas, which share weights and buffers, each with its own gradients."""

    def __init__(self, network: Any, count: int):
        self.networks = [network]
        shared = {id(tensor.data): tensor.data for _, tensor in network.named_state()}
        for _ in range(count - 1):
            self.networks.append(copy.deepcopy(network, dict(shared)))
        self.parameters = [network.parameters() for network in self.networks]
        self.groups = _groups([tensor.size for tensor in self.parameters[0]], count)
        self.pool = ThreadPoolExecutor(count - 1, "tinyvae-shard") if count > 1 else None

    def run(self, step: Callable[[Any, slice], T], rows: int) -> list[T]:
        """step(network, rows of the batch) for each shard, at the same time.

        Gradients that the steps left in their networks end up, summed, in the first one.
        An exception in a shard reaches the caller.
        """
        results = self.scatter(step, rows)
        if len(results) > 1:
            self.each(self._sum_gradients)
        return results

    def scatter(self, step: Callable[[Any, slice], T], rows: int) -> list[T]:
        """step(network, rows of the batch) for each shard; the gradients stay where they are."""
        count = min(len(self.networks), rows)
        cuts = [rows * k // count for k in range(count + 1)]
        return self.at_once(
            [functools.partial(step, self.networks[k], slice(cuts[k], cuts[k + 1]))
             for k in range(count)]
        )  # fmt: skip

    def at_once(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of all functions: the first runs in this thread, the others in the pool."""
        waiting = [self._submit(function) for function in functions[1:]]
        try:
            results = [functions[0]()]
        finally:
            for future in waiting:  # nobody may still be working when the caller goes on
                future.exception()
        return results + [future.result() for future in waiting]

    def each(self, function: Callable[[int], Any]) -> None:
        """function(i) for the numbers i of all parameters, shared out to the threads by size."""

        def run(numbers: list[int]) -> None:
            for i in numbers:
                function(i)

        self.at_once([functools.partial(run, numbers) for numbers in self.groups])

    def _submit(self, function: Callable, *arguments: Any) -> Future:
        """Run on another thread, with the caller's kernel backend and NumPy error state."""
        assert self.pool is not None
        return self.pool.submit(contextvars.copy_context().run, function, *arguments)

    def _sum_gradients(self, i: int) -> None:
        """Add the replicas' gradients of parameter i to the first network's."""
        tensor, *others = (parameters[i] for parameters in self.parameters)
        for other in others:
            if tensor.grad is None:
                tensor.grad = other.grad
            elif other.grad is not None:
                np.add(tensor.grad, other.grad, out=tensor.grad)
            other.grad = None

    def close(self) -> None:
        """Let the threads end."""
        if self.pool is not None:
            self.pool.shutdown()


@contextlib.contextmanager
def serial(*, kernels: bool = True) -> Iterator[None]:
    """Inside the block BLAS and each kernel run on one thread: the shards are the threads.

    kernels: False leaves the kernels their threads, in a step of one shard that is worth them; for
    BLAS there are only the small products of a GRU then, and its waiting threads spin.  An epoch
    of a VQ-VAE on the digits (EPYC, two cores) takes 0.11 s with one thread or two, but beside one
    busy program 0.10 s with one, 0.17 to 0.39 with two.
    """
    from threadpoolctl import threadpool_limits

    threads = devices.threads(1) if kernels else contextlib.nullcontext()
    with threadpool_limits(1, user_api="blas"), threads:
        yield
