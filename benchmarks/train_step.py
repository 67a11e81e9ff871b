"""One training step - noise, forward, backward, Adam - of tinyvae and its peers, in ms.

    python -m benchmarks.train_step [--cells mlp-128-400 conv-128] [--peers torch jax] [--quick]

Every peer runs in a process of its own, all on the same number of threads; rounds are interleaved:
each peer in turn warms up and times a round of steps while the others sleep.  Float32, the batch
is fixed.  The claim is the ratio; the milliseconds are this machine's on that day.  Peers that are
not installed are named and left out.  The floor is the step's matrix products alone, at the best
sgemm rate measured in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import _common
from ._cells import CELLS, CHANNELS, QUICK, Cell, Z

NEEDS = {
    "tinyvae": ["numba"],
    "torch": ["torch"],
    "compile": ["torch"],
    "jax": ["jax", "optax"],
    "sgemm": [],
}
PEERS = ("torch", "compile", "jax")
REST = 0.15  # seconds between rounds: OpenBLAS threads spin for 0.1 s after their last product
SIDE = 1536  # of the square matrices that measure sgemm
CHECKED = 10  # steps after which losses are compared: all peers must learn the same thing
Variants = list[tuple[str, Callable]]  # a name, and a function that does a step: its loss


# --------------------------------------------------------------------------- what each peer does
def _tinyvae(cell: Cell, stack: contextlib.ExitStack) -> Variants:
    """The very step that tinyvae.train runs, on one batch again and again."""
    from tinyvae import likelihoods, optim, schedules, train
    from tinyvae.models import vae

    x = cell.data() if cell.architecture == "conv" else cell.data().reshape(cell.batch, -1)
    network = vae.build(
        cell.architecture, x.shape[1:], Z, hidden=(cell.hidden,), channels=CHANNELS, outputs=1,
        activation="relu", seed=0,
    )  # fmt: skip
    optimizer = optim.Adam(network.parameters(), 1e-3)
    settings = train.Settings(
        latent_dim=Z, epochs=1, batch_size=cell.batch, learning_rate=schedules.Constant(1e-3),
        kl_weight=schedules.Constant(1.0), seed=0,
    )  # fmt: skip
    update = train.Step(network, likelihoods.Bernoulli(), optimizer, settings)
    stack.enter_context(update)

    def step() -> float:
        nll, kl, _ = update(x)
        return float(nll.sum() + kl.sum()) / cell.batch

    return [("", step)]


def _torch(cell: Cell, _: contextlib.ExitStack, *, compiled: bool = False) -> Variants:
    """Eager or compiled; for images in both memory layouts, of which the faster one counts."""
    import torch

    from ._torch_vae import training_step

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    layouts = [("", False)]
    if cell.architecture == "conv":
        layouts = [("contiguous", False), ("channels_last", True)]
    return [
        (name, training_step(cell, cell.data(), compiled=compiled, channels_last=last))
        for name, last in layouts
    ]


def _jax(cell: Cell, _: contextlib.ExitStack) -> Variants:
    from ._jax_vae import training_step

    return [("", training_step(cell, cell.data()))]


def _sgemm(cell: Cell, _: contextlib.ExitStack) -> Variants:
    """No peer: the best rate of a large matrix product, the same for every cell."""
    a, out = np.ones((SIDE, SIDE), np.float32), np.empty((SIDE, SIDE), np.float32)

    def step() -> float:
        np.matmul(a, a, out=out)
        return float(out[0, 0])

    return [("", step)]


BUILD: dict[str, Callable[[Cell, contextlib.ExitStack], Variants]] = {
    "tinyvae": _tinyvae,
    "torch": _torch,
    "compile": functools.partial(_torch, compiled=True),
    "jax": _jax,
    "sgemm": _sgemm,
}


# ----------------------------------------------------------------------------------- the workers
def _seconds(step: Callable, count: int) -> float:
    """Per step; float() waits for a loss that is still being computed."""
    started = time.perf_counter()
    for _ in range(count):
        loss = step()
    float(loss)
    return (time.perf_counter() - started) / count


def _prepare(peer: str, cell: Cell, budget: float, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Build the cell, warm it up, keep the fastest variant; `step` and `count` are for _round."""
    best: dict[str, Any] = {"seconds": np.inf}
    for variant, step in BUILD[peer](cell, stack):
        first = _seconds(step, 1)
        for _ in range(CHECKED - 1):
            loss = step()
        loss = float(loss)
        seconds = min(_seconds(step, 5) for _ in range(5))
        if seconds < best["seconds"]:
            best = {"variant": variant, "step": step, "seconds": seconds, "loss": loss}
            best["first"] = first
    best["count"] = int(np.clip(budget / best["seconds"], 3, 300))
    return best


