// Categorical likelihood: -log p(labels) from logits.  Formulas: categorical.py.
// Sizes: B batch, P positions of a row, C classes.  A: the arithmetic type of T.
#ifndef TINYVAE_CATEGORICAL
#define TINYVAE_CATEGORICAL

#include "common.cu"
#include "logsumexp.cu"

namespace tinyvae {

// logits, dlogits: (B, P, C); labels: (B, P); nll: (B).  `lanes` neighbours share a position; the
// loop over positions is one of the whole block, so that all lanes meet in the exchanges.
template <class T, int N>
__global__ void categorical_nll_forward(const T* __restrict__ logits,
                                        const i64* __restrict__ labels,
                                        typename Arithmetic<T>::type* __restrict__ nll,
                                        T* __restrict__ dlogits, i64 B, i64 P, i64 C, i64 lanes) {
    typedef typename Arithmetic<T>::type A;
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        A nats = A(0);
        for (i64 first = 0; first < P; first += groups) {
            i64 p = first + group, at = row_start(b, P) + p, start = row_start(at, C);
            i64 packs = p < P ? C / N : 0;
            LogSumExp<A> s = no_terms<A>();
            for (i64 j = lane; j < packs; j += lanes) {
                Pack<T, N> l = load<N>(logits + start, j);
#pragma unroll
                for (int k = 0; k < N; ++k) add(s, widen(l.v[k]));
            }
            s = group_join(s, (u32)lanes);
            if (p >= P) continue;
            i64 label = labels[at];
            bool valid = label >= 0 && label < C;
            A scale = valid ? A(1) / s.sum : A(0) / A(0);  // NaN
            for (i64 j = lane; j < packs; j += lanes) {
                Pack<T, N> l = load<N>(logits + start, j), d;
#pragma unroll
                for (int k = 0; k < N; ++k) {
                    A p_class = exp_(widen(l.v[k]) - s.top) * scale;
                    narrow(j * N + k == label ? p_class - A(1) : p_class, d.v[k]);
                }
                store(dlogits + start, j, d);
            }
            if (lane == 0) nats += valid ? log_(s.sum) + (s.top - widen(logits[start + label])) : scale;
        }
        nats = block_sum(nats);
        if (threadIdx.x == 0) nll[b] = nats;
    }
}

}  // namespace tinyvae
#endif
