// The diagonal Gaussian posterior: the reparameterized sample, and its KL to a prior.
// Formulas: gaussian.py.  Sizes: B batch, D latents; n = B D.  A: the arithmetic type of T.
#ifndef TINYVAE_GAUSSIAN
#define TINYVAE_GAUSSIAN

#include "common.cu"
#include "philox.cu"

namespace tinyvae {

// -------------------------------------------------------------------------------- reparameterize
// mu, dz, logvar, eps, z, dlogvar: (n); what is not asked for (VALUE: z, GRADIENT: dlogvar) is null
template <class T, int N, bool VALUE, bool GRADIENT>
__device__ __forceinline__ void reparameterize(const T* __restrict__ mu, const T* __restrict__ dz,
                                               const T* __restrict__ logvar,
                                               const T* __restrict__ eps, T* __restrict__ z,
                                               T* __restrict__ dlogvar, i64 n) {
    typedef typename Arithmetic<T>::type A;
    for (i64 i = thread_index(); i < n / N; i += thread_count()) {
        Pack<T, N> l = load<N>(logvar, i), e = load<N>(eps, i), m, d;
        if (VALUE) m = load<N>(mu, i);
        if (GRADIENT) d = load<N>(dz, i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            A deviation = exp_(A(0.5) * widen(l.v[k])) * widen(e.v[k]);
            if (VALUE) narrow(widen(m.v[k]) + deviation, m.v[k]);
            if (GRADIENT) narrow(A(0.5) * widen(d.v[k]) * deviation, d.v[k]);
        }
        if (VALUE) store(z, i, m);
        if (GRADIENT) store(dlogvar, i, d);
    }
}

template <class T, int N>
__global__ void reparameterize_forward(const T* __restrict__ mu, const T* __restrict__ logvar,
                                       const T* __restrict__ eps, T* __restrict__ z, i64 n) {
    reparameterize<T, N, true, false>(mu, 0, logvar, eps, z, 0, n);
}

template <class T, int N>
__global__ void reparameterize_backward(const T* __restrict__ dz, const T* __restrict__ logvar,
                                        const T* __restrict__ eps, T* __restrict__ dlogvar, i64 n) {
    reparameterize<T, N, false, true>(0, dz, logvar, eps, 0, dlogvar, n);
}

template <class T, int N>
__global__ void reparameterize_value_and_grad(const T* __restrict__ mu, const T* __restrict__ dz,
                                              const T* __restrict__ logvar,
                                              const T* __restrict__ eps, T* __restrict__ z,
                                              T* __restrict__ dlogvar, i64 n) {
    reparameterize<T, N, true, true>(mu, dz, logvar, eps, z, dlogvar, n);
}

// -------------------------------------------------------- the same, with the noise drawn inside
// One Philox block a thread: four elements.  `use(k, eps)` gets element k of the arrays.
template <class A, class Use>
__device__ __forceinline__ void over_normals(i64 n, u32 key0, u32 key1, u32 stream, u32 step,
                                             i64 offset, Use use) {
    i64 last = (offset + n + 3) / 4;
    for (i64 block = offset / 4 + thread_index(); block < last; block += thread_count()) {
        A eps[4];
        normal4(philox4x32(block, stream, step, key0, key1), eps);
        use(4 * block - offset, eps);
    }
}

// mu, logvar, z: (n)
template <class T, int N>
__global__ void gaussian_sample_forward(const T* __restrict__ mu, const T* __restrict__ logvar,
                                        T* __restrict__ z, i64 n, u32 key0, u32 key1, u32 stream,
                                        Varying<u32> step, i64 offset) {
    typedef typename Arithmetic<T>::type A;
    over_normals<A>(n, key0, key1, stream, step.get(), offset, [=](i64 start, const A* eps) {
        if (N == 4) {
            Pack<T, 4> m = load<4>(mu, start / 4), l = load<4>(logvar, start / 4), out;
#pragma unroll
            for (int k = 0; k < 4; ++k)
                narrow(widen(m.v[k]) + exp_(A(0.5) * widen(l.v[k])) * eps[k], out.v[k]);
            store(z, start / 4, out);
        } else {
            for (int k = 0; k < 4; ++k) {
                i64 i = start + k;
                if (i >= 0 && i < n)
                    narrow(widen(mu[i]) + exp_(A(0.5) * widen(logvar[i])) * eps[k], z[i]);
            }
        }
    });
}

// dz, logvar, dlogvar: (n)
template <class T, int N>
__global__ void gaussian_sample_backward(const T* __restrict__ dz, const T* __restrict__ logvar,
                                         T* __restrict__ dlogvar, i64 n, u32 key0, u32 key1,
                                         u32 stream, Varying<u32> step, i64 offset) {
    typedef typename Arithmetic<T>::type A;
    over_normals<A>(n, key0, key1, stream, step.get(), offset, [=](i64 start, const A* eps) {
        if (N == 4) {
            Pack<T, 4> d = load<4>(dz, start / 4), l = load<4>(logvar, start / 4), out;
#pragma unroll
            for (int k = 0; k < 4; ++k)
                narrow(widen(d.v[k]) * eps[k] * A(0.5) * exp_(A(0.5) * widen(l.v[k])), out.v[k]);
            store(dlogvar, start / 4, out);
        } else {
            for (int k = 0; k < 4; ++k) {
                i64 i = start + k;
                if (i >= 0 && i < n)
                    narrow(widen(dz[i]) * eps[k] * A(0.5) * exp_(A(0.5) * widen(logvar[i])),
                           dlogvar[i]);
            }
        }
    });
}

// ------------------------------------------------------------------------------- KL to N(0, I)
// the KL of one latent
template <class A> __device__ __forceinline__ A gaussian_kl_each(A mu, A logvar) {
    return A(0.5) * (mu * mu + (expm1_(logvar) - logvar));
}

// dkl, kl: (B); mu, logvar, dmu, dlogvar: (B, D); what is not asked for is null
template <class T, int N, bool VALUE, bool GRADIENT>
__device__ __forceinline__ void gaussian_kl(const typename Arithmetic<T>::type* __restrict__ dkl,
                                            const T* __restrict__ mu, const T* __restrict__ logvar,
                                            typename Arithmetic<T>::type* __restrict__ kl,
                                            T* __restrict__ dmu, T* __restrict__ dlogvar,
                                            typename Arithmetic<T>::type free_bits, i64 B, i64 D) {
    typedef typename Arithmetic<T>::type A;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        i64 start = row_start(b, D);
        A total = A(0), given = GRADIENT ? dkl[b] : A(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> m = load<N>(mu + start, j), l = load<N>(logvar + start, j), dm, dl;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                A mean = widen(m.v[k]), lv = widen(l.v[k]), each = gaussian_kl_each(mean, lv);
                if (VALUE) total += max_(each, free_bits);
                if (!GRADIENT) continue;
                A rate = each < free_bits ? A(0) : given;
                narrow(rate * mean, dm.v[k]);
                narrow(rate * A(0.5) * expm1_(lv), dl.v[k]);
            }
            if (!GRADIENT) continue;
            store(dmu + start, j, dm);
            store(dlogvar + start, j, dl);
        }
        if (!VALUE) continue;
        total = block_sum(total);
        if (threadIdx.x == 0) kl[b] = total;
    }
}

