// Importance weights: the log of their mean over K samples, and their normalised values.
// Formulas: importance.py.  Sizes: B batch, K samples.
#ifndef TINYVAE_IMPORTANCE
#define TINYVAE_IMPORTANCE

#include "common.cu"
#include "logsumexp.cu"

namespace tinyvae {

// log_w, weights: (B, K); log_mean: (B); rate: (B), what the weights are multiplied by, or null for 1
template <class T, int N>
__global__ void log_mean_exp_forward(const T* __restrict__ log_w, const T* __restrict__ rate,
                                     T* __restrict__ log_mean, T* __restrict__ weights, i64 B,
                                     i64 K) {
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        const T* row = log_w + row_start(b, K);
        LogSumExp<T> s = no_terms<T>();
        for (i64 j = threadIdx.x; j < K / N; j += blockDim.x) {
            Pack<T, N> w = load<N>(row, j);
#pragma unroll
            for (int k = 0; k < N; ++k) add(s, w.v[k]);
        }
        s = block_join(s);
        // a row of -inf: the sum is 0, the mean is -inf and the weights are 0
        T scale = s.sum == T(0) ? T(0) : T(1) / s.sum;
        if (rate) scale *= rate[b];
        for (i64 j = threadIdx.x; j < K / N; j += blockDim.x) {
            Pack<T, N> w = load<N>(row, j), out;
#pragma unroll
            for (int k = 0; k < N; ++k) out.v[k] = exp_(w.v[k] - s.top) * scale;
            store(weights + row_start(b, K), j, out);
        }
        if (threadIdx.x == 0) log_mean[b] = s.top + log_(s.sum / T(K));
    }
}

}  // namespace tinyvae
#endif
