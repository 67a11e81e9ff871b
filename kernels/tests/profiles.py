"""Settings that every test run shares: hypothesis profiles, and a compile cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

KERNELS = Path(__file__).parents[1]


os.environ.setdefault("NUMBA_CACHE_DIR", str(KERNELS.parent / ".pytest_cache" / "numba"))

NO_CLOCK = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # a busy machine
settings.register_profile("dev", max_examples=10, **NO_CLOCK)
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **NO_CLOCK)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
