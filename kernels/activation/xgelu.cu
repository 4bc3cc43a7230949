// xGELU: the normal distribution function g(x) = ½·(1 + erf(x/√2)), expanded; the exact erf, not the
// tanh form. See expanded.cuh for the formulas.
//
// With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = φ(u)·R(u), g' = φ,  h = erf(u/√2), where R falls slowly
// from √(π/2) to 1/u.
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

template <class T>
struct NormalGate {
    // Beyond, t and u·t are below the smallest subnormal.
    static constexpr float kFar = 16.0f;
    // Beyond, h is formed as 1 − 2t.
    static constexpr float kNear = 0.625f;
    static constexpr float kUnit = 0.5f * ScaledExp2::kTiny;

    // φ(u) = ½·2^(kHalfLog2e·u² + kOffset)·(1 + kDrift·u²): kDrift is what kHalfLog2e, −(log2 e)/2, rounds
    // away, and kOffset is 1 − log2 √(2π).
    static constexpr float kHalfLog2e = -0.72134751f;
    static constexpr float kOffset = -0.325748056f;
    static constexpr float kDrift = -6.67487909e-09f;

    float u;
    float near_u;  // min(u, kFar)
    float square;  // near_u²
    ScaledExp2 e;  // 2·φ(u)/(1 + kDrift·u²)

    __device__ explicit NormalGate(float x)
        : u(fabsf(x)),
          near_u(min_nan(u, kFar)),
          square(near_u * near_u),
          e(kHalfLog2e, square, [this](float f) {
              // The 11 digits or fewer of a 16-bit x make the square exact.
              if constexpr (sizeof(T) > 2) {
                  f = fmaf(kHalfLog2e, fmaf(near_u, near_u, -square), f);
              }
              return f + kOffset;
          }) {}

    // R(u)·(1 + kDrift·u²) = p/(u·p + s) for u <= kFar, all terms positive: where t is small, u·p ≫ s, and
    // the error of p cancels. Minimax with s(0) = 1 up to u = 14.4, where u·t vanishes: relative error
    // 2^-26.1 before rounding.
    struct Mills {
        float p;
        float r;  // 1/(u·p + s)
    };
    __device__ Mills mills() const {
        float p = 0.0101927193f;
        p = fmaf(p, near_u, 0.101438582f);
        p = fmaf(p, near_u, 0.458783984f);
        p = fmaf(p, near_u, 1.09915972f);
        p = fmaf(p, near_u, 1.25331414f);
        float s = 3.75664581e-06f;
        s = fmaf(s, near_u, 0.0100724753f);
        s = fmaf(s, near_u, 0.10326308f);
        s = fmaf(s, near_u, 0.421572894f);
        s = fmaf(s, near_u, 1.0f);
        return {p, rcp_approx(fmaf(near_u, p, s))};
    }
    __device__ float tail() const {
        const Mills mills = this->mills();
        return mills.p * mills.r;
    }
    // v·(1 + kDrift·u²)
    __device__ float drifted(float v) const { return fmaf(kDrift * square, v, v); }

    __device__ float plus_t(float a, float k) const { return fmaf(k * tail() * e.m, e.scale, a); }
    __device__ float ut(float k) const { return k * tail() * e.m * (near_u * e.scale); }
    __device__ float plus_v(float a, float k) const {
        const Mills mills = this->mills();
        return fmaf(k * fmaf(mills.p, mills.r, -drifted(near_u)) * e.m, e.scale, a);
    }
    __device__ float slope(float k) const { return k * drifted(e.m) * e.scale; }
    __device__ float h() const { return u < kNear ? u * near() : plus_t(1.0f, -2.0f * kUnit); }

    // erf(u/√2)/u for u < kNear, minimax in u²: relative error 2^-24.2 before rounding.
    __device__ float near() const {
        float r = -0.00220163516f;
        r = fmaf(r, square, 0.0199053288f);
        r = fmaf(r, square, -0.132977501f);
        return fmaf(r, square, 0.797884524f);
    }
};

}  // namespace xact

XACT_ACTIVATION(xgelu, xact::Expanded<xact::NormalGate>)
XACT_GATED(xgelu, xact::Expanded<xact::NormalGate>)
