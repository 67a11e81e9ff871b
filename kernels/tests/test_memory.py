"""_memory.py: a large result's memory is used again, and only when nobody looks at it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import tinyvae_kernels as kernels
from tinyvae_kernels import _memory

LARGE = (512, 1024)  # 2 MB of float32


@pytest.fixture(autouse=True)
def nothing_kept():
    _memory.release()
    yield
    _memory.release()


def address(array):
    return array.ctypes.data


def test_memory_comes_back_when_the_last_view_is_gone():
    first = _memory.empty(LARGE, np.float32)
    place, view = address(first), first[3:].T
    del first
    other = _memory.empty(LARGE, np.float32)
    assert address(other) != place
    view[:] = 7  # still ours
    assert not (other == 7).all()
    del view
    gc.collect()
    assert address(_memory.empty((1024, 512), np.float32)) == place  # of any shape
    del other
    assert _memory.empty(LARGE, np.float64).dtype == np.float64


def test_arrays_are_ordinary():
    array = _memory.empty(LARGE, np.float64)
    assert type(array) is np.ndarray
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert not array.flags.owndata


def test_small_arrays_are_numpys():
    assert _memory.empty((4, 5), np.float32).flags.owndata
    assert _memory.empty((0, 5), np.float32).shape == (0, 5)


def test_no_more_is_kept_than_the_limit(monkeypatch):
    monkeypatch.setattr(_memory, "LIMIT", 5 * 2**20)
    arrays = [_memory.empty(LARGE, np.float32) for _ in range(3)]
    while arrays:
        arrays.pop()
        assert sum(len(m) for pieces in _memory._kept.values() for m in pieces) <= 5 * 2**20
    huge = _memory.empty((3, *LARGE), np.float32)
    del huge
    assert 6 * 2**20 not in _memory._kept


def test_results_do_not_share_memory(rng):
    logits = rng.standard_normal(LARGE).astype(np.float32)
    x = (logits > 0).astype(np.float32)
    _, (dlogits,) = kernels.bernoulli_nll_forward(logits, x)
    kept = dlogits.copy()
    for _ in range(3):
        kernels.bernoulli_nll_forward(-logits, x)
    np.testing.assert_array_equal(dlogits, kept)


def test_threads_get_memory_of_their_own():
    found, errors = [], []

    def work(number):
        for _ in range(200):
            array = _memory.empty(LARGE, np.float32)
            array[::100] = number
            if not (array[::100] == number).all():
                errors.append(number)
        found.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    assert not errors


def test_what_is_a_view():
    array = _memory.empty((2, 2**17), np.float32)
    assert not kernels.is_view(array)
    assert not kernels.is_view(np.empty(3))
    for view in (array[1], array.reshape(-1), array.T, np.empty((2, 3)).T, array[:]):
        assert kernels.is_view(view)
