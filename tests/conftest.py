"""A check that no test leaks global state; the profiles are those of the kernels' tests."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import profiles  # noqa: F401  (hypothesis profiles, Numba's cache)


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
