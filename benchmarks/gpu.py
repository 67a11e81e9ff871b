"""Everything that needs an NVIDIA GPU, in one call under ten minutes.

    python -m benchmarks.gpu [--minutes 9.5] [--parts tests sanitizer training kernels] [--out FILE]

Needs CuPy; PyTorch and JAX with CUDA are measured where they are installed.  Four parts, each with
its share of the time, each in processes of its own, and none can spoil the others:

    tests      pytest -m cuda over tests and kernels/tests
    sanitizer  compute-sanitizer's three tools over every kernel once, where it is installed
    training   python -m benchmarks.train_step --device cuda: the captured step beside the
               uncaptured one, PyTorch eager, torch.compile with CUDA graphs and JAX jit; then TF32
    kernels    python -m benchmarks.kernels --device cuda, as many rows as there is time for

Writes benchmarks/results/gpu-NAME.json after every part.  Exit code: 0 if no part failed, 1 if one
did, 2 if there is no GPU to use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _common
from ._cells import CELLS
from ._workers import ROOT

TAIL = 4000  # characters of a part's output that are kept
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 86  # compute-sanitizer's exit code for an error that it found
GOALS = {"mlp-128-400": 1.5, "conv-128": 1.5, "mlp-2048-400": 1.0}  # times the best peer's speed
TRAINING = 0.6  # of the time that is left belongs to the training steps
CELL = 60  # seconds for a cell that is begun late: torch.compile takes its time
STARTING = 45  # seconds that the kernels' processes need before their first row, and at the end
Result = dict[str, Any]


# ------------------------------------------------------------------------------------------ time
class Clock:
    """The time that is left of a whole."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self.now, self.end = now, now() + seconds

    def left(self) -> float:
        return max(0.0, self.end - self.now())

    def at_most(self, seconds: float) -> float:
        """So many seconds, or what is left."""
        return min(seconds, self.left())