template <class T, int N>
__global__ void gaussian_kl_forward(const T* __restrict__ mu, const T* __restrict__ logvar,
                                    typename Arithmetic<T>::type* __restrict__ kl,
                                    typename Arithmetic<T>::type free_bits, i64 B, i64 D) {
    gaussian_kl<T, N, true, false>(0, mu, logvar, kl, 0, 0, free_bits, B, D);
}

template <class T, int N>
__global__ void gaussian_kl_backward(const typename Arithmetic<T>::type* __restrict__ dkl,
                                     const T* __restrict__ mu, const T* __restrict__ logvar,
                                     T* __restrict__ dmu, T* __restrict__ dlogvar,
                                     typename Arithmetic<T>::type free_bits, i64 B, i64 D) {
    gaussian_kl<T, N, false, true>(dkl, mu, logvar, 0, dmu, dlogvar, free_bits, B, D);
}

template <class T, int N>
__global__ void gaussian_kl_value_and_grad(
    const typename Arithmetic<T>::type* __restrict__ dkl, const T* __restrict__ mu,
    const T* __restrict__ logvar, typename Arithmetic<T>::type* __restrict__ kl,
    T* __restrict__ dmu, T* __restrict__ dlogvar, typename Arithmetic<T>::type free_bits, i64 B,
    i64 D) {
    gaussian_kl<T, N, true, true>(dkl, mu, logvar, kl, dmu, dlogvar, free_bits, B, D);
}

