"""An epoch over MNIST with its data - shuffle, gather, binarize, step - of tinyvae and its peers.

    python -m benchmarks.train_epoch [--data-dir FOLDER] [--peers torch jax] [--rows 60000]

B = 128, the MLP of 400 units and the convolutional VAE of `benchmarks.train_step`.  Every peer runs
in a process of its own on the same number of threads and holds all pixels in memory as bytes; a
round is one epoch each, in turn, after a first epoch that compiles.  Without the folder of the
MNIST files the pixels are random, which costs the same.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from . import _common
from ._cells import CELLS, Cell
from ._workers import Worker, installed, ratio, summarize

NEEDS = {"tinyvae": ["numba"], "torch": ["torch"], "compile": ["torch"], "jax": ["jax", "optax"]}
PEERS = ("torch", "compile", "jax")
TIMED = [cell for cell in CELLS if cell.name in ("mlp-128-400", "conv-128")]


def measure(workers: list[Worker], cell: Cell, rounds: int, **data: Any) -> dict[str, Any]:
    """Every epoch of all peers on one cell, and the ratios of ours to them."""
    series: dict[tuple[str, int], dict[str, Any]] = {}
    for worker in workers:
        for i, prepared in enumerate(worker.ask(do="prepare", cell=cell, **data)):
            series[worker.peer, i] = prepared | {"ms": [], "quiet": []}
    by_peer = {worker.peer: worker for worker in workers}
    for _ in range(rounds):
        for (peer, i), one in series.items():
            ms, quiet = by_peer[peer].round(i)
            one["ms"].append(ms)
            one["quiet"].append(quiet)
    peers: dict[str, dict[str, Any]] = {}
    for (peer, _), one in series.items():
        summarize(one)
        if peer not in peers or one["median_ms"] < peers[peer]["median_ms"]:
            peers[peer] = one
    ratios = {p: ratio(peers["tinyvae"], peers[p]) for p in peers if p != "tinyvae"}
    return {"peers": peers, "ratios": ratios}


def show(results: dict[str, Any]) -> str:
    """Seconds of the median epoch, and the ratios."""
    peers = list(next(iter(results.values()))["peers"])
    header = ["epoch", *(f"{peer} s" for peer in peers), *(f"ours / {peer}" for peer in peers[1:])]
    lines = [
        [name, *(row["peers"][p]["median_ms"] / 1e3 for p in peers)]
        + ["{:.2f} ({:.2f} to {:.2f})".format(r["median"], *r["quartiles"])
           for r in row["ratios"].values()]
        for name, row in results.items()
    ]  # fmt: skip
    return _common.table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="folder of the four MNIST files")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    peers = installed(["tinyvae", *options.peers], NEEDS)
    before, results = _common.load(), {}
    with contextlib.ExitStack() as stack:
        workers = [Worker("benchmarks._epoch_worker", peer, options.threads) for peer in peers]
        for worker in workers:
            stack.callback(worker.close)
        for cell in TIMED:
            print(f"{cell.name} ...", file=sys.stderr, flush=True)
            data = {"data_dir": options.data_dir, "rows": options.rows}
            results[cell.name] = measure(workers, cell, options.rounds, **data)
    print(show(results))
    if options.rows == 60_000 and set(options.peers) == set(PEERS):
        about = {
            "dtype": "float32", "threads": options.threads, "rounds": options.rounds,
            "data": "MNIST" if options.data_dir else "random bytes",
            "load": [before, _common.load()], "cells": results,
        }  # fmt: skip
        print("written:", _common.write("train_epoch", about))


if __name__ == "__main__":
    main()
