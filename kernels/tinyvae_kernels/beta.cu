// Beta likelihood of numbers between 0 and 1: -log p(x).
// Formulas: beta.py.  Sizes: B batch, D data.
#ifndef TINYVAE_BETA
#define TINYVAE_BETA

#include "common.cu"

namespace tinyvae {

// T(z) = log Gamma(z) - z log z + z - log sqrt(2 pi) and D(z) = z T'(z)
template <class A> struct Stirling { A T, D; };

template <class A> __device__ __forceinline__ Stirling<A> stirling(A z, A log_z) {
    bool small = z < A(8);
    A near = small ? z : A(8), w = small ? z + A(8) : z;
    A log_w = small ? log_(w) : log_z, inverse = A(1) / w, s = inverse * inverse;
    A series_t = A(1) / A(156);
    series_t = series_t * s - A(691) / A(360360);
    series_t = series_t * s + A(1) / A(1188);
    series_t = series_t * s - A(1) / A(1680);
    series_t = series_t * s + A(1) / A(1260);
    series_t = series_t * s - A(1) / A(360);
    series_t = series_t * s + A(1) / A(12);
    A series_d = -A(1) / A(12);
    series_d = series_d * s + A(691) / A(32760);
    series_d = series_d * s - A(1) / A(132);
    series_d = series_d * s + A(1) / A(240);
    series_d = series_d * s - A(1) / A(252);
    series_d = series_d * s + A(1) / A(120);
    series_d = series_d * s - A(1) / A(12);
    A Q = A(1), dQ = A(0);  // the product of z + 1 ... z + 7 and its derivative
#pragma unroll
    for (int i = 1; i < 8; ++i) {
        dQ = dQ * (near + A(i)) + Q;
        Q *= near + A(i);
    }
    A square = (near + A(8)) * (near + A(8)), climb = log_w - log_z;
    A t = near * climb + (log_(square * square * (square * square) / Q) - log_z) - A(8);
    A d = near * (climb - dQ / Q) - A(1);
    Stirling<A> out = {(series_t * inverse - A(0.5) * log_w) + (small ? t : A(0)),
                       (series_d * inverse - A(0.5)) * (z * inverse) + (small ? d : A(0))};
    return out;
}

// log_alpha, log_beta, x, dlog_alpha, dlog_beta: (B, D); nll: (B)
template <class T, int N>
__global__ void beta_nll_forward(const T* __restrict__ log_alpha, const T* __restrict__ log_beta,
                                 const T* __restrict__ x, T* __restrict__ nll,
                                 T* __restrict__ dlog_alpha, T* __restrict__ dlog_beta, i64 B,
                                 i64 D) {
    for (i64 row = blockIdx.x; row < B; row += gridDim.x) {
        i64 start = row_start(row, D);
        T total = T(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> la = load<N>(log_alpha + start, j), lb = load<N>(log_beta + start, j);
            Pack<T, N> xs = load<N>(x + start, j), da, db;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                T a = exp_(la.v[k]), b = exp_(lb.v[k]), e = exp_(-abs_(la.v[k] - lb.v[k]));
                T log_n = (la.v[k] > lb.v[k] ? la.v[k] : lb.v[k]) + log1p_(e);
                bool larger = la.v[k] >= lb.v[k];
                T p = (larger ? T(1) : e) / (T(1) + e), q = (larger ? e : T(1)) / (T(1) + e);
                T log_x = log_(xs.v[k]), log_1x = log1p_(-xs.v[k]), other = T(1) - xs.v[k];
                T d = xs.v[k] < T(0.5) ? p - xs.v[k] : other - q;  // where both are small and exact
                T u = d / xs.v[k], v = -d / other;
                // where p and x are close, the logarithm of their ratio without cancellation
                T ratio_a = abs_(u) < T(0.5) ? log1p_(u) : (la.v[k] - log_n) - log_x;
                T ratio_b = abs_(v) < T(0.5) ? log1p_(v) : (lb.v[k] - log_n) - log_1x;
                Stirling<T> sa = stirling(a, la.v[k]), sb = stirling(b, lb.v[k]);
                Stirling<T> sn = stirling(a + b, log_n);
                total += (a * ratio_a + b * ratio_b) + (sa.T + sb.T - sn.T) +
                         (log_x + log_1x + T(0.91893853320467274178));
                da.v[k] = a * ratio_a + (sa.D - p * sn.D);
                db.v[k] = b * ratio_b + (sb.D - q * sn.D);
            }
            store(dlog_alpha + start, j, da);
            store(dlog_beta + start, j, db);
        }
        total = block_sum(total);
        if (threadIdx.x == 0) nll[row] = total;
    }
}

}  // namespace tinyvae
#endif
