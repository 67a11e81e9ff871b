// log(sum(exp)) in one reading: the largest so far, and the sum of all relative to it.
#ifndef TINYVAE_LOGSUMEXP
#define TINYVAE_LOGSUMEXP

#include "common.cu"

namespace tinyvae {

__device__ __forceinline__ float lowest(float) { return -3.402823466e38f; }
__device__ __forceinline__ double lowest(double) { return -1.7976931348623157e308; }

// log sum exp = top + log(sum).  top is finite or +inf, never NaN and never -inf, so that no
// difference of two infinities arises where all terms are -inf; a NaN term makes the sum NaN.
template <class A> struct LogSumExp { A top, sum; };

template <class A> __device__ __forceinline__ LogSumExp<A> no_terms() {
    LogSumExp<A> s = {lowest(A(0)), A(0)};
    return s;
}

template <class A> __device__ __forceinline__ void add(LogSumExp<A>& s, A x) {
    A e = exp_(-abs_(x - s.top));
    s.sum = x > s.top ? s.sum * e + A(1) : s.sum + e;
    s.top = x > s.top ? x : s.top;
}

template <class A>
__device__ __forceinline__ LogSumExp<A> join(LogSumExp<A> s, LogSumExp<A> t) {
    A e = exp_(-abs_(s.top - t.top));
    LogSumExp<A> out = {s.top > t.top ? s.top : t.top,
                        s.top > t.top ? s.sum + t.sum * e : t.sum + s.sum * e};
    return out;
}

// Over groups of `lanes` (1, 2 ... 32) neighbours of a warp, in every lane; all lanes of the warp
// must call it.
template <class A>
__device__ __forceinline__ LogSumExp<A> group_join(LogSumExp<A> s, u32 lanes) {
    for (u32 lane = lanes / 2; lane > 0; lane /= 2) {
        LogSumExp<A> other = {__shfl_xor_sync(0xFFFFFFFFu, s.top, lane),
                              __shfl_xor_sync(0xFFFFFFFFu, s.sum, lane)};
        s = join(s, other);
    }
    return s;
}

// Over a block of 32, 64 ... 1024 threads, in every thread.  All threads must call it.
template <class A> __device__ __forceinline__ LogSumExp<A> block_join(LogSumExp<A> s) {
    __shared__ A top[32], sum[32];
    s = group_join(s, 32);
    if (blockDim.x == 32) return s;
    __syncthreads();  // everybody has read the parts of the call before
    if (threadIdx.x % 32 == 0) {
        top[threadIdx.x / 32] = s.top;
        sum[threadIdx.x / 32] = s.sum;
    }
    __syncthreads();
    u32 lane = threadIdx.x % 32;
    LogSumExp<A> part = no_terms<A>();
    if (lane < blockDim.x / 32) {
        part.top = top[lane];
        part.sum = sum[lane];
    }
    return group_join(part, 32);
}

}  // namespace tinyvae
#endif
