// Mixtures of Gaussians: log-densities of rows, or of their single numbers, and their gradients.
// Formulas: mixture.py.  Sizes: B rows, Z numbers each, K components.
//
// z: (B, Z); mu, logvar: (K, Z); weights: (B, K), or (1, K) where `weight_step` is 0.
//
// Blocks of 256 threads: `lanes` (1, 2 ... 32) neighbours read along Z, and the 256 / lanes groups
// of them take components, or rows, in turn.
#ifndef TINYVAE_MIXTURE
#define TINYVAE_MIXTURE

#include "common.cu"
#include "logsumexp.cu"

namespace tinyvae {

enum { MIXTURE_THREADS = 256 };

// one number under one component: its distance from mu, times the precision, and log N
template <class A> struct Normal { A distance, u, log_prob; };

template <class A> __device__ __forceinline__ Normal<A> normal(A z, A mu, A logvar) {
    Normal<A> n;
    n.distance = z - mu;
    n.u = n.distance * exp_(-logvar);
    n.log_prob = A(-0.5) * (A(1.8378770664093454836) + logvar + n.distance * n.u);
    return n;
}

// Over groups of `lanes` neighbours of a warp, in every lane; all lanes of the warp must call it.
template <class A> __device__ __forceinline__ A group_sum(A value, u32 lanes) {
    for (u32 lane = lanes / 2; lane > 0; lane /= 2)
        value += __shfl_xor_sync(0xFFFFFFFFu, value, lane);
    return value;
}

// For each lane, the sum over the groups, in the first group's threads; all threads must call it.
template <class A> __device__ __forceinline__ A sum_of_groups(A value, u32 lanes) {
    __shared__ A part[MIXTURE_THREADS];
    __syncthreads();  // everybody has read the parts of the call before
    part[threadIdx.x] = value;
    __syncthreads();
    A total = A(0);
    if (threadIdx.x < lanes)
        for (u32 t = threadIdx.x; t < MIXTURE_THREADS; t += lanes) total += part[t];
    return total;
}

// log_prob: (B); share: (B, K).  A block takes a row.
template <class T, int N>
__global__ void mixture_log_prob_forward(
    const T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ mu,
    const T* __restrict__ logvar, T* __restrict__ log_prob, T* __restrict__ share, i64 B, i64 Z,
    i64 K, i64 weight_step, i64 lanes) {
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        LogSumExp<T> s = no_terms<T>();
        for (i64 first = 0; first < K; first += groups) {
            i64 k = first + group;
            T sum = T(0);
            for (i64 j = lane; j < Z && k < K; j += lanes) {
                i64 at = row_start(k, Z) + j;
                sum += normal(z[row_start(b, Z) + j], mu[at], logvar[at]).log_prob;
            }
            sum = group_sum(sum, (u32)lanes);
            if (k < K && lane == 0) {
                T joint = weights[row_start(b, weight_step) + k] + sum;
                share[row_start(b, K) + k] = joint;
                add(s, joint);
            }
        }
        s = block_join(s);  // its barriers show all threads the joints
        // a row of -inf: the sum is 0, and so are the shares
        T scale = s.sum == T(0) ? T(0) : T(1) / s.sum;
        for (i64 k = threadIdx.x; k < K; k += blockDim.x) {
            i64 at = row_start(b, K) + k;
            share[at] = exp_(share[at] - s.top) * scale;
        }
        if (threadIdx.x == 0) log_prob[b] = s.top + log_(s.sum);
    }
}

// log_prob: (B, Z).  A block takes a row, a lane a number, the groups components in turn.
template <class T, int N>
__global__ void mixture_marginal_log_prob_forward(
    const T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ mu,
    const T* __restrict__ logvar, T* __restrict__ log_prob, i64 B, i64 Z, i64 K, i64 weight_step,
    i64 lanes) {
    __shared__ LogSumExp<T> part[MIXTURE_THREADS];
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        for (i64 first = 0; first < Z; first += lanes) {
            i64 j = first + lane, own = row_start(b, Z) + j;
            LogSumExp<T> s = no_terms<T>();
            for (i64 k = group; k < K && j < Z; k += groups) {
                i64 at = row_start(k, Z) + j;
                T log_n = normal(z[own], mu[at], logvar[at]).log_prob;
                add(s, weights[row_start(b, weight_step) + k] + log_n);
            }
            part[threadIdx.x] = s;
            __syncthreads();
            if (group == 0 && j < Z) {
                for (u32 t = threadIdx.x + (u32)lanes; t < MIXTURE_THREADS; t += (u32)lanes)
                    s = join(s, part[t]);
                log_prob[own] = s.top + log_(s.sum);
            }
            __syncthreads();  // everybody has read the parts
        }
    }
}

