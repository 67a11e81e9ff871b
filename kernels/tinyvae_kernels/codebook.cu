// Nearest code.  Formulas: codebook.py.  Sizes: rows vectors, K codes, Z numbers each.
#ifndef TINYVAE_CODEBOOK
#define TINYVAE_CODEBOOK

#include "common.cu"

namespace tinyvae {

// A block of 16 x 16 threads takes 64 vectors and 64 codes at a time, a thread 4 x 4 of them, and
// walks along Z in steps of 16 through shared memory.
enum {
    CODE_TILE = 64,  // codebook.py knows it, too
    CODE_DEEP = 16,
    CODE_SIDE = 16,
    CODE_EACH = 4,
    CODE_PADDED = CODE_TILE + 4  // fewer bank conflicts, and still aligned for wide loads
};

template <class T> struct Nearest { T distance; i64 code; };  // code -1: none yet

// The smaller distance, of equals the first code; a NaN is the smallest, so that it shows.
template <class T> __device__ __forceinline__ Nearest<T> nearer(Nearest<T> s, Nearest<T> t) {
    bool s_nan = s.distance != s.distance, t_nan = t.distance != t.distance;
    bool tie = s_nan ? t_nan : s.distance == t.distance;
    bool less = t_nan ? !s_nan : t.distance < s.distance;
    bool take = s.code < 0 || (t.code >= 0 && (tie ? t.code < s.code : less));
    return take ? t : s;
}

// 64 rows and 16 columns of x to shared memory, columns first; zeros beyond its ends
template <class T>
__device__ __forceinline__ void load_tile(const T* __restrict__ x, T (*tile)[CODE_PADDED], i64 row,
                                          i64 rows, i64 column, i64 Z) {
    i64 r = row + threadIdx.x / 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        u32 c = threadIdx.x % 4 * 4 + k;
        bool inside = r < rows && column + c < Z;
        tile[c][threadIdx.x / 4] = inside ? x[row_start(r, Z) + column + c] : T(0);
    }
}

// The distances of 4 vectors to 4 codes; all threads must call it.
template <class T>
__device__ __forceinline__ void distances(const T* __restrict__ z, const T* __restrict__ codebook,
                                          i64 row, i64 rows, i64 code, i64 K, i64 Z,
                                          T (&d)[CODE_EACH][CODE_EACH]) {
    __shared__ T z_tile[CODE_DEEP][CODE_PADDED], code_tile[CODE_DEEP][CODE_PADDED];
    u32 tx = threadIdx.x % CODE_SIDE, ty = threadIdx.x / CODE_SIDE;
#pragma unroll
    for (int i = 0; i < CODE_EACH; ++i)
#pragma unroll
        for (int k = 0; k < CODE_EACH; ++k) d[i][k] = T(0);
    for (i64 column = 0; column < Z; column += CODE_DEEP) {
        __syncthreads();  // everybody has read the tiles of the step before
        load_tile(z, z_tile, row, rows, column, Z);
        load_tile(codebook, code_tile, code, K, column, Z);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < CODE_DEEP; ++j)
#pragma unroll
            for (int i = 0; i < CODE_EACH; ++i)
#pragma unroll
                for (int k = 0; k < CODE_EACH; ++k) {
                    T difference = z_tile[j][ty * CODE_EACH + i] - code_tile[j][tx * CODE_EACH + k];
                    d[i][k] += difference * difference;
                }
    }
}

// z, quantized: (rows, Z); codebook: (K, Z); codes: (rows)
template <class T, int N>
__global__ void __launch_bounds__(256) nearest_code_forward(
    const T* __restrict__ z, const T* __restrict__ codebook, T* __restrict__ quantized,
    i64* __restrict__ codes, i64 rows, i64 Z, i64 K) {
    __shared__ Nearest<T> chosen[CODE_TILE];
    u32 tx = threadIdx.x % CODE_SIDE, ty = threadIdx.x / CODE_SIDE;
    for (i64 row = (i64)blockIdx.x * CODE_TILE; row < rows; row += (i64)gridDim.x * CODE_TILE) {
        Nearest<T> best[CODE_EACH];
#pragma unroll
        for (int i = 0; i < CODE_EACH; ++i) best[i].code = -1, best[i].distance = T(0);
        for (i64 code = 0; code < K; code += CODE_TILE) {
            T d[CODE_EACH][CODE_EACH];
            distances(z, codebook, row, rows, code, K, Z, d);
#pragma unroll
            for (int i = 0; i < CODE_EACH; ++i)
#pragma unroll
                for (int k = 0; k < CODE_EACH; ++k) {
                    i64 own = code + tx * CODE_EACH + k;
                    Nearest<T> found = {d[i][k], own < K ? own : -1};
                    best[i] = nearer(best[i], found);
                }
        }
        __syncthreads();  // everybody has read the choice of the rows before
#pragma unroll
        for (int i = 0; i < CODE_EACH; ++i) {
#pragma unroll
            for (int lane = CODE_SIDE / 2; lane > 0; lane /= 2) {
                Nearest<T> other = {__shfl_xor_sync(0xFFFFFFFFu, best[i].distance, lane),
                                    __shfl_xor_sync(0xFFFFFFFFu, best[i].code, lane)};
                best[i] = nearer(best[i], other);
            }
            if (tx == 0) chosen[ty * CODE_EACH + i] = best[i];
        }
        __syncthreads();
        i64 count = rows - row < CODE_TILE ? rows - row : CODE_TILE;
        if (threadIdx.x < count) codes[row + threadIdx.x] = chosen[threadIdx.x].code;
        for (i64 at = threadIdx.x; at < count * Z; at += blockDim.x) {
            Nearest<T> c = chosen[at / Z];
            T value = codebook[row_start(c.code, Z) + at % Z];
            quantized[row_start(row, Z) + at] = c.distance == c.distance ? value : c.distance;
        }
    }
}

}  // namespace tinyvae
#endif