def limited(command: list[str], seconds: float, *, shown: bool = False) -> Result:
    """Run a command in the checkout for at most that long, with all processes that it starts.

    Returns code (None: it was stopped), seconds and the end of what it printed.
    shown: what it prints, apart from errors, is shown as well.
    """
    started = time.monotonic()
    if seconds <= 0:
        return {"code": None, "output": "", "text": "", "error": "no time was left"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
            process.wait()
        output.seek(0)
        text = output.read()
    if shown:
        print(text[-5 * TAIL :], flush=True)
    found: Result = {"code": code, "seconds": round(time.monotonic() - started, 1)}
    found |= {"output": text[-TAIL:], "text": text}  # the text is for the part, not for the file
    if code is None:
        found["error"] = f"stopped after {seconds:.0f} s"
    return found


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


# ----------------------------------------------------------------------------------------- parts
def tests(clock: Clock, folder: Path) -> Result:
    """pytest -m cuda: counts and failures."""
    report = folder / "tests.xml"
    command = python("pytest", "-m", "cuda", "-p", "no:cacheprovider", "--color=no",
                     "--continue-on-collection-errors", f"--junitxml={report}",
                     "tests", "kernels/tests")  # fmt: skip
    found = limited(command, clock.at_most(170))
    if not report.exists():
        return failed(found, "pytest wrote no report")
    found |= counted(report.read_text())
    found["summary"] = ", ".join(f"{found[n]} {n}" for n in ("passed", "failed", "skipped"))
    if found["code"] != 0 or found["failed"] or not found["passed"]:
        return failed(found, found["summary"])
    return found


def counted(junit: str) -> Result:
    """passed, failed (errors, too), skipped and the failures' names, from pytest's XML report."""
    found: Result = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ET.fromstring(junit).iter("testcase"):
        bad = [*case.findall("failure"), *case.findall("error")]
        if bad:
            found["failed"] += 1
            name = f"{case.get('classname')}::{case.get('name')}"
            found["failures"].append({"test": name, "message": bad[0].get("message", "")[:500]})
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


def sanitizer(clock: Clock, folder: Path) -> Result:
    """memcheck, racecheck and synccheck over every kernel, once, at small odd sizes."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    plain = limited(python("benchmarks._kernel_once"), clock.at_most(90))  # it also compiles
    if plain["code"] != 0:
        return failed(plain, "every kernel once, without the tools")
    if program is None:
        return plain | {"summary": "compute-sanitizer is not installed: launched without it"}
    found: Result = {"tools": {}}
    for tool in TOOLS:
        # what counts is what the kernels do: libraries probe the driver for what it may not have
        command = [program, "--tool", tool, "--report-api-errors", "no", "--print-limit", "20",
                   "--error-exitcode", str(FOUND)]  # fmt: skip
        one = limited([*command, *python("benchmarks._kernel_once")], clock.at_most(60))
        one["summary"] = verdict(one.pop("text"))
        found["tools"][tool] = one
    found["summary"] = "; ".join(f"{t}: {one['summary']}" for t, one in found["tools"].items())
    bad = [tool for tool, one in found["tools"].items() if one["code"] != 0]
    return failed(found, f"{', '.join(bad)}: {found['summary']}") if bad else found


def verdict(output: str) -> str:
    """The tool's own last line: "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: ..."."""
    lines = re.findall(r"=+ *((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    return lines[-1].strip() if lines else "no summary"


def training(clock: Clock, folder: Path) -> Result:
    """A training step beside every peer's: the cells of a goal first, exact before TF32."""
    found: Result = {"results": {}}
    whole, said = clock.left() * TRAINING, []
    for precision, share in (("float32", 0.7), ("tf32", 0.3)):
        cells = [*GOALS, *(c.name for c in CELLS if c.name not in GOALS)]
        if precision != "float32":
            cells = list(GOALS)
        out, seconds = folder / f"train_step-{precision}.json", clock.at_most(whole * share)
        command = python("benchmarks.train_step", "--device", "cuda", "--precision", precision,
                         "--rounds", "7", "--budget", f"{max(0.0, seconds - CELL):.0f}",
                         "--out", str(out), "--cells", *cells)  # fmt: skip
        one = limited(command, seconds, shown=True)
        found |= {name: one[name] for name in ("code", "output", "text", "error") if name in one}
        if not out.exists():
            return failed(found, f"{precision}: no result was written")
        results = found["results"][precision] = json.loads(out.read_text())
        said.append(f"{precision}: {compared(results['cells'])}")
        if one["code"] != 0:
            return failed(found, said[-1])
    return found | {"summary": "; ".join(said)}


def compared(cells: dict[str, Any]) -> str:
    """How many times as fast as its best peer ours is, cell by cell, beside the goal."""
    lines = []
    for name, row in cells.items():
        peer = row["best_peer"]
        times = f"{1 / row['ratios'][peer]['median']:.2f} of {peer}" if peer else "no peer"
        goal = f" (goal {GOALS[name]})" if name in GOALS else ""
        lines.append(f"{name} {times}{goal}")
    return ", ".join(lines)


def kernels(clock: Clock, folder: Path) -> Result:
    """The kernels' benchmark, which writes its file after every row: a late stop keeps the rows."""
    out, seconds = folder / "kernels.json", clock.left()
    budget = max(0.0, seconds - STARTING)
    command = python("benchmarks.kernels", "--device", "cuda", "--round-s", "0.05",
                     "--budget", f"{budget:.0f}", "--out", str(out))  # fmt: skip
    found = limited(command, seconds, shown=True)
    if not out.exists():
        return failed(found, "no result was written")
    found["results"] = json.loads(out.read_text())
    rows, late = found["results"]["rows"], found["results"].get("left_out", [])
    missed = sum(not kept for kept, _ in found["results"].get("targets", []))
    found["summary"] = f"{len(rows)} rows, {len(late)} left out; {missed} targets missed"
    return found if found["code"] == 0 else failed(found, "")


def failed(found: Result, why: str) -> Result:
    """The result with its error: what was there already comes first."""
    code = found.get("code")
    ended = f"exit code {code}" if code else ""
    reasons = (found.get("error", ""), ended, why)
    return found | {"error": "; ".join(filter(None, reasons)) or "failed"}


PARTS: dict[str, Callable[[Clock, Path], Result]] = {
    "tests": tests,
    "sanitizer": sanitizer,
    "training": training,
    "kernels": kernels,
}


# --------------------------------------------------------------------------------------- the call
def guarded(part: Callable[[Clock, Path], Result], clock: Clock, folder: Path) -> Result:
    """A part's result, whatever happens in it."""
    started = time.monotonic()
    try:
        found = part(clock, folder)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "output": traceback.format_exc()}
    whole = {"seconds": round(time.monotonic() - started, 1)}
    return {name: value for name, value in (found | whole).items() if name != "text"}


def gpu() -> dict[str, Any]:
    """The GPU and the software that drives it."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "compute_capability": cupy.cuda.Device().compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gb": round(properties["totalGlobalMem"] / 1e9, 1),
        "l2_mb": round(properties["l2CacheSize"] / 1e6, 1),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cupy": cupy.__version__,
    }


def show(results: dict[str, Result]) -> str:
    lines = [
        [name, "failed" if "error" in one else "done", one["seconds"],
         one.get("error") or one.get("summary", "")]
        for name, one in results.items()
    ]  # fmt: skip
    return _common.table(["part", "", "s", "result"], lines)


def run(
    parts: list[str], seconds: float, about: dict[str, Any], path: Path, clock: Clock | None = None
) -> int:
    """All parts, the file written after each: 0, or 1 if one failed."""
    clock, results = clock or Clock(seconds), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in parts:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = guarded(PARTS[name], clock, Path(folder))
            _common.write("gpu", about | {"parts": results}, path)
    print(show(results))
    for test in results.get("tests", {}).get("failures", []):
        print(f"FAILED {test['test']}: {test['message']}")
    print("written:", path)
    return int(any("error" in one for one in results.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import tinyvae_kernels

    if problem := tinyvae_kernels.cuda_problem():
        print(f"no GPU to measure on: {problem}", file=sys.stderr)
        return 2
    found = gpu()
    name = re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-")
    path = options.out or _common.RESULTS / f"gpu-{name}.json"
    about = {"gpu": found, "versions": _common.versions() | {"cupy": found["cupy"]}}
    return run(options.parts, 60 * options.minutes, about, path)


if __name__ == "__main__":
    sys.exit(main())
