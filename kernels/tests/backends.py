"""One table of kernel calls, and the comparison of every backend with the float64 reference.

`CASES[name](rng, B, D)` gives the arrays in float64, with logits to +-80 and logvar to +-20.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import more_cases
import simt
import tinyvae_kernels as kernels
from gradcheck import Case
from tinyvae_kernels import PAIRS, backend, geometry
from tinyvae_kernels._cuda import is_device_array

DTYPES = ("float32", "float64")
# (B, D): odd ones, empty ones, and some whose rows, or latents, start at multiples of 16 bytes
SIZES = [(1, 1), (1, 257), (31, 33), (33, 31), (257, 1), (0, 5), (5, 0), (3, 64), (2, 1038)]


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def _logits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(-80, 80, shape)


def _logvar(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A quarter in +-20, the others near 0, where expm1 would cancel."""
    return np.where(rng.random(shape) < 0.25, rng.uniform(-20, 20, shape), _normal(rng, *shape))


def _bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(np.float64)


def _latent(rng: np.random.Generator, B: int, D: int) -> tuple:
    """mu, logvar (B, Z), Z unlike D; no KL lies near the free bits of 0.1."""
    Z = D // 2 + 1
    mu, logvar = _normal(rng, B, Z), _logvar(rng, B, Z)
    kl = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    return np.where(np.abs(kl - 0.1) < 0.01, mu + 2, mu), logvar


def _rows(*makers: Callable, data: tuple[int, ...] = (), **options: Any) -> Callable[..., Case]:
    def case(rng: np.random.Generator, B: int, D: int) -> Case:
        return Case(tuple(make(rng, B, D) for make in makers), options, data)

    return case


def _kl(rng: np.random.Generator, B: int, D: int) -> Case:
    return Case(_latent(rng, B, D), {"free_bits": 0.1})


def _elbo(*makers: Callable, **options: Any) -> Callable[..., Case]:
    options = {"beta": 0.7, "free_bits": 0.1} | options

    def case(rng: np.random.Generator, B: int, D: int) -> Case:
        arrays = (*(make(rng, B, D) for make in makers), *_latent(rng, B, D))
        return Case(arrays, options, data=(len(makers) - 1,))

    return case


def _im2col(rng: np.random.Generator, B: int, D: int) -> Case:
    """Borders on all sides, and a stride that leaves pixels out."""
    options = {"kernel": (3, 2), "stride": 2, "padding": 1, "dilation": 1 + D % 2}
    return Case((_normal(rng, min(B, 3), D + 4, 7, 3),), options)


def _col2im(rng: np.random.Generator, B: int, D: int) -> Case:
    B, g = min(B, 3), geometry((D + 4, 7, 3), (3, 2), stride=2, padding=1, dilation=1 + D % 2)
    return Case((_normal(rng, B * g.P * g.Q, 18),), {"batch": B, "geometry": g})


CASES: dict[str, Callable[[np.random.Generator, int, int], Case]] = {
    "reparameterize": _rows(_normal, _logvar, _normal, data=(2,)),
    "gaussian_sample": _rows(_normal, _logvar, seed=7, stream=3, step=2, offset=5),
    "gaussian_kl": _kl,
    "gaussian_kl_total": _kl,
    "gaussian_kl_between": _rows(_normal, _logvar, _normal, _logvar),
    "bernoulli_nll": _rows(_logits, _bits, data=(1,)),
    "gaussian_nll": _rows(_normal, _logvar, _normal, data=(2,)),
    "gaussian_fixed_nll": _rows(_normal, _normal, data=(1,), variance=0.3),
    "bernoulli_elbo": _elbo(_logits, _bits),
    "gaussian_elbo": _elbo(_normal, _logvar, _normal),
    "gaussian_fixed_elbo": _elbo(_normal, _normal, variance=0.3),
    "total": lambda rng, B, D: Case((_normal(rng, B * D),)),
    "im2col": _im2col,
    "col2im": _col2im,
} | more_cases.CASES


