"""_cache.py: machine code on disk, found again, and never another's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tinyvae_kernels import gaussian_kl_forward, total_forward
from tinyvae_kernels.gaussian import _gaussian_kl_numba as kernel
for dtype in sys.argv[2].split(","):
    mu = np.full((3, 2), 2, dtype)
    kl, _ = gaussian_kl_forward(mu, np.zeros_like(mu))
    assert kl.dtype == dtype and np.allclose(kl, 4), kl
stats = kernel.dispatcher().stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package, as a first installation."""
    return shutil.copytree(
        KERNELS / "tinyvae_kernels", tmp_path / "first" / "tinyvae_kernels",
        ignore=shutil.ignore_patterns("__pycache__", "adapters"),
    ).parent  # fmt: skip


def start(package: Path, cache: Path, dtypes: str = "float32") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, package, dtypes], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, int]:
    """Kernels read from disk, and kernels compiled."""
    out, _ = process.communicate()
    assert process.returncode == 0
    hits, misses = out.split()
    return int(hits), int(misses)


def test_the_code_survives_a_reinstallation_and_not_a_change(package, tmp_path):
    cache = tmp_path / "cache"
    assert finish(start(package, cache)) == (0, 1)
    again = shutil.copytree(package, tmp_path / "second")  # another folder, other times
    assert finish(start(again, cache)) == (1, 0)
    inlined = again / "tinyvae_kernels" / "_math.py"
    inlined.write_text(inlined.read_text() + "\nCHANGED = 1\n")
    assert finish(start(again, cache)) == (0, 1)
    assert finish(start(package, cache)) == (1, 0)


def test_processes_that_compile_at_once_get_each_their_own(package, tmp_path):
    cache = tmp_path / "cache"
    orders = ("float32", "float64", "float32,float64", "float64,float32")
    for process in [start(package, cache, order) for order in orders]:
        assert sum(finish(process)) in (1, 2)
    assert finish(start(package, cache, "float32,float64")) == (2, 0)
    assert not list(cache.rglob("*.part"))


def test_a_damaged_file_is_compiled_anew(package, tmp_path):
    cache = tmp_path / "cache"
    finish(start(package, cache))
    for path in cache.rglob("*gaussian_kl_numba*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    assert finish(start(package, cache)) == (0, 1)
    assert finish(start(package, cache)) == (1, 0)


def test_without_a_place_to_write_kernels_run_all_the_same(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert finish(start(package, blocked)) == (0, 1)


def test_old_folders_go(package, tmp_path):
    cache = tmp_path / "cache"
    for i in range(6):
        (cache / f"{i:016d}").mkdir(parents=True)
        os.utime(cache / f"{i:016d}", (i, i))
    finish(start(package, cache))
    left = sorted(path.name for path in cache.iterdir())
    assert len(left) == 4
    assert left[:3] != [f"{i:016d}" for i in range(3)]
