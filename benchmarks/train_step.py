"""One training step - noise, forward, backward, Adam - of tinyvae and its peers, in ms.

    python -m benchmarks.train_step [--cells mlp-128-400 conv-128] [--peers torch jax] [--quick]

Every peer runs in a process of its own, all on the same number of threads; rounds are interleaved:
each peer in turn warms up and times a round of steps while the others sleep.  Float32, the batch
is fixed.  The claim is the ratio of neighbouring rounds, for the milliseconds are this machine's on
that day.  A round during which other programs used the cores is timed again (Linux; --rounds is
the number of undisturbed ones wanted, and a peer gets three times as many tries).  Peers that are
not installed are named and left out.  The floor is the step's matrix products at the best sgemm
rate plus the bytes it moves at the copy bandwidth, both measured in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from . import _common
from ._cells import CELLS, MOVED, QUICK, SIDE, Cell
from ._workers import Worker, installed, ratio, summarize

NEEDS = {
    "tinyvae": ["numba"],
    "torch": ["torch"],
    "compile": ["torch"],
    "jax": ["jax", "optax"],
    "sgemm": [],
    "copy": [],
}
PEERS = ("torch", "compile", "jax")
TRIES = 3


# ------------------------------------------------------------------------------------- measuring
def measure(
    workers: list[Worker], cell: Cell, place: dict[str, str], rounds: int, budget: float
) -> dict[str, Any]:
    """All peers on one cell: every round, their best and median, and the ratios of ours to them.

    place: the device and the precision.  A peer whose process ends is left out of the cell.
    """
    request = {"do": "prepare", "cell": cell, "budget": budget} | place
    series: dict[tuple[str, int], dict[str, Any]] = {}
    failed = {}
    for worker in workers:
        try:
            answers = worker.ask(**request)
        except RuntimeError as error:
            if worker.peer not in PEERS:
                raise
            failed[worker.peer] = str(error)
            worker.start()
            continue
        for i, prepared in enumerate(answers):
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
        summarize(one)
    return _row(cell, series) | ({"failed": failed} if failed else {})


def _row(cell: Cell, series: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """One line of the tables; a peer is represented by its fastest variant."""
    peers: dict[str, dict[str, Any]] = {}
    ours = {one["variant"]: one for (peer, _), one in series.items() if peer == "tinyvae"}
    for (peer, _), one in series.items():
        if peer not in peers or one["median_ms"] < peers[peer]["median_ms"]:
            peers[peer] = one
    rate = 2 * SIDE**3 / peers.pop("sgemm")["best_ms"] * 1e3
    bandwidth = 8 * MOVED / peers.pop("copy")["best_ms"] * 1e3
    floor = 1e3 * (cell.flops() / rate + cell.bytes() / bandwidth)
    ratios = {p: ratio(peers["tinyvae"], peers[p]) for p in peers if p != "tinyvae"}
    return captured(ours) | {
        "peers": peers,
        "ratios": ratios,
        "best_peer": max(ratios, key=lambda p: ratios[p]["median"]) if ratios else None,
        "flops": cell.flops(),
        "sgemm_gflops": rate / 1e9,
        "bytes": cell.bytes(),
        "copy_gb_s": bandwidth / 1e9,
        "floor_ms": floor,
        "of_floor": peers["tinyvae"]["best_ms"] / floor,
    }


def captured(ours: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Our captured step beside the uncaptured one: whether it was, the same losses, the times."""
    if "captured" not in ours:
        return {}
    one, other = ours["captured"], ours["uncaptured"]
    return {
        "captured": {
            "states": one["states"],
            "same_loss": one["loss"] == other["loss"],
            "median_ms": one["median_ms"],
            "uncaptured_ms": other["median_ms"],
        }
    }


# --------------------------------------------------------------------------------------- showing
def show(results: dict[str, Any]) -> str:
    """Three tables: best rounds, median rounds, ratios."""
    peers = list(dict.fromkeys(p for row in results.values() for p in row["peers"]))
    parts = []
    for kind in ("best", "median"):
        header = ["cell", *(f"{peer} ms" for peer in peers), "floor ms"]
        lines = [
            [
                name,
                *(row["peers"].get(p, {}).get(f"{kind}_ms", "failed") for p in peers),
                row["floor_ms"],
            ]
            for name, row in results.items()
        ]
        parts.append(f"{kind} round\n" + _common.table(header, lines))
    header = ["cell", *(f"ours / {peer}" for peer in peers[1:]), "/ floor", "undisturbed", "losses"]
    lines = []
    for name, row in results.items():
        ratios = [
            "{:.2f} ({:.2f} to {:.2f})".format(r["median"], *r["quartiles"]) if r else "failed"
            for r in (row["ratios"].get(peer) for peer in peers[1:])
        ]
        quiet = min(sum(one["quiet"]) for one in row["peers"].values())
        losses = " ".join(f"{one['loss']:.0f}" for one in row["peers"].values())
        undisturbed = f"{quiet} of {len(row['peers']['tinyvae']['ms'])}"
        lines.append([name, *ratios, row["of_floor"], undisturbed, losses])
    about = "ratio of neighbouring rounds, median and quartiles; losses after 10 steps, nats"
    parts += [f"{about}\n" + _common.table(header, lines), show_captured(results)]
    return "\n\n".join(filter(None, [*parts, summary(results)]))


