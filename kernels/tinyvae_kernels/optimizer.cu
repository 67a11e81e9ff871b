// One pass over parameters, gradients and moments.  Formulas: optimizer.py.
// Policy: these kernels, alone in this package, overwrite what they read: p, m, v, velocity.
#ifndef TINYVAE_OPTIMIZER
#define TINYVAE_OPTIMIZER

#include "common.cu"

namespace tinyvae {

template <class T> struct AdamNumbers { T scale, lr, decay, b1, c1, b2, c2, eps, unbias1, unbias2; };

// p, g, m, v: (n).  loss: null, or a number: if it is not finite nothing is changed.
template <class T, int N>
__global__ void adam_update(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m,
                            T* __restrict__ v, Varying<AdamNumbers<T>> numbers, const double* loss,
                            i64 n) {
    if (loss && !(*loss - *loss == 0)) return;
    AdamNumbers<T> a = numbers.get();
    for (i64 i = thread_index(); i < n / N; i += thread_count()) {
        Pack<T, N> parameter = load<N>(p, i), gradient = load<N>(g, i);
        Pack<T, N> first = load<N>(m, i), second = load<N>(v, i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            T each = a.scale * gradient.v[k];
            first.v[k] = a.b1 * first.v[k] + a.c1 * each;
            second.v[k] = a.b2 * second.v[k] + a.c2 * each * each;
            T root = sqrt_(second.v[k] * a.unbias2) + a.eps;
            parameter.v[k] = a.decay * parameter.v[k] - a.lr * (first.v[k] * a.unbias1) / root;
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
