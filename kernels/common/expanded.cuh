// Activations with an expanded gate (Huang, arXiv 2405.20768):
//
//   f(x) = x·G(x),  G = (1 + 2α)·g(x) − α,  g a gate with g(−x) = 1 − g(x), rising from 0 to 1
//
// With u = |x| and t = g(−u), the small tail of the gate, the sums of both sides do not cancel:
//
//   x < 0:  c = −α,      κ = 1 + 2α            G = c + κ·t
//   x ≥ 0:  c = 1 + α,   κ = −(1 + 2α)         f = x·G = ±(c·u + κ·u·t), with the sign of x
//   f' = c + κ·(t − u·g'(u))                   G' = (1 + 2α)·g'(u)
//   ∂f/∂α = x·h(x),  ∂G/∂α = h(x),  h = 2g − 1, which is odd
//
// A gate provides these terms, each accurate relative to its own size (plus_v relative to its larger addend):
//   plus_t(a, k) = a + k·t    ut(k) = k·u·t    plus_v(a, k) = a + k·(t − u·g'(u))    slope(k) = k·g'(u)
//   h = h(u)
// No subnormal intermediate is multiplied, so a subnormal result is rounded once, at the end. The gate gets
// the type that x was widened from, and k·kUnit instead of k, where it chooses the power of two kUnit.
//
// Special values: f(±0) = ±0; f(+inf) = +inf for α > −1 and f(−inf) = ±inf for α ≠ 0 with the sign of α,
// else the limit of (1 + 2α)·u·t with its sign; f'(±inf) = 1 + α, −α; NaN gives NaN.
#pragma once

#include "map.cuh"

namespace xact {

template <template <class> class Gate>
struct Expanded {
    static constexpr int kParams = 1;

    template <class T>
    struct At {
        static constexpr int kParams = 1;

        float alpha;
        float one_plus;  // 1 + α
        float k;         // (1 + 2α)·kUnit
        float chain[1];

        __device__ float c(float x) const { return x < 0.0f ? -alpha : one_plus; }
        __device__ float kappa(float x) const { return x < 0.0f ? k : -k; }

        __device__ Point<1> at(Order<1>, float x, float upstream) const {
            const Gate<T> g(x);
            Point<1> p;
            p.value = g.plus_t(c(x), kappa(x));
            p.slope = g.slope(k);
            p.terms[0] = upstream * copysignf(g.h(), x);
            return p;
        }

        __device__ Point<1> at(Order<2>, float x, float upstream) const {
            const Gate<T> g(x);
            Point<1> p;
            // 0·inf would be NaN where the linear part is absent. The sum is +0 at ±0, because c and κ
            // are never both negative.
            const float curved = g.ut(kappa(x));
            const float sum = c(x) == 0.0f ? curved : fmaf(c(x), fabsf(x), curved);
            p.value = with_sign_of(x, sum);
            p.slope = g.plus_v(c(x), kappa(x));
            // The product with h(u) ≤ 1 comes first: u·h(u) would be subnormal near 0, and upstream·u could
            // overflow.
            p.terms[0] = upstream * g.h() * fabsf(x);
            return p;
        }
    };

    template <class T, class F>
    __device__ static void with(const ActivationArgs& args, F f) {
        At<T> op;
        op.alpha = read_param<T>(args, 0);
        op.one_plus = 1.0f + op.alpha;
        op.k = Gate<T>::kUnit * fmaf(2.0f, op.alpha, 1.0f);
        op.chain[0] = 1.0f;
        f(op);
    }

    // v where x has no sign bit, else −v.
    __device__ static float with_sign_of(float x, float v) {
        return __int_as_float(__float_as_int(v) ^ (__float_as_int(x) & 0x80000000));
    }
};

}  // namespace xact
