"""Benchmarks: `python -m benchmarks.NAME` prints a table and writes benchmarks/results/."""

import sys
from pathlib import Path

# the checkout's own kernels, whether installed or not
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
