// One pass over parameters, gradients and moments.  Formulas: optimizer.py.
// Policy: these kernels, alone in this package, overwrite what they read: p, m, v, velocity.
#ifndef TINYVAE_OPTIMIZER
#define TINYVAE_OPTIMIZER

#include "common.cu"

namespace tinyvae {

// p, g, m, v: (n)
template <class T, int N>
__global__ void adam_update(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                            T* __restrict__ v, T scale, T lr, T decay, T b1, T c1, T b2, T c2,
                            T eps, T unbias1, T unbias2, i64 n) {
    for (i64 i = thread_index(); i < n / N; i += thread_count()) {
        Pack<T, N> parameter = load<N>(p, i), gradient = load<N>(g, i);
        Pack<T, N> first = load<N>(m, i), second = load<N>(v, i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            T each = scale * gradient.v[k];
            first.v[k] = b1 * first.v[k] + c1 * each;
            second.v[k] = b2 * second.v[k] + c2 * each * each;
            T root = sqrt_(second.v[k] * unbias2) + eps;
            parameter.v[k] = decay * parameter.v[k] - lr * (first.v[k] * unbias1) / root;
        }
        store(m, i, first);
        store(v, i, second);
        store(p, i, parameter);
    }
}

// p, g, velocity: (n)
template <class T, int N>
__global__ void sgd_update(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ velocity,
                           T scale, T lr, T momentum, T weight_decay, i64 n) {
    for (i64 i = thread_index(); i < n / N; i += thread_count()) {
        Pack<T, N> parameter = load<N>(p, i), gradient = load<N>(g, i);
        Pack<T, N> moving = load<N>(velocity, i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            moving.v[k] = momentum * moving.v[k] + scale * gradient.v[k] +
                          weight_decay * parameter.v[k];
            parameter.v[k] -= lr * moving.v[k];
        }
        store(velocity, i, moving);
        store(p, i, parameter);
    }
}

}  // namespace tinyvae
#endif
