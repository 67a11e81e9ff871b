"""simt/: the stand-in for a CUDA device behaves as one."""

from __future__ import annotations

import re

import numpy as np
import pytest

import simt
import tinyvae_kernels as kernels
from simt import build, instances, plants
from tinyvae_kernels import _cuda

i64, f32 = np.int64, np.float32


# ---------------------------------------------------------------------------- the table of kernels
def test_every_kernel_of_every_file_is_in_the_table():
    for file in sorted(_cuda.HERE.rglob("*.cu")):
        text = file.read_text("utf-8")
        defined = re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text)
        assert text.count("__global__") == len(defined), "written in a way that is not seen here"
        assert set(defined) == set(instances.KERNELS.get(file.name, ())), file.name
    assert all((_cuda.HERE / file).exists() for file in instances.KERNELS)


def test_a_kernel_outside_the_table_is_refused():
    with pytest.raises(KeyError, match=r"philox_bits<3> is not in the table of .*instances\.py"):
        simt.SimtDevice().function("philox.cu", "tinyvae::philox_bits<3>")


# ------------------------------------------------------------------------------------- launching
@pytest.fixture
def function():
    """tinyvae::total<float>(values, total, n)."""
    return simt.SimtDevice().function("total.cu", "tinyvae::total<float>")


@pytest.fixture
def arguments():
    values = simt.allocate((5,), f32)
    values[:] = 2
    total = simt.allocate((1,), f32)
    return values, total, (np.uintp(values.ctypes.data), np.uintp(total.ctypes.data), i64(5))


def test_a_kernel_runs(function, arguments):
    _, total, args = arguments
    function((1,), (64,), args)
    assert total[0] == 10


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((0,), (32,), 0), ((1,), (0,), 0), ((2**31,), (32,), 0), ((1, 65536), (32,), 0),
     ((1,), (1025,), 0), ((1,), (32, 33), 0), ((1,), (1, 1, 65), 0), ((1, 1, 1, 1), (32,), 0),
     ((1,), (32,), 49153), ((1,), (32,), -1)],
)  # fmt: skip
def test_sizes_that_cuda_refuses_are_refused(grid, block, shared, function, arguments):
    with pytest.raises(ValueError, match=r"outside|more than 1024 threads"):
        function(grid, block, arguments[2], shared_mem=shared)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [(2, np.int32(5), "argument 2 is int32, the parameter is i8"),
     (2, np.float64(5), "argument 2 is float64, the parameter is i8"),
     (2, 5, "argument 2 is no NumPy scalar but int"),
     (0, np.zeros(5, np.float32), "argument 0 is no NumPy scalar but ndarray"),
     (0, np.uint32(0), "argument 0 is uint32, the parameter is u8")],
)  # fmt: skip
def test_arguments_of_another_width_are_refused(position, wrong, message, function, arguments):
    args = list(arguments[2])
    args[position] = wrong
    with pytest.raises(TypeError, match=message):
        function((1,), (32,), args)
    with pytest.raises(TypeError, match="2 arguments for 3 parameters"):
        function((1,), (32,), args[:2])


def test_after_threads_that_hang_the_next_launch_runs():
    names = [plants.instance("barrier_in_branch", planted) for planted in (True, False)]
    library = build.Library("plants.cu", names, "plain")
    for order in build.ORDERS:
        assert plants.run("barrier_in_branch", True, order, library) == "error"
        assert plants.run("barrier_in_branch", False, order, library) == ""


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(build, "COMPILER", "g++-that-is-not-there")
    build.compiler_version.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"need a C\+\+ compiler, g\+\+ 12 or newer.*apt"):
            build.compiler_version()
    finally:
        build.compiler_version.cache_clear()


def test_a_file_that_does_not_compile_shows_the_compilers_errors():
    with pytest.raises(RuntimeError, match=r"total\.cu does not compile:\n(.*\n)*.*error"):
        build.compiled("total.cu", ["tinyvae::total<struct unknown>"], "plain")


# --------------------------------------------------------------------------------------- indices
BIG = 2**31


