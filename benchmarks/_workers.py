"""Peers in processes of their own, timed in interleaved rounds: what the drivers share."""

from __future__ import annotations

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

ROOT = Path(__file__).parents[1]
REST = 0.15  # seconds between rounds: OpenBLAS threads spin for 0.1 s after their last product
ENOUGH = 3  # undisturbed rounds to go by
QUIET = 0.1  # of a core: what other programs may use of the cores while a round is timed


class Worker:
    """A peer's process, as the driver sees it: `python -m MODULE PEER` answers lines of JSON."""

    def __init__(self, module: str, peer: str, threads: int, rest: float = REST):
        self.module, self.peer, self.threads, self.rest = module, peer, threads, rest
        self.cores = _common.allowed_cores()[:threads]
        self.start()

    def start(self) -> None:
        """Begin the process, or a new one where the last has ended."""
        counts = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, self.peer],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {f"{name}_NUM_THREADS": str(self.threads) for name in counts},
            preexec_fn=self._hold,
        )  # fmt: skip

    def _hold(self) -> None:
        """Hold the process to as many cores as threads: JAX sizes its pool by them."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)

    def send(self, **request: Any) -> None:
        """Send a request; RuntimeError if the process ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def answer(self) -> Any:
        """Wait for the answer to the request sent last; RuntimeError if the process ended."""
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            self._ended()
        return json.loads(line)

    def _ended(self) -> None:
        raise RuntimeError(f"{self.peer} ended with code {self.process.wait()}, see above")

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        self.send(**request)
        return self.answer()

    def round(self, variant: int, **more: Any) -> tuple[float, bool]:
        """Time a round: ms per step, and whether nobody else used the cores meanwhile."""
        time.sleep(self.rest)
        before, started = self._others(), time.perf_counter()
        ms = self.ask(do="round", variant=variant, **more)
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


def installed(peers: list[str], needs: dict[str, list[str]]) -> list[str]:
    """Those of the peers whose packages are there; the others are named."""
    found = []
    for peer in peers:
        if missing := [name for name in needs[peer] if importlib.util.find_spec(name) is None]:
            print(f"{peer} is left out: {', '.join(missing)} not installed")
        else:
            found.append(peer)
    return found


def _counted(values: list[float], quiet: list[bool]) -> list[float]:
    """Those of undisturbed rounds; all, if there are too few of them to go by."""
    undisturbed = [value for value, alone in zip(values, quiet, strict=True) if alone]
    return undisturbed if len(undisturbed) >= ENOUGH else values


def summarize(series: dict[str, Any]) -> None:
    """Best and median of the undisturbed rounds."""
    counted = _counted(series["ms"], series["quiet"])
    series["best_ms"], series["median_ms"] = min(counted), statistics.median(counted)


def ratio(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Ours to the peer's, of rounds that were timed one after the other: median and quartiles."""
    found = [a / b for a, b in zip(ours["ms"], peer["ms"], strict=True)]
    quiet = [a and b for a, b in zip(ours["quiet"], peer["quiet"], strict=True)]
    ratios = sorted(_counted(found, quiet))
    last = len(ratios) - 1
    return {
        "median": statistics.median(ratios),
        "quartiles": [ratios[round(last * 0.25)], ratios[round(last * 0.75)]],
        "pairs": len(ratios),
    }
