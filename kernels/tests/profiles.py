"""Settings that every test run shares: hypothesis profiles, and a compile cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

KERNELS = Path(__file__).parents[1]


os.environ.setdefault("NUMBA_CACHE_DIR", str(KERNELS.parent / ".pytest_cache" / "numba"))

settings.register_profile("dev", max_examples=10, deadline=None)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
