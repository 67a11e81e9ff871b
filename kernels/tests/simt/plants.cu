// Mistakes that the bench must find, and that it must not find where they are not.
// Every kernel exists twice: <true> makes the mistake, <false> is its correct twin.
// n: elements of x and y; one block of 64 threads, where nothing else is said.
#include "common.cu"

namespace tinyvae {

// ------------------------------------------------------------------------------- out of bounds
template <bool planted> __global__ void read_out_of_bounds(const float* x, float* y, i64 n) {
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 next = i + 1;
        y[i] = x[i] + (next < n + planted ? x[next] : 0.0f);
    }
}

template <bool planted> __global__ void write_out_of_bounds(const float* x, float* y, i64 n) {
    for (i64 i = thread_index(); i < n + planted; i += thread_count()) y[i] = x[i % n];
}

template <bool planted>
__global__ void shared_out_of_bounds(const float* x, float* y, i64) {
    __shared__ float part[64];
    part[threadIdx.x + planted] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = part[threadIdx.x + planted];
}

template <bool planted>  // shared memory: 64 floats
__global__ void dynamic_shared_out_of_bounds(const float* x, float* y, i64) {
    extern __shared__ float part[];
    part[threadIdx.x + planted] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = part[threadIdx.x + planted];
}

// ------------------------------------------------------------------------------ missing barriers
template <bool planted> __global__ void read_before_barrier(const float* x, float* y, i64) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (!planted) __syncthreads();
    y[threadIdx.x] = part[63 - threadIdx.x];  // another warp's
}

// a reduction that is used again while the slow threads still read
template <bool planted> __global__ void write_before_barrier(const float* x, float* y, i64) {
    __shared__ float part[2];
    float total = 0.0f;
    for (int turn = 1; turn <= 4; ++turn) {
        float sum = warp_sum(turn * x[threadIdx.x]);
        if (!planted) __syncthreads();
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
        __syncthreads();
        total += part[0] + part[1];
    }
    y[threadIdx.x] = total;
}

template <bool planted> __global__ void missing_syncwarp(const float* x, float* y, i64) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (!planted) __syncwarp();
    y[threadIdx.x] = part[threadIdx.x ^ 31u];  // another lane's of the same warp
}

// ---------------------------------------------------------------------- barriers not all reach
template <bool planted> __global__ void barrier_in_branch(const float* x, float* y, i64) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (!planted || threadIdx.x < 40) __syncthreads();
    y[threadIdx.x] = part[63 - threadIdx.x];
}

template <bool planted> __global__ void barrier_after_return(const float* x, float* y, i64 n) {
    __shared__ float part[64];
    if (planted && threadIdx.x >= n - 3) {
        y[threadIdx.x] = 0.0f;
        return;
    }
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = threadIdx.x >= n - 3 ? 0.0f : part[threadIdx.x];
}

// ------------------------------------------------------------------------------------ warps
// the mask names lanes that never come
template <bool planted> __global__ void mask_too_wide(const float* x, float* y, i64) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16)
        value += __shfl_xor_sync(planted ? 0xFFFFFFFFu : 0x0000FFFFu, value, 8);
    y[threadIdx.x] = value;
}

// lanes call that the mask leaves out
template <bool planted> __global__ void mask_too_narrow(const float* x, float* y, i64) {
    float value = x[threadIdx.x];
    y[threadIdx.x] = value + __shfl_xor_sync(planted ? 0x0000FFFFu : 0xFFFFFFFFu, value, 8);
}

// the value of a lane that takes no part is undefined
template <bool planted> __global__ void value_of_absent_lane(const float* x, float* y, i64) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16)
        value += __shfl_xor_sync(0x0000FFFFu, value, planted ? 16 : 8);
    y[threadIdx.x] = value;
}

// ------------------------------------------------------------------------------- other accesses
template <bool planted> __global__ void misaligned_pack(const float* x, float* y, i64 n) {
    for (i64 i = thread_index(); i < n / 4 - 1; i += thread_count()) {
        Pack<float, 4> value = load<4>(x + planted, i);
        store(y, i, value);
    }
    if (thread_index() < 4) y[n - 4 + thread_index()] = 0.0f;
}

template <bool planted> __global__ void two_writers(const float* x, float* y, i64 n) {
    i64 i = thread_index();
    y[planted ? i / 2 * 2 : i] = x[i];
    if (planted && i % 2) y[i] = x[i];
}

// two blocks
template <bool planted> __global__ void two_writing_blocks(const float* x, float* y, i64 n) {
    for (i64 i = threadIdx.x; i < n; i += blockDim.x)
        if (planted || i % 2 == blockIdx.x) y[i] = x[i] + (i % 2 == blockIdx.x ? 0.0f : 1.0f);
}

template <bool planted> __global__ void uninitialised_shared(const float* x, float* y, i64) {
    __shared__ float total;
    if (!planted && threadIdx.x == 0) total = 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) total += x[0];
    __syncthreads();
    y[threadIdx.x] = total;
}

template <bool planted> __global__ void unwritten_output(const float* x, float* y, i64 n) {
    for (i64 i = thread_index(); i < n - planted; i += thread_count()) y[i] = x[i];
}

template <bool planted> __global__ void index_overflow(const float* x, float* y, i64 n) {
    i64 row = 1 << 20, width = 1 << 12;
    i64 start = planted ? i64((int)row * (int)width) : row_start(row, width);
    y[threadIdx.x] = x[start % n + threadIdx.x];
}

}  // namespace tinyvae
