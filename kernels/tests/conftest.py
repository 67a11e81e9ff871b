"""The kernels' own tests: they need nothing but this folder, `pytest kernels/tests`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (str(HERE), str(HERE.parent)):
    if folder not in sys.path:  # where no pyproject.toml says so
        sys.path.insert(0, folder)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import profiles  # noqa: E402, F401  (hypothesis profiles, Numba's cache)
from tinyvae_kernels import _dispatch, cuda_problem  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say why they do not run."""
    if problem := cuda_problem():
        skip = pytest.mark.skip(reason=f"no GPU: {problem}")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def no_leaked_kernel_state():
    """A test that changes a global setting must put it back."""
    before = (_dispatch._requested.get(), np.geterr())
    yield
    assert (_dispatch._requested.get(), np.geterr()) == before, "the test leaked a setting"


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def dynamo():
    """torch.compile without anything left of other tests; yields a counter of compilations."""
    import torch
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    yield CompileCounterWithBackend
    torch._dynamo.reset()
