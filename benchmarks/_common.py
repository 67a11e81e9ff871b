"""What the benchmarks share: the machine's name, versions, plain tables, results as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "threadpoolctl", "torch", "jax", "jaxlib", "optax")


def cpu() -> str:
    """The processor's name, e.g. "AMD EPYC"."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Processor and cores as part of a file's name, e.g. "amd-epyc-2-cores"."""
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu()} {cores()} cores".lower()).strip("-")


def versions() -> dict[str, str | None]:
    """Python's and each package's version; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def load() -> float | None:
    """Processes that wanted to run, averaged over the last minute: how quiet the machine was."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Columns aligned, the first to the left, the others to the right."""
    lines = [header, *[[_text(value) for value in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.3g}" if size < 0.01 else f"{value:.2f}" if size < 1000 else f"{value:.0f}"
    return str(value)


def write(name: str, results: dict[str, Any], path: Path | None = None) -> Path:
    """Write benchmarks/results/<name>-<machine>.json: the results and where they come from."""
    path = path or RESULTS / f"{name}-{machine()}.json"
    about = {
        "benchmark": name,
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": cores(),
        "system": platform.platform(),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | results, indent=1) + "\n")
    return path
