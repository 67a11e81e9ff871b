"""Mixtures of Gaussians: the log-density of each row, of all its numbers together or one by one.

Sizes: B rows, K components, Z numbers in a row.

    log N_kj = -1/2 (log(2 pi) + logvar_kj + (z_j - mu_kj)^2 exp(-logvar_kj))

A prior (mixture of Gaussians; VampPrior, Tomczak and Welling 2018, equation 9) asks for the joint
density, the aggregate posterior of total correlation (Chen et al. 2018, section 3.1) for it and for
the marginals; there K = B, and the weights may differ from row to row.  `log_weights` are taken as
they are: whoever wants a density gives them a log-sum of zero.

Sums over the batch are made in float64 and in a fixed order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _threads, importance
from ._cuda import launch, typed
from ._dispatch import apart, check_dout, check_floats, contiguous, empty, jit, jit_rows, select
from ._math import exp, exp_negative, log, row_max
from .likelihood import _scale_rows_cuda

LOG_2PI = math.log(2 * math.pi)
BLOCK = 2**20  # terms that the reference holds at once
LINE = 16  # float32 numbers in a line of the cache
ROWS = 32  # rows whose gradients are added in their own type before float64 takes over


class MixtureSaved(NamedTuple):
    """What `mixture_log_prob_forward` keeps: arguments, and the components' shares in each row.

    responsibilities: (B, K), one in the sum over K.  common: whether all rows have one set of
    weights.
    """

    z: Any
    mu: Any
    logvar: Any
    responsibilities: Any
    common: bool


def mixture_log_prob_forward(z: Any, log_weights: Any, mu: Any, logvar: Any) -> Any:
    """Log-density of each row under a mixture of Gaussians with diagonal covariance, in nats.

    log_prob = log sum_k exp(log_weights_k + sum_j log N_kj)
    z: (B, Z); mu, logvar: (K, Z), K >= 1; log_weights: (K,), or (B, K) for weights of each row's
    own; -inf is a weight of zero.
    Returns log_prob (B,), saved (with saved.responsibilities (B, K), the posterior of k given z).
    Raises ValueError if the shapes do not fit, TypeError for dtypes and devices.
    """
    z, weights, mu, logvar, common = _checked(z, log_weights, mu, logvar)
    log_prob, share = empty(z.shape[:1], z), empty((z.shape[0], mu.shape[0]), z)
    body = _log_prob_common if common else _log_prob_own
    select(z, _log_prob_numpy, body, _log_prob_cuda)(z, weights, mu, logvar, log_prob, share)
    return log_prob, MixtureSaved(z, mu, logvar, share, common)


def mixture_log_prob_backward(dout: Any, saved: MixtureSaved) -> tuple:
    """dz_bj = -sum_k s_bk u_bkj      s = dlog_prob r, r the responsibilities.

    dlog_weights_k = sum_b s_bk      dmu_kj = sum_b s_bk u_bkj,  u = (z - mu) exp(-logvar)
    dlogvar_kj = sum_b s_bk ((z_bj - mu_kj) u_bkj - 1) / 2
    dout: dlog_prob (B,).  Returns dz (B, Z), dlog_weights (K,) or (B, K), dmu, dlogvar (K, Z).
    """
    z, mu, logvar, responsibilities, common = saved
    dout = check_dout(dout, z.shape[:1], z)
    dz, dmu, dlogvar = (empty(a.shape, a) for a in (z, mu, logvar))
    share, total = None if common else empty(responsibilities.shape, z), empty(mu.shape[:1], mu)
    select(z, _gradients_numpy, _gradients_numba, _gradients_cuda)(
        z, mu, logvar, dout, responsibilities, share, dz, total, dmu, dlogvar
    )
    return dz, total if common else share, dmu, dlogvar


class MarginalSaved(NamedTuple):
    """What `mixture_marginal_log_prob_forward` keeps: its arguments and its result."""

    z: Any
    log_weights: Any
    mu: Any
    logvar: Any
    log_prob: Any
    common: bool


def mixture_marginal_log_prob_forward(z: Any, log_weights: Any, mu: Any, logvar: Any) -> Any:
    """Log-density of every single number of a row under the mixture's marginals, in nats.

    log_prob_j = log sum_k exp(log_weights_k + log N_kj)
    Arguments as in mixture_log_prob_forward.  Returns log_prob (B, Z), saved.
    Raises ValueError if the shapes do not fit, TypeError for dtypes and devices.
    """
    z, weights, mu, logvar, common = _checked(z, log_weights, mu, logvar)
    log_prob = empty(z.shape, z)
    body = _marginal_common if common else _marginal_own
    select(z, _marginal_numpy, body, _marginal_cuda)(z, weights, mu, logvar, log_prob)
    return log_prob, MarginalSaved(z, weights, mu, logvar, log_prob, common)


def mixture_marginal_log_prob_backward(dout: Any, saved: MarginalSaved) -> tuple:
    """dz_bj = -sum_k s_bkj u_bkj      s = dlog_prob r, r_bkj the responsibilities for number j.

    dlog_weights_k = sum_bj s_bkj      dmu_kj = sum_b s_bkj u_bkj,  u = (z - mu) exp(-logvar)
    dlogvar_kj = sum_b s_bkj ((z_bj - mu_kj) u_bkj - 1) / 2
    dout: dlog_prob (B, Z).  Returns dz (B, Z), dlog_weights (K,) or (B, K), dmu, dlogvar (K, Z).
    """
    z, weights, mu, logvar, log_prob, common = saved
    dout = check_dout(dout, z.shape, z)
    dz, dmu, dlogvar = (empty(a.shape, a) for a in (z, mu, logvar))
    share, total = empty((z.shape[0], mu.shape[0]), z), empty(mu.shape[:1], mu)
    select(z, _marginal_gradients_numpy, _marginal_gradients_numba, _marginal_gradients_cuda)(
        z, weights, mu, logvar, log_prob, dout, dz, share, total, dmu, dlogvar
    )
    return dz, total if common else share, dmu, dlogvar


def _checked(z: Any, log_weights: Any, mu: Any, logvar: Any) -> tuple:
    """The arrays, contiguous, weights (1, K) or (B, K), and whether all rows share them."""
    arrays = check_floats(z=z, log_weights=log_weights, mu=mu, logvar=logvar)
    z, log_weights, mu, logvar = map(contiguous, arrays)
    if z.ndim != 2 or mu.ndim != 2 or z.shape[1] != mu.shape[1]:
        raise ValueError(f"z and mu must be (B, Z) and (K, Z), got shapes {z.shape} and {mu.shape}")
    if mu.shape[0] == 0:
        raise ValueError("mu holds no component")
    if logvar.shape != mu.shape:
        raise ValueError(f"logvar has shape {logvar.shape}, mu has {mu.shape}")
    B, K = z.shape[0], mu.shape[0]
    if log_weights.shape not in ((K,), (B, K)):
        raise ValueError(f"log_weights has shape {log_weights.shape}, expected {(K,)} or {(B, K)}")
    common = log_weights.ndim == 1
    return z, log_weights.reshape(1 if common else B, K), mu, logvar, common


# ------------------------------------------------------------------------------------------ NumPy
def _blocks(z, mu):
    """Slices of rows; the terms of one are (rows, K, Z)."""
    step = max(1, BLOCK // max(1, mu.size))
    return [slice(first, first + step) for first in range(0, len(z), step)]


def _of_rows(weights, part):
    return weights if len(weights) == 1 else weights[part]


def _terms_numpy(z, mu, logvar):
    """log N_kj of each row, and u: (B, K, Z)."""
    distance = z[:, None] - mu
    u = distance * np.exp(-logvar)
    return -0.5 * (LOG_2PI + logvar + distance * u), u


def _log_sum_exp_numpy(terms):
    """log sum exp over axis 1, and the shares; a row of -inf has no shares."""
    top = terms.max(axis=1, keepdims=True)
    e = np.exp(terms - np.where(top == -np.inf, 0, top))
    total = e.sum(axis=1, keepdims=True)
    nothing = total == 0
    total = np.where(nothing, 1, total)
    return (top + np.log(total))[:, 0], e / total


def _log_prob_numpy(z, weights, mu, logvar, log_prob, share):
    for part in _blocks(z, mu):
        joint = _of_rows(weights, part) + _terms_numpy(z[part], mu, logvar)[0].sum(axis=2)
        log_prob[part], share[part] = _log_sum_exp_numpy(joint)


# share: where dout times the responsibilities goes, None if it is not wanted
def _gradients_numpy(z, mu, logvar, dout, responsibilities, share, dz, total, dmu, dlogvar):
    totals, s = np.zeros((2, *mu.shape)), dout[:, None] * responsibilities
    if share is not None:
        share[:] = s
    for part in _blocks(z, mu):
        _add_numpy(z[part], mu, logvar, s[part][:, :, None], dz[part], totals)
    total[:] = s.sum(axis=0, dtype=np.float64)
    dmu[:], dlogvar[:] = totals


def _add_numpy(z, mu, logvar, s, dz, totals):
    """dz of some rows, and their parts in dmu and dlogvar; s: (B, K, 1 or Z)."""
    _, u = _terms_numpy(z, mu, logvar)
    dz[:] = -(s * u).sum(axis=1)
    totals[0] += (s * u).sum(axis=0, dtype=np.float64)
    totals[1] += 0.5 * (s * ((z[:, None] - mu) * u - 1)).sum(axis=0, dtype=np.float64)


def _marginal_numpy(z, weights, mu, logvar, log_prob):
    for part in _blocks(z, mu):
        terms = _of_rows(weights, part)[:, :, None] + _terms_numpy(z[part], mu, logvar)[0]
        log_prob[part], _ = _log_sum_exp_numpy(terms)


def _marginal_gradients_numpy(
    z, weights, mu, logvar, log_prob, dout, dz, share, total, dmu, dlogvar
):
    totals = np.zeros((2, *mu.shape))
    for part in _blocks(z, mu):
        terms = _of_rows(weights, part)[:, :, None] + _terms_numpy(z[part], mu, logvar)[0]
        s = dout[part][:, None] * _log_sum_exp_numpy(terms)[1]
        share[part] = s.sum(axis=2)
        _add_numpy(z[part], mu, logvar, s, dz[part], totals)
    total[:] = share.sum(axis=0, dtype=np.float64)
    dmu[:], dlogvar[:] = totals


# ------------------------------------------------------------------------------------------ Numba
@jit
def _columns_numba(mu, logvar):
    """Parameters with the components last, where the inner loops run, each (Z', K).

    Z' is Z rounded up to even.  means; precisions; norms, -(log(2 pi) + logvar) / 2.
    """
    (K, Z), half, log_2pi = mu.shape, mu.dtype.type(0.5), mu.dtype.type(LOG_2PI)
    columns = apart(3 * (Z + Z % 2) * K, mu.dtype).reshape(3, Z + Z % 2, K)
    means, precisions, norms = columns[0], columns[1], columns[2]
    means[Z:], precisions[Z:], norms[Z:] = 0, 0, 0
    inverse, flat = apart(K * Z, mu.dtype), logvar.reshape(-1)
    for n in range(flat.shape[0]):  # before anything is turned: in SIMD
        inverse[n] = exp(-flat[n])
    for start in range(0, K, LINE):  # a line of the cache after the other is filled
        for j in range(Z):
            for k in range(start, min(start + LINE, K)):
                means[j, k] = mu[k, j]
                precisions[j, k] = inverse[k * Z + j]
                norms[j, k] = -half * (log_2pi + logvar[k, j])
    return means, precisions, norms


@jit
def _distances_numba(vectors, means, precisions, joint):
    """joint - 1/2 sum_j (z_j - mu_kj)^2 precision_kj of two rows; vectors: (2, Z'), joint: (2, K).

    Two rows and two columns at once: fewer loads and stores for each product, as in codebook.py.
    """
    half = joint.dtype.type(0.5)
    own, other = joint[0], joint[1]
    for j in range(0, means.shape[0], 2):
        a0, b0, a1, b1 = vectors[0, j], vectors[0, j + 1], vectors[1, j], vectors[1, j + 1]
        a, b, p, q = means[j], means[j + 1], precisions[j], precisions[j + 1]
        for k in range(own.shape[0]):
            c, d = a0 - a[k], b0 - b[k]
            own[k] -= half * (c * c * p[k] + d * d * q[k])
            c, d = a1 - a[k], b1 - b[k]
            other[k] -= half * (c * c * p[k] + d * d * q[k])


@jit
def _log_sum_exp_numba(terms, e):
    """log sum exp of a row, and 1 / sum e or 0, with e = exp(terms - the largest)."""
    zero, half, one = terms.dtype.type(0), terms.dtype.type(0.5), terms.dtype.type(1)
    top, total = row_max(terms), zero
    shift = zero if top == -np.inf else top
    for k in range(terms.shape[0]):
        e[k] = exp_negative(terms[k] - shift)
        total += e[k]
    nothing = total < half  # a row of -inf: else the largest alone contributes 1
    return (top if nothing else top + log(total)), (zero if nothing else one / total)


def _log_prob_numba(z, weights, mu, logvar, log_prob, share):
    (B, Z), K = z.shape, mu.shape[0]
    means, precisions, norms = _columns_numba(mu, logvar)
    norm, joint = apart(K, z.dtype), apart(2 * K, z.dtype).reshape(2, K)
    norm[:] = 0
    for j in range(Z):
        for k in range(K):
            norm[k] += norms[j, k]
    vectors = np.zeros((2, means.shape[0]), z.dtype)
    for first in range(0, B, 2):
        for i in range(first, min(first + 2, B)):
            own, start = weights[min(i, weights.shape[0] - 1)], joint[i - first]
            for j in range(Z):
                vectors[i - first, j] = z[i, j]
            for k in range(K):
                start[k] = own[k] + norm[k]
        _distances_numba(vectors, means, precisions, joint)
        for i in range(first, min(first + 2, B)):
            log_prob[i], scale = _log_sum_exp_numba(joint[i - first], share[i])
            for k in range(K):
                share[i, k] *= scale


_log_prob_own = jit_rows.sharing("mu", "logvar", each=1, times="mu")(_log_prob_numba)
_log_prob_common = jit_rows.sharing("weights", "mu", "logvar", each=1, times="mu")(_log_prob_numba)


@jit
def _gradient_rows_numba(z, mu, logvar, dout, responsibilities, share, dz, totals):
    """dz of some rows, and share; totals: (2 Z + 1, K), float64, twice dlogvar and then dmu, and
    the sum of share.

    Two rows at once, as in _distances_numba: 784 rows of 32, 64 components took 520 us, now 370
    (one thread, EPYC).
    """
    (B, Z), K, zero = z.shape, mu.shape[0], z.dtype.type(0)
    means, precisions, _ = _columns_numba(mu, logvar)
    squares, slopes, sums = apart(K, z.dtype), apart(K, z.dtype), apart(K, z.dtype)
    shares = apart((ROWS + 1) * K, z.dtype).reshape(ROWS + 1, K)  # the last: of no row
    totals[:], shares[ROWS] = 0, zero
    for first in range(0, B, ROWS):
        last = min(first + ROWS, B)
        sums[:] = zero
        for i in range(first, last):
            s = shares[i - first]
            for k in range(K):
                s[k] = dout[i] * responsibilities[i, k]
                sums[k] += s[k]
            if share is not None:  # decided when the kernel is compiled
                share[i] = s
        for k in range(K):
            totals[2 * Z, k] += sums[k]
        for j in range(Z):
            m, p = means[j], precisions[j]
            squares[:], slopes[:] = zero, zero
            for i in range(first, last, 2):
                two = i + 1 < last
                own, other = shares[i - first], shares[i + 1 - first if two else ROWS]
                a, b, slope, slope2 = z[i, j], z[i + 1 if two else i, j], zero, zero
                for k in range(K):
                    c, d = a - m[k], b - m[k]
                    u, v = own[k] * c, other[k] * d
                    slope += u * p[k]
                    slope2 += v * p[k]
                    slopes[k] += u + v
                    squares[k] += u * c + v * d
                dz[i, j] = -slope
                if two:
                    dz[i + 1, j] = -slope2
            for k in range(K):
                totals[j, k] += squares[k] * p[k] - sums[k]
                totals[Z + j, k] += slopes[k] * p[k]


@jit
def _add_parts_numba(totals, total, dmu, dlogvar):
    """totals: (parts, 2 Z + 1, K)."""
    K, Z = dmu.shape
    for part in range(1, totals.shape[0]):
        totals[0] += totals[part]
    for k in range(K):
        total[k] = totals[0, 2 * Z, k]
        for j in range(Z):
            dlogvar[k, j] = 0.5 * totals[0, j, k]
            dmu[k, j] = totals[0, Z + j, k]


@jit_rows.sharing(
    "cuts", "z", "mu", "logvar", "dout", "responsibilities", "share", "dz", each=1, times="mu"
)
def _gradient_parts_numba(parts, cuts, z, mu, logvar, dout, responsibilities, share, dz, totals):
    """Those of all parts that have these numbers, each with its totals."""
    for i in range(parts.shape[0]):
        rows = slice(cuts[parts[i]], cuts[parts[i] + 1])
        _gradient_rows_numba(
            z[rows], mu, logvar, dout[rows], responsibilities[rows],
            None if share is None else share[rows], dz[rows], totals[i],
        )  # fmt: skip


def _parts(z, mu):
    """The numbers of all parts, where they begin, and room for their totals.

    No part begins within ROWS, whose float32 sum would else depend on the number of threads.
    """
    count, (B, Z) = _threads.parts((z,), each=1, times=len(mu)), z.shape
    cuts = np.array([min(B, -(-B // ROWS) * k // count * ROWS) for k in range(count + 1)])
    return np.arange(count), cuts, np.empty((count, 2 * Z + 1, len(mu)))


def _gradients_numba(z, mu, logvar, dout, responsibilities, share, dz, total, dmu, dlogvar):
    numbers, cuts, totals = _parts(z, mu)
    _gradient_parts_numba(
        numbers, cuts, z, mu, logvar, dout, responsibilities, share, dz, totals
    )  # fmt: skip
    _add_parts_numba(totals, total, dmu, dlogvar)


def _marginal_rows_numba(z, weights, mu, logvar, log_prob):
    (B, Z), K, half = z.shape, mu.shape[0], z.dtype.type(0.5)
    means, precisions, norms = _columns_numba(mu, logvar)
    block = max(1, min(Z, importance.BLOCK // K))
    terms, e = apart(block * K, z.dtype).reshape(block, K), apart(block * K, z.dtype)
    top, total, e = apart(block, z.dtype), apart(block, z.dtype), e.reshape(block, K)
    for i in range(B):
        own = weights[min(i, weights.shape[0] - 1)]
        for first in range(0, Z, block):
            count = min(block, Z - first)
            for j in range(first, first + count):
                value, m, p, norm, row = (
                    z[i, j],
                    means[j],
                    precisions[j],
                    norms[j],
                    terms[j - first],
                )
                for k in range(K):
                    d = value - m[k]
                    row[k] = own[k] + norm[k] - half * (d * d * p[k])
            importance.exponentials(terms[:count], top, total, e[:count])
            for j in range(count):  # the sum of a row of -inf is 0, else the largest contributes 1
                log_prob[i, first + j] = top[j] if total[j] < half else top[j] + log(total[j])


_marginal_own = jit_rows.sharing("mu", "logvar", each=1, times="mu")(_marginal_rows_numba)
_marginal_common = jit_rows.sharing("weights", "mu", "logvar", each=1, times="mu")(
    _marginal_rows_numba
)


@jit
def _marginal_gradient_rows_numba(z, weights, mu, logvar, log_prob, dout, dz, share, totals):
    """As _gradient_rows_numba, with shares of each number's own; their sum over j to share."""
    (B, Z), K, dtype = z.shape, mu.shape[0], z.dtype.type
    zero, half = dtype(0), dtype(0.5)
    means, precisions, norms = _columns_numba(mu, logvar)
    squares, slopes = apart(K, z.dtype), apart(K, z.dtype)
    totals[:], share[:] = 0, zero
    for first in range(0, B, ROWS):
        last = min(first + ROWS, B)
        for j in range(Z):
            m, p, norm = means[j], precisions[j], norms[j]
            squares[:], slopes[:] = zero, zero
            for i in range(first, last):
                own, row = weights[min(i, weights.shape[0] - 1)], share[i]
                value, rate, slope = z[i, j], dout[i, j], zero
                base = zero if log_prob[i, j] == -np.inf else log_prob[i, j]
                for k in range(K):
                    d = value - m[k]
                    u = d * p[k]
                    s = rate * exp_negative(own[k] + norm[k] - half * (d * u) - base)
                    g = s * u
                    slope += g
                    row[k] += s
                    slopes[k] += g
                    squares[k] += g * d - s
                dz[i, j] = -slope
            for k in range(K):
                totals[j, k] += squares[k]
                totals[Z + j, k] += slopes[k]
        for i in range(first, last):
            for k in range(K):
                totals[2 * Z, k] += share[i, k]


@jit_rows.sharing(
    "cuts", "z", "weights", "mu", "logvar", "log_prob", "dout", "dz", "share", each=1, times="mu"
)
def _marginal_gradient_parts_numba(
    parts, cuts, z, weights, mu, logvar, log_prob, dout, dz, share, totals
):
    for i in range(parts.shape[0]):
        rows = slice(cuts[parts[i]], cuts[parts[i] + 1])
        _marginal_gradient_rows_numba(
            z[rows], weights if weights.shape[0] == 1 else weights[rows], mu, logvar,
            log_prob[rows], dout[rows], dz[rows], share[rows], totals[i],
        )  # fmt: skip


def _marginal_gradients_numba(
    z, weights, mu, logvar, log_prob, dout, dz, share, total, dmu, dlogvar
):
    numbers, cuts, totals = _parts(z, mu)
    _marginal_gradient_parts_numba(
        numbers, cuts, z, weights, mu, logvar, log_prob, dout, dz, share, totals
    )
    _add_parts_numba(totals, total, dmu, dlogvar)


# ------------------------------------------------------------------------------------------- CUDA
def _launch(kernel: str, grid: int, numbers: tuple, sizes: tuple, *arrays: Any) -> None:
    """256 threads a block, `lanes` neighbours along Z; arrays[0] decides the type."""
    lanes = min(32, 1 << max(0, sizes[1] - 1).bit_length())
    counts = tuple(np.int64(n) for n in (*sizes, lanes))
    name = typed(kernel, arrays[0].dtype, 1, *numbers)
    launch("mixture.cu", name, min(grid, 2**31 - 1), 256, (*arrays, *counts))


def _sizes(z, weights, mu):
    """B, Z, K and how far the weights of one row are from the next one's."""
    K = len(mu)
    return *z.shape, K, 0 if len(weights) == 1 else K


def _log_prob_cuda(z, weights, mu, logvar, log_prob, share):
    sizes, arrays = _sizes(z, weights, mu), (z, weights, mu, logvar, log_prob, share)
    _launch("mixture_log_prob_forward", len(z), (), sizes, *arrays)


def _gradients_cuda(z, mu, logvar, dout, responsibilities, share, dz, total, dmu, dlogvar):
    share = empty(responsibilities.shape, z) if share is None else share
    _scale_rows_cuda(dout, responsibilities, share)
    sizes, given = (*z.shape, len(mu), len(mu)), (z, share, mu, logvar, None, None)
    _launch("mixture_dz", len(z), (0,), sizes, *given, dz)
    _launch("mixture_dparameters", len(mu), (0,), sizes, *given, total, dmu, dlogvar)


def _marginal_cuda(z, weights, mu, logvar, log_prob):
    sizes, arrays = _sizes(z, weights, mu), (z, weights, mu, logvar, log_prob)
    _launch("mixture_marginal_log_prob_forward", len(z), (), sizes, *arrays)


def _marginal_gradients_cuda(
    z, weights, mu, logvar, log_prob, dout, dz, share, total, dmu, dlogvar
):
    sizes, given = _sizes(z, weights, mu), (z, weights, mu, logvar, log_prob, dout)
    _launch("mixture_dz", len(z), (1,), sizes, *given, dz)
    _launch("mixture_dparameters", len(mu), (1,), sizes, *given, total, dmu, dlogvar)
    if sizes[3] or len(z) == 1:  # the weights may be the rows' own: else `total` is what counts
        _launch("mixture_marginal_shares", len(z), (), sizes, *given, share)
