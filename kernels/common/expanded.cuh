// Activations with an expanded gate (Huang, arXiv 2405.20768):
//
//   f(x) = x·G(x),  G = (1 + 2α)·g(x) − α,  g a gate with g(−x) = 1 − g(x), rising from 0 to 1
//
// With u = |x| and t = g(−u), the small tail of the gate, both sides are sums that lose no digits:
//
//   x < 0:  G = −α + (1 + 2α)·t          f = α·u − (1 + 2α)·u·t
//   x ≥ 0:  G = (1 + α) − (1 + 2α)·t     f = (1 + α)·u − (1 + 2α)·u·t
//   f' = G + (1 + 2α)·x·g'(u)            G' = (1 + 2α)·g'(u)
//   ∂f/∂α = x·h(x),  ∂G/∂α = h(x),  h = 2g − 1, which is odd
//
// A gate provides the pieces, each accurate relative to itself (v to its larger addend):
//   t = g(−u)    plus_ut(a, k) = a + k·u·t    v = t − u·g'(u)    slope(k) = k·g'(u)
//   h = h(u)     uh = u·h(u)
// where a subnormal intermediate is never multiplied: plus_ut and slope round once, at the end.
//
// Corners: f(±0) = ±0; f(+inf) = +inf for α > −1 and f(−inf) = ±inf for α ≠ 0 with the sign of α,
// else the limit of (1 + 2α)·u·t with its sign; f'(±inf) = 1 + α, −α; NaN gives NaN.
#pragma once

#include "map.cuh"

namespace xact {

template <class Gate>
struct Expanded {
    static constexpr int kParams = 1;

    float alpha;       // α
    float one_plus;    // 1 + α
    float k;           // 1 + 2α
    float chain[1];

    template <class T, class F>
    __device__ static void with(const ActivationArgs& args, F f) {
        Expanded op;
        op.alpha = read_param<T>(args, 0);
        op.one_plus = 1.0f + op.alpha;
        op.k = fmaf(2.0f, op.alpha, 1.0f);
        op.chain[0] = 1.0f;
        f(op);
    }

    __device__ Point<1> at(Order<1>, float x) const {
        const Gate g(x);
        Point<1> p;
        p.value = fmaf(x < 0.0f ? k : -k, g.t(), x < 0.0f ? -alpha : one_plus);
        p.slope = g.slope(k);
        p.dparams[0] = copysignf(g.h(), x);
        return p;
    }

    __device__ Point<1> at(Order<2>, float x) const {
        const Gate g(x);
        const float c = x < 0.0f ? alpha : one_plus;
        Point<1> p;
        // 0·inf would be NaN where the linear part is absent. The sum loses the sign of 0, and has that
        // of x wherever it vanishes. (Asked of the sum: asked of x it becomes a branch around it all.)
        const float linear = c == 0.0f ? 0.0f : c * fabsf(x);
        const float sum = g.plus_ut(linear, -k);
        p.value = sum == 0.0f ? copysignf(0.0f, x) : sum;
        p.slope = fmaf(x < 0.0f ? k : -k, g.v(), x < 0.0f ? -alpha : one_plus);
        p.dparams[0] = g.uh();
        return p;
    }
};

}  // namespace xact
