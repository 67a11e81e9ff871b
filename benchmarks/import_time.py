"""What starting costs: import, memory, and the first training step with a cold and a warm cache.

    python -m benchmarks.import_time

`import tinyvae` in fresh interpreters, beside bare NumPy in turn: seconds of the statement itself,
and the process's peak memory after it.  Then whole processes that fit a VAE on random bits until
its first step is done: once with an empty Numba cache, as on the first run ever, then again.
The goals: import under 0.15 s and 60 MB; first step ever under 10 s, later ones under 1.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import _common

GOALS = {"import s": 0.15, "memory MB": 60.0, "cold s": 10.0, "warm s": 1.5}
IMPORT = """
import json, sys, time
started = time.perf_counter()
import {module}
seconds = time.perf_counter() - started
try:  # ru_maxrss would include the parent's memory at the fork
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) / 1024
except OSError:
    import resource
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
print(json.dumps({{"seconds": seconds, "memory_mb": peak, "numba": "numba" in sys.modules}}))
"""
FIRST_STEP = """
import json, os, time
import numpy as np
import tinyvae as tv
class Stop(tv.Callback):
    def on_step(self, *ignored):
        print(json.dumps({{"stepped": time.time()}}), flush=True)
        os._exit(0)
x = np.random.default_rng(0).random({shape}, dtype=np.float32)
vae = tv.VAE(architecture={architecture!r}, hidden=({hidden},), binarize="dynamic", random_state=0)
vae.fit(x, callbacks=[Stop()])
"""
CASES = {
    "mlp": {"architecture": "mlp", "hidden": 400, "shape": (512, 784)},
    "conv": {"architecture": "conv", "hidden": 256, "shape": (512, 28, 28, 1)},
}


def run(code: str, **environment: str) -> dict[str, Any]:
    """The JSON that a fresh interpreter prints, and when it was started."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"a measured process failed:\n{done.stderr}")
    return json.loads(done.stdout) | {"started": started}


def imports(rounds: int) -> dict[str, Any]:
    """Median and all rounds of each module, interleaved, after one round that warms the disk."""
    modules = ("numpy", "tinyvae")
    found: dict[str, list] = {module: [] for module in modules}
    for i in range(rounds + 1):
        for module in modules:
            answer = run(IMPORT.format(module=module))
            if i:
                found[module].append(answer)
    return {
        module: {
            "median_s": statistics.median(a["seconds"] for a in answers),
            "rounds_s": [a["seconds"] for a in answers],
            "memory_mb": max(a["memory_mb"] for a in answers),
            "imports_numba": any(a["numba"] for a in answers),
        }
        for module, answers in found.items()
    }


def first_steps(rounds: int) -> dict[str, Any]:
    """Seconds from a process's start to the end of its first step."""
    results = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as cache:
            times = []
            for _ in range(1 + rounds):
                answer = run(FIRST_STEP.format(**case), NUMBA_CACHE_DIR=cache)
                times.append(answer["stepped"] - answer["started"])
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        results[name] = {
            "cold_s": times[0],
            "warm_s": statistics.median(times[1:]),
            "warm_rounds_s": times[1:],
            "cache_mb": size / 2**20,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    before = _common.load()
    imported, steps = imports(options.rounds), first_steps(max(3, options.rounds // 2))
    rows = [[m, r["median_s"], min(r["rounds_s"]), r["memory_mb"]] for m, r in imported.items()]
    print(_common.table(["import", "median s", "best s", "peak memory MB"], rows) + "\n")
    rows = [[name, r["cold_s"], r["warm_s"], r["cache_mb"]] for name, r in steps.items()]
    print(_common.table(["first training step", "cold s", "warm s", "cache MB"], rows) + "\n")
    measured = {
        "import s": imported["tinyvae"]["median_s"],
        "memory MB": imported["tinyvae"]["memory_mb"],
        "cold s": max(r["cold_s"] for r in steps.values()),
        "warm s": max(r["warm_s"] for r in steps.values()),
    }
    for name, goal in GOALS.items():
        verdict = "within" if measured[name] < goal else "OVER"
        print(f"{name}: {measured[name]:.2f}, goal {goal:g}: {verdict}")
    if imported["tinyvae"]["imports_numba"]:
        print("import tinyvae loads Numba: it should wait for the first kernel")
    about = {"rounds": options.rounds, "load": [before, _common.load()], "goals": GOALS,
             "imports": imported, "first_step": steps}  # fmt: skip
    print("written:", _common.write("import_time", about))


if __name__ == "__main__":
    main()