// What a component gets of the gradient that comes in for a number: of the joint density
// weights[b, k] itself, which then is dlog_prob times the responsibility.  dout: (B, Z).
template <bool MARGINAL, class T>
__device__ __forceinline__ T share_of(const T* weights, const T* log_prob, const T* dout, T log_n,
                                      i64 weight, i64 at) {
    if (!MARGINAL) return weights[weight];
    // where all terms are -inf, so that none has a share, the difference would be NaN
    T base = log_prob[at] < lowest(T(0)) ? T(0) : log_prob[at];
    return dout[at] * exp_(weights[weight] + log_n - base);
}

// dz: (B, Z); log_prob, dout: (B, Z) if MARGINAL.  A block takes a row.
template <class T, int N, int MARGINAL>
__global__ void mixture_dz(
    const T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ log_prob, const T* __restrict__ dout,
    T* __restrict__ dz, i64 B, i64 Z, i64 K, i64 weight_step, i64 lanes) {
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        for (i64 first = 0; first < Z; first += lanes) {
            i64 j = first + lane, own = row_start(b, Z) + j;
            T slope = T(0);
            for (i64 k = group; k < K && j < Z; k += groups) {
                i64 at = row_start(k, Z) + j, weight = row_start(b, weight_step) + k;
                Normal<T> n = normal(z[own], mu[at], logvar[at]);
                slope += share_of<MARGINAL>(weights, log_prob, dout, n.log_prob, weight, own) * n.u;
            }
            slope = sum_of_groups(slope, (u32)lanes);
            if (group == 0 && j < Z) dz[own] = -slope;
        }
    }
}

// total: (K), the shares' sum; dmu, dlogvar: (K, Z).  A block takes a component; sums in double.
template <class T, int N, int MARGINAL>
__global__ void mixture_dparameters(
    const T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ log_prob, const T* __restrict__ dout,
    T* __restrict__ total, T* __restrict__ dmu, T* __restrict__ dlogvar, i64 B, i64 Z, i64 K,
    i64 weight_step, i64 lanes) {
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 k = blockIdx.x; k < K; k += gridDim.x) {
        double shares = 0;
        if (!MARGINAL)
            for (i64 b = threadIdx.x; b < B; b += blockDim.x)
                shares += weights[row_start(b, weight_step) + k];
        for (i64 first = 0; first < Z; first += lanes) {
            i64 j = first + lane, at = row_start(k, Z) + j;
            double slope = 0, square = 0;
            for (i64 b = group; b < B && j < Z; b += groups) {
                i64 own = row_start(b, Z) + j, weight = row_start(b, weight_step) + k;
                Normal<T> n = normal(z[own], mu[at], logvar[at]);
                T s = share_of<MARGINAL>(weights, log_prob, dout, n.log_prob, weight, own);
                slope += s * n.u;
                square += s * (n.distance * n.u - T(1));
                if (MARGINAL) shares += s;
            }
            slope = sum_of_groups(slope, (u32)lanes);
            square = sum_of_groups(square, (u32)lanes);
            if (group == 0 && j < Z) {
                dmu[at] = T(slope);
                dlogvar[at] = T(0.5 * square);
            }
        }
        shares = block_sum(shares);
        if (threadIdx.x == 0) total[k] = T(shares);
    }
}

// share: (B, K), the shares' sums over a row's numbers.  A block takes a row, a thread a component.
template <class T, int N>
__global__ void mixture_marginal_shares(
    const T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ log_prob, const T* __restrict__ dout,
    T* __restrict__ share, i64 B, i64 Z, i64 K, i64 weight_step, i64 lanes) {
    for (i64 b = blockIdx.x; b < B; b += gridDim.x)
        for (i64 k = threadIdx.x; k < K; k += blockDim.x) {
            i64 weight = row_start(b, weight_step) + k;
            T sum = T(0);
            for (i64 j = 0; j < Z; ++j) {
                i64 at = row_start(k, Z) + j, own = row_start(b, Z) + j;
                T log_n = normal(z[own], mu[at], logvar[at]).log_prob;
                sum += share_of<true>(weights, log_prob, dout, log_n, weight, own);
            }
            share[row_start(b, K) + k] = sum;
        }
}

}  // namespace tinyvae
#endif
