// What all kernels share.  No headers and no host code: NVRTC, nvcc and (in the tests) g++ read it.
//
// Sizes: B rows, D columns (Z where they are latents).  Arrays are contiguous; pointers carry their
// shape in the comment before each kernel.  Policy: inputs are never written, outputs are
// overwritten, nothing accumulates, no atomics: the same bits at every launch.
//
// T is the type in memory, N how many elements a thread moves at once (16 bytes' worth, or 1 where
// rows are not aligned).  half and bfloat16 are storage only: the arithmetic is float.
#ifndef TINYVAE_COMMON
#define TINYVAE_COMMON

namespace tinyvae {

typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;

// ---------------------------------------------------------------------------------------- storage
struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <class T> struct Arithmetic { typedef T type; };
template <> struct Arithmetic<half> { typedef float type; };
template <> struct Arithmetic<bfloat16> { typedef float type; };

union FloatBits { float value; u32 bits; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(half x) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
#else  // the tests' build
    union { unsigned short bits; _Float16 value; } u = {x.bits};
    return u.value;
#endif
}
__device__ __forceinline__ float widen(bfloat16 x) {
    FloatBits u;
    u.bits = (u32)x.bits << 16;
    return u.value;
}

__device__ __forceinline__ void narrow(float value, float& x) { x = value; }
__device__ __forceinline__ void narrow(double value, double& x) { x = value; }
__device__ __forceinline__ void narrow(float value, half& x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
#else
    union { _Float16 value; unsigned short bits; } u = {(_Float16)value};
    x.bits = u.bits;
#endif
}
__device__ __forceinline__ void narrow(float value, bfloat16& x) {  // to nearest, ties to even
    FloatBits u;
    u.value = value;
    u32 rounded = (u.bits + 0x7FFFu + ((u.bits >> 16) & 1u)) >> 16;
    x.bits = value == value ? (unsigned short)rounded : (unsigned short)0x7FC0u;  // NaN stays NaN
}

// N elements that are loaded and stored as one
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };

template <int N, class T> __device__ __forceinline__ Pack<T, N> load(const T* x, i64 pack) {
    return reinterpret_cast<const Pack<T, N>*>(x)[pack];
}
template <int N, class T> __device__ __forceinline__ void store(T* x, i64 pack, Pack<T, N> value) {
    reinterpret_cast<Pack<T, N>*>(x)[pack] = value;
}

// ---------------------------------------------------------------------------------------- numbers
// A number that may change from step to step: it lies at `at`, or it is `value` where `at` is null.
// A recorded launch (a CUDA graph) keeps its arguments; what it reads through `at` can change.
template <class T> struct Varying {
    const T* at;
    T value;
    __host__ __device__ Varying(T number) : at(nullptr), value(number) {}
    __device__ __forceinline__ T get() const { return at ? *at : value; }
};

// ---------------------------------------------------------------------------------------- indices
// 64 bits from the first product on: an array may have more than 2^31 elements
__device__ __forceinline__ i64 row_start(i64 row, i64 width) { return row * width; }
__device__ __forceinline__ i64 thread_index() {
    return (i64)blockIdx.x * (i64)blockDim.x + (i64)threadIdx.x;
}
__device__ __forceinline__ i64 thread_count() { return (i64)gridDim.x * (i64)blockDim.x; }

// --------------------------------------------------------------------------------- elementary
__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float expm1_(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_(double x) { return expm1(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float log1p_(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_(double x) { return log1p(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }
__device__ __forceinline__ float abs_(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_(double x) { return fabs(x); }
// a NaN in x comes through: a comparison picks x, fmax would drop it
template <class A> __device__ __forceinline__ A max_(A x, A floor) { return x < floor ? floor : x; }

// ------------------------------------------------------------------------------------- reductions
template <class A> __device__ __forceinline__ A warp_sum(A value) {  // in every lane
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) value += __shfl_xor_sync(0xFFFFFFFFu, value, lane);
    return value;
}

// K sums over a block of 32, 64 ... 1024 threads, in every thread.  All threads must call it.
template <int K, class A> __device__ __forceinline__ void block_sums(A (&values)[K]) {
    __shared__ A part[K][32];
    for (int k = 0; k < K; ++k) values[k] = warp_sum(values[k]);
    if (blockDim.x == 32) return;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();  // everybody has read the parts of the call before
    if (lane == 0)
        for (int k = 0; k < K; ++k) part[k][warp] = values[k];
    __syncthreads();
    for (int k = 0; k < K; ++k)
        values[k] = warp_sum(lane < blockDim.x / 32 ? part[k][lane] : A(0));
}

template <class A> __device__ __forceinline__ A block_sum(A value) {
    A values[1] = {value};
    block_sums(values);
    return values[0];
}

}  // namespace tinyvae
#endif
