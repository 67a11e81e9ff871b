// Counter-based noise, Philox4x32-10: the same bits as philox.py, for any grid.
// Element e of a result is word e % 4 of block e / 4; a thread makes the words of one block.
// key0, key1: the seed; stream, step: what the noise is for.  n elements from element `offset` on.
// N: 4 where every block is written whole and aligned, else 1.
#ifndef TINYVAE_PHILOX
#define TINYVAE_PHILOX

#include "common.cu"

namespace tinyvae {

struct Words { u32 v[4]; };

// Salmon et al. 2011, section 4.3
__device__ __forceinline__ Words philox4x32(i64 block, u32 stream, u32 step, u32 key0, u32 key1) {
    u32 c0 = (u32)block, c1 = (u32)((u64)block >> 32), c2 = stream, c3 = step;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high2 = __umulhi(0xCD9E8D57u, c2), low2 = 0xCD9E8D57u * c2;
        c0 = high2 ^ c1 ^ key0;
        c1 = low2;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// in (0, 1), exact in float: (2 floor(word / 2^9) + 1) / 2^24
template <class A> __device__ __forceinline__ A uniform(u32 word) {
    return A(2u * (word >> 9) + 1u) * A(5.9604644775390625e-08);
}

__device__ __forceinline__ void sincos_turn(float turn, float* sine, float* cosine) {
    sincospif(2.0f * turn, sine, cosine);
}
__device__ __forceinline__ void sincos_turn(double turn, double* sine, double* cosine) {
    sincospi(2.0 * turn, sine, cosine);
}

// four standard normal numbers of one block, two from two uniform ones (Box and Muller 1958)
template <class A> __device__ __forceinline__ void normal4(Words words, A* normal) {
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
        A radius = sqrt_(A(-2) * log_(uniform<A>(words.v[k]))), sine, cosine;
        sincos_turn(uniform<A>(words.v[k + 1]), &sine, &cosine);
        normal[k] = radius * cosine;
        normal[k + 1] = radius * sine;
    }
}

// What becomes of a block's words.
struct MakeBits {
    typedef u32 type;
    __device__ static void make(Words words, u32* out) {
        for (int k = 0; k < 4; ++k) out[k] = words.v[k];
    }
};
template <class T> struct MakeUniform {
    typedef T type;
    __device__ static void make(Words words, T* out) {
        for (int k = 0; k < 4; ++k) out[k] = uniform<T>(words.v[k]);
    }
};
template <class T> struct MakeNormal {
    typedef T type;
    __device__ static void make(Words words, T* out) { normal4(words, out); }
};

// out: (n)
template <class Make, int N>
__device__ __forceinline__ void fill(typename Make::type* out, i64 n, u32 key0, u32 key1,
                                     u32 stream, u32 step, i64 offset) {
    i64 first = offset / 4, last = (offset + n + 3) / 4;
    for (i64 block = first + thread_index(); block < last; block += thread_count()) {
        Pack<typename Make::type, 4> value;
        Make::make(philox4x32(block, stream, step, key0, key1), value.v);
        if (N == 4) {
            store(out, block - first, value);
        } else {
            for (int k = 0; k < 4; ++k) {
                i64 element = 4 * block + k - offset;
                if (element >= 0 && element < n) out[element] = value.v[k];
            }
        }
    }
}

template <int N>
__global__ void philox_bits(u32* __restrict__ bits, i64 n, u32 key0, u32 key1, u32 stream,
                            Varying<u32> step, i64 offset) {
    fill<MakeBits, N>(bits, n, key0, key1, stream, step.get(), offset);
}
template <class T, int N>
__global__ void philox_uniform(T* __restrict__ uniform, i64 n, u32 key0, u32 key1, u32 stream,
                               Varying<u32> step, i64 offset) {
    fill<MakeUniform<T>, N>(uniform, n, key0, key1, stream, step.get(), offset);
}
template <class T, int N>
__global__ void philox_normal(T* __restrict__ normal, i64 n, u32 key0, u32 key1, u32 stream,
                              Varying<u32> step, i64 offset) {
    fill<MakeNormal<T>, N>(normal, n, key0, key1, stream, step.get(), offset);
}

}  // namespace tinyvae
#endif
