// The fused importance-weighted bound, in three launches: each sample's nll and gradient, a row's
// weights, the gradients times these.
// Formulas: iwae.py.  Sizes: B batch, K samples of a row, n = B K, D data.
#ifndef TINYVAE_IWAE
#define TINYVAE_IWAE

#include "likelihood.cu"
#include "logsumexp.cu"

namespace tinyvae {

// ------------------------------------------------------------------------ each sample's likelihood
// The likelihood of row r looks at row r / K of x: the other arrays are moved instead.
// logits, dlogits: (n, D); x: (B, D); nll: (n)
template <class T, int N>
__global__ void bernoulli_iwae(const T* __restrict__ logits, const T* __restrict__ x,
                               T* __restrict__ nll, T* __restrict__ dlogits, i64 n, i64 D, i64 K) {
    for (i64 r = blockIdx.x; r < n; r += gridDim.x) {
        i64 b = r / K, moved = row_start(r - b, D);
        T total = block_sum(Bernoulli<T, N>{logits + moved, x, dlogits + moved}.row(b, D, T(1)));
        if (threadIdx.x == 0) nll[r] = total;
    }
}

// x_mu, x_logvar, dx_mu, dx_logvar: (n, D); x: (B, D); nll: (n)
template <class T, int N>
__global__ void gaussian_iwae(const T* __restrict__ x_mu, const T* __restrict__ x_logvar,
                              const T* __restrict__ x, T* __restrict__ nll, T* __restrict__ dx_mu,
                              T* __restrict__ dx_logvar, i64 n, i64 D, i64 K) {
    for (i64 r = blockIdx.x; r < n; r += gridDim.x) {
        i64 b = r / K, moved = row_start(r - b, D);
        Gaussian<T, N> likelihood = {x_mu + moved, x_logvar + moved, x, dx_mu + moved,
                                     dx_logvar + moved};
        T total = block_sum(likelihood.row(b, D, T(1)));
        if (threadIdx.x == 0) nll[r] = total;
    }
}

// x_mu, dx_mu: (n, D); x: (B, D); nll: (n)
template <class T, int N>
__global__ void gaussian_fixed_iwae(const T* __restrict__ x_mu, const T* __restrict__ x,
                                    T* __restrict__ nll, T* __restrict__ dx_mu, T precision,
                                    T constant, i64 n, i64 D, i64 K) {
    for (i64 r = blockIdx.x; r < n; r += gridDim.x) {
        i64 b = r / K, moved = row_start(r - b, D);
        GaussianFixed<T, N> likelihood = {x_mu + moved, x, dx_mu + moved, precision, constant};
        T total = block_sum(likelihood.row(b, D, T(1)));
        if (threadIdx.x == 0) nll[r] = total;
    }
}

// -------------------------------------------------------------------------------------- weights
// each: (B, K), its nll; log_ratio, weights, dlog_ratio: (B, K); dout, bound, nll, kl: (B)
template <class T, int N>
__global__ void importance_weights(const T* __restrict__ each, const T* __restrict__ log_ratio,
                                   const T* __restrict__ dout, T* __restrict__ bound,
                                   T* __restrict__ nll, T* __restrict__ kl,
                                   T* __restrict__ weights, T* __restrict__ dlog_ratio,
                                   Varying<T> weight, i64 B, i64 K) {
    T beta = weight.get();
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        i64 start = row_start(b, K);
        LogSumExp<T> s = no_terms<T>();
        T sums[2] = {T(0), T(0)};
        for (i64 k = start + threadIdx.x; k < start + K; k += blockDim.x) {
            sums[0] += each[k];
            sums[1] += log_ratio[k];
            add(s, -each[k] - beta * log_ratio[k]);
        }
        s = block_join(s);
        block_sums(sums);
        T scale = s.sum == T(0) ? T(0) : T(1) / s.sum;  // a row of -inf has no weights
        for (i64 k = start + threadIdx.x; k < start + K; k += blockDim.x) {
            T w = exp_(-each[k] - beta * log_ratio[k] - s.top) * scale;
            weights[k] = w;
            dlog_ratio[k] = -beta * dout[b] * w;
        }
        if (threadIdx.x == 0) {
            bound[b] = s.top + log_(s.sum / T(K));
            nll[b] = sums[0] / T(K);
            kl[b] = sums[1] / T(K);
        }
    }
}

// dout: (B); weights: (n); gradient: (n, D), of the nll, becomes that of the bound
template <class T, int N>
__global__ void weigh_rows(const T* __restrict__ dout, const T* __restrict__ weights,
                           T* __restrict__ gradient, i64 n, i64 D, i64 K) {
    for (i64 r = blockIdx.x; r < n; r += gridDim.x) {
        T *row = gradient + row_start(r, D), rate = -dout[r / K] * weights[r];
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> g = load<N>(row, j);
#pragma unroll
            for (int i = 0; i < N; ++i) g.v[i] *= rate;
            store(row, j, g);
        }
    }
}

}  // namespace tinyvae
#endif
