// xSiLU: the logistic gate g(x) = 1/(1 + e^-x), expanded. See expanded.cuh for the formulas.
//
// With e = e^-u:  t = e/(1 + e),  g' = t·(1 − t),  h = tanh(u/2).
#include "../common/expanded.cuh"
#include "../common/math.cuh"

namespace xact {

struct LogisticGate {
    static constexpr float kUnit = ScaledExp2::kTiny;

    float near_u;       // min(u, xsilu::kFar)
    ScaledExp2 e;       // e^-u
    float one_minus_t;  // 1/(1 + e)
    float b;            // t = b·kUnit·scale

    __device__ explicit LogisticGate(float x)
        : near_u(min_nan(fabsf(x), xsilu::kFar)),
          e(-xsilu::kLog2eHi, near_u, [this](float f) { return fmaf(-xsilu::kLog2eLo, near_u, f); }) {
        const float whole = e.m * kUnit * e.scale;
        // The error of the reciprocal counts only as far as e^-u is not small: f' takes one_minus_t twice.
        one_minus_t = fmaf(-whole, rcp_approx(1.0f + whole), 1.0f);
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

// 16-bit tensors. The logistic function itself is evaluated on the side on which it is the smaller part, so
// that there are no selects: with ρ = -1 for α < -½, else 1,
//
//   K = ρ·(1 + 2α) ≥ 0    C = -α, or 1 + α for α < -½    σ = 1/(1 + e^(-ρx))
//   G = K·σ + C    f' = K·σ·(1 + ρx·(1 - σ)) + C    G' = ρK·σ·(1 - σ)    h = ρ·(2σ - 1)
//
// The power of two is E = s·e^(-ρx), and r = 1/(E + s) = σ/s. In bf16, whose range is that of f32, s = 2^-64
// keeps both within f32 down to the smallest result; in f16 s = 1.
//
// f is w·(-kPerW·ρG) with w = -ρx/kPerW. In f16 w is the exponent of E. In bf16 w = -ρx/256, which is exact,
// and the second factor becomes subnormal only where f vanishes. Beyond the bounds on w all results of the
// tail round to 0 or to C; f, whose w is not bounded where C is not 0, does not need them.
template <class T>
struct LogisticShort {
    static constexpr int kParams = 1;
    static constexpr bool kScaled = kIsWide<T>;
    static constexpr float kS = kScaled ? 0x1p-64f : 1.0f;
    static constexpr float kPerW = kScaled ? 256.0f : xsilu::kLn2;  // ρx = -w·kPerW
    static constexpr float kLog2 = kPerW * xsilu::kLog2eHi;         // of bf16, for each w
    // The tail σ vanishes there, also if v and dy are the largest numbers of the type.
    static constexpr float kFar = xsilu::kFar / kPerW;
    // 1 - σ is formed by a subtraction, in which smaller numbers vanish.
    static constexpr float kNear = (kScaled ? -112.0f : -29.0f) / kPerW;
    // Here r is flushed to 0, but E is not inf.
    static constexpr float kFarOfGate = kScaled ? 63.5f : 127.0f;

    float b;  // w = b·x
    float rho;
    float c;    // C
    float ks;   // K·s
    float c_b;  // C/b
    float ks_b;
    float far;  // the bound on w in f
    float chain[1];

    template <class F>
    __device__ static void with_alpha(float alpha, F f) {
        LogisticShort op;
        const bool mirrored = alpha < -0.5f;
        op.rho = mirrored ? -1.0f : 1.0f;
        op.b = -op.rho / kPerW;
        // f' = -0 where it tends to 0 from below.
        op.c = mirrored ? 1.0f + alpha : -alpha;
        if (op.c == 0.0f) op.c = -0.0f;
        op.ks = op.rho * kS * fmaf(2.0f, alpha, 1.0f);
        op.ks_b = op.ks / op.b;
        // f(±inf) is the limit of the part with K, and has its sign.
        op.c_b = op.c == 0.0f ? copysignf(0.0f, op.ks_b) : op.c / op.b;
        op.far = op.c == 0.0f ? kFar : INFINITY;
        op.chain[0] = 1.0f;
        f(op);
    }

    // σ/s
    __device__ float r(float w) const {
        return rcp_approx(exp2_approx(kScaled ? fmaf(kLog2, w, -64.0f) : w) + kS);
    }
    __device__ float h(float r) const { return fmaf(r, 2.0f * kS * rho, -rho); }

    template <Use kUse>
    __device__ Point<1> at(Order<2, kUse>, float x, float upstream) const {
        Point<1> p;
        float w = b * x;
        if (kUse != Use::Derivatives) w = min_nan(w, far);
        if (kUse == Use::Value) {
            p.value = w * fmaf(r(w), ks_b, c_b);
            return p;
        }
        const float bounded = max_nan(min_nan(w, kFar), kNear);
        const float r = this->r(bounded);
        p.value = w * fmaf(r, ks_b, c_b);
        const float one_minus = fmaf(r, kPerW * kS, -kPerW);  // -kPerW·(1 - σ)
        p.slope = fmaf(r * fmaf(bounded, one_minus, 1.0f), ks, c);
        p.terms[0] = upstream * h(r) * x;
        return p;
    }

    // Here e is the root of E in bf16, so that the product of two factors e·r is as small as G' may be.
    template <Use kUse>
    __device__ Point<1> at(Order<1, kUse>, float x, float upstream) const {
        const float z = kScaled ? fmaf(0.5f * kLog2 * b, x, -32.0f) : b * x;
        const float e = exp2_approx(min_nan(z, kFarOfGate));
        const float r = rcp_approx(kScaled ? fmaf(e, e, kS) : e + kS);
        Point<1> p;
        p.value = fmaf(r, ks, c);
        p.slope = (kScaled ? rho * ks * (e * r) : rho * ks * r) * (e * r);
        p.terms[0] = upstream * h(r);
        return p;
    }
};

using Xsilu = Expanded<LogisticGate, LogisticShort>;

}  // namespace xact

XACT_ACTIVATION(xsilu, xact::Xsilu)
XACT_GATED(xsilu, xact::Xsilu)
