// The memory half of convolution.  Sizes and formulas: patches.py.
// x: (B, H, W, C); patches: (B P Q, R S C).  N divides C: a thread moves N channels.
// Both kernels gather: every element is written once, by one thread, in one order.
#ifndef TINYVAE_PATCHES
#define TINYVAE_PATCHES

#include "common.cu"

namespace tinyvae {

// index % size, and index /= size; in 32 bits where that will do, which is several times as fast
__device__ __forceinline__ int digit(i64& index, int size) {
    if (((u64)index >> 32) == 0) {
        u32 quotient = (u32)index / (u32)size, remainder = (u32)index - quotient * (u32)size;
        index = quotient;
        return (int)remainder;
    }
    i64 quotient = index / size;
    int remainder = (int)(index - quotient * size);
    index = quotient;
    return remainder;
}

template <class T, int N>
__global__ void im2col(const T* __restrict__ x, T* __restrict__ patches, i64 B, int H, int W, int C,
                       int R, int S, int P, int Q, int stride, int padding, int dilation) {
    int packs = C / N;
    i64 n = B * P * Q * R * S * packs;
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 rest = i;
        int c = digit(rest, packs), s = digit(rest, S), r = digit(rest, R), q = digit(rest, Q);
        int p = digit(rest, P);  // rest: b
        int h = p * stride + r * dilation - padding, w = q * stride + s * dilation - padding;
        Pack<T, N> value;
        if (h >= 0 && h < H && w >= 0 && w < W) {
            value = load<N>(x, ((rest * H + h) * W + w) * packs + c);
        } else {
#pragma unroll
            for (int k = 0; k < N; ++k) value.v[k] = T(0);
        }
        store(patches, i, value);
    }
}

// x sums, for every pixel, the patches that it is in: over (r, s) in order
template <class T, int N>
__global__ void col2im(T* __restrict__ x, const T* __restrict__ patches, i64 B, int H, int W, int C,
                       int R, int S, int P, int Q, int stride, int padding, int dilation) {
    int packs = C / N;
    i64 n = B * H * W * packs;
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 rest = i;
        int c = digit(rest, packs), w = digit(rest, W), h = digit(rest, H);  // rest: b
        Pack<T, N> total;
#pragma unroll
        for (int k = 0; k < N; ++k) total.v[k] = T(0);
        for (int r = 0; r < R; ++r) {
            int down = h + padding - r * dilation, p = down / stride;
            if (down < 0 || p >= P || p * stride != down) continue;
            for (int s = 0; s < S; ++s) {
                int across = w + padding - s * dilation, q = across / stride;
                if (across < 0 || q >= Q || q * stride != across) continue;
                i64 patch = (rest * P + p) * Q + q;
                Pack<T, N> each = load<N>(patches, ((patch * R + r) * S + s) * packs + c);
#pragma unroll
                for (int k = 0; k < N; ++k) total.v[k] += each.v[k];
            }
        }
        store(x, i, total);
    }
}

}  // namespace tinyvae
#endif
