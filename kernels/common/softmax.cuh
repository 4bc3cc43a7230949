// The exponentials of a row, relative to a power of two.
//
//   e_j = 2^(z_j·log2 e − n),   n the integer nearest to max_j z_j·log2 e
//
// The largest e_j is near 1. Because n is an integer, sums of e_j with different n are combined with exact
// factors 2^(n' − n), so the split of a row and the changes of a running maximum add no rounding errors. The
// rounding of the constant log2 e changes all z_j·log2 e by the same relative 2^-26, so only the distance of
// z_j from the largest logit is affected.
#pragma once

#include "math.cuh"

namespace xact {

// n, as a sum of two f32: one f32 cannot hold all integers beyond 2^24.
struct Base {
    static constexpr float kLog2e = 1.44269502f;

    float hi;
    float lo;

    Base() = default;
    __device__ explicit Base(float max) {
        // The clamp gives a finite base to logits up to the largest f32. The base of -inf is below that of
        // every other logit.
        hi = rintf(fminf(fmaxf(max * kLog2e, -kMax), kMax));
        lo = max == -INFINITY ? -kMax : rintf(above_hi(max));
    }

    // z·log2 e − n. +inf, and a base of +inf, give NaN.
    __device__ float exponent(float z) const { return above_hi(z) - lo; }

    // e^z / 2^n.
    __device__ float exp(float z) const { return exp2_approx(exponent(z)); }

    // n·ln 2 + rest.
    __device__ float natural(float rest) const {
        constexpr float kLn2Hi = 0.693147182f;
        constexpr float kLn2Lo = -1.90465421e-09f;
        return fmaf(hi, kLn2Hi, fmaf(hi, kLn2Lo, fmaf(lo, kLn2Hi, rest)));
    }

  private:
    // z·log2 e − hi, in the same steps for a logit and for the maximum: where z is the maximum, what is left
    // after lo is at most ½, however large it is.
    __device__ float above_hi(float z) const { return fmaf(z, kLog2e, -hi); }

    static constexpr float kMax = 3.40282347e+38f;
};

// 2^t, within 2 ulp where |t| < 1 even if exp2_approx is not.
__device__ inline float exp2_near(float t) {
    if (!(fabsf(t) < 1.0f)) return exp2_approx(t);
    const float e = 1.0f + Expm1(-fabsf(t) * 0.693147182f).expm1();
    return t > 0.0f ? 1.0f / e : e;
}

// sum·2^(from − to), exactly unless it is subnormal.
__device__ inline float rebased(float sum, const Base& from, const Base& to) {
    // Two factors, because one f32 cannot hold 2^-252, below which a sum vanishes.
    const float exponent = fmaxf(fminf((from.hi - to.hi) + (from.lo - to.lo), 126.0f), -252.0f);
    const int n = static_cast<int>(exponent);
    const int half = n / 2;
    return sum * __int_as_float((half + 127) << 23) * __int_as_float((n - half + 127) << 23);
}

// c·tanh(z/c) and its derivative 1 − tanh²(z/c), from one exponential and without cancellation:
// with m = expm1(−2|z|/c):  tanh = −m/(m + 2),  1 − tanh² = 4·(m + 1)/(m + 2)².
struct Softcap {
    float value;
    float slope;

    __device__ Softcap(float z, float cap, float two_over_cap) {
        const Expm1 e(-fabsf(z) * two_over_cap);
        const float m = e.expm1();
        const float r = rcp_approx(m + 2.0f);
        value = copysignf(cap * (-m * r), z);
        slope = 4.0f * (e.near ? m + 1.0f : e.exp) * r * r;
    }
};

}  // namespace xact
