"""Each kernel, value alone and value with gradients, beside PyTorch, torch.compile and JAX.

    python -m benchmarks.kernels [--device cuda] [--only bernoulli_elbo im2col] [--rounds 7]

Every peer runs in a process of its own, all on the same number of threads and the same float32
numbers; rounds are interleaved, and the claim is the ratio of neighbouring rounds.  "gradient"
means value and gradients for an incoming gradient that is given.  GB/s counts what must be moved,
every input read once and every output written once; beside it stands what a copy reached in the
same rounds, from one array of 128 MB to another on all threads.  Sizes whose arrays fit a cache may
exceed that.  A peer is represented by the fastest of the ways to write it.  Ours is the plain call,
whose results are new memory, as the peers' are; beside it the same call in an `Arena`, which uses
the results' memory again, as a copy to an array that exists does: GB/s are of that one.  On a GPU
calls are queued, and a round ends when the last is done: small sizes measure launching.

The C library of the machine decides what new memory costs, and for large arrays that is most of it:
NumPy asks for huge pages by itself, PyTorch and JAX do not.  GLIBC_TUNABLES=glibc.malloc.hugetlb=1
in the environment gives them to all.

With --budget the less important rows are left out rather than the time exceeded, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinyvae_kernels

from . import _common
from ._kernel_cases import GPU_SIZES, KERNELS, SIZES, Kernel, missing, there
from ._workers import Worker, installed, ratio, summarize

NEEDS = {"torch": ["torch"], "compile": ["torch"], "jax": ["jax"]}
PEERS = tuple(NEEDS)
TRIES = 2  # times the rounds, until enough of them were undisturbed
CHECKED = SIZES[0]  # the size at which all peers' results are compared
TOLERANCE = 1e-3  # of sums over whole arrays, in float32 and in other orders

Row = dict[str, Any]
Plan = list[tuple[Kernel, tuple[int, int], str]]


# ------------------------------------------------------------------------------------- measuring
def measure(
    workers: list[Worker], kernel: Kernel, size: tuple[int, int], mode: str, settings: Row
) -> Row:
    """One row: every round of every peer, and what is derived from them."""
    request: Row = {"do": "prepare", "kernel": kernel.name, "size": size, "mode": mode}
    request |= {"device": settings["device"], "budget": settings["round_s"]}
    request |= {"check": size == CHECKED and not kernel.random}
    errors: dict[str, str] = {}
    series: dict[tuple[str, int], Row] = {}
    for worker, answer in _prepared(workers, request, settings["device"]):
        if "error" in answer:
            errors[worker.peer] = answer["error"]
            continue
        for i, prepared in enumerate(answer):
            series[worker.peer, i] = prepared | {"ms": [], "quiet": []}
    by_peer = {worker.peer: worker for worker in workers}
    for _ in range(TRIES * settings["rounds"]):
        for (peer, i), one in series.items():
            ms, quiet = by_peer[peer].round(i, budget=settings["round_s"])
            one["ms"].append(ms)
            one["quiet"].append(quiet)
        if all(sum(one["quiet"]) >= settings["rounds"] for one in series.values()):
            break
    return _row(kernel, size, mode, series) | {"errors": errors}


def _prepared(workers: list[Worker], request: Row, device: str) -> list[tuple[Worker, Any]]:
    """Their answers; on a GPU machine they compile at the same time, else one after the other."""
    if device == "cuda":
        for worker in workers:
            worker.send(**request)
        return [(worker, _answer(worker)) for worker in workers]
    answers = []
    for worker in workers:
        worker.send(**request)
        answers.append((worker, _answer(worker)))
    return answers


def _answer(worker: Worker) -> Any:
    """Its answer; where the process died of the request, a new one stands ready for the next."""
    try:
        return worker.answer()
    except RuntimeError as error:
        worker.start()
        return {"error": str(error)}


def _row(
    kernel: Kernel, size: tuple[int, int], mode: str, series: dict[tuple[str, int], Row]
) -> Row:
    """Times, ratios to the peers, GB/s and the part of a copy's that they are."""
    peers: dict[str, Row] = {}
    for (peer, _), one in series.items():
        summarize(one)
        peer = "arena" if one["variant"] == "arena" else peer
        if peer not in peers or one["median_ms"] < peers[peer]["median_ms"]:
            peers[peer] = one
    row: Row = {"kernel": kernel.name, "size": list(size), "mode": mode, "note": kernel.note}
    row |= {"bytes": kernel.bytes(*size, mode), "peers": {p: _kept(peers[p]) for p in peers}}
    copy, ours, arena = (peers.pop(name, None) for name in ("copy", "tinyvae", "arena"))
    if copy:
        row["copy_gbs"] = copy["moved"] / copy["median_ms"] / 1e6
    if not ours:
        return row
    row["gbs"] = row["bytes"] / (arena or ours)["median_ms"] / 1e6
    if copy:
        row["of_copy"] = row["gbs"] / row["copy_gbs"]
    row["ratios"] = {p: ratio(ours, one) for p, one in peers.items()}
    row["disagree"] = [p for p, one in peers.items() if not _agree(ours["digest"], one["digest"])]
    if peers:
        row["best_peer"] = max(peers, key=lambda p: row["ratios"][p]["median"])
        row["to_best"] = row["ratios"][row["best_peer"]]["median"]
    return row


