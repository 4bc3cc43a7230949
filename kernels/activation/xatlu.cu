// xATLU: the arctangent gate g(x) = ½ + arctan(x)/π, expanded. See expanded.cuh for the formulas.
//
// With z = min(u, 1/u):  u ≤ 1: t = ½ − arctan(z)/π;  u > 1: t = arctan(z)/π, which keeps the digits
// of the tail, and u·t = (arctan(z)/z)/π without forming u·z = 1.
//   u·g' = z/(π(1 + z²)) on both sides,  h = (2/π)·arctan(u)
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

template <class>
struct ArctanGate {
    static constexpr float kUnit = 1.0f;
    static constexpr float kInvPi = 0.318309886f;

    float u;
    bool far;     // u > 1
    float z, y;   // min(u, 1/u) and its square
    float ratio;  // arctan(z)/(π·z)

    __device__ explicit ArctanGate(float x) : u(fabsf(x)), far(u > 1.0f) {
        // Scaled, so that the reciprocal of a large u is not flushed to 0 as a subnormal.
        const float inverse = 0.25f * rcp_approx(0.25f * u);
        z = far ? inverse : u;
        y = z * z;
        ratio = xatlu::arctan(y) * kInvPi;
    }

    // arctan(z)/π
    __device__ float angle() const { return z * ratio; }
    __device__ float t() const { return far ? angle() : 0.5f - angle(); }
    __device__ float plus_t(float a, float k) const { return fmaf(k, t(), a); }
    __device__ float ut(float k) const { return k * (far ? ratio : 0.5f - angle()) * (far ? 1.0f : u); }
    __device__ float plus_v(float a, float k) const {
        return fmaf(k, fmaf(-kInvPi * z, rcp_approx(1.0f + y), t()), a);
    }
    __device__ float slope(float k) const {
        // 1/(1 + u²) with one reciprocal. Beyond 2^60, where u² may overflow, u is scaled down and the
        // result with it; the 1 is lost there anyway.
        const bool huge = u > 0x1p60f;
        const float w = huge ? u * 0x1p-66f : u;
        const float r = rcp_approx(fmaf(w, w, huge ? 0.0f : 1.0f));
        return ((k * kInvPi) * r) * (huge ? 0x1p-132f : 1.0f);
    }
    __device__ float h() const { return far ? fmaf(-2.0f, angle(), 1.0f) : 2.0f * angle(); }
};

}  // namespace xact

XACT_ACTIVATION(xatlu, xact::Expanded<xact::ArctanGate>)
XACT_GATED(xatlu, xact::Expanded<xact::ArctanGate>)
