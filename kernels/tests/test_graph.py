"""_graph.py: what CuPy is asked for, and in which order; and the stand-in that does the same."""

from __future__ import annotations

import contextlib
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import simt
import tinyvae_kernels as kernels
from tinyvae_kernels import _cuda, _graph


def default(size):
    """What CuPy's own pool of pinned memory gives."""
    return f"{size} bytes"


class FakeCuPy:
    """Says what it is asked for."""

    def __init__(self):
        self.said = []
        self.cuda = types.SimpleNamespace(
            MemoryPool=lambda: types.SimpleNamespace(malloc="the pool's"),
            using_allocator=self.inside, set_pinned_memory_allocator=self.pinned,
            get_current_stream=lambda: types.SimpleNamespace(
                synchronize=lambda: self.said.append("wait for the current stream")
            ),
        )  # fmt: skip

    @contextlib.contextmanager
    def inside(self, what):
        self.said.append(f"into {what}")
        yield
        self.said.append(f"out of {what}")

    def pinned(self, allocator):
        self.allocator = allocator

    def get_default_pinned_memory_pool(self):
        return types.SimpleNamespace(malloc=default)


class FakeStream:
    """Of the fake CuPy."""

    def __init__(self, cupy, fails=False):
        self.cupy, self.fails = cupy, fails

    def __enter__(self):
        self.cupy.said.append("into the stream")

    def __exit__(self, *error):
        self.cupy.said.append("out of the stream")

    def synchronize(self):
        self.cupy.said.append("wait")

    def begin_capture(self):
        self.cupy.said.append("begin")

    def end_capture(self):
        self.cupy.said.append("end")
        if self.fails:
            raise RuntimeError("the capture is invalid")
        return types.SimpleNamespace(launch=lambda: self.cupy.said.append("launch"))


@pytest.fixture
def cupy():
    return FakeCuPy()


def test_work_apart_is_waited_for(cupy):
    with _graph.Graph(cupy, FakeStream(cupy)).apart():
        cupy.said.append("work")
    assert cupy.said == [
        "wait for the current stream", "into the stream", "into the pool's", "work", "wait",
        "out of the pool's", "out of the stream",
    ]  # fmt: skip


def test_a_capture_has_its_own_memory_and_none_of_the_host(cupy):
    graph = _graph.Graph(cupy, FakeStream(cupy))
    with graph.capture():
        with pytest.raises(RuntimeError, match="24 bytes were to be copied from the host"):
            cupy.allocator(24)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(cupy.allocator, 24).result() == "24 bytes"
        cupy.said.append("work")
    assert cupy.allocator is default
    graph.launch()
    assert cupy.said == [
        "into the stream", "into the pool's", "begin", "work", "end", "out of the pool's",
        "out of the stream", "launch",
    ]  # fmt: skip


def test_an_error_in_a_capture_ends_it_and_is_the_one_that_is_seen(cupy):
    graph = _graph.Graph(cupy, FakeStream(cupy, fails=True))
    with pytest.raises(NotImplementedError, match="cuBLAS"), graph.capture():
        raise NotImplementedError("calling cuBLAS API")
    assert "end" in cupy.said
    assert cupy.allocator is default
    with pytest.raises(RuntimeError, match="the capture is invalid"), graph.capture():
        pass


def test_all_graphs_of_a_gpu_share_a_stream_and_each_stream_has_its_handle(cupy, monkeypatch):
    made = []
    cupy.cuda.runtime = types.SimpleNamespace(getDevice=lambda: 0)
    cupy.cuda.Stream = lambda non_blocking: made.append(non_blocking) or FakeStream(cupy)
    cupy.cuda.get_cublas_handle = lambda: None
    cupy.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=current[0])
    cupy.empty = lambda size, dtype: np.empty(size, dtype)
    monkeypatch.setattr(_cuda._cublas, "loaded", lambda: "the library")
    monkeypatch.setattr(_cuda, "Cublas", lambda library, stream, workspace: object())
    device = _cuda.CupyDevice.__new__(_cuda.CupyDevice)
    device.xp, device._of_thread = cupy, _cuda.threading.local()
    assert device.graph().stream is device.graph().stream
    assert made == [True]
    current = [5]
    first = device.cublas()
    assert device.cublas() is first
    current = [6]
    assert device.cublas() is not first


# ------------------------------------------------------------------------------------ the stand-in
@pytest.fixture
def gpu():
    with simt.device() as gpu:
        yield gpu


def test_the_stand_in_does_nothing_while_it_captures(gpu, rng):
    a, b = (gpu.xp.asarray(rng.standard_normal((3, 3))) for _ in range(2))
    before, graph = a.get(), gpu.graph()
    with graph.capture():
        a += 1
        c = a * b
        kl, _ = kernels.gaussian_kl_forward(a, b)
        kernels.product(a, b, a.copy())
    np.testing.assert_array_equal(a.get(), before)
    assert np.isnan(c.get()).all()
    assert np.isnan(kl.get()).all()
    for expected in (before + 1, before + 1 + 1):
        graph.launch()
        np.testing.assert_array_equal(a.get(), expected)
        np.testing.assert_array_equal(c.get(), a.get() * b.get())
    expected, _ = kernels.gaussian_kl_forward(a.get(), b.get())
    np.testing.assert_allclose(kl.get(), expected, rtol=1e-12)


def test_the_stand_in_keeps_arguments_as_they_were(gpu):
    like, graph = gpu.xp.empty(1), gpu.graph()
    step = gpu.xp.asarray(np.uint32(1))
    with graph.capture():
        constant = kernels.philox_normal(4, seed=1, step=1, like=like)
        varying = kernels.philox_normal(4, seed=1, step=step, like=like)
    step[...] = 2
    graph.launch()
    np.testing.assert_array_equal(
        constant.get(), kernels.philox_normal(4, seed=1, step=1, like=like).get()
    )
    np.testing.assert_array_equal(
        varying.get(), kernels.philox_normal(4, seed=1, step=2, like=like).get()
    )


def test_the_stand_in_refuses_what_cuda_and_cupy_refuse(gpu, rng):
    a = gpu.xp.asarray(rng.standard_normal((3, 3)))
    for asked in (
        a.get, a.item, lambda: float(a[0, 0]), lambda: bool((a > 0).all()), lambda: a[a > 0],
        lambda: gpu.xp.asarray(np.ones(3)), lambda: a.set(np.ones((3, 3))), lambda: a @ a,
        lambda: gpu.xp.dot(a, a), lambda: a.dot(a),
    ):  # fmt: skip
        error = pytest.raises(RuntimeError, match="while a stream is capturing")
        with error, gpu.graph().capture():
            asked()
    with gpu.graph().capture():
        gpu.xp.asarray(2.0)  # a number is an argument of a kernel