def _kept(one: Row) -> Row:
    """What of a peer's rounds goes into the file."""
    names = ("variant", "first_s", "best_ms", "median_ms")
    return {n: one[n] for n in names} | {"rounds": len(one["ms"]), "quiet": sum(one["quiet"])}


def _agree(ours: Any, theirs: Any) -> bool:
    """Whether sums and sums of squares of all results are alike: the same work was done."""
    if ours is None or theirs is None:
        return True
    if len(ours) != len(theirs):
        return False
    return all(
        abs(a[0] - b[0]) <= TOLERANCE * (abs(a[0]) + a[1] ** 0.5)
        and abs(a[1] - b[1]) <= TOLERANCE * a[1]
        for a, b in zip(ours, theirs, strict=True)
    )


# --------------------------------------------------------------------------------------- showing
def name_of(row: Row) -> str:
    return f"{row['kernel']} {row['mode']} {row['size'][0]}x{row['size'][1]}"


def show(rows: list[Row], peers: list[str]) -> str:
    """Medians in ms; the ratio is below 1 where ours is faster."""
    header = ["kernel", "", "B x D", "ours ms", "best", "arena", *(f"{p} ms" for p in peers)]
    header += ["ours / best peer", "", "GB/s", "copy", "of copy", "shape"]
    lines = []
    for row in rows:
        ours, size = row["peers"].get("tinyvae", {}), "{}x{}".format(*row["size"])
        others = [row["peers"].get(p, {}).get("median_ms") for p in peers]
        lines.append([
            row["kernel"], row["mode"], size, ours.get("median_ms"), ours.get("best_ms"),
            row["peers"].get("arena", {}).get("median_ms"), *others,
            row.get("to_best"), row.get("best_peer"), row.get("gbs"), row.get("copy_gbs"),
            row.get("of_copy"), row["note"],
        ])  # fmt: skip
    parts = [_common.table(header, lines)]
    for row in rows:
        parts += [f"{name_of(row)}: {peer} failed: {e}" for peer, e in row["errors"].items()]
        if row.get("disagree"):
            parts.append(f"{name_of(row)}: {', '.join(row['disagree'])} found other results")
    return "\n".join(parts)


# --------------------------------------------------------------------------------------- targets
def verdicts(rows: list[Row], device: str, left_out: int = 0) -> list[tuple[bool, str]]:
    """What was promised, and whether these rows keep it.

    What is said of every kernel is not kept while rows are left out, and so far only not broken.
    """
    rows = [row for row in rows if "to_best" in row]
    if not rows:
        return []
    if device == "cpu":
        return [*_cpu_verdicts(rows), _no_slower(rows, PEERS, left_out)]
    compiled = _no_slower(rows, ("compile",), left_out)
    return [*_gpu_verdicts(rows), compiled, _no_slower(rows, ("torch",), left_out, 3.0)]


def _no_slower(
    rows: list[Row], peers: tuple[str, ...], left_out: int, factor: float = 1.0
) -> tuple[bool, str]:
    """All ratios to these peers are at most 1 / factor; those that are not are listed."""
    bad = []
    for row in rows:
        ratios = [row["ratios"][p]["median"] for p in peers if p in row["ratios"]]
        if ratios and max(ratios) > 1 / factor:
            bad.append(f"  {name_of(row)}: {max(ratios):.2f} of the peer's time")
    measured = [p for p in peers if any(p in row["ratios"] for row in rows)]
    what = f"at least {factor:g} times as fast as {' and '.join(measured)}"
    text = f"every kernel {what}: {len(rows) - len(bad)} of {len(rows)} rows, {left_out} left out"
    return not bad and not left_out, "\n".join([text, *bad])


def _cpu_verdicts(rows: list[Row]) -> list[tuple[bool, str]]:
    found = []
    for row in rows:
        if (row["kernel"], row["mode"]) != ("bernoulli_elbo", "gradient"):
            continue
        times = 1 / row["to_best"]
        text = f"{name_of(row)}: {times:.2f} times as fast as {row['best_peer']} (at least 2)"
        found.append((times >= 2, text))
        if tuple(row["size"]) == SIZES[-1] and "of_copy" in row:
            times = 1 / row["of_copy"]
            text = f"{name_of(row)}: {times:.2f} of the copy time of its bytes (at most 1.3)"
            found.append((times <= 1.3, text))
    return found


