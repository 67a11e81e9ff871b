"""Which arrays the kernels take: NumPy's, CuPy's, and whatever shares its memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import backends
import simt
import tinyvae_kernels as kernels
from tinyvae_kernels import _cuda, _dispatch, _threads

SAMPLED = ("_iwae", "_samples", "_log_ratio")  # several samples a row: no half precision
HALVES = [
    name
    for name in kernels.PAIRS
    if name.startswith(("bern", "gauss", "repar")) and not name.endswith(SAMPLED)
]
HALVES += ["categorical_nll", "logistic_mixture_nll"]


class Shares:
    """Somebody else's array: nothing but the two methods of the DLPack protocol."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


# ------------------------------------------------------------------------------ somebody's arrays
def test_dlpack_is_taken_without_a_copy(rng):
    mu, logvar = rng.standard_normal((2, 3, 4))
    assert np.shares_memory(_dispatch.as_array("mu", Shares(mu)), mu)
    kl, saved = kernels.gaussian_kl_forward(Shares(mu), Shares(logvar))
    np.testing.assert_array_equal(kl, kernels.gaussian_kl_forward(mu, logvar)[0])
    dmu, _ = kernels.gaussian_kl_backward(Shares(kl), saved)
    assert dmu.shape == mu.shape


def test_an_array_on_an_unknown_device_is_refused(rng):
    with pytest.raises(TypeError, match=r"mu lies on a device that is neither a CPU nor CUDA"):
        kernels.gaussian_kl_forward(Shares(rng.random((2, 3)), (10, 0)), rng.random((2, 3)))


@pytest.mark.skipif(kernels.cuda_problem() is None, reason="CUDA can be used here")
def test_a_gpu_array_without_cuda_is_refused_with_the_reason(rng):
    class Interface:
        __cuda_array_interface__ = {"version": 3}  # noqa: RUF012

    for value in (Interface(), Shares(rng.random((2, 3)), (2, 0))):
        with pytest.raises(TypeError, match=r"mu lies on a GPU, and CUDA cannot be used: the pack"):
            kernels.gaussian_kl_forward(value, rng.random((2, 3)))


@pytest.mark.parametrize("value", [[[1.0]], 1.0, None])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(TypeError, match=f"mu must be an array, got {type(value).__name__}"):
        kernels.gaussian_kl_forward(value, np.ones((1, 1)))


# ---------------------------------------------------------------------------------- two devices
def test_arrays_on_two_devices_are_refused(rng):
    a = rng.standard_normal((2, 3))
    with simt.device() as gpu:
        x = gpu.xp.asarray(a)
        with pytest.raises(TypeError, match="logvar lies on cuda:0, mu on cpu: move them to one"):
            kernels.gaussian_kl_forward(a, x)
        with pytest.raises(TypeError, match="logvar lies on cpu, mu on cuda:0: move them to one"):
            kernels.gaussian_kl_forward(x, a)
        with pytest.raises(TypeError, match="mu lies on cpu, x on cuda:0"):
            kernels.bernoulli_elbo_forward(x, x, a, a)
        _, saved = kernels.gaussian_kl_forward(x, x)
        with pytest.raises(TypeError, match="dout lies on cpu, the output on cuda:0"):
            kernels.gaussian_kl_backward(np.ones(2), saved)
        _, saved = kernels.gaussian_kl_forward(a, a)
        with pytest.raises(TypeError, match="dout lies on cuda:0, the output on cpu"):
            kernels.gaussian_kl_backward(gpu.xp.ones(2), saved)


def test_results_lie_where_the_arguments_do(rng):
    a = rng.standard_normal((2, 3))
    with simt.device() as gpu:
        for out in backends.arrays_in(kernels.bernoulli_elbo_forward(*[gpu.xp.asarray(a)] * 4)):
            assert _dispatch.place(out) == "cuda:0"
        like = gpu.xp.empty(())
        assert _dispatch.place(kernels.philox_normal((2, 3), seed=0, like=like)) == "cuda:0"
    assert _dispatch.place(kernels.philox_normal((2, 3), seed=0)) == "cpu"


def test_the_same_noise_everywhere():
    """Bits are equal; normals to what float32 arithmetic leaves."""
    options = {"seed": 2**63 + 11, "stream": 2, "step": 9, "offset": 6}
    draws = {
        "bits": lambda like: kernels.philox_bits(4099, like=like, **options),
        "uniform": lambda like: kernels.philox_uniform((41, 100), like=like, **options),
        "normal": lambda like: kernels.philox_normal((41, 100), like=like, **options),
    }
    for name, draw in draws.items():
        found = []
        for on in ("numpy", "numba", "cuda"):
            with backends.running_on(on) as (put, get):
                found.append(get(draw(put(np.empty(1)))))
        for other in found[1:]:
            if name == "normal":
                np.testing.assert_allclose(other, found[0], rtol=1e-6, atol=1e-6)
            else:
                np.testing.assert_array_equal(other, found[0])


