// xATLU: the arctangent gate g(x) = ½ + arctan(x)/π, expanded. See expanded.cuh for the formulas.
//
// With z = min(u, 1/u):  u ≤ 1: t = ½ − arctan(z)/π;  u > 1: t = arctan(z)/π, which keeps the digits
// of the tail, and u·t = (arctan(z)/z)/π without forming u·z = 1.
//   u·g' = z/(π(1 + z²)) on both sides,  h = (2/π)·arctan(u)
// t - u·g' falls as u^-3 and its addends only as u^-1: beyond kSeries it is a series in z, which keeps its
// digits, and from kDifference to there a polynomial in u.
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

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
        const float near = fmaf(-kInvPi * z, rcp_approx(1.0f + y), t());
        const float middle = xatlu::slope_middle(u - xatlu::kMiddle);
        const float inner = u > xatlu::kDifference ? middle : near;
        // The last product of the tail is fused, which saves a rounding.
        const bool series = u > xatlu::kSeries;
        return fmaf(series ? k * z : k, series ? y * xatlu::slope_tail(y) : inner, a);
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

// 16-bit tensors, all angles times π. The forward needs only the small angle w = ±arctan(1/u), which for |x|
// ≤ 1 is arctan(x), so that one fused step gives G on all four sides:
//
//   |x| ≤ 1: w = arctan(x),    G = ½ + (k/π)·w          |x| > 1: w = arctan(-1/x),  G = (x < 0 ? -α : 1 + α)
//   + (k/π)·w
//
// The backward needs sin θ and tan(θ/2) of θ = arctan(1/u) = π·t, which have no sides at all:
//
//   r = 1/√(1 + u²) = sin θ    y = 1/(√(1 + u²) + u) = tan(θ/2)    π·u·g' = u·r²
//   α ≠ 0:  θ = 2·arctan(y)    π·S = θ - u·r²
//   α = 0:  π·S = y³·Q(y²)     θ = π·S + u·r²
//
// The second form keeps the digits of S, which is all of f' on one side for α = 0 and for α = -1, and takes a
// longer polynomial. Where u is bounded by kFar, θ vanishes beside α, or u·θ is its limit 1.
template <class T, Alpha kAlpha>
struct ArctanShort : ShortGate<kAlpha> {
    using Base = ShortGate<kAlpha>;
    static constexpr bool kBounded = kIsWide<T>;  // whether u² overflows f32
    static constexpr float kInvPi = 0.318309886f;
    // Their powers do not overflow.
    static constexpr float kFar = kBounded ? 0x1p62f : 0x1p26f;
    static constexpr float kFarOfValue = kBounded ? 0x1p30f : 0x1p26f;

    float k;  // (1 + 2α)/π

    __device__ explicit ArctanShort(float alpha = 0.0f) : Base(alpha), k(kInvPi * fmaf(2.0f, alpha, 1.0f)) {}

    // arctan(z) for |z| ≤ 1.
    __device__ static float arctan(float z) {
        return z * (kIsWide<T> ? xatlu::arctan_bf16(z * z) : xatlu::arctan_f16(z * z));
    }

    // 2·arctan(y) for 0 ≤ y ≤ 1, π/2 at 1.
    __device__ static float twice_arctan(float y) {
        return y * (kIsWide<T> ? xatlu::twice_arctan_bf16(y * y) : xatlu::twice_arctan_f16(y * y));
    }

    // θ for α = 0 and α = -1, at u ≤ kFarOfValue.
    __device__ static float angle(float u) {
        if constexpr (kIsWide<T>) {
            return xatlu::tail_numerator(u) * rcp_approx(xatlu::tail_denominator(u));
        } else {
            return twice_arctan(rcp_approx(sqrt_approx(fmaf(u, u, 1.0f)) + u));
        }
    }

    // S·π and θ.
    struct Angle {
        float s, theta;
    };
    __device__ static Angle angles(float u) {
        const float square = fmaf(u, u, 1.0f);
        const float r = rsqrt_approx(square);
        const float y = rcp_approx(fmaf(square, r, u));
        const float ur = u * r;
        Angle a;
        if constexpr (kAlpha == Alpha::Any) {
            a.theta = twice_arctan(y);
            // Its sign is that of S also where the difference has lost it.
            a.s = max_nan(fmaf(-ur, r, a.theta), 0x1p-140f);
        } else {
            const float z = y * y;
            a.s = y * z * (kIsWide<T> ? xatlu::curve_bf16(z) : xatlu::curve_f16(z));
            a.theta = fmaf(ur, r, a.s);
        }
        return a;
    }

    template <Use kUse>
    __device__ Point<1> at(Order<2, kUse>, float x, float upstream) const {
        Point<1> p;
        if constexpr (kUse == Use::Value) {
            if constexpr (kAlpha == Alpha::Any) {
                p.value = x * gate(x).value;
            } else {
                const float u = min_nan(fabsf(x), kFarOfValue);
                p.value = this->value(x, u, angle(u), k, kInvPi);
            }
        } else {
            const float u = min_nan(fabsf(x), kFar);
            const Angle a = angles(u);
            p.value = this->value(x, u, a.theta, k, kInvPi);
            if constexpr (kAlpha == Alpha::Any) {
                p.slope = with_sign_of(x, fmaf(-k, a.s, this->c(x)));
            } else {
                // S on one side, 1 - S on the other: both are positive.
                p.slope = fabsf(fmaf(-k, a.s, this->c(x)));
            }
            p.terms[0] = upstream * fmaf(-2.0f * kInvPi, a.theta, 1.0f) * fabsf(x);
        }
        return p;
    }

    struct Gate {
        float w;
        bool far;
        float value;
    };
    __device__ Gate gate(float x) const {
        Gate g;
        g.far = fabsf(x) > 1.0f;
        float near = x;
        // Scaled, so that the reciprocal of a large x is not flushed to 0 as a subnormal.
        float inverse = kBounded ? 0.25f * rcp_approx(-0.25f * x) : rcp_approx(-x);
        compute_both(near, inverse);
        g.w = arctan(g.far ? inverse : near);
        float outside = x < 0.0f ? -this->alpha : this->one_plus;
        float inside = 0.5f;
        compute_both(outside, inside);
        g.value = fmaf(k, g.w, g.far ? outside : inside);
        return g;
    }

    template <Use kUse>
    __device__ Point<1> at(Order<1, kUse>, float x, float upstream) const {
        const Gate g = gate(x);
        Point<1> p;
        p.value = g.value;
        // 1/(1 + x²); in bf16 scaled, so that the reciprocal is flushed only where G' is, for large α too.
        constexpr float kScale = kBounded ? 0x1p-32f : 1.0f;
        const float w = x * kScale;
        p.slope = k * kScale * kScale * rcp_approx(fmaf(w, w, kScale * kScale));
        p.terms[0] = upstream * fmaf(2.0f * kInvPi, g.w, g.far ? copysignf(1.0f, x) : 0.0f);
        return p;
    }
};

template <class T>
using ArctanByAlpha = ByAlpha<T, ArctanShort>;
using Xatlu = Expanded<ArctanGate, ArctanByAlpha>;

}  // namespace xact

XACT_ACTIVATION(xatlu, xact::Xatlu)
XACT_GATED(xatlu, xact::Xatlu)