def _gpu_verdicts(rows: list[Row]) -> list[tuple[bool, str]]:
    found = []
    for row in rows:
        streaming = "forward" if row["kernel"] in ("reparameterize", "adam_update") else "gradient"
        named = row["kernel"].endswith(("_elbo", "_nll")) or streaming == "forward"
        largest = tuple(row["size"]) == GPU_SIZES[-1]
        if named and row["mode"] == streaming and largest and "of_copy" in row:
            text = f"{name_of(row)}: {row['of_copy']:.2f} of the copy bandwidth (at least 0.9)"
            found.append((row["of_copy"] >= 0.9, text))
    return found


# -------------------------------------------------------------------------------------- the run
def plan(names: list[str], sizes: list[tuple[int, int]], budget: float | None) -> Plan:
    """All rows in order; the most telling first where the time may run out."""
    kernels = [kernel for kernel in there(tinyvae_kernels) if kernel.name in names]
    rows = [(k, size, mode) for k in kernels for size in sizes for mode in k.modes]
    if budget is not None:
        rows.sort(key=lambda row: (row[2] != row[0].modes[-1], -row[1][0] * row[1][1]))
    return rows


def run(rows: Plan, workers: list[Worker], settings: Row, keep: Callable[[list[Row]], None]) -> Row:
    """Rows one after the other while the time lasts: a row may take as long as the longest did."""
    done: list[Row] = []
    left_out, longest, started = [], 0.0, time.monotonic()
    for kernel, size, mode in rows:
        name, now = name_of({"kernel": kernel.name, "mode": mode, "size": size}), time.monotonic()
        if settings["budget_s"] and now - started + longest > settings["budget_s"]:
            left_out.append(name)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        done.append(measure(workers, kernel, size, mode, settings))
        longest = max(longest, time.monotonic() - now)
        keep(done)
    return {"rows": done, "left_out": left_out}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=KERNELS, default=list(KERNELS),
                        metavar="KERNEL", help=" ".join(KERNELS))  # fmt: skip
    parser.add_argument("--sizes", nargs="+", metavar="BxD", type=_size)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-s", type=float, default=0.15, help="seconds of calls in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", dest="budget_s", type=float, help="seconds for all rows")
    parser.add_argument("--out", type=Path, help="where to write, after every row")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    B, _, D = text.partition("x")
    return int(B), int(D)


def main() -> int:
    options = _options()
    device = options.device
    if device == "cuda" and (problem := tinyvae_kernels.cuda_problem()):
        print(f"no GPU to measure on: {problem}", file=sys.stderr)
        return 2
    if without := missing(tinyvae_kernels):
        print(f"pairs without a row in benchmarks/_kernel_cases.py: {', '.join(without)}")
    sizes = options.sizes or (GPU_SIZES if device == "cuda" else SIZES)
    complete = (len(options.only), len(options.peers)) == (len(KERNELS), len(PEERS))
    complete = complete and not options.sizes and device == "cpu"
    settings = {"device": device, "dtype": "float32", "threads": options.threads}
    settings |= {name: getattr(options, name) for name in ("rounds", "round_s", "budget_s")}
    settings["glibc_tunables"] = os.environ.get("GLIBC_TUNABLES")
    before = _common.load()

    def keep(rows: list[Row], path: Path | None = options.out, **more: Any) -> None:
        about = settings | {"load": [before, _common.load()]}
        if path or (complete and more):
            _common.write("kernels", about | {"rows": rows} | more, path)

    ours = ["cupy"] if device == "cuda" else ["numba"]
    needs = NEEDS | {"tinyvae": ours, "copy": ours}
    peers = installed(["tinyvae", *options.peers, "copy"], needs)
    with contextlib.ExitStack() as stack:
        threads, rest = (options.threads, 0.1) if device == "cpu" else (_common.cores(), 0.0)
        workers = [Worker("benchmarks._kernel_worker", p, threads, rest) for p in peers]
        for worker in workers:
            stack.callback(worker.close)
        results = run(plan(options.only, sizes, options.budget_s), workers, settings, keep)
    print(show(results["rows"], [p for p in peers if p not in ("tinyvae", "copy")]))
    if results["left_out"]:
        print("left out for want of time:", ", ".join(results["left_out"]))
    found = verdicts(results["rows"], device, len(results["left_out"]))
    print(*(f"{'PASS' if kept else 'FAIL'}  {text}" for kept, text in found), sep="\n")
    keep(**results, targets=found)
    bad = [row for row in results["rows"] if row["errors"] or row.get("disagree")]
    return 1 if without or bad else 0


if __name__ == "__main__":
    sys.exit(main())