# --------------------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_storage_alone(name, dtype, rng):
    """float32 arithmetic on the rounded numbers: the rows' values are not rounded at all, gradients
    once when they are saved and once when dout has scaled them.
    """
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    for B, D in ((3, 7), (5, 64), (1, 1), (0, 8)):
        case = backends.CASES[name](rng, B, D)
        small = tuple(backends.floats_in(half, np.clip(a, -5, 5)) for a in case.arrays)
        case = case._replace(arrays=small)
        single = case._replace(arrays=tuple(backends.floats_in(np.float32, a) for a in small))
        with backends.running_on("numba"):
            out, _ = kernels.PAIRS[name][0](*single.arrays, **single.options)
        dout = np.asarray(rng.standard_normal(out.shape), np.float32)
        if out.ndim > 1:
            dout = dout.astype(half)
        expected = backends.results(name, single, dout.astype(np.float32), "numba")
        found = backends.results(name, case, dout, "cuda")
        unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        for what, value in found.items():
            rtol = 4e-6 if value.dtype == np.float32 else 2.1 * unit
            atol = 4e-6 * max(D, 1) if value.dtype == np.float32 else 1e-5 + 2.0**-24
            assert value.dtype == (half if what.startswith("grad") else value.dtype)
            np.testing.assert_allclose(
                value.astype(np.float64), expected[what], rtol=rtol, atol=atol, err_msg=what
            )


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_refused_on_the_cpu(name, rng):
    case = backends.CASES[name](rng, 2, 3)
    arrays = [backends.floats_in(np.float16, a) for a in case.arrays]
    with pytest.raises(TypeError, match=r"got float16 \(float16 and bfloat16 on a GPU only\)"):
        kernels.PAIRS[name][0](*arrays, **case.options)


def test_half_precision_is_refused_where_a_kernel_has_none(rng):
    with simt.device() as gpu:
        x = gpu.xp.asarray(rng.random((1, 4, 4, 1)).astype(np.float16))
        with pytest.raises(TypeError, match=r"x must be float32 or float64, got float16"):
            kernels.im2col_forward(x, kernel=(2, 2))


# ---------------------------------------------------------------------------------- the launcher
def test_rows_that_are_not_aligned_are_read_one_by_one():
    with simt.device() as gpu:
        memory = gpu.xp.zeros(4 * 64 + 1, "float32")
        aligned, shifted = memory[:-1].reshape(4, 64), memory[1:].reshape(4, 64)
        assert _cuda.vector_width(aligned.dtype, 64, (aligned,)) == 4
        assert _cuda.vector_width(aligned.dtype, 62, (aligned,)) == 1
        assert _cuda.vector_width(aligned.dtype, 64, (aligned, shifted)) == 1
        kl, _ = kernels.gaussian_kl_forward(shifted, shifted)
        np.testing.assert_array_equal(kl.get(), np.zeros(4))


def test_source_holds_each_file_once():
    text = _cuda.source("elbo.cu")
    assert "#include" not in text
    for guard in ("COMMON", "PHILOX", "GAUSSIAN", "LIKELIHOOD", "ELBO"):
        assert text.count(f"#define TINYVAE_{guard}\n") == 1


# ---------------------------------------------------------------------------------------- threads
@pytest.fixture
def always_worth_it(monkeypatch):
    for name in ("WORTH_A_THREAD", "WORTH_WAKING"):
        monkeypatch.setattr(_threads, name, 1)
        monkeypatch.setattr(_threads, f"{name}_LIGHT", 1)


@pytest.mark.parametrize("name", kernels.PAIRS)
def test_threads_change_no_bit(name, always_worth_it):
    """Rows are independent; what sums over the batch is not cut."""
    case, dout = backends.example(name, 31, 33, "float32")
    with kernels.threads(1):
        expected = backends.results(name, case, dout, "numba")
    for count in (2, 3, 64):
        with kernels.threads(count):
            found = backends.results(name, case, dout, "numba")
        for what, value in expected.items():
            np.testing.assert_array_equal(found[what], value, err_msg=f"{what}, {count} threads")


@pytest.mark.parametrize("count", [0, -1])
def test_threads_must_be_at_least_one(count):
    with pytest.raises(ValueError, match=f"threads must be at least 1, got {count}"):
        kernels.threads(count).__enter__()


def test_small_calls_stay_in_the_callers_thread(monkeypatch):
    monkeypatch.setattr(_threads, "run", lambda *_: pytest.fail("woke a thread"))
    kernels.gaussian_kl_forward(np.zeros((128, 20)), np.zeros((128, 20)))


# ------------------------------------------------------------------------------------------ arena
def test_an_arena_gives_the_same_memory_again(rng):
    arena, seen = kernels.Arena(), []
    logits, x = rng.standard_normal((2, 5, 7))
    expected, _ = kernels.bernoulli_nll_forward(logits, x)
    for _ in range(3):
        with arena:
            nll, (dlogits,) = kernels.bernoulli_nll_forward(logits, x)
            seen.append((nll.ctypes.data, dlogits.ctypes.data))
            np.testing.assert_array_equal(nll, expected)
    assert len(set(seen)) == 1
    after, _ = kernels.bernoulli_nll_forward(logits, x)
    assert after.ctypes.data != seen[0][0]


def test_an_arena_follows_new_shapes_types_and_devices(rng):
    arena = kernels.Arena()
    with simt.device() as gpu:
        for shape, dtype in (((2, 3), "float32"), ((4, 3), "float32"), ((4, 3), "float64")):
            a = rng.standard_normal(shape).astype(dtype)
            expected, _ = kernels.gaussian_kl_forward(a, a)
            for put in (np.asarray, gpu.xp.asarray):
                with arena:
                    kl, _ = kernels.gaussian_kl_forward(put(a), put(a))
                assert type(kl) is type(put(a))
                found = kl if put is np.asarray else kl.get()
                np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_arena_is_not_entered_twice():
    arena = kernels.Arena()
    with arena, pytest.raises(RuntimeError, match="this arena is in use"):
        arena.__enter__()
    with arena:  # and is usable afterwards
        pass


def test_another_thread_does_not_use_the_arena(rng):
    a, found = rng.standard_normal((2, 3)), []
    with kernels.Arena() as arena:
        thread = threading.Thread(target=lambda: found.append(kernels.gaussian_kl_forward(a, a)))
        thread.start()
        thread.join()
        assert not arena._buffers