def example(name: str, B: int, D: int, dtype: Any) -> tuple[Case, np.ndarray]:
    """The arrays of a case, and dout, rounded to dtype."""
    rng = np.random.default_rng([B, D])
    case = CASES[name](rng, B, D)
    with backend("numpy"):
        out, _ = PAIRS[name][0](*case.arrays, **case.options)
    arrays = tuple(floats_in(dtype, a) for a in case.arrays)
    return case._replace(arrays=arrays), rng.standard_normal(out.shape).astype(dtype)


def floats_in(dtype: Any, a: np.ndarray) -> np.ndarray:
    """Floats in that type; labels stay what they are."""
    return a if a.dtype.kind in "iu" else a.astype(dtype)


def as_it_is(a: np.ndarray, put: Callable) -> Any:
    return put(a)


@contextlib.contextmanager
def running_on(on: str) -> Iterator[tuple[Callable, Callable]]:
    """Inside the block the kernels run on one backend: yields how arrays get there and back.

    numpy, numba; cuda: the CUDA kernels on the CPU, "cuda-reverse" and "cuda-shuffle" with their
    threads in another order; gpu: the CUDA kernels on a GPU.
    """
    if on.startswith("cuda"):
        with simt.device(on.partition("-")[2] or "forward") as device:
            yield device.xp.asarray, device.xp.asnumpy
    elif on == "gpu":
        import cupy

        yield cupy.asarray, cupy.asnumpy
    else:
        with backend(on):
            yield np.asarray, np.asarray


def results(
    name: str, case: Case, dout: np.ndarray, on: str, layout: Callable = as_it_is
) -> dict[str, np.ndarray]:
    """Everything that a pair computes on one backend: out, the saved arrays, the gradients."""
    forward, backward = PAIRS[name]
    with running_on(on) as (put, get):
        out, saved = forward(*(layout(a, put) for a in case.arrays), **case.options)
        gradients = backward(layout(dout, put), saved)
        found = {"out": get(out)}
        found |= {f"saved {i}": get(array) for i, array in enumerate(arrays_in(saved))}
        found |= {f"gradient {i}": get(g) for i, g in enumerate(gradients) if g is not None}
    return found


def arrays_in(saved: Any) -> Iterator[Any]:
    """All arrays in nested tuples."""
    if isinstance(saved, tuple):
        for part in saved:
            yield from arrays_in(part)
    elif isinstance(saved, np.ndarray) or is_device_array(saved):
        yield saved


def check_agreement(name: str, dtype: str, on: str) -> None:
    """A backend against the reference in float64 on the same numbers, for all sizes."""
    for B, D in SIZES:
        case, dout = example(name, B, D, dtype)
        exact = case._replace(arrays=tuple(floats_in(np.float64, a) for a in case.arrays))
        expected = results(name, exact, dout.astype(np.float64), "numpy")
        found = results(name, case, dout, on)
        assert found.keys() == expected.keys()
        for what, value in found.items():
            assert value.dtype == (dtype if value.dtype.kind == "f" else expected[what].dtype), what
            _check_close(value, expected[what], f"{name} {what}, B={B}, D={D}", D)


def _check_close(found: np.ndarray, expected: np.ndarray, what: str, D: int) -> None:
    # rtol as conventions.md has it. atol: what rounding leaves of the numbers that are subtracted:
    # elements of size 1 (sigmoid - x, 1 - square), in row sums D terms of size up to 20 (logvar)
    rtol, size = (1e-5, 1e-6) if found.dtype == np.float32 else (1e-10, 1e-14)
    atol = size if found.ndim > 1 else size * 2 * max(D, 1)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=what)


def strided(a: np.ndarray, put: Callable) -> Any:
    """The same numbers, every other element of a larger array, last axis first in memory."""
    wide = np.full((*a.shape[::-1], 2), np.nan if a.dtype.kind == "f" else -1, a.dtype)
    wide[..., 0] = a.transpose()
    return put(wide)[..., 0].transpose()


