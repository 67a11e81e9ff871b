"""What Stirling's formula leaves of log Gamma, without cancellation, for any z > 0.

    log Gamma(z) = z log z - z + log sqrt(2 pi) + T(z)      digamma(z) = log z + D(z) / z

For z >= 8, T(z) is -log(z) / 2 + 1/(12 z) - 1/(360 z^3) + ... (Abramowitz and Stegun 1965, 6.1.41);
below, the recurrence Gamma(z + 1) = z Gamma(z) leads there.  Its derivative is D(z) = z T'(z).
Likelihoods take the large terms together themselves: there they cancel.
"""

from __future__ import annotations

import numpy as np

from ._dispatch import jit
from ._math import log

SHIFT = 8  # from there on the seven terms below are exact to 2e-14
T_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
D_SERIES = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12)


def stirling(z, log_z):
    """T(z) and D(z) of an array, on either device."""
    small = z < SHIFT
    w, near = np.where(small, z + SHIFT, z), np.minimum(z, SHIFT)
    T, D, square = np.zeros_like(z), np.zeros_like(z), (1 / w) ** 2
    for t, d in zip(T_SERIES[::-1], D_SERIES[::-1], strict=True):
        T, D = T * square + t, D * square + d
    log_w = np.where(small, np.log(w), log_z)
    T = T / w - log_w / 2
    D = (D / w - 1 / 2) * (z / w)
    # Gamma(w) / Gamma(z) = z Q, the product of z ... z + 7; Q' / Q is a part of digamma
    Q, dQ = np.ones_like(z), np.zeros_like(z)
    for i in range(1, SHIFT):
        Q, dQ = Q * (near + i), dQ * (near + i) + Q
    climb = log_w - log_z
    T += np.where(small, near * climb + np.log((near + SHIFT) ** SHIFT / Q) - log_z - SHIFT, 0)
    D += np.where(small, near * (climb - dQ / Q) - 1, 0)
    return T, D


@jit
def stirling_numba(z, log_z, T, D):
    """T(z) and D(z) of each element, one formula for all: no branch, so that it vectorizes."""
    dtype = z.dtype.type
    zero, half, one, shift = dtype(0), dtype(0.5), dtype(1), dtype(SHIFT)
    t0, t1, t2, t3 = dtype(1 / 12), dtype(-1 / 360), dtype(1 / 1260), dtype(-1 / 1680)
    t4, t5, t6 = dtype(1 / 1188), dtype(-691 / 360360), dtype(1 / 156)
    d1, d2, d3 = dtype(1 / 120), dtype(-1 / 252), dtype(1 / 240)
    d4, d5 = dtype(-1 / 132), dtype(691 / 32760)
    for j in range(z.shape[0]):
        small = z[j] < shift
        near = z[j] if small else shift
        w = z[j] + shift if small else z[j]
        log_w = log(w) if small else log_z[j]
        inverse = one / w
        s = inverse * inverse
        series_t = t0 + s * (t1 + s * (t2 + s * (t3 + s * (t4 + s * (t5 + s * t6)))))
        series_d = -t0 + s * (d1 + s * (d2 + s * (d3 + s * (d4 + s * (d5 - s * t0)))))
        Q, dQ, factor = one, zero, near
        for _ in range(SHIFT - 1):
            factor += one
            dQ = dQ * factor + Q
            Q *= factor
        square = (near + shift) * (near + shift)
        inverse_Q = one / Q
        climb = log_w - log_z[j]
        t = near * climb + (log(square * square * (square * square) * inverse_Q) - log_z[j]) - shift
        d = near * (climb - dQ * inverse_Q) - one
        T[j] = (series_t * inverse - half * log_w) + (t if small else zero)
        D[j] = (series_d * inverse - half) * (z[j] * inverse) + (d if small else zero)
