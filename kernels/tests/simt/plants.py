"""Planted mistakes: each must be found by the checkers named, its correct twin by none.

`python -m simt.plants BUILD` runs all of plants.cu in one build of the shim, each in a process of
its own, since a sanitizer ends the process, and prints who found what as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from . import build
from .device import allocate

N, THREADS = 64, 64
ZERO = np.float32(0)

# Checkers: `result`: wrong numbers in some order of threads; `error`: the shim's scheduler;
# `address`, `undefined`, `thread`: the sanitizers; `crash`: a signal in the plain build.
FOUND_BY = {
    "read_out_of_bounds": {"address"},
    "write_out_of_bounds": {"address"},
    "shared_out_of_bounds": {"undefined"},
    "dynamic_shared_out_of_bounds": {"address"},
    "read_before_barrier": {"result", "thread"},
    "write_before_barrier": {"result", "thread"},
    "missing_syncwarp": {"result", "thread"},
    "barrier_in_branch": {"error"},
    "barrier_after_return": {"error"},
    "mask_too_wide": {"error"},
    "mask_too_narrow": {"error"},
    "value_of_absent_lane": {"result"},
    "misaligned_pack": {"undefined"},
    "two_writers": {"result", "thread"},
    "two_writing_blocks": {"result", "thread"},
    "uninitialised_shared": {"result"},
    "unwritten_output": {"result"},
    "index_overflow": {"undefined"},
}


def expected(name: str, x: np.ndarray) -> np.ndarray:
    """What the correct twin computes."""
    pairs = x.reshape(2, 2, 2, 8)  # warps, halves, and 8 lanes beside 8
    wanted: dict[str, Callable[[], np.ndarray]] = {
        "read_out_of_bounds": lambda: x + np.append(x[1:], ZERO),
        "read_before_barrier": lambda: x[::-1],
        "write_before_barrier": lambda: np.full(N, (1 + 2 + 3 + 4) * x.sum()),
        "missing_syncwarp": lambda: x.reshape(2, 32)[:, ::-1].reshape(N),
        "barrier_in_branch": lambda: x[::-1],
        "barrier_after_return": lambda: np.where(np.arange(N) < N - 3, x, ZERO),
        "mask_too_wide": lambda: (pairs + pairs[:, :, ::-1] * [[[[1]], [[0]]]]).reshape(N),
        "mask_too_narrow": lambda: (pairs + pairs[:, :, ::-1]).reshape(N),
        "misaligned_pack": lambda: np.where(np.arange(N) < N - 4, x, ZERO),
        "uninitialised_shared": lambda: np.full(N, x[0]),
    }
    wanted["value_of_absent_lane"] = wanted["mask_too_wide"]
    return wanted.get(name, lambda: x)()


def instance(name: str, planted: bool) -> str:
    """Its name in C++."""
    return f"tinyvae::{name}<{str(planted).lower()}>"


def run(name: str, planted: bool, order: str, library: build.Library) -> str:
    """One launch: "" if all is well, else `result` or `error`, unless a sanitizer ends it all."""
    x, y = (allocate((N,), np.float32) for _ in range(2))
    x[:] = np.random.default_rng(0).integers(1, 9, N)  # their sums are exact
    blocks = 2 if name == "two_writing_blocks" else 1
    shared = 4 * THREADS if name.startswith("dynamic") else 0
    arguments = (np.uintp(x.ctypes.data), np.uintp(y.ctypes.data), np.int64(N))
    try:
        function = build.Function(library, instance(name, planted), order, seed=1)
        function((blocks,), (THREADS,), arguments, shared_mem=shared)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return "error"
    return "" if np.array_equal(y, expected(name, x)) else "result"


# ---------------------------------------------------------------------- one process for each run
EXITS = {"": 0, "result": 40, "error": 41}
REPORTS = {
    "ERROR: AddressSanitizer": "address",
    "runtime error:": "undefined",
    "WARNING: ThreadSanitizer": "thread",
}


def finding(name: str, planted: bool, order: str, library: build.Library) -> tuple[str, str]:
    """Who found something in a run of its own, or "", and what was said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), sys.stderr.fileno())
            signal.setitimer(signal.ITIMER_PROF, 20)  # of its own work, however busy the machine
            os._exit(EXITS[run(name, planted, order, library)])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        text = said.read().decode(errors="replace")
    for found, exit_code in EXITS.items():
        if status == exit_code:
            return found, text
    return next((who for mark, who in REPORTS.items() if mark in text), "crash"), text


def main() -> None:
    """Print {instance: {who: what was said}} for all plants and twins, in all orders."""
    names = [instance(name, planted) for name in FOUND_BY for planted in (True, False)]
    library = build.Library("plants.cu", names, sys.argv[1])
    run("two_writing_blocks", False, "forward", library)  # makes the fibers once, before the forks
    findings: dict[str, dict[str, str]] = {}
    for name in FOUND_BY:
        for planted in (True, False):
            found = findings[instance(name, planted)] = {}
            for order in build.ORDERS:
                who, text = finding(name, planted, order, library)
                if who:
                    found[who] = text
                    break
    json.dump(findings, sys.stdout)


if __name__ == "__main__":
    main()
