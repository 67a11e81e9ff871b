"""One peer of the kernels' benchmark, in a process of its own.

    python -m benchmarks._kernel_worker PEER

Answers the driver's requests, one JSON line each: {"do": "prepare", "kernel": ..., "size": [B, D],
"mode": ..., "device": ..., "budget": seconds} builds the calls and warms them up; {"do": "round",
"variant": i} times a round of one.  An error is an answer, {"error": text}.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ._common import allowed_cores
from ._kernel_cases import KERNELS, Kernel

COPIED = 1 << 27  # bytes, far beyond any cache; on a GPU eight times as many
CLOSE = 1.5  # variants slower than this times the fastest are not timed further
COLD = 0.02  # seconds from which a call needs no warm one before it: its arrays exceed the caches
Calls = list[tuple[str, Callable[[], list]]]


class Peer(NamedTuple):
    """The ways to make a call, how to wait for its arrays, and one of them as NumPy's.

    moved: the bytes that a call reads and writes, of a copy.
    """

    calls: Calls
    wait: Callable[[list], Any]
    numpy: Callable[[Any], np.ndarray]
    moved: int = 0


# --------------------------------------------------------------------------- what each peer does
def _tinyvae(kernel: Kernel, B: int, D: int, mode: str, device: str) -> Peer:
    """The call into new memory, and in an arena."""
    from tinyvae_kernels import Arena

    from ._kernel_ours import call

    asarray, numpy, wait = _device(device)
    plain = call(kernel, B, D, mode, asarray=asarray)
    if kernel.in_place:
        return Peer([("", plain)], wait, numpy)
    arena = Arena()

    def in_arena() -> list:
        with arena:
            return plain()

    return Peer([("", plain), ("arena", in_arena)], wait, numpy)


def _device(device: str) -> tuple[Callable, Callable, Callable]:
    """Arrays on a device, arrays back, and how to wait for them; memory of old ones is given up."""
    if device == "cpu":
        return np.asarray, np.asarray, lambda _: None
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    return cupy.asarray, cupy.asnumpy, lambda _: cupy.cuda.get_current_stream().synchronize()


def _torch(
    kernel: Kernel, B: int, D: int, mode: str, device: str, *, compiled: bool = False
) -> Peer:
    import torch

    from ._kernel_torch import calls

    def numpy(a: torch.Tensor) -> np.ndarray:
        return a.detach().cpu().numpy()

    if device == "cuda":
        torch.cuda.empty_cache()
    found = calls(kernel, B, D, mode, device, compiled=compiled)
    return Peer(found, lambda _: device == "cuda" and torch.cuda.synchronize(), numpy)


def _jax(kernel: Kernel, B: int, D: int, mode: str, device: str) -> Peer:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others are on the GPU, too
    import jax

    from ._kernel_jax import calls

    found = jax.default_backend()
    if (found == "gpu") != (device == "cuda"):
        raise RuntimeError(f"JAX runs on {found}, not on {device}")
    return Peer(calls(kernel, B, D, mode, device), jax.block_until_ready, np.asarray)


def _copy(kernel: Kernel, B: int, D: int, mode: str, device: str) -> Peer:
    """No peer: a copy between two arrays that exist, as in STREAM."""
    return _copy_gpu() if device == "cuda" else _copy_cpu(int(os.environ["OMP_NUM_THREADS"]))


@functools.cache
def _copy_cpu(threads: int) -> Peer:
    sources = np.array_split(np.ones(COPIED // 4, np.float32), threads)
    targets = np.array_split(np.ones(COPIED // 4, np.float32), threads)
    cores = iter(allowed_cores())

    def settle() -> None:
        """A core for each thread: left alone, both may stay on one, for half the bandwidth."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {next(cores)})

    pool = ThreadPoolExecutor(threads, initializer=settle)

    def copy() -> list:
        list(pool.map(np.copyto, targets, sources))
        return []

    return Peer([("", copy)], lambda _: None, np.asarray, 2 * COPIED)


