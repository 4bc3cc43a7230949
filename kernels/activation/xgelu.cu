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
    static constexpr float kUnit = 0.5f * ScaledExp2::kTiny;

    // φ(u) = ½·2^(kHalfLog2e·u² + kOffset)·(1 + kDrift·u²): kDrift corrects the rounding of kHalfLog2e, which
    // is −(log2 e)/2, and kOffset is 1 − log2 √(2π).
    static constexpr float kOffset = -0.325748056f;

    float u;
    float near_u;  // min(u, kFar)
    float square;  // near_u²
    ScaledExp2 e;  // 2·φ(u)/(1 + kDrift·u²)

    __device__ explicit NormalGate(float x)
        : u(fabsf(x)),
          near_u(min_nan(u, xgelu::kFar)),
          square(near_u * near_u),
          e(xgelu::kHalfLog2e, square, [this](float f) {
              // The 11 digits or fewer of a 16-bit x make the square exact.
              if constexpr (sizeof(T) > 2) {
                  f = fmaf(xgelu::kHalfLog2e, fmaf(near_u, near_u, -square), f);
              }
              return f + kOffset;
          }) {}

    // R(u)·(1 + kDrift·u²) = p·r
    struct Mills {
        float p;
        float r;  // 1/(u·p + s)
    };
    __device__ Mills mills() const {
        const float p = xgelu::mills_p(near_u);
        const float s = xgelu::mills_s(near_u);
        return {p, rcp_approx(fmaf(near_u, p, s))};
    }
    __device__ float tail() const {
        const Mills mills = this->mills();
        return mills.p * mills.r;
    }
    // v·(1 + kDrift·u²)
    __device__ float drifted(float v) const { return fmaf(xgelu::kDrift * square, v, v); }

    __device__ float plus_t(float a, float k) const { return fmaf(k * tail() * e.m, e.scale, a); }
    __device__ float ut(float k) const { return k * tail() * e.m * (near_u * e.scale); }
    __device__ float plus_v(float a, float k) const {
        const Mills mills = this->mills();
        return fmaf(k * fmaf(mills.p, mills.r, -drifted(near_u)) * e.m, e.scale, a);
    }
    __device__ float slope(float k) const { return k * drifted(e.m) * e.scale; }
    __device__ float h() const { return u < xgelu::kNear ? u * near() : plus_t(1.0f, -2.0f * kUnit); }

    // erf(u/√2)/u for u < kNear.
    __device__ float near() const { return xgelu::near(square); }
};

}  // namespace xact

XACT_ACTIVATION(xgelu, xact::Expanded<xact::NormalGate>)
XACT_GATED(xgelu, xact::Expanded<xact::NormalGate>)
