// Negative log-likelihoods of a row from raw parameters, value and gradient in one pass.
// Formulas: likelihood.py.  Sizes: B batch, D data.  A: the arithmetic type of T.
//
// A likelihood is a struct of its arrays with one function: this thread's share of row b's nll,
// whose gradients it writes, times rate.  The ELBO's kernels (elbo.cu) use the same structs.
#ifndef TINYVAE_LIKELIHOOD
#define TINYVAE_LIKELIHOOD

#include "common.cu"

namespace tinyvae {

#define TINYVAE_LOG_2PI 1.8378770664093454836

// logits, x, dlogits: (B, D)
template <class T, int N> struct Bernoulli {
    const T *__restrict__ logits, *__restrict__ x;
    T* __restrict__ dlogits;
    typedef typename Arithmetic<T>::type A;

    __device__ __forceinline__ A row(i64 b, i64 D, A rate) const {
        i64 start = row_start(b, D);
        A total = A(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> l = load<N>(logits + start, j), t = load<N>(x + start, j), d;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                A logit = widen(l.v[k]), target = widen(t.v[k]);
                A e = exp_(-abs_(logit)), r = A(1) / (A(1) + e);  // e in (0, 1]: no overflow
                total += max_(logit, A(0)) - logit * target + log1p_(e);
                narrow(rate * ((logit >= A(0) ? r : e * r) - target), d.v[k]);
            }
            store(dlogits + start, j, d);
        }
        return total;
    }
};

// x_mu, x_logvar, x, dx_mu, dx_logvar: (B, D)
template <class T, int N> struct Gaussian {
    const T *__restrict__ x_mu, *__restrict__ x_logvar, *__restrict__ x;
    T *__restrict__ dx_mu, *__restrict__ dx_logvar;
    typedef typename Arithmetic<T>::type A;

    __device__ __forceinline__ A row(i64 b, i64 D, A rate) const {
        i64 start = row_start(b, D);
        A total = A(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> m = load<N>(x_mu + start, j), l = load<N>(x_logvar + start, j);
            Pack<T, N> t = load<N>(x + start, j), dm, dl;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                A a = widen(m.v[k]) - widen(t.v[k]), logvar = widen(l.v[k]);
                A scaled = a * exp_(-logvar), square = a * scaled;
                total += A(TINYVAE_LOG_2PI) + logvar + square;
                narrow(rate * scaled, dm.v[k]);
                narrow(rate * A(0.5) * (A(1) - square), dl.v[k]);
            }
            store(dx_mu + start, j, dm);
            store(dx_logvar + start, j, dl);
        }
        return A(0.5) * total;
    }
};

// x_mu, x, dx_mu: (B, D); precision = 1 / variance, constant = log(2 pi variance)
template <class T, int N> struct GaussianFixed {
    const T *__restrict__ x_mu, *__restrict__ x;
    T* __restrict__ dx_mu;
    typename Arithmetic<T>::type precision, constant;
    typedef typename Arithmetic<T>::type A;

    __device__ __forceinline__ A row(i64 b, i64 D, A rate) const {
        i64 start = row_start(b, D);
        A total = A(0);
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> m = load<N>(x_mu + start, j), t = load<N>(x + start, j), dm;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                A a = widen(m.v[k]) - widen(t.v[k]);
                total += constant + precision * a * a;
                narrow(rate * precision * a, dm.v[k]);
            }
            store(dx_mu + start, j, dm);
        }
        return A(0.5) * total;
    }
};

// rate, nll: (B)
template <class Likelihood, class A>
__device__ __forceinline__ void nll_rows(Likelihood likelihood, const A* rate, A* nll, i64 B,
                                         i64 D) {
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        A total = block_sum(likelihood.row(b, D, rate[b]));
        if (threadIdx.x == 0) nll[b] = total;
    }
}

template <class T, int N>
__global__ void bernoulli_nll(const T* __restrict__ logits, const T* __restrict__ x,
                              const typename Arithmetic<T>::type* __restrict__ rate,
                              typename Arithmetic<T>::type* __restrict__ nll,
                              T* __restrict__ dlogits, i64 B, i64 D) {
    nll_rows(Bernoulli<T, N>{logits, x, dlogits}, rate, nll, B, D);
}

template <class T, int N>
__global__ void gaussian_nll(const T* __restrict__ x_mu, const T* __restrict__ x_logvar,
                             const T* __restrict__ x,
                             const typename Arithmetic<T>::type* __restrict__ rate,
                             typename Arithmetic<T>::type* __restrict__ nll,
                             T* __restrict__ dx_mu, T* __restrict__ dx_logvar, i64 B, i64 D) {
    nll_rows(Gaussian<T, N>{x_mu, x_logvar, x, dx_mu, dx_logvar}, rate, nll, B, D);
}

template <class T, int N>
__global__ void gaussian_fixed_nll(const T* __restrict__ x_mu, const T* __restrict__ x,
                                   const typename Arithmetic<T>::type* __restrict__ rate,
                                   typename Arithmetic<T>::type* __restrict__ nll,
                                   T* __restrict__ dx_mu, typename Arithmetic<T>::type precision,
                                   typename Arithmetic<T>::type constant, i64 B, i64 D) {
    nll_rows(GaussianFixed<T, N>{x_mu, x, dx_mu, precision, constant}, rate, nll, B, D);
}

// dout: (B); gradient, scaled: (B, D)
template <class T, int N>
__global__ void scale_rows(const typename Arithmetic<T>::type* __restrict__ dout,
                           const T* __restrict__ gradient, T* __restrict__ scaled, i64 B, i64 D) {
    typedef typename Arithmetic<T>::type A;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        i64 start = row_start(b, D);
        A factor = dout[b];
        for (i64 j = threadIdx.x; j < D / N; j += blockDim.x) {
            Pack<T, N> g = load<N>(gradient + start, j), out;
#pragma unroll
            for (int k = 0; k < N; ++k) narrow(factor * widen(g.v[k]), out.v[k]);
            store(scaled + start, j, out);
        }
    }
}

}  // namespace tinyvae
#endif