def show_captured(results: dict[str, Any]) -> str:
    """What capturing the step gained, and whether it was right; empty on the CPU."""
    header = ["cell", "captured ms", "uncaptured ms", "state", "losses"]
    lines = [
        [name, c["median_ms"], c["uncaptured_ms"], " ".join(c["states"]),
         "the same" if c["same_loss"] else "DIFFERENT"]
        for name, row in results.items() if (c := row.get("captured"))
    ]  # fmt: skip
    return "ours, captured as a graph or not\n" + _common.table(header, lines) if lines else ""


def wrong(results: dict[str, Any]) -> list[str]:
    """The cells whose captured step was not captured, or gave other losses."""
    return [
        name
        for name, row in results.items()
        if (c := row.get("captured")) and not (c["same_loss"] and c["states"] == ["ready"])
    ]


def summary(results: dict[str, Any]) -> str:
    """Where ours is the fastest, and by how much in the geometric mean over the cells."""
    to_best = {
        name: row["ratios"][row["best_peer"]]["median"]
        for name, row in results.items()
        if row["best_peer"]
    }
    if not to_best:
        return ""
    faster = [1 / ratio for ratio in to_best.values()]
    slower = [name for name, ratio in to_best.items() if ratio >= 1]
    mean = statistics.geometric_mean(faster)
    text = f"{mean:.2f} times as fast as the best peer, geometric mean of {len(faster)} cells"
    return text + (
        f"; not the fastest at {', '.join(slower)}" if slower else "; the fastest in all"
    )


def arguments() -> argparse.Namespace:
    names = [cell.name for cell in CELLS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=names, default=names, metavar="CELL",
                        help=" ".join(names))  # fmt: skip
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32",
                        help="of matrix products, on a GPU")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two cells, no compile, 5 rounds")
    parser.add_argument("--budget", type=float, default=math.inf,
                        help="seconds, after which no cell is begun")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write a run of some cells or peers")
    return parser.parse_args()


def run(options: argparse.Namespace, cells: list[Cell], seconds: float) -> dict[str, Any]:
    """All cells, each written as soon as it is done: what goes into the result file."""
    place = {"device": options.device, "precision": options.precision}
    about = {"dtype": "float32", **place, "threads": options.threads, "rounds": options.rounds,
             "load": [_common.load()], "cells": {}, "left_out": []}  # fmt: skip
    peers = installed(["tinyvae", *options.peers, "sgemm", "copy"], NEEDS)
    end = time.monotonic() + options.budget
    with contextlib.ExitStack() as stack:
        workers = [Worker("benchmarks._step_worker", peer, options.threads) for peer in peers]
        for worker in workers:
            stack.callback(worker.close)
        for cell in cells:
            if time.monotonic() > end:
                about["left_out"].append(cell.name)
                continue
            print(f"{cell.name} ...", file=sys.stderr, flush=True)
            about["cells"][cell.name] = measure(workers, cell, place, options.rounds, seconds)
            if options.out:
                _common.write("train_step", about, options.out)
    about["load"].append(_common.load())
    return about


def main() -> int:
    options, budget = arguments(), 0.2
    by_name = {cell.name: cell for cell in CELLS}
    complete = set(options.cells) == set(by_name) and set(options.peers) == set(PEERS)
    complete = complete and options.device == "cpu"
    cells = [by_name[name] for name in options.cells]
    if options.quick:
        complete, cells, options.rounds, budget = False, QUICK, 5, 0.1
        options.peers = [peer for peer in options.peers if peer != "compile"]
    about = run(options, cells, budget)
    results = about["cells"]
    if about["left_out"]:
        print("left out for want of time:", " ".join(about["left_out"]))
    if not results:
        return 1
    print(show(results))
    if complete or options.out:
        print("written:", _common.write("train_step", about, options.out))
    if bad := wrong(results):
        print("not captured, or with other losses:", " ".join(bad))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
