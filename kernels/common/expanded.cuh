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
// k·kUnit instead of k, where it chooses the power of two kUnit.
//
// Of a 16-bit tensor, an error of 2^-18 (f16) or 2^-15 (bf16) of the largest addend vanishes beside the
// rounding to the type. Short<T> is a functor for such tensors, with formulas that are as accurate as that
// and take half the instructions.
//
// Special values: f(±0) = ±0; f(+inf) = +inf for α > −1 and f(−inf) = ±inf for α ≠ 0 with the sign of α,
// else the limit of (1 + 2α)·u·t with its sign; f'(±inf) = 1 + α, −α; NaN gives NaN.
#pragma once

#include "map.cuh"
#include "math.cuh"

namespace xact {

// v where x has no sign bit, else −v.
__device__ inline float with_sign_of(float x, float v) {
    return __int_as_float(__float_as_int(v) ^ (__float_as_int(x) & 0x80000000));
}

template <class Gate, template <class> class Short>
struct Expanded {
    static constexpr int kParams = 1;

    struct At {
        static constexpr int kParams = 1;

        float alpha;
        float one_plus;  // 1 + α
        float k;         // (1 + 2α)·kUnit
        float chain[1];

        __device__ float c(float x) const { return x < 0.0f ? -alpha : one_plus; }
        __device__ float kappa(float x) const { return x < 0.0f ? k : -k; }

        template <Use kUse>
        __device__ Point<1> at(Order<1, kUse>, float x, float upstream) const {
            const Gate g(x);
            Point<1> p;
            p.value = g.plus_t(c(x), kappa(x));
            p.slope = g.slope(k);
            p.terms[0] = upstream * copysignf(g.h(), x);
            return p;
        }

        template <Use kUse>
        __device__ Point<1> at(Order<2, kUse>, float x, float upstream) const {
            const Gate g(x);
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
        const float alpha = read_param<T>(args, 0);
        if constexpr (kIsShort<T>) {
            Short<T>::with_alpha(alpha, f);
        } else {
            At op;
            op.alpha = alpha;
            op.one_plus = 1.0f + alpha;
            op.k = Gate::kUnit * fmaf(2.0f, alpha, 1.0f);
            op.chain[0] = 1.0f;
            f(op);
        }
    }
};

// The values of α that need formulas of their own, because c is 0 on one side, where c·u would be 0·inf: α =
// 0 on the left, and α = -1 on the right.
enum class Alpha { Any, Zero, MinusOne };

// What the gates of 16-bit tensors share whose small tail t is even in x. With c' = α where x has its sign
// bit, else 1 + α, and S = t - u·g':
//
//   f = u·(c' - k·t)    G = ±(c' - k·t)    f' = ±(c' - k·S)    h = ±(1 - 2·t)    with the sign of x
//
// The sign bit, not x < 0, keeps f(-0) = -0. Where c is not 0, u is the last factor, so that k·t may be
// subnormal. Where c is 0 on one side, with u bounded by a number for which u·t is the limit of f:
//
//   α = 0:   f = max(x, -0) - u·t          α = -1:  f(x; -1) = -f(-x; 0)
template <Alpha kAlpha>
struct ShortGate {
    static constexpr int kParams = 1;
    static constexpr u64 kName = loop_name(kAlpha == Alpha::Zero       ? "zero"
                                           : kAlpha == Alpha::MinusOne ? "minusone"
                                                                       : "any");

    // Both are -0 for 0, so that f' = ±(c' - k·S) has the sign of S where S underflows.
    float alpha;
    float one_plus;  // 1 + α
    float chain[1];

    __device__ explicit ShortGate(float a)
        : alpha(a == 0.0f ? -0.0f : a), one_plus(a == -1.0f ? -0.0f : 1.0f + a) {
        chain[0] = 1.0f;
    }

    // c'
    __device__ float c(float x) const { return __float_as_int(x) < 0 ? alpha : one_plus; }

    // f for t·unit = t and k·unit = k, at u = |x|, or its bound where α is 0 or -1.
    __device__ float value(float x, float u, float t, float k, float unit) const {
        if constexpr (kAlpha == Alpha::Any) return fabsf(x) * fmaf(-k, t, c(x));
        // max.f32 drops a NaN, but t is NaN too.
        if constexpr (kAlpha == Alpha::Zero) return minus_ut(t, u, unit, max_of_zeros(x, -0.0f));
        if constexpr (kAlpha == Alpha::MinusOne) return -minus_ut(t, u, unit, max_of_zeros(-x, -0.0f));
    }

    // a - u·t·unit. A power of two that keeps t from being subnormal goes last: t may be subnormal where u·t
    // still has digits that a large v shows.
    __device__ static float minus_ut(float t, float u, float unit, float a) {
        return unit < 0x1p-32f ? fmaf(-unit, t * u, a) : fmaf(-unit * t, u, a);
    }
};

// Calls f with Op<T, the case of α>(α): one uniform branch per launch.
template <class T, template <class, Alpha> class Op>
struct ByAlpha {
    template <class F>
    __device__ static void with_alpha(float alpha, F f) {
        if (alpha == 0.0f) {
            f(Op<T, Alpha::Zero>(alpha));
        } else if (alpha == -1.0f) {
            f(Op<T, Alpha::MinusOne>(alpha));
        } else {
            f(Op<T, Alpha::Any>(alpha));
        }
    }
};

}  // namespace xact