@pytest.mark.parametrize(
    ("thread", "block", "threads", "blocks"),
    [(0, 0, 32, 1), (31, 5, 256, 7), (1023, BIG - 2, 1024, BIG - 1), (3, BIG // 2, 256, BIG - 1)],
)
@pytest.mark.parametrize(
    ("row", "width"), [(0, 5), (3, 7), (BIG - 1, BIG + 5), (1, BIG), (70_000, 70_000), (BIG, 2)]
)
def test_indices_are_right_beyond_32_bits(thread, block, threads, blocks, row, width):
    """A fault here would show on a GPU only, with arrays of more than 2^31 elements."""
    name = "tinyvae::indices<tinyvae::i64>"
    out = simt.allocate((3,), i64)
    function = build.Function(build.Library("indices.cu", [name], "plain"), name)
    told = ((thread, 0, 0), (block, 0, 0), (threads, 1, 1), (blocks, 1, 1))
    function.pretend((np.uintp(out.ctypes.data), i64(row), i64(width)), *told)
    np.testing.assert_array_equal(out, [row * width, block * threads + thread, blocks * threads])


# ----------------------------------------------------------------------------------- the same bits
@pytest.mark.parametrize("order", build.ORDERS)
@pytest.mark.parametrize(("n", "offset"), [(1, 0), (4, 0), (10_000, 0), (4099, 3), (5, 2**40 + 1)])
def test_philox_gives_the_same_bits_as_on_the_cpu(n, offset, order):
    numbers = {"seed": 2**63 + 5, "stream": 3, "step": 7, "offset": offset}
    with simt.device(order) as gpu:
        bits = kernels.philox_bits(n, **numbers, like=gpu.xp.empty(1)).get()
    np.testing.assert_array_equal(bits, kernels.philox_bits(n, **numbers))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orders_of_threads_and_blocks_make_no_difference(dtype, rng):
    arrays = rng.standard_normal((2, 9, 1028)).astype(dtype)
    found = []
    for order in build.ORDERS:
        with simt.device(order) as gpu:
            out, saved = kernels.gaussian_kl_forward(*map(gpu.xp.asarray, arrays))
            found.append([a.get() for a in (out, *kernels.gaussian_kl_backward(out, saved))])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# ----------------------------------------------------------------------------------------- arrays
@pytest.fixture
def gpu():
    with simt.device() as gpu:
        yield gpu


def test_arrays_do_not_mix_with_numpy_arrays(gpu, rng):
    """CuPy raises as well, and which error it is belongs to it."""
    a = rng.standard_normal((2, 3))
    x = gpu.xp.asarray(a)
    for mixed in (
        lambda: x + a, lambda: a * x, lambda: np.exp(x, out=a), lambda: np.concatenate([x, a]),
        lambda: gpu.xp.where(x > 0, x, a), lambda: gpu.xp.exp(a), lambda: x @ a.T, lambda: a < x,
        lambda: x.__iadd__(a), lambda: a.__iadd__(x), lambda: x * [1.0, 2.0, 3.0],
        lambda: gpu.xp.maximum(x, a), lambda: gpu.xp.sum(a), lambda: x.reshape(6).dot(a.ravel()),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"Unsupported type"):
            mixed()


def test_arrays_become_numpy_arrays_only_when_asked(gpu, rng):
    a = rng.standard_normal((2, 3))
    x = gpu.xp.asarray(a)
    for implicit in (lambda: np.asarray(x), lambda: np.array(x), lambda: a.__setitem__(0, x[0])):
        with pytest.raises(TypeError, match=r"Implicit conversion .* use `\.get\(\)`"):
            implicit()
    for asked in (x.get(), gpu.xp.asnumpy(x)):
        assert type(asked) is np.ndarray
        np.testing.assert_array_equal(asked, a)
        asked[:] = 0
    np.testing.assert_array_equal(x.get(), a)  # they were copies


def test_results_stay_on_the_device(gpu, rng):
    a = rng.standard_normal((3, 4))
    x = gpu.xp.asarray(a)
    cases = [
        (-x * 2 + 1, -a * 2 + 1), (np.exp(x), np.exp(a)), (x @ x.T, a @ a.T), (1 / x, 1 / a),
        (x > 0, a > 0), (x.sum(), a.sum()), (x.mean(axis=1), a.mean(axis=1)), (x.max(), a.max()),
        (x.any(axis=0), a.any(axis=0)), (x.argmax(), a.argmax()), (x[1, 2], a[1, 2]),
        (x[..., ::2], a[..., ::2]), (x[None, 1:], a[None, 1:]), (x.T, a.T), (x[x > 0], a[a > 0]),
        (gpu.xp.concatenate([x, x]), np.concatenate([a, a])), (np.stack([x, x]), np.stack([a, a])),
        (gpu.xp.where(x > 0, x, 0.0), np.where(a > 0, a, 0.0)), (x.swapaxes(0, 1), a.T),
        (gpu.xp.isfinite(x).all(), np.isfinite(a).all()), (x.astype("f4"), a.astype("f4")),
        (gpu.xp.linalg.norm(x), np.linalg.norm(a)), (x.reshape(2, -1), a.reshape(2, -1)),
        (gpu.xp.arange(5), np.arange(5)), (gpu.xp.full((2, 1), 3), np.full((2, 1), 3)),
        (gpu.xp.zeros_like(x, "i4"), np.zeros_like(a, "i4")), (x * np.float32(2), a * 2),
        (gpu.xp.asarray([x.sum(), x.max()]), np.asarray([a.sum(), a.max()])),
    ]  # fmt: skip
    for found, expected in cases:
        assert isinstance(found, gpu.xp.ndarray)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found.get(), expected)
    assert float(x[0, 0]) == a[0, 0]
    assert bool((x == x).all())
    assert len(x) == len(list(x)) == 3


def test_views_share_memory_and_copies_do_not(gpu):
    x = gpu.xp.zeros((3, 4))
    for view in (x[1:], x.T, x.reshape(-1), x[1, 2], x.ravel(), gpu.xp.asarray(x), x[::2]):
        view += 1
    x[0, 0] = x[1].sum()
    x[2] = x[1] * 2
    expected = np.zeros((3, 4))
    for view in (expected[1:], expected.T, expected.reshape(-1), expected[1, 2:3],
                 expected.ravel(), expected, expected[::2]):  # fmt: skip
        view += 1
    expected[0, 0] = expected[1].sum()
    expected[2] = expected[1] * 2
    np.testing.assert_array_equal(x.get(), expected)
    for copy in (x.copy(), x.flatten(), x[x > 0], x.astype(x.dtype), gpu.xp.array(x)):
        copy[...] = 0
    np.testing.assert_array_equal(x.get(), expected)
    assert x.astype(x.dtype, copy=False) is x


def test_assigning_takes_device_arrays_and_numbers(gpu):
    x = gpu.xp.zeros(4)
    x[gpu.xp.asarray([0, 2])] = gpu.xp.asarray([1.0, 2.0])
    x[1] = np.float64(3)
    x[3:] = 4
    np.testing.assert_array_equal(x.get(), [1, 3, 2, 4])
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        x[:] = np.ones(4)
    x.set(np.ones(4))
    assert bool((x == 1).all())


def test_an_index_out_of_range_wraps_around(gpu):
    """CuPy does not look at an array of indices: an error here would be a false comfort."""
    x = gpu.xp.asarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(x[:, gpu.xp.asarray([3, -1, 7])].get(), [[0, 2, 1], [3, 5, 4]])
    np.testing.assert_array_equal(x[gpu.xp.asarray([2, 5])].get(), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(IndexError):
        x[2]


def test_fresh_memory_is_nan_and_aligned(gpu):
    x = gpu.xp.empty((3, 5), np.float32)
    assert bool(gpu.xp.isnan(x).all())
    assert x.data.ptr % 256 == 0
    assert x.ravel()[1:].data.ptr == x.data.ptr + 4
    assert gpu.xp.empty(0).data.ptr == 0
    assert x.__cuda_array_interface__["data"] == (x.data.ptr, False)


def test_the_device_is_there_inside_the_block_alone():
    before = dict(_cuda._devices)
    with simt.device() as gpu:
        x = gpu.xp.empty(3)
        assert _cuda.is_device_array(x)
        with pytest.raises(RuntimeError, match="active already"), simt.device():
            pass
        assert _cuda.is_device_array(x)
    assert not _cuda.is_device_array(x)
    assert _cuda._devices == before
