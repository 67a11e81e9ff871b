"""One training step - noise, forward, backward, Adam - of tinyvae and its peers, in ms.

    python -m benchmarks.train_step [--cells mlp-128-400 conv-128] [--peers torch jax] [--quick]

Every peer runs in a process of its own, all on the same number of threads; rounds are interleaved:
each peer in turn warms up and times a round of steps while the others sleep.  Float32, the batch
is fixed.  The claim is the ratio of neighbouring rounds, for the milliseconds are this machine's on
that day.  A round during which other programs used the cores is timed again (Linux; --rounds is
the number of undisturbed ones wanted, and a peer gets three times as many tries).  Peers that are
not installed are named and left out.  The floor is the step's matrix products alone, at the best
sgemm rate measured in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import _common
from ._cells import CELLS, QUICK, SIDE, Cell

NEEDS = {
    "tinyvae": ["numba"],
    "torch": ["torch"],
    "compile": ["torch"],
    "jax": ["jax", "optax"],
    "sgemm": [],
}
PEERS = ("torch", "compile", "jax")
REST = 0.15  # seconds between rounds: OpenBLAS threads spin for 0.1 s after their last product
QUIET = 0.1  # of a core: what other programs may use of the cores while a round is timed
TRIES = 3


class Worker:
    """A peer's process, as the driver sees it."""

    def __init__(self, peer: str, threads: int):
        self.peer = peer
        self.cores = _common.allowed_cores()[:threads]
        counts = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
        environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in counts}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._step_worker", peer],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[1], preexec_fn=self._hold,
        )  # fmt: skip

    def _hold(self) -> None:
        """Hold the process to as many cores as threads: JAX sizes its pool by them."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for the answer; RuntimeError if the process ended."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.peer} ended with code {self.process.wait()}, see above")
        return json.loads(line)

    def round(self, variant: int) -> tuple[float, bool]:
        """Time a round: ms per step, and whether nobody else used the cores meanwhile."""
        time.sleep(REST)
        before, started = self._others(), time.perf_counter()
        ms = self.ask(do="round", variant=variant)
        used, seconds = self._others() - before, time.perf_counter() - started
        return ms, used < QUIET * seconds + 0.02  # the kernel counts in hundredths of a second

    def _others(self) -> float:
        """Seconds for which programs other than this one have used the cores, since some time."""
        return _common.busy_seconds(self.cores) - _common.process_seconds(self.process.pid)

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------- measuring
def measure(workers: list[Worker], cell: Cell, rounds: int, budget: float) -> dict[str, Any]:
    """All peers on one cell: every round, their best and median, and the ratios of ours to them."""
    series: dict[tuple[str, int], dict[str, Any]] = {}
    for worker in workers:
        for i, prepared in enumerate(worker.ask(do="prepare", cell=cell, budget=budget)):
            series[worker.peer, i] = prepared | {"ms": [], "quiet": []}
    by_peer = {worker.peer: worker for worker in workers}
    for _ in range(TRIES * rounds):
        for (peer, i), one in series.items():
            ms, quiet = by_peer[peer].round(i)
            one["ms"].append(ms)
            one["quiet"].append(quiet)
        if all(sum(one["quiet"]) >= rounds for one in series.values()):
            break
    for one in series.values():
        counted = [ms for ms, quiet in zip(one["ms"], one["quiet"], strict=True) if quiet]
        one["best_ms"] = min(counted or one["ms"])
        one["median_ms"] = statistics.median(counted or one["ms"])
    return _row(cell, series)


def _row(cell: Cell, series: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """One line of the tables; a peer is represented by its fastest variant."""
    peers: dict[str, dict[str, Any]] = {}
    for (peer, _), one in series.items():
        if peer not in peers or one["median_ms"] < peers[peer]["median_ms"]:
            peers[peer] = one
    rate = 2 * SIDE**3 / peers.pop("sgemm")["best_ms"] * 1e3
    return {
        "peers": peers,
        "ratios": {p: _ratio(peers["tinyvae"], peers[p]) for p in peers if p != "tinyvae"},
        "flops": cell.flops(),
        "sgemm_gflops": rate / 1e9,
        "floor_ms": 1e3 * cell.flops() / rate,
    }


def _ratio(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Ours to the peer's, of rounds that were timed one after the other: median and quartiles."""
    pairs = zip(ours["ms"], peer["ms"], ours["quiet"], peer["quiet"], strict=True)
    found = [(a / b, p and q) for a, b, p, q in pairs]
    ratios = sorted([r for r, quiet in found if quiet] or [r for r, _ in found])
    last = len(ratios) - 1
    return {
        "median": statistics.median(ratios),
        "quartiles": [ratios[round(last * 0.25)], ratios[round(last * 0.75)]],
        "pairs": len(ratios),
    }


