// xGELU: the normal distribution function g(x) = ½·(1 + erf(x/√2)), expanded; the exact erf, not the
// tanh form. See expanded.cuh for the formulas.
//
// With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = e^(−u²/2)·m(u),  g' = φ,  h = erf(u/√2), where
// m(u) = ½·erfcx(u/√2) falls slowly from ½ to 1/(u·√(2π)).
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

struct NormalGate {
    // Beyond, t and u·t are below the smallest subnormal.
    static constexpr float kFar = 16.0f;

    float u;
    float near_u;  // min(u, kFar)
    ExpNeg e;      // e^(−u²/2)

    __device__ explicit NormalGate(float x)
        : u(fabsf(x)), near_u(min_nan(u, kFar)), e(square(), square_rest()) {}

    // u²/2, and what it rounded away.
    __device__ float square() const { return 0.5f * near_u * near_u; }
    __device__ float square_rest() const { return fmaf(0.5f * near_u, near_u, -square()); }

    // m(u) for u <= 16: (u + 5/2)·m(u) is a polynomial in w = u/(u + 5/2), minimax with its value at 0
    // exact: relative error 2^-27.3 before rounding. In this form the errors of the reciprocal nearly
    // cancel near 0, where t is largest.
    __device__ float mills() const {
        const float r = rcp_approx(near_u + 2.5f);
        const float w = near_u * r;
        float p = -0.0247471277f;
        p = fmaf(p, w, 0.0261968002f);
        p = fmaf(p, w, 0.0866963044f);
        p = fmaf(p, w, -0.118704043f);
        p = fmaf(p, w, 0.0194279384f);
        p = fmaf(p, w, -0.105115265f);
        p = fmaf(p, w, 0.0458498038f);
        p = fmaf(p, w, 0.293188751f);
        p = fmaf(p, w, 0.169522524f);
        p = fmaf(p, w, -1.24339032f);
        p = fmaf(p, w, 1.25f);
        return r * p;
    }

    __device__ float t() const { return (e.m * mills()) * e.scale; }
    __device__ float plus_ut(float a, float k) const {
        return fmaf((k * (e.m * mills())) * near_u, e.scale, a);
    }
    __device__ float v() const {
        return (e.m * fmaf(-0.39894228f, near_u, mills())) * e.scale;
    }
    __device__ float slope(float k) const { return ((k * 0.39894228f) * e.m) * e.scale; }
    __device__ float h() const { return u < 1.0f ? u * near() : fmaf(-2.0f, t(), 1.0f); }
    __device__ float uh() const { return u < 1.0f ? u * u * near() : plus_ut(u, -2.0f); }

    // erf(u/√2)/u for u < 1, minimax in u²: relative error 2^-30.4 before rounding.
    __device__ float near() const {
        const float y = u * u;
        float r = -1.53084275e-05f;
        r = fmaf(r, y, 0.00022697277f);
        r = fmaf(r, y, -0.00237265998f);
        r = fmaf(r, y, 0.0199466459f);
        r = fmaf(r, y, -0.132980719f);
        return fmaf(r, y, 0.797884583f);
    }
};

}  // namespace xact

XACT_ACTIVATION(xgelu, xact::Expanded<xact::NormalGate>)
XACT_GATED(xgelu, xact::Expanded<xact::NormalGate>)
