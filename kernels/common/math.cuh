// The approximations shared by the ops, each with its error.
//
// The code is compiled with -fmad=false. Only what is written as fmaf is fused, so that neither nvcc nor
// ptxas changes a bit.
#pragma once

#ifdef __USE_FAST_MATH__
#error "xact's errors are those of exact division and of expf, logf and log1pf: without --use_fast_math"
#endif

#include "constants.cuh"

namespace xact {

// 2^t by the hardware. PTX ISA: within 2 ulp of the correctly rounded result; exp2(-inf) = 0,
// exp2(+inf) = inf, NaN stays NaN, subnormal results flush to 0.
__device__ inline float exp2_approx(float t) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
    return r;
}

// 1/t by the hardware. PTX ISA: within 1 ulp; 1/±0 = ±inf, 1/±inf = ±0, subnormals count as 0.
__device__ inline float rcp_approx(float t) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
    return r;
}

// 1/√t by the hardware. PTX ISA: relative error 2^-22.9; of +inf +0, of ±0 ±inf, subnormals count as 0.
__device__ inline float rsqrt_approx(float t) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
    return r;
}

// √t by the hardware. PTX ISA: relative error 2^-23; subnormals count as 0.
__device__ inline float sqrt_approx(float t) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
    return r;
}

// The larger, where +0 is larger than -0, and NaN counts as missing. (fmaxf may return either zero.)
__device__ inline float max_of_zeros(float a, float b) {
    float r;
    asm("max.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// min(a, b) that keeps a NaN, which fminf would drop.
__device__ inline float min_nan(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// max(a, b) that keeps a NaN.
__device__ inline float max_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// Both are computed here for every x. Otherwise nvcc would move each into a branch of its own, and the lanes
// of a warp would diverge.
__device__ inline void compute_both(float& a, float& b) { asm volatile("" : "+f"(a), "+f"(b)); }

// 2^(a·z + …) = m·scale·kTiny for -190 <= a·z <= 0, with m near 1 and scale = 2^-n/kTiny an exact power of
// two, so that a product with it keeps its digits until the product itself is subnormal. The factor kTiny
// lets scale reach 2^-190; it costs nothing if it is part of a constant factor.
//
// n is the integer nearest to -a·z, and f = a·z + n is computed in one fused step, because the rounding of a
// product near 150 would cost 60 ulp. rest(f) adds to f the part of the exponent that a·z omits. m is one
// exp2_approx, with an error of at most 2 ulp.
struct ScaledExp2 {
    float m;
    float scale;

    static constexpr int kBias = 64;
    static constexpr float kTiny = 0x1p-64f;
    // Adding and subtracting it rounds to an integer, whose bits it then holds.
    static constexpr float kRound = 12582912.0f;  // 1.5·2^23

    template <class Rest>
    __device__ ScaledExp2(float a, float z, Rest rest) {
        const float rounded = fmaf(a, z, kRound);
        const float n = kRound - rounded;
        m = exp2_approx(rest(fmaf(a, z, n)));
        scale = __int_as_float(((127 + kBias) << 23) + (__float_as_int(rounded) << 23));
    }
};

// expm1(x) for x <= 0, and q(x) = expm1(x) - x, both without cancellation.
//
//   -5/4 < x <= 0:  q = x²·r,  r = 1/2 + x·R(x) with R of degree 5, minimax for the relative error of
//                   q (2^-28.5 before rounding, below 3·2^-24 after);  expm1 = x + q
//        x <= -5/4: expm1 = 2^(x·log2 e) - 1, where 2^… <= 0.29, so that its error and that of the
//                   argument vanish beside the 1;  q = expm1 - x, a sum of positive terms
//
// q(-inf) = inf, expm1(-inf) = -1; NaN gives NaN.
struct Expm1 {
    float x;
    bool near;  // x > -5/4; false for NaN
    float r;    // q/x² where near
    float exp;  // e^x where not near
    float far;  // expm1(x) where not near

    __device__ explicit Expm1(float x) : x(x), near(x > xielu::kNear) {
        r = xielu::q_over_square(x);
        exp = exp2_approx(x * 1.44269504f);
        far = exp - 1.0f;
        // See compute_both.
        asm volatile("" : "+f"(r), "+f"(exp), "+f"(far));
    }

    __device__ float expm1() const { return near ? fmaf(x * x, r, x) : far; }
    __device__ float q() const { return near ? x * x * r : far - x; }
};

// softplus(z) = log(1 + e^z) and its derivative, the logistic function.
//
//   softplus(z) = max(0, z) + log1p(e^-|z|)
//
// has no cut-off: at z = 166 it is 166, at z = -20 the parameter is still alive. Error below 4 ulp.
struct Softplus {
    float value;
    float slope;

    __device__ explicit Softplus(float z) {
        const float e = expf(-fabsf(z));
        value = fmaxf(z, 0.0f) + log1pf(e);
        slope = (z > 0.0f ? 1.0f : e) / (1.0f + e);
    }
};

}  // namespace xact
