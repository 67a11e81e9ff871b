"""Python processes in which a sanitizer's library is loaded first, as it must be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import build

TESTS = Path(__file__).parents[1]
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:redzone=256",  # Python leaks; and far misses are seen, too
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0",
    "OPENBLAS_NUM_THREADS": "1",  # a process with one thread can fork
}


def environment(in_build: str) -> dict[str, str]:
    """Of a process that can load libraries of one build. RuntimeError if g++ has no sanitizer."""
    folders = [str(TESTS), str(TESTS.parent)]
    variables = os.environ | OPTIONS | {"PYTHONPATH": os.pathsep.join(folders)}
    if name := LIBRARIES.get(in_build):
        build.compiler_version()  # says what to install where there is no g++ at all
        command = [build.COMPILER, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            raise RuntimeError(
                f"{build.COMPILER} has no {name}, which the CUDA kernels' tests need"
            )
        variables["LD_PRELOAD"] = path
    return variables


def run(module: str, in_build: str) -> subprocess.CompletedProcess[str]:
    """python -m module in_build."""
    command = [sys.executable, "-m", module, in_build]
    setarch = shutil.which("setarch")
    if in_build == "thread" and setarch and _random_bits() > 28:
        # ThreadSanitizer of g++ 12 and 13 does not start where addresses are more random
        command = [setarch, "-R", *command]
    return subprocess.run(
        command, env=environment(in_build), capture_output=True, text=True, timeout=3600
    )


def _random_bits() -> int:
    try:
        return int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    except (OSError, ValueError):
        return 0
