// xSiLU: the logistic gate g(x) = 1/(1 + e^-x), expanded. See expanded.cuh for the formulas.
//
// With e = e^-u:  t = e/(1 + e),  g' = t·(1 − t),  h = tanh(u/2).
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

template <class>
struct LogisticGate {
    static constexpr float kUnit = ScaledExp2::kTiny;

    float near_u;       // min(u, xsilu::kFar)
    ScaledExp2 e;       // e^-u
    float one_minus_t;  // 1/(1 + e)
    float b;            // t = b·kUnit·scale

    __device__ explicit LogisticGate(float x)
        : near_u(min_nan(fabsf(x), xsilu::kFar)),
          e(-xsilu::kLog2eHi, near_u, [this](float f) { return fmaf(-xsilu::kLog2eLo, near_u, f); }) {
        one_minus_t = rcp_approx(fmaf(e.m * kUnit, e.scale, 1.0f));
        b = e.m * one_minus_t;
    }

    __device__ float plus_t(float a, float k) const { return fmaf(k * b, e.scale, a); }
    __device__ float ut(float k) const { return k * b * (near_u * e.scale); }
    __device__ float plus_v(float a, float k) const {
        return fmaf(k * b * fmaf(-near_u, one_minus_t, 1.0f), e.scale, a);
    }
    __device__ float slope(float k) const { return k * b * fmaf(-kUnit * b, e.scale, 1.0f) * e.scale; }
    __device__ float h() const { return near_u < 1.0f ? near_u * near() : plus_t(1.0f, -2.0f * kUnit); }

    // tanh(u/2)/u for u < 1.
    __device__ float near() const { return xsilu::near(near_u * near_u); }
};

}  // namespace xact

XACT_ACTIVATION(xsilu, xact::Expanded<xact::LogisticGate>)
XACT_GATED(xsilu, xact::Expanded<xact::LogisticGate>)
