"""Sums: over a batch, from the values of rows, (B,), to one number; and of two arrays.

Over a batch: accumulated in float64 and in one fixed order, whatever the rows' type: the same bits
every time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cuda import launch, typed
from ._dispatch import (
    arithmetic,
    check_dout,
    check_floats,
    check_same_shape,
    contiguous,
    empty,
    jit,
    jit_rows,
    known_dout,
    select,
)
from .gaussian import gaussian_kl_backward, gaussian_kl_forward, gaussian_kl_value_and_grad


def total_forward(values: Any) -> Any:
    """total = sum_i values_i.

    values: (B,).  Returns total (), of values' type, saved.
    Raises ValueError if values has not one axis.
    """
    (values,) = check_floats(values=values)
    if values.ndim != 1:
        raise ValueError(f"values must be (B,), got shape {values.shape}")
    total = empty((1,), values)
    select(values, _total_numpy, _total_numba, _total_cuda)(contiguous(values), total)
    return total.reshape(()), (values.shape, total)


def total_backward(dout: Any, saved: tuple) -> tuple:
    """dvalues_i = dtotal.

    dout: dtotal ().  Returns dvalues (B,), as a tuple of one.
    """
    shape, like = saved
    dtotal = check_dout(dout, (), like)
    dvalues = empty(shape, like)
    select(dvalues, _spread_numpy, _spread_numba, _spread_cuda)(dtotal.reshape(1), dvalues)
    return (dvalues,)


def _total_numpy(values, total):
    total[0] = values.sum(dtype=np.float64)


@jit
def _total_numba(values, total):
    accumulated = np.float64(0)
    for i in range(values.size):
        accumulated += values[i]
    total[0] = accumulated


def _total_cuda(values, total):
    arguments = (values, total, np.int64(values.size))
    launch("total.cu", typed("total", values.dtype), 1, 256, arguments)


def _spread_numpy(dtotal, dvalues):
    dvalues[:] = dtotal[0]


@jit
def _spread_numba(dtotal, dvalues):
    for i in range(dvalues.size):
        dvalues[i] = dtotal[0]


def _spread_cuda(dtotal, dvalues):
    arguments = (dtotal, dvalues, np.int64(dvalues.size))
    launch("total.cu", typed("spread", dvalues.dtype), -(-dvalues.size // 256), 256, arguments)


# ----------------------------------------------------------------------------------- two arrays
def add(a: Any, b: Any, out: Any = None) -> Any:
    """a + b, for two arrays of one shape; out: where it shall go, a itself for example.

    Raises ValueError if the shapes differ, TypeError if the dtypes or devices do.
    """
    a, b = check_floats(a=a, b=b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b has {b.shape}")
    out = empty(a.shape, a) if out is None else out
    flat = (contiguous(array).reshape(-1) for array in (a, b))
    select(out, _add_numpy, _add_numba, _add_numpy)(*flat, out.reshape(-1))
    return out


def _add_numpy(a, b, out):  # on a GPU CuPy adds
    np.add(a, b, out=out)


@jit_rows.moving
def _add_numba(a, b, out):
    for i in range(out.size):
        out[i] = a[i] + b[i]


# -------------------------------------------------------------------- the KL of a whole batch
def gaussian_kl_total_forward(mu: Any, logvar: Any, *, free_bits: float = 0.0) -> Any:
    """KL(N(mu, sigma^2) || N(0, I)) summed over the rows, in nats: see gaussian_kl.

    mu, logvar: (B, Z).  Returns kl (), saved.
    """
    kl, saved = gaussian_kl_forward(mu, logvar, free_bits=free_bits)
    out, saved_total = total_forward(kl)
    return out, (saved, saved_total)


def gaussian_kl_total_backward(dout: Any, saved: tuple) -> tuple:
    """dmu = dkl mu      dlogvar = dkl expm1(logvar) / 2      and 0 where kl_j < free_bits.

    dout: dkl ().  Returns dmu, dlogvar (B, Z).
    """
    saved_rows, saved_total = saved
    (dkl,) = total_backward(dout, saved_total)
    return gaussian_kl_backward(dkl, saved_rows)


def gaussian_kl_total_value_and_grad(
    mu: Any, logvar: Any, dout: Any = 1.0, *, free_bits: float = 0.0
) -> Any:
    """Forward and backward in one pass over the data, for a dout known beforehand.

    dout: () or one number, beta/B for the mean of a loss.  Returns kl (), (dmu, dlogvar (B, Z)).
    """
    mu, logvar = check_same_shape(halves=True, mu=mu, logvar=logvar)
    dtotal = known_dout(dout, (), mu, arithmetic(mu.dtype))
    (dkl,) = total_backward(dtotal, (mu.shape[:1], dtotal))
    kl, gradients = gaussian_kl_value_and_grad(mu, logvar, dkl, free_bits=free_bits)
    return total_forward(kl)[0], gradients
