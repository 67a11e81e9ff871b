"""The C++ example: compiled by the tests' shim everywhere, by nvcc where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from simt import build
from tinyvae_kernels import cuda_problem

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "04_elbo_in_cpp.cu"


def check(program: Path) -> None:
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "elbo -553.427, by hand -553.427" in done.stdout


def test_it_runs_on_the_cpu(tmp_path):
    check(build.program(EXAMPLE, tmp_path))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_compiles_it(tmp_path):
    program = tmp_path / "elbo"
    include = ROOT / "kernels" / "tinyvae_kernels"
    command = ["nvcc", "-std=c++17", "-I", str(include), str(EXAMPLE), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if cuda_problem() is None:
        check(program)
