// Discretized mixture of logistics: -log p(x) of pixels with few levels.
// Formulas: logistic_mixture.py.  Sizes: B batch, P numbers in a row of x, K components.
// A: the arithmetic type of T.
#ifndef TINYVAE_LOGISTIC_MIXTURE
#define TINYVAE_LOGISTIC_MIXTURE

#include "common.cu"
#include "logsumexp.cu"

namespace tinyvae {

__device__ __forceinline__ float floor_(float x) { return floorf(x); }
__device__ __forceinline__ double floor_(double x) { return floor(x); }

// joint: logit_weight + log(sigmoid(a) - sigmoid(b)); dx_mu and dlog_scale: its derivatives, negated
template <class A> struct LogisticComponent { A joint, dx_mu, dlog_scale; };

template <class A>
__device__ __forceinline__ LogisticComponent<A> logistic_component(A logit_weight, A x_mu,
                                                                   A log_scale, A center, A h,
                                                                   A log_width) {
    A below = center <= A(-1) ? A(0) : A(1), above = center >= A(1) ? A(0) : A(1);
    A inside = below * above, precision = exp_(-log_scale);
    A a = (center + h - x_mu) * precision, b = (center - h - x_mu) * precision;
    A width = (h + h) * precision, ea = exp_(-abs_(a)), eb = exp_(-abs_(b));
    bool vanishes = width < A(1e-30);  // 1 - exp(-width) may be 0
    A share = (vanishes ? A(1) : -expm1_(-width)) * inside + (A(1) - inside);
    // one division for 1 / (1 + ea), 1 / (1 + eb) and 1 / share
    A sa = A(1) + above * ea, sb = A(1) + below * eb, inverse = A(1) / (sa * sb * share);
    A sigmoid_a = above * (a >= A(0) ? ea : A(1)) * (sb * share * inverse);  // sigmoid(-a)
    A sigmoid_b = below * (b >= A(0) ? A(1) : eb) * (sa * share * inverse);
    A each = above * (a < A(0) ? a : A(0)) - below * (b > A(0) ? b : A(0));
    each += log_(share * (share * inverse)) + (vanishes ? inside * (log_width - log_scale) : A(0));
    A ratio = vanishes ? A(1) : width * (A(1) - share) * (sa * sb * inverse);
    LogisticComponent<A> out = {logit_weight + each, (sigmoid_a - sigmoid_b) * precision,
                                a * sigmoid_a - b * sigmoid_b + inside * ratio};
    return out;
}

// logit_weight, x_mu, log_scale and their gradients: (B, P, K); x: (B, P); nll: (B).  `lanes`
// neighbours share a position; the loop over positions is one of the whole block, so that all
// lanes meet in the exchanges.  A lane keeps its first component, the only one where K <= 32.
template <class T, int N>
__global__ void logistic_mixture_nll_forward(
    const T* __restrict__ logit_weight, const T* __restrict__ x_mu,
    const T* __restrict__ log_scale, const T* __restrict__ x,
    typename Arithmetic<T>::type* __restrict__ nll, T* __restrict__ dlogit_weight,
    T* __restrict__ dx_mu, T* __restrict__ dlog_scale, typename Arithmetic<T>::type half_levels,
    typename Arithmetic<T>::type h, typename Arithmetic<T>::type log_width, i64 B, i64 P, i64 K,
    i64 lanes) {
    typedef typename Arithmetic<T>::type A;
    u32 lane = threadIdx.x % (u32)lanes, group = threadIdx.x / (u32)lanes;
    u32 groups = blockDim.x / (u32)lanes;
    for (i64 b = blockIdx.x; b < B; b += gridDim.x) {
        A nats = A(0);
        for (i64 first = 0; first < P; first += groups) {
            i64 p = first + group, at = row_start(b, P) + p, start = row_start(at, K);
            i64 components = p < P ? K : 0;
            A center = A(0);
            if (p < P) {
                A level = floor_((widen(x[at]) + A(1)) * half_levels + A(0.5));
                bool valid = level >= A(0) && level <= half_levels + half_levels;
                center = valid ? level / half_levels - A(1) : A(0) / A(0);  // NaN
            }
            auto component = [&](i64 k) {
                return logistic_component(widen(logit_weight[start + k]), widen(x_mu[start + k]),
                                          widen(log_scale[start + k]), center, h, log_width);
            };
            LogisticComponent<A> kept = {A(0), A(0), A(0)};
            LogSumExp<A> weight = no_terms<A>(), joint = no_terms<A>();
            for (i64 k = lane; k < components; k += lanes) {
                LogisticComponent<A> c = component(k);
                if (k == lane) kept = c;
                add(weight, widen(logit_weight[start + k]));
                add(joint, c.joint);
            }
            weight = group_join(weight, (u32)lanes);
            joint = group_join(joint, (u32)lanes);
            for (i64 k = lane; k < components; k += lanes) {
                LogisticComponent<A> c = k == lane ? kept : component(k);
                A part = exp_(c.joint - joint.top) / joint.sum;
                A share = exp_(widen(logit_weight[start + k]) - weight.top) / weight.sum;
                narrow(share - part, dlogit_weight[start + k]);
                narrow(part * c.dx_mu, dx_mu[start + k]);
                narrow(part * c.dlog_scale, dlog_scale[start + k]);
            }
            if (p < P && lane == 0) nats += (weight.top - joint.top) + log_(weight.sum / joint.sum);
        }
        nats = block_sum(nats);
        if (threadIdx.x == 0) nll[b] = nats;
    }
}

}  // namespace tinyvae
#endif
