// xSiLU: the logistic gate g(x) = 1/(1 + e^-x), expanded. See expanded.cuh for the formulas.
//
// With e = e^-u:  t = e/(1 + e),  g' = t·(1 − t),  h = tanh(u/2).
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

struct LogisticGate {
    // Beyond, t and u·t are below the smallest subnormal.
    static constexpr float kFar = 120.0f;

    float u;
    ExpNeg e;
    float one_minus_t;  // 1/(1 + e)
    float b;            // t = b·scale

    __device__ explicit LogisticGate(float x)
        : u(fabsf(x)), e(min_nan(u, kFar), 0.0f) {
        one_minus_t = rcp_approx(fmaf(e.m, e.scale, 1.0f));
        b = e.m * one_minus_t;
    }

    __device__ float t() const { return b * e.scale; }
    __device__ float plus_ut(float a, float k) const {
        return fmaf((k * b) * min_nan(u, kFar), e.scale, a);
    }
    __device__ float v() const {
        return (b * fmaf(-min_nan(u, kFar), one_minus_t, 1.0f)) * e.scale;
    }
    __device__ float slope(float k) const {
        return ((k * b) * fmaf(-b, e.scale, 1.0f)) * e.scale;
    }
    __device__ float h() const { return u < 1.0f ? u * near() : fmaf(-2.0f, t(), 1.0f); }
    __device__ float uh() const { return u < 1.0f ? u * u * near() : plus_ut(u, -2.0f); }

    // tanh(u/2)/u for u < 1, minimax in u²: relative error 2^-31.5 before rounding.
    __device__ float near() const {
        const float y = u * u;
        float r = -3.22921278e-06f;
        r = fmaf(r, y, 4.15521645e-05f);
        r = fmaf(r, y, -0.000421042321f);
        r = fmaf(r, y, 0.00416653184f);
        r = fmaf(r, y, -0.0416666567f);
        return fmaf(r, y, 0.5f);
    }
};

}  // namespace xact

XACT_ACTIVATION(xsilu, xact::Expanded<xact::LogisticGate>)
XACT_GATED(xsilu, xact::Expanded<xact::LogisticGate>)
