"""Hypothesis profiles, the compile cache, and a check that no test leaks global state."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]


def _kernel_digest() -> str:
    sources = sorted((ROOT / "kernels" / "tinyvae_kernels").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


# Numba notices a change of the file that holds a kernel, but not of one whose functions the kernel
# inlines (elbo.py inlines likelihood.py and _numba.py). One cache per state of all the sources: no
# test runs stale machine code.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / f"numba-{_kernel_digest()}"))

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


def _global_state() -> dict[str, object]:
    from tinyvae import tensor
    from tinyvae_kernels import _dispatch

    return {
        "recording mode": tensor._mode.record,
        "check for non-finite results": tensor._mode.check,
        "backend": _dispatch._requested.get(),
        "NumPy's error handling": np.geterr(),
        "Ctrl-C handler": signal.getsignal(signal.SIGINT),
    }


@pytest.fixture(autouse=True)
def no_leaked_state():
    """A test that changes a global setting must put it back."""
    before = _global_state()
    yield
    after = _global_state()
    leaked = [name for name in before if before[name] != after[name]]
    assert not leaked, f"the test leaked: {', '.join(leaked)}"


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)
