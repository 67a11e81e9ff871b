"""Where the tests run, and a check that none leaks global state."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import profiles  # noqa: F401  (hypothesis profiles, Numba's cache)
import simt
from tinyvae import devices

REAL_PROBLEM = devices.problem
# What a machine asks of every program's output, colours where there is no terminal or the width of
# lines, would change what commands print. Rich and Typer, imported later, look at it but once.
for variable in (
    "COLUMNS", "LINES", "TERMINAL_WIDTH", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TINYVAE_DEBUG",
):  # fmt: skip
    os.environ.pop(variable, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say why they do not run."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and (problem := devices.problem()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {problem}"))


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """Tests mean the same everywhere: "auto" is the CPU, whether there is a GPU or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "problem", lambda: "these tests are for the CPU")
        patch.setattr(devices, "_warn", lambda reason: None)
        yield


@pytest.fixture
def real_gpu(monkeypatch: pytest.MonkeyPatch):
    """For tests marked cuda: "cuda" means what it says."""
    monkeypatch.setattr(devices, "problem", REAL_PROBLEM)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for a GPU: its arrays do not mix with NumPy's, and g++ compiles the kernels."""
    with simt.device() as device:
        monkeypatch.setattr(devices, "problem", lambda: None)
        monkeypatch.setattr(devices, "cupy_device", lambda: device)
        yield device


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
