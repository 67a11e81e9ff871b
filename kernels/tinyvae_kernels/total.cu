// The sum over a batch, in double and in a fixed order.  values, dvalues: (n); total, dtotal: (1).
#ifndef TINYVAE_TOTAL
#define TINYVAE_TOTAL

#include "common.cu"

namespace tinyvae {

// one block
template <class T> __global__ void total(const T* __restrict__ values, T* __restrict__ total, i64 n) {
    double sum = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += values[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] = T(sum);
}

template <class T>
__global__ void spread(const T* __restrict__ dtotal, T* __restrict__ dvalues, i64 n) {
    for (i64 i = thread_index(); i < n; i += thread_count()) dvalues[i] = dtotal[0];
}

}  // namespace tinyvae
#endif