def _work(peer: str) -> None:
    """Answer the driver's requests, one JSON line each, until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    work, stack = {}, contextlib.ExitStack()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            work = {}  # the last cell's arrays and threads go first
            stack.close()
            work = _prepare(peer, Cell(*request["cell"]), request["budget"], stack)
            answer = {key: work[key] for key in ("variant", "first", "loss", "count")}
        else:
            _seconds(work["step"], 3)
            answer = {"ms": 1e3 * _seconds(work["step"], work["count"])}
        answers.write(json.dumps(answer) + "\n")


class Worker:
    """A peer's process, as the driver sees it."""

    def __init__(self, peer: str, threads: int):
        self.peer = peer
        counts = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
        environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in counts}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--worker", peer],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[1],
            preexec_fn=lambda: _use_cores(threads),
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer; RuntimeError if the process ended."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.peer} ended with code {self.process.wait()}, see above")
        return json.loads(line)

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def _use_cores(threads: int) -> None:
    """Hold a process to as many cores as threads: JAX sizes its pool by them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


# ------------------------------------------------------------------------------------ the driver
def measure(workers: list[Worker], cell: Cell, rounds: int, budget: float) -> dict[str, Any]:
    """All peers on one cell: best, median and every round, in ms per step."""
    row: dict[str, Any] = {"flops": cell.flops(), "peers": {}}
    for worker in workers:
        answer = worker.ask(do="prepare", cell=cell, budget=budget)
        row["peers"][worker.peer] = answer | {"rounds_ms": []}
    for _ in range(rounds):
        for worker in workers:
            time.sleep(REST)
            row["peers"][worker.peer]["rounds_ms"].append(worker.ask(do="round")["ms"])
    for result in row["peers"].values():
        result["best_ms"] = min(result["rounds_ms"])
        result["median_ms"] = statistics.median(result["rounds_ms"])
    rate = 2 * SIDE**3 / row["peers"].pop("sgemm")["best_ms"] * 1e3
    row["sgemm_gflops"] = rate / 1e9
    row["floor_ms"] = 1e3 * cell.flops() / rate
    return row


def show(results: dict[str, Any], kind: str) -> str:
    """The table of best or median rounds."""
    peers = list(next(iter(results.values()))["peers"])
    header = ["cell", *(f"{peer} ms" for peer in peers), "floor ms", "ours / best peer", "spread"]
    lines = []
    for name, row in results.items():
        times = {peer: row["peers"][peer][f"{kind}_ms"] for peer in peers}
        others = [times[peer] for peer in peers if peer != "tinyvae"]
        ratio = times["tinyvae"] / min(others) if others else None
        noise = max(r["median_ms"] / r["best_ms"] for r in row["peers"].values())
        lines.append([name, *times.values(), row["floor_ms"], ratio, f"{100 * (noise - 1):.0f}%"])
    return f"{kind} round\n" + _common.table(header, lines)


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker)
        return
    complete = set(options.cells) == set(names) and set(options.peers) == set(PEERS)
    cells, budget = [names[name] for name in options.cells], 0.2
    if options.quick:
        complete, cells, options.rounds, budget = False, QUICK, 5, 0.1
        options.peers = [peer for peer in options.peers if peer != "compile"]
    peers, before = _installed(options.peers), _common.load()
    workers, results = [Worker(peer, options.threads) for peer in peers], {}
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.close)
        for cell in cells:
            print(f"{cell.name} ...", file=sys.stderr, flush=True)
            results[cell.name] = measure(workers, cell, options.rounds, budget)
    print(show(results, "best"), show(results, "median"), sep="\n\n")
    print(f"\nspread: the noisiest peer's median over its best\n\nloss after {CHECKED} steps, nats")
    lines = [[n, *(p["loss"] for p in row["peers"].values())] for n, row in results.items()]
    print(_common.table(["cell", *peers[:-1]], lines))
    if complete or options.out:
        about = {"dtype": "float32", "threads": options.threads, "rounds": options.rounds,
                 "load": [before, _common.load()], "cells": results}  # fmt: skip
        print("written:", _common.write("train_step", about, options.out))


if __name__ == "__main__":
    main()
