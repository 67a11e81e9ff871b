"""Settings that every test run shares: hypothesis profiles, and a compile cache of its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hypothesis import HealthCheck, settings

KERNELS = Path(__file__).parents[1]


def _kernel_digest() -> str:
    sources = sorted((KERNELS / "tinyvae_kernels").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


# Numba notices a change of the file that holds a kernel, but not of one whose functions the kernel
# inlines (elbo.py inlines likelihood.py and _numba.py). One cache per state of all the sources: no
# test runs stale machine code.
CACHE = KERNELS.parent / ".pytest_cache" / f"numba-{_kernel_digest()}"
os.environ.setdefault("NUMBA_CACHE_DIR", str(CACHE))

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
