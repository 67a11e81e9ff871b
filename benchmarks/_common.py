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


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may run on."""
    return len(allowed_cores())


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


def busy_seconds(cores: list[int]) -> float:
    """Processor time spent on these cores by anyone, and by other guests in our stead; Linux."""
    stat, total = Path("/proc/stat"), 0
    if not stat.exists():
        return 0.0
    for line in stat.read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, ticks)
            total += user + nice + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor time of a process, all threads; Linux."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