@functools.cache
def _copy_gpu() -> Peer:
    import cupy

    source = cupy.ones(8 * COPIED // 4, cupy.float32)
    target = cupy.zeros_like(source)

    def copy() -> list:
        cupy.copyto(target, source)
        return []

    _, numpy, wait = _device("cuda")
    return Peer([("", copy)], wait, numpy, 2 * source.nbytes)


BUILD: dict[str, Callable[..., Peer]] = {  # kernel, B, D, mode, device
    "tinyvae": _tinyvae,
    "torch": _torch,
    "compile": functools.partial(_torch, compiled=True),
    "jax": _jax,
    "copy": _copy,
}


# ------------------------------------------------------------------------------------ the process
def _seconds(peer: Peer, i: int, count: int, device: str) -> float:
    """Per call.  On a CPU each waits for its results, on a GPU the last waits for all."""
    call = peer.calls[i][1]
    found: list = []
    started = time.perf_counter()
    for _ in range(count):
        found = []  # a caller in a loop drops the last results before it makes new ones
        found = call()
        if device == "cpu":
            peer.wait(found)
    peer.wait(found)
    return (time.perf_counter() - started) / count


def _digest(peer: Peer, found: list) -> list[list[float]]:
    """Sum and sum of squares of each array, so that peers can be compared whatever the layout."""
    arrays = [peer.numpy(a).astype(np.float64) for a in found if a is not None]
    return [[float(a.sum()), float((a * a).sum())] for a in arrays]


def _prepare(peer: Peer, i: int, request: dict[str, Any]) -> dict[str, Any]:
    """Make the first call of a variant, warm it up, and guess how long a call takes."""
    name, call = peer.calls[i]
    started = time.perf_counter()
    found = call()
    peer.wait(found)
    first = time.perf_counter() - started
    digest = _digest(peer, found) if request["check"] else None
    found.clear()
    device, budget = request["device"], request["budget"]
    seconds = _seconds(peer, i, 1, device)
    if seconds < budget:
        few = min(20, _count(budget / 4, seconds))
        seconds = min(_seconds(peer, i, few, device) for _ in range(3))
    return {"variant": name, "at": i, "first_s": first, "seconds": seconds, "digest": digest,
            "moved": peer.moved}  # fmt: skip


def _count(budget: float, seconds: float) -> int:
    """How many calls make a round."""
    return int(np.clip(budget / seconds, 1, 2000))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    state = _Process(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: Any = getattr(state, request["do"])(request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")


class _Process:
    """What a process keeps between two requests."""

    def __init__(self, name: str):
        self.name = name
        self.peer: Peer | None = None
        self.prepared: list[dict[str, Any]] = []
        self.device = "cpu"

    def prepare(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The variants that are worth timing."""
        self.peer = None  # the last row's arrays go first
        self.device = request["device"]
        kernel = KERNELS[request["kernel"]]
        peer = BUILD[self.name](kernel, *request["size"], request["mode"], self.device)
        found, errors = [], []
        for i, (name, _) in enumerate(peer.calls):
            try:
                found.append(_prepare(peer, i, request))
            except Exception as error:  # one way may not work in this version
                errors.append(f"{name}: {error}")
                continue
            if self.device == "cuda" and self.name == "compile":
                break  # compiling takes seconds, and there are minutes for all rows
        if not found:
            raise RuntimeError("; ".join(errors))
        self.peer, self.prepared = peer, found
        if self.name != "tinyvae":  # ours are both of interest
            fastest = min(one["seconds"] for one in found)
            self.prepared = [one for one in found if one["seconds"] < CLOSE * fastest]
        return self.prepared

    def round(self, request: dict[str, Any]) -> float:
        """Time a round: ms per call."""
        assert self.peer
        one = self.prepared[request["variant"]]
        if one["seconds"] < COLD:
            _seconds(self.peer, one["at"], 3, self.device)
        count = _count(request["budget"], one["seconds"])
        seconds = _seconds(self.peer, one["at"], count, self.device)
        one["seconds"] = min(one["seconds"], seconds)  # the first guess may have been disturbed
        return 1e3 * seconds


if __name__ == "__main__":
    main()
