// A layer's bias and activation in one pass, and their gradients in another.
// Formulas: activation.py.  Sizes: R rows, C channels.
//
// ACT is the activation's number.  A block has 256 threads, of which `across` lie along a row, N
// channels each, and the others on further rows; it keeps to its channels, so that the bias stays
// in registers and the sums over rows need no atomics.
#ifndef TINYVAE_ACTIVATION
#define TINYVAE_ACTIVATION

#include "common.cu"

namespace tinyvae {

enum Activation { IDENTITY, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SOFTPLUS, SILU, GELU };

__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }

template <class A> __device__ __forceinline__ A sigmoid(A u) {
    A e = exp_(-abs_(u));  // in (0, 1]: nothing overflows
    return (u >= A(0) ? A(1) : e) / (A(1) + e);
}

// u where it matters for gelu, and 2 g(u); beyond, u^3 might overflow
template <class A> __device__ __forceinline__ A gelu_near(A u) {
    return u < A(-10) ? A(-10) : u > A(10) ? A(10) : u;
}
template <class A> __device__ __forceinline__ A gelu_2g(A u) {
    return A(2 * 0.79788456080286535588) * (u + A(0.044715) * (u * u * u));
}

template <int ACT, class A> __device__ __forceinline__ A activate(A u) {
    if (ACT == RELU) return max_(u, A(0));
    if (ACT == LEAKY_RELU) return u > A(0) ? u : A(0.01) * u;
    if (ACT == ELU) return u > A(0) ? u : expm1_(u);
    if (ACT == SIGMOID) return sigmoid(u);
    if (ACT == TANH) return tanh_(u);
    if (ACT == SOFTPLUS) return max_(u, A(0)) + log1p_(exp_(-abs_(u)));
    if (ACT == SILU) return u * sigmoid(u);
    if (ACT == GELU) return u * sigmoid(gelu_2g(gelu_near(u)));
    return u;
}

// kept: u for SILU and GELU, else y = activate(u)
template <int ACT, class A> __device__ __forceinline__ A slope(A kept) {
    if (ACT == RELU) return kept > A(0) ? A(1) : A(0);
    if (ACT == LEAKY_RELU) return kept > A(0) ? A(1) : A(0.01);
    if (ACT == ELU) return kept > A(0) ? A(1) : kept + A(1);
    if (ACT == SIGMOID) return kept * (A(1) - kept);
    if (ACT == TANH) return A(1) - kept * kept;
    if (ACT == SOFTPLUS) return -expm1_(-kept);
    if (ACT == SILU) return sigmoid(kept) * (A(1) + kept * sigmoid(-kept));
    if (ACT == GELU) {
        A u = gelu_near(kept), g = gelu_2g(u);
        A dg = A(2 * 0.79788456080286535588) * (A(1) + A(3 * 0.044715) * (u * u));
        return sigmoid(g) * (A(1) + u * dg * sigmoid(-g));
    }
    return A(1);
}

// Which pack of channels and which rows are a thread's: rows first, first + stride, ...
struct Share { i64 pack, first, stride; };

template <int N> __device__ __forceinline__ Share share(i64 R, i64 C, i64 across, i64 groups) {
    i64 tile = blockIdx.x / groups, group = blockIdx.x % groups;
    i64 down = blockDim.x / across, row = threadIdx.x / across;
    Share s = {tile * across + threadIdx.x % across, group * down + row, groups * down};
    if (row >= down || s.pack >= C / N) s.first = R;  // nothing to do
    return s;
}

// x, y: (R, C); bias: (C)
template <class T, int N, int ACT>
__global__ void bias_activation_forward(const T* __restrict__ x, const T* __restrict__ bias,
                                        T* __restrict__ y, i64 R, i64 C, i64 across, i64 groups) {
    Share s = share<N>(R, C, across, groups);
    if (s.first >= R) return;
    Pack<T, N> b = load<N>(bias, s.pack);
    for (i64 r = s.first; r < R; r += s.stride) {
        Pack<T, N> u = load<N>(x + row_start(r, C), s.pack);
#pragma unroll
        for (int k = 0; k < N; ++k) u.v[k] = activate<ACT>(u.v[k] + b.v[k]);
        store(y + row_start(r, C), s.pack, u);
    }
}