# --------------------------------------------------------------------------------------- showing
def show(results: dict[str, Any]) -> str:
    """Three tables: best rounds, median rounds, ratios."""
    peers = list(next(iter(results.values()))["peers"])
    parts = []
    for kind in ("best", "median"):
        header = ["cell", *(f"{peer} ms" for peer in peers), "floor ms"]
        lines = [
            [name, *(row["peers"][p][f"{kind}_ms"] for p in peers), row["floor_ms"]]
            for name, row in results.items()
        ]
        parts.append(f"{kind} round\n" + _common.table(header, lines))
    header = ["cell", *(f"ours / {peer}" for peer in peers[1:]), "undisturbed rounds", "losses"]
    lines = []
    for name, row in results.items():
        ratios = [
            "{:.2f} ({:.2f} to {:.2f})".format(r["median"], *r["quartiles"])
            for r in row["ratios"].values()
        ]
        quiet = min(sum(one["quiet"]) for one in row["peers"].values())
        losses = " ".join(f"{one['loss']:.0f}" for one in row["peers"].values())
        lines.append([name, *ratios, f"{quiet} of {len(row['peers']['tinyvae']['ms'])}", losses])
    about = "ratio of neighbouring rounds, median and quartiles; losses after 10 steps, nats"
    return "\n\n".join([*parts, f"{about}\n" + _common.table(header, lines)])


def _installed(peers: list[str]) -> list[str]:
    found = []
    for peer in ["tinyvae", *peers, "sgemm"]:
        if missing := [name for name in NEEDS[peer] if importlib.util.find_spec(name) is None]:
            print(f"{peer} is left out: {', '.join(missing)} not installed")
        else:
            found.append(peer)
    return found


def main() -> None:
    names = {cell.name: cell for cell in CELLS}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=names, default=list(names), metavar="CELL",
                        help=" ".join(names))  # fmt: skip
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two cells, no compile, 5 rounds")
    parser.add_argument("--out", type=Path, help="where to write a run of some cells or peers")
    options = parser.parse_args()
    complete = set(options.cells) == set(names) and set(options.peers) == set(PEERS)
    cells, budget = [names[name] for name in options.cells], 0.2
    if options.quick:
        complete, cells, options.rounds, budget = False, QUICK, 5, 0.1
        options.peers = [peer for peer in options.peers if peer != "compile"]
    peers, before, results = _installed(options.peers), _common.load(), {}
    with contextlib.ExitStack() as stack:
        workers = [Worker(peer, options.threads) for peer in peers]
        for worker in workers:
            stack.callback(worker.close)
        for cell in cells:
            print(f"{cell.name} ...", file=sys.stderr, flush=True)
            results[cell.name] = measure(workers, cell, options.rounds, budget)
    print(show(results))
    if complete or options.out:
        about = {"dtype": "float32", "threads": options.threads, "rounds": options.rounds,
                 "load": [before, _common.load()], "cells": results}  # fmt: skip
        print("written:", _common.write("train_step", about, options.out))


if __name__ == "__main__":
    main()
