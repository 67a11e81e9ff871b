// Several samples of z a row: reparameterized, and log q(z | x) - log p(z).
// Formulas: samples.py.  Sizes: B batch, K samples of a row, Z latents.
#ifndef TINYVAE_SAMPLES
#define TINYVAE_SAMPLES

#include "common.cu"

namespace tinyvae {

// -------------------------------------------------------------------------------- reparameterize
// mu, logvar: (B, Z); eps, z: (B, K, Z), n elements
template <class T, int N>
__global__ void reparameterize_samples_forward(const T* __restrict__ mu,
                                               const T* __restrict__ logvar,
                                               const T* __restrict__ eps, T* __restrict__ z, i64 n,
                                               i64 K, i64 Z) {
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 at = i / (K * Z) * Z + i % Z;  // (b, k, j) -> (b, j)
        z[i] = mu[at] + exp_(T(0.5) * logvar[at]) * eps[i];
    }
}

// logvar, dmu, dlogvar: (B, Z), n elements; dz, eps: (B, K, Z)
template <class T, int N>
__global__ void reparameterize_samples_backward(const T* __restrict__ logvar,
                                                const T* __restrict__ dz,
                                                const T* __restrict__ eps, T* __restrict__ dmu,
                                                T* __restrict__ dlogvar, i64 n, i64 K, i64 Z) {
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 first = i / Z * (K * Z) + i % Z;  // (b, j) -> (b, 0, j)
        T of_mu = T(0), of_sigma = T(0);
        for (i64 at = first; at < first + K * Z; at += Z) {
            of_mu += dz[at];
            of_sigma += dz[at] * eps[at];
        }
        dmu[i] = of_mu;
        dlogvar[i] = of_sigma * T(0.5) * exp_(T(0.5) * logvar[i]);
    }
}

// ------------------------------------------------------------------------- log q(z | x) - log p(z)
// logvar: (B, Z); z, eps: (n, Z), n = B K; log_ratio: (n)
template <class T, int N>
__global__ void gaussian_log_ratio_forward(const T* __restrict__ logvar, const T* __restrict__ z,
                                           const T* __restrict__ eps, T* __restrict__ log_ratio,
                                           i64 n, i64 Z, i64 K) {
    for (i64 r = blockIdx.x; r < n; r += gridDim.x) {
        i64 start = row_start(r, Z);
        const T* lv = logvar + row_start(r / K, Z);
        T total = T(0);
        for (i64 j = threadIdx.x; j < Z / N; j += blockDim.x) {
            Pack<T, N> v = load<N>(z + start, j), e = load<N>(eps + start, j), l = load<N>(lv, j);
#pragma unroll
            for (int i = 0; i < N; ++i)
                total += (v.v[i] - e.v[i]) * (v.v[i] + e.v[i]) - l.v[i];
        }
        total = block_sum(total);
        if (threadIdx.x == 0) log_ratio[r] = T(0.5) * total;
    }
}

// logvar, dlogvar: (B, Z); z, eps, dz: (B, K, Z); dlog_ratio: (B, K)
template <class T, int N>
__global__ void gaussian_log_ratio_backward(const T* __restrict__ logvar, const T* __restrict__ z,
                                            const T* __restrict__ eps,
                                            const T* __restrict__ dlog_ratio, T* __restrict__ dz,
                                            T* __restrict__ dlogvar, i64 still, i64 B, i64 K,
                                            i64 Z) {
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        T total = T(0);
        for (i64 k = threadIdx.x; k < K; k += blockDim.x) total += dlog_ratio[b * K + k];
        total = block_sum(total);
        for (i64 j = threadIdx.x; j < Z; j += blockDim.x)
            dlogvar[b * Z + j] = still ? T(0) : T(-0.5) * total;
        for (i64 i = threadIdx.x; i < K * Z; i += blockDim.x) {
            i64 at = b * K * Z + i;
            T score = still ? eps[at] * exp_(T(-0.5) * logvar[b * Z + i % Z]) : T(0);
            dz[at] = dlog_ratio[b * K + i / Z] * (z[at] - score);
        }
    }
}

}  // namespace tinyvae
#endif