// ----------------------------------------------------------------------------- KL to N(mu2, var2)
// dkl, kl: (B); all others: (B, D); what is not asked for is null
template <class T, int N, bool VALUE, bool GRADIENT>
__device__ __forceinline__ void gaussian_kl_between(
    const typename Arithmetic<T>::type* __restrict__ dkl, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ mu2, const T* __restrict__ logvar2,
    typename Arithmetic<T>::type* __restrict__ kl, T* __restrict__ dmu, T* __restrict__ dlogvar,
    T* __restrict__ dmu2, T* __restrict__ dlogvar2, i64 B, i64 D) {
    typedef typename Arithmetic<T>::type A;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        i64 start = row_start(b, D);
        A total = A(0), rate = GRADIENT ? dkl[b] : A(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> m = load<N>(mu + start, j), l = load<N>(logvar + start, j);
            Pack<T, N> m2 = load<N>(mu2 + start, j), l2 = load<N>(logvar2 + start, j);
            Pack<T, N> dm, dl, dm2, dl2;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                A a = widen(m.v[k]) - widen(m2.v[k]), d = widen(l.v[k]) - widen(l2.v[k]);
                A e = expm1_(d), s = a * exp_(-widen(l2.v[k]));
                if (VALUE) total += a * s + (e - d);
                if (!GRADIENT) continue;
                narrow(rate * s, dm.v[k]);
                narrow(-rate * s, dm2.v[k]);
                narrow(rate * A(0.5) * e, dl.v[k]);
                narrow(-rate * A(0.5) * (a * s + e), dl2.v[k]);
            }
            if (!GRADIENT) continue;
            store(dmu + start, j, dm);
            store(dlogvar + start, j, dl);
            store(dmu2 + start, j, dm2);
            store(dlogvar2 + start, j, dl2);
        }
        if (!VALUE) continue;
        total = block_sum(total);
        if (threadIdx.x == 0) kl[b] = A(0.5) * total;
    }
}

template <class T, int N>
__global__ void gaussian_kl_between_forward(
    const T* __restrict__ mu, const T* __restrict__ logvar, const T* __restrict__ mu2,
    const T* __restrict__ logvar2, typename Arithmetic<T>::type* __restrict__ kl, i64 B, i64 D) {
    gaussian_kl_between<T, N, true, false>(0, mu, logvar, mu2, logvar2, kl, 0, 0, 0, 0, B, D);
}

template <class T, int N>
__global__ void gaussian_kl_between_backward(
    const typename Arithmetic<T>::type* __restrict__ dkl, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ mu2, const T* __restrict__ logvar2,
    T* __restrict__ dmu, T* __restrict__ dlogvar, T* __restrict__ dmu2, T* __restrict__ dlogvar2,
    i64 B, i64 D) {
    gaussian_kl_between<T, N, false, true>(dkl, mu, logvar, mu2, logvar2, 0, dmu, dlogvar, dmu2,
                                           dlogvar2, B, D);
}

template <class T, int N>
__global__ void gaussian_kl_between_value_and_grad(
    const typename Arithmetic<T>::type* __restrict__ dkl, const T* __restrict__ mu,
    const T* __restrict__ logvar, const T* __restrict__ mu2, const T* __restrict__ logvar2,
    typename Arithmetic<T>::type* __restrict__ kl, T* __restrict__ dmu, T* __restrict__ dlogvar,
    T* __restrict__ dmu2, T* __restrict__ dlogvar2, i64 B, i64 D) {
    gaussian_kl_between<T, N, true, true>(dkl, mu, logvar, mu2, logvar2, kl, dmu, dlogvar, dmu2,
                                          dlogvar2, B, D);
}

}  // namespace tinyvae
#endif