def read_only(a: np.ndarray, put: Callable) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def check_layouts(name: str, dtype: str, on: str) -> None:
    """Strided and read-only arguments give the same numbers, and no argument is modified.

    Strided ones are copied on the way in: the same machine code, the same bits. Numba compiles
    read-only ones apart, and is free to round elsewhere there. A GPU knows none of these.
    """
    case, dout = example(name, 31, 33, dtype)
    kept = [a.copy() for a in (*case.arrays, dout)]
    expected = results(name, case, dout, on)
    layouts = {strided: 0.0}
    if on in ("numpy", "numba"):
        layouts[read_only] = 0.0 if on == "numpy" else 8 * float(np.finfo(dtype).eps)
    for layout, rtol in layouts.items():
        found = results(name, case, dout, on, layout)
        for what, value in expected.items():
            message, atol = f"{layout.__name__} {name} {what}", rtol * 33 * 20  # as _check_close
            np.testing.assert_allclose(found[what], value, rtol=rtol, atol=atol, err_msg=message)
    for array, copy in zip((*case.arrays, dout), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def check_nan_shows(name: str, dtype: str, on: str) -> None:
    """A NaN anywhere in row 1 makes row 1 of the loss NaN, and no other row."""
    clean, dout = example(name, 3, 4, dtype)
    expected = results(name, clean, dout, on)["out"]
    for position in range(len(clean.arrays)):
        case, _ = example(name, 3, 4, dtype)
        if case.arrays[position].dtype.kind != "f" or len(case.arrays[position]) != 3:
            continue  # labels; a bias, a codebook: the same for all rows
        row = case.arrays[position].reshape(3, -1)[1]
        row[row.size // 2] = np.nan
        with np.errstate(invalid="ignore"):
            out = results(name, case, dout, on)["out"]
        if out.ndim == 0:  # a total
            assert np.isnan(out)
            continue
        bad = np.isnan(out).reshape(3, -1).any(axis=1)
        np.testing.assert_array_equal(bad, [False, True, False], err_msg=f"argument {position}")
        np.testing.assert_array_equal(out[[0, 2]], expected[[0, 2]])


def check_value_alone(name: str, dtype: str, on: str) -> None:
    """Without a gradient the same values, and nothing that looks like a gradient."""
    for B, D in SIZES:
        case, dout = example(name, B, D, dtype)
        expected = results(name, case, dout, on)["out"]
        with running_on(on) as (put, get):
            arrays = tuple(map(put, case.arrays))
            out, saved = PAIRS[name][0](*arrays, **case.options, gradient=False)
            tolerance = {"rtol": 64 * float(np.finfo(dtype).eps), "atol": 1e-30}
            np.testing.assert_allclose(get(out), expected, **tolerance)
            if isinstance(arrays[0], np.ndarray):
                gradients = saved.gradients() if hasattr(saved, "gradients") else tuple(saved)
                assert set(gradients) <= {None}


def check_value_and_grad(name: str, dtype: str, on: str) -> None:
    """One pass gives what forward and backward give, for an array of dout and for one number.

    The same bits where the forward has the gradient in hand; where it is made for values alone,
    sums are compiled into another order, as in check_value_alone.
    """
    case, dout = example(name, 31, 33, dtype)
    same = on != "numba" or "gradient" in inspect.signature(PAIRS[name][0]).parameters
    rounding = 0.0 if same else 64 * float(np.finfo(dtype).eps)
    for given in (dout, -0.25):
        full = np.full_like(dout, given) if isinstance(given, float) else given
        expected = results(name, case, full, on)
        with running_on(on) as (put, get):
            upstream = given if isinstance(given, float) else put(given)
            out, gradients = getattr(kernels, f"{name}_value_and_grad")(
                *map(put, case.arrays), upstream, **case.options
            )
            np.testing.assert_allclose(get(out), expected["out"], rtol=rounding, atol=0)
            for i, gradient in enumerate(gradients):
                wanted = expected.get(f"gradient {i}")
                assert (gradient is None) == (wanted is None)
                if gradient is not None:
                    tolerance = {"rtol": 8 * float(np.finfo(dtype).eps), "atol": 1e-30}
                    np.testing.assert_allclose(get(gradient), wanted, **tolerance)
