// xGELU: the normal distribution function g(x) = ½·(1 + erf(x/√2)), expanded; the exact erf, not the
// tanh form. See expanded.cuh for the formulas.
//
// With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = φ(u)·R(u), g' = φ,  h = erf(u/√2), where R falls slowly
// from √(π/2) to 1/u.
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

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
              // The rounding error of the square.
              f = fmaf(xgelu::kHalfLog2e, fmaf(near_u, near_u, -square), f);
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

// 16-bit tensors. All follows from φ:
//
//   φ = 2^(kHalfLog2e·u² - log2 √(2π))    t = φ·R    S = t - u·φ = φ·(R - u)    R = v·p(v), v = 1/(u + c)
//
// R - u cancels only where S does. u² is exact: u has at most 11 bits. In bf16, whose range is that of f32, φ
// and t carry a factor 1/kUnit = 2^64, which is a term of the exponents and keeps them above the subnormals
// that ex2 flushes; in f16 that would round the exponent too coarsely. At kFar ex2 gives 0. (One polynomial
// for log2 t is an instruction shorter in the forward, but takes degree 10 for the digits of the tail that a
// large v shows.)
template <class T, Alpha kAlpha>
struct NormalShort : ShortGate<kAlpha> {
    using Base = ShortGate<kAlpha>;
    static constexpr bool kScaled = kIsWide<T>;
    static constexpr float kUnit = kScaled ? 0x1p-64f : 1.0f;
    static constexpr float kFar = 16.2f;

    float k;  // (1 + 2α)·kUnit

    __device__ explicit NormalShort(float alpha = 0.0f) : Base(alpha), k(kUnit * fmaf(2.0f, alpha, 1.0f)) {}

    // φ/kUnit, R and t/kUnit at u ≤ kFar.
    struct Density {
        float phi, r, t;
    };
    template <Use kUse>
    __device__ static Density density(float u) {
        Density d;
        d.phi = exp2_approx(
            fmaf(u * u, xgelu::kHalfLog2e, kScaled ? xgelu::kLog2DensityBf16 : xgelu::kLog2DensityF16));
        if constexpr (kScaled && kUse == Use::Derivatives) {
            const float v = rcp_approx(u + xgelu::kShiftSlopeBf16);
            d.r = v * xgelu::ratio_slope_bf16(v);
        } else if constexpr (kScaled) {
            const float v = rcp_approx(u + xgelu::kShiftBf16);
            d.r = v * xgelu::ratio_bf16(v);
        } else if constexpr (kUse == Use::Derivatives) {
            const float v = rcp_approx(u + xgelu::kShiftSlopeF16);
            d.r = v * xgelu::ratio_slope_f16(v);
        } else {
            const float v = rcp_approx(u + xgelu::kShiftF16);
            d.r = v * xgelu::ratio_f16(v);
        }
        d.t = d.phi * d.r;
        return d;
    }

    __device__ static float h(float t) { return fmaf(-2.0f * kUnit, t, 1.0f); }

    template <Use kUse>
    __device__ Point<1> at(Order<2, kUse>, float x, float upstream) const {
        Point<1> p;
        const float u = min_nan(fabsf(x), kFar);
        const Density d = density<kUse>(u);
        p.value = this->value(x, u, d.t, k, kUnit);
        p.slope = with_sign_of(x, fmaf(-k, d.phi * (d.r - u), this->c(x)));
        p.terms[0] = upstream * h(d.t) * fabsf(x);
        return p;
    }

    template <Use kUse>
    __device__ Point<1> at(Order<1, kUse>, float x, float upstream) const {
        Point<1> p;
        const float u = min_nan(fabsf(x), kFar);
        const Density d = density<kUse>(u);
        p.value = with_sign_of(x, fmaf(-k, d.t, this->c(x)));
        p.slope = k * d.phi;
        p.terms[0] = upstream * with_sign_of(x, h(d.t));
        return p;
    }
};

template <class T>
using NormalByAlpha = ByAlpha<T, NormalShort>;
using Xgelu = Expanded<NormalGate, NormalByAlpha>;

}  // namespace xact

XACT_ACTIVATION(xgelu, xact::Xgelu)
XACT_GATED(xgelu, xact::Xgelu)