// dy, dx: (R, C); bias: (C); kept: x (R, C) for SILU and GELU, else y; totals: (groups, C), the
// sums of dx over the rows of each group of blocks, in float64.  VALUE: kept is x for all kinds, and
// y (R, C), else null, is written too
template <class T, int N, int ACT, bool VALUE>
__device__ __forceinline__ void bias_activation_slopes(
    const T* __restrict__ dy, const T* __restrict__ kept, T* __restrict__ y,
    const T* __restrict__ bias, T* __restrict__ dx, double* __restrict__ totals, i64 R, i64 C,
    i64 across, i64 groups) {
    __shared__ double part[256];
    Share s = share<N>(R, C, across, groups);
    double sum[N];
    Pack<T, N> b;
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] = 0, b.v[k] = T(0);
    if (s.first < R && (VALUE || ACT >= SILU)) b = load<N>(bias, s.pack);
    for (i64 r = s.first; r < R; r += s.stride) {
        Pack<T, N> d = load<N>(dy + row_start(r, C), s.pack);
        Pack<T, N> u = load<N>(kept + row_start(r, C), s.pack), out;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            T near = VALUE || ACT >= SILU ? u.v[k] + b.v[k] : u.v[k];
            if (VALUE) out.v[k] = activate<ACT>(near);
            d.v[k] *= slope<ACT>(VALUE && ACT < SILU ? out.v[k] : near);
            sum[k] += d.v[k];
        }
        if (VALUE) store(y + row_start(r, C), s.pack, out);
        store(dx + row_start(r, C), s.pack, d);
    }
    // the threads with the same channels add up theirs, the first of them the sums of all
#pragma unroll
    for (int k = 0; k < N; ++k) {
        part[threadIdx.x] = sum[k];
        __syncthreads();
        if (threadIdx.x < across && s.pack < C / N) {
            double total = 0;
            for (i64 t = threadIdx.x; t < blockDim.x / across * across; t += across)
                total += part[t];
            totals[row_start(blockIdx.x % groups, C) + s.pack * N + k] = total;
        }
        __syncthreads();  // everybody has read the parts
    }
}

template <class T, int N, int ACT>
__global__ void bias_activation_backward(const T* __restrict__ dy, const T* __restrict__ kept,
                                         const T* __restrict__ bias, T* __restrict__ dx,
                                         double* __restrict__ totals, i64 R, i64 C, i64 across,
                                         i64 groups) {
    bias_activation_slopes<T, N, ACT, false>(dy, kept, 0, bias, dx, totals, R, C, across, groups);
}

template <class T, int N, int ACT>
__global__ void bias_activation_value_and_grad(const T* __restrict__ dy, const T* __restrict__ x,
                                               T* __restrict__ y, const T* __restrict__ bias,
                                               T* __restrict__ dx, double* __restrict__ totals,
                                               i64 R, i64 C, i64 across, i64 groups) {
    bias_activation_slopes<T, N, ACT, true>(dy, x, y, bias, dx, totals, R, C, across, groups);
}

// totals: (groups, C); sums: (C).  A block of 8 x 32 threads takes 32 columns.
template <class T, int N>
__global__ void column_sums(const double* __restrict__ totals, T* __restrict__ sums, i64 groups,
                            i64 C) {
    __shared__ double part[8][32];
    u32 x = threadIdx.x % 32, y = threadIdx.x / 32;
    i64 column = (i64)blockIdx.x * 32 + x;
    double total = 0;
    for (i64 g = y; g < groups && column < C; g += 8) total += totals[row_start(g, C) + column];
    part[y][x] = total;
    __syncthreads();
    if (y > 0 || column >= C) return;
#pragma unroll
    for (int k = 1; k < 8; ++k) total += part[k][x];
    sums[column] = (T)total;
}

}  // namespace tinyvae
#endif
