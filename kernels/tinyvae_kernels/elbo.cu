// The fused ELBO: its value, its two terms and all its gradients in one launch.
// Formulas: elbo.py.  Sizes: B batch, D data, Z latents.  A: the arithmetic type of T.
#ifndef TINYVAE_ELBO
#define TINYVAE_ELBO

#include "gaussian.cu"
#include "likelihood.cu"

namespace tinyvae {

// mu, logvar, dmu, dlogvar: (B, Z)
template <class T> struct Latent {
    const T *__restrict__ mu, *__restrict__ logvar;
    T *__restrict__ dmu, *__restrict__ dlogvar;
    typename Arithmetic<T>::type beta, free_bits;
    typedef typename Arithmetic<T>::type A;

    // this thread's share of row b: kl as it is, charged with the free bits
    __device__ __forceinline__ void row(i64 b, i64 Z, A dout, A& kl, A& charged) const {
        i64 start = row_start(b, Z);
        for (i64 j = start + threadIdx.x; j < start + Z; j += blockDim.x) {
            A m = widen(mu[j]), lv = widen(logvar[j]), each = gaussian_kl_each(m, lv);
            A rate = each < free_bits ? A(0) : -dout * beta;
            kl += each;
            charged += max_(each, free_bits);
            narrow(rate * m, dmu[j]);
            narrow(rate * A(0.5) * expm1_(lv), dlogvar[j]);
        }
    }
};

// dout, nll, kl, elbo: (B)
template <class Likelihood, class T, class A>
__device__ __forceinline__ void elbo_rows(Likelihood likelihood, Latent<T> latent, const A* dout,
                                          A* nll, A* kl, A* elbo, i64 B, i64 D, i64 Z) {
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        A sums[3] = {A(0), A(0), A(0)};  // nll, kl, charged
        latent.row(b, Z, dout[b], sums[1], sums[2]);
        sums[0] = likelihood.row(b, D, -dout[b]);
        block_sums(sums);
        if (threadIdx.x == 0) {
            nll[b] = sums[0];
            kl[b] = sums[1];
            elbo[b] = -sums[0] - latent.beta * sums[2];
        }
    }
}

template <class T, int N>
__global__ void bernoulli_elbo(const T* __restrict__ logits, const T* __restrict__ x,
                               const typename Arithmetic<T>::type* __restrict__ dout,
                               typename Arithmetic<T>::type* __restrict__ nll,
                               T* __restrict__ dlogits, const T* __restrict__ mu,
                               const T* __restrict__ logvar,
                               typename Arithmetic<T>::type* __restrict__ kl, T* __restrict__ dmu,
                               T* __restrict__ dlogvar,
                               typename Arithmetic<T>::type* __restrict__ elbo,
                               Varying<typename Arithmetic<T>::type> beta,
                               typename Arithmetic<T>::type free_bits, i64 B, i64 D, i64 Z) {
    elbo_rows(Bernoulli<T, N>{logits, x, dlogits},
              Latent<T>{mu, logvar, dmu, dlogvar, beta.get(), free_bits}, dout, nll, kl, elbo, B, D,
              Z);
}

template <class T, int N>
__global__ void gaussian_elbo(const T* __restrict__ x_mu, const T* __restrict__ x_logvar,
                              const T* __restrict__ x,
                              const typename Arithmetic<T>::type* __restrict__ dout,
                              typename Arithmetic<T>::type* __restrict__ nll,
                              T* __restrict__ dx_mu, T* __restrict__ dx_logvar,
                              const T* __restrict__ mu, const T* __restrict__ logvar,
                              typename Arithmetic<T>::type* __restrict__ kl, T* __restrict__ dmu,
                              T* __restrict__ dlogvar,
                              typename Arithmetic<T>::type* __restrict__ elbo,
                              Varying<typename Arithmetic<T>::type> beta,
                              typename Arithmetic<T>::type free_bits, i64 B, i64 D, i64 Z) {
    elbo_rows(Gaussian<T, N>{x_mu, x_logvar, x, dx_mu, dx_logvar},
              Latent<T>{mu, logvar, dmu, dlogvar, beta.get(), free_bits}, dout, nll, kl, elbo, B, D,
              Z);
}

template <class T, int N>
__global__ void gaussian_fixed_elbo(
    const T* __restrict__ x_mu, const T* __restrict__ x,
    const typename Arithmetic<T>::type* __restrict__ dout,
    typename Arithmetic<T>::type* __restrict__ nll, T* __restrict__ dx_mu,
    typename Arithmetic<T>::type precision, typename Arithmetic<T>::type constant,
    const T* __restrict__ mu, const T* __restrict__ logvar,
    typename Arithmetic<T>::type* __restrict__ kl, T* __restrict__ dmu, T* __restrict__ dlogvar,
    typename Arithmetic<T>::type* __restrict__ elbo,
    Varying<typename Arithmetic<T>::type> beta, typename Arithmetic<T>::type free_bits, i64 B,
    i64 D, i64 Z) {
    elbo_rows(GaussianFixed<T, N>{x_mu, x, dx_mu, precision, constant},
              Latent<T>{mu, logvar, dmu, dlogvar, beta.get(), free_bits}, dout, nll, kl, elbo, B, D,
              Z);
}

}  // namespace tinyvae
#endif
