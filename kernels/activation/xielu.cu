// xIELU (Huang & Schlag, arXiv 2411.13010): f, f', and the derivatives with respect to its scalars.
//
//   x > 0:  f = α_p·x² + β·x                                   f' = 2·α_p·x + β
//   x ≤ 0:  f = α_n·q(x) + β·x = α_n·expm1(x) − s_n·x          f' = α_n·expm1(x) + β = α_n·e^x − s_n
//           q(x) = expm1(x) − x,  s_n = α_n − β
//   ∂f/∂α_p = x²·[x > 0]          ∂f/∂α_n = q(x)·[x ≤ 0]
//
// Raw parameters (a_p, a_n), as checkpoints hold them: α_p = softplus(a_p), s_n = softplus(a_n),
// α_n = β + s_n; their gradients take the factor softplus'(a). β may be a third parameter. Its own
// derivative is x for x > 0; for x ≤ 0 it is expm1(x) where α_n contains β (raw), else x.
//
// The q-form keeps the sign and the digits near 0, where the s_n-form would cancel. The s_n-form is used for
// large |x|, where α_n·q + β·x would cancel and be inf − inf at −inf, and where f' tends to −s_n.
//
// Compat computes min(x, eps) inside expm1 and leaves the −x as it is, like Hugging Face and
// Megatron: α_n·(expm1(min(x, eps)) − x) + β·x. The Autograd gradient is that of this formula (the
// clamp passes nothing above eps, half at the tie, as torch.min does); the Analytic one is
// α_n·expm1(min(x, eps)) + β. eps = +inf is the ideal function.
//
// Special values: f(−0) = −0 in the ideal form; f(−inf) = +inf, or −α_n where s_n = 0; f(+inf) = +inf for
// α_p = 0 too, as long as β > 0; f'(−inf) = −s_n; NaN gives NaN.
#include "../common/map.cuh"
#include "../common/math.cuh"

namespace xact {

struct XieluParams {
    static constexpr int kParams = 3;

    float alpha_p, alpha_n, s_n, beta, eps;
    float chain[kParams];
    bool raw, autograd;

    __device__ float negative_slope(const Expm1& e) const {
        return fmaf(alpha_n, e.near ? e.expm1() : e.exp, e.near ? beta : -s_n);
    }

    // upstream·q(x): upstream·x²·r near 0, without forming x² alone.
    __device__ static float of_q(const Expm1& e, float upstream, float r) {
        return (e.near ? upstream * e.x : upstream) * (e.near ? e.x * r : e.far - e.x);
    }
};

// The usual case: no clamp, α_p and s_n not 0.
struct XieluIdeal : XieluParams {
    static constexpr u64 kName = loop_name("ideal");

    template <Use kUse>
    __device__ Point<kParams> at(Order<2, kUse>, float x, float upstream) const {
        const Expm1 e(x);
        const bool positive = x > 0.0f;
        Point<kParams> p;
        // Near 0 both sides are x·(a·x·r + β), which keeps the sign of zero.
        const float a = positive ? alpha_p : alpha_n;
        const float r = positive ? 1.0f : e.r;
        const float near = x * fmaf(a * x, r, beta);
        const float far = fmaf(alpha_n, e.far, -s_n * x);
        p.value = e.near ? near : far;
        p.slope = positive ? fmaf(2.0f * alpha_p, x, beta) : negative_slope(e);
        const float square = of_q(e, upstream, r);
        p.terms[0] = positive ? square : 0.0f;
        p.terms[1] = positive ? 0.0f : square;
        p.terms[2] = upstream * (positive || !raw ? x : e.expm1());
        return p;
    }
};

// All other cases: the clamp, α_p or s_n of 0, where 0·inf would give NaN, and the rare parameters that the
// functors for 16-bit tensors leave out.
struct XieluGeneral : XieluParams {
    static constexpr u64 kName = loop_name("general");

    template <Use kUse>
    __device__ Point<kParams> at(Order<2, kUse>, float x, float upstream) const {
        Point<kParams> p;
        if (x > 0.0f) {
            p.value = x * ((alpha_p == 0.0f ? 0.0f : alpha_p * x) + beta);
            p.slope = alpha_p == 0.0f ? beta : fmaf(2.0f * alpha_p, x, beta);
            p.terms[0] = upstream * x * x;
            p.terms[1] = 0.0f;
            p.terms[2] = upstream * x;
            return p;
        }
        const bool clamps = x > eps;
        const float clamped = clamps ? eps : x;
        const Expm1 e(clamped);
        // expm1(min(x, eps)) − x. For the usual eps, both addends are exact or nearly exact.
        const float q = clamps ? (e.near ? e.q() + (clamped - x) : e.far - x) : e.q();
        if (clamps) {
            p.value = fmaf(alpha_n, q, beta * x);
        } else if (e.near) {
            p.value = x * fmaf(alpha_n * x, e.r, beta);
        } else {
            p.value = fmaf(alpha_n, e.far, s_n == 0.0f ? 0.0f : -s_n * x);
        }
        p.slope = negative_slope(e);
        if (autograd) {
            if (clamps) p.slope = -s_n;
            if (x == eps) p.slope = fmaf(0.5f * alpha_n, e.expm1(), fmaf(-0.5f, alpha_n, beta));
        }
        p.terms[0] = 0.0f;
        p.terms[1] = clamps ? upstream * q : of_q(e, upstream, e.r);
        p.terms[2] = upstream * (raw ? e.expm1() : x);
        return p;
    }
};

// 16-bit tensors.
//
//   x > τ:  f = x·(m·x + β),  m = α_p for x > 0, else α_n·r(x),  q(x) = x²·r(x)
//   x ≤ τ:  f = α_n·e^x - s_n·x - α_n
//
//   n = min(x, 0), p = max(x, 0):    f' = α_n·expm1(n) + 2·α_p·p + β    ∂f/∂α_n = expm1(n) - n
//
// n and p say which side it is without a select. r is short, because the errors of the second form vanish
// from τ on: those of e^x beside the x² of q, so that τ lies near 0.
template <class T>
struct XieluShort : XieluParams {
    static constexpr int kDegree = kIsWide<T> ? 2 : 3;
    static constexpr float kNear = kIsWide<T> ? xielu::kNearBf16 : xielu::kNearF16;  // τ

    __device__ explicit XieluShort(const XieluParams& params) : XieluParams(params) {}

    // The coefficient of x^i in r.
    __device__ static constexpr float coefficient(int i) {
        if (kIsWide<T>) return i == 0 ? xielu::kR0Bf16 : i == 1 ? xielu::kR1Bf16 : xielu::kR2Bf16;
        return i == 0 ? xielu::kR0F16 : i == 1 ? xielu::kR1F16 : i == 2 ? xielu::kR2F16 : xielu::kR3F16;
    }

    // scale·r(x); the products of the coefficients do not depend on x.
    __device__ static float r(float scale, float x) {
        float sum = scale * coefficient(kDegree);
#pragma unroll
        for (int i = kDegree - 1; i >= 0; --i) sum = fmaf(sum, x, scale * coefficient(i));
        return sum;
    }

    // near where x > τ, else far.
    __device__ static float choose(float x, float near, float far) {
        compute_both(near, far);
        return x > kNear ? near : far;
    }

    __device__ static float exp(float x) { return exp2_approx(x * 1.44269504f); }

    // expm1(n)
    __device__ static float expm1(float n) { return choose(n, n * fmaf(n, r(1.0f, n), 1.0f), exp(n) - 1.0f); }
};

// The usual case: no clamp, α_p and s_n not 0.
template <class T>
struct XieluShortIdeal : XieluShort<T> {
    using Base = XieluShort<T>;
    static constexpr int kParams = XieluParams::kParams;
    static constexpr u64 kName = loop_name("ideal");

    __device__ explicit XieluShortIdeal(const XieluParams& params) : Base(params) {}

    template <Use kUse>
    __device__ Point<kParams> at(Order<2, kUse>, float x, float upstream) const {
        Point<kParams> point;
        if constexpr (kUse == Use::Value) {
            const float m = x > 0.0f ? this->alpha_p : Base::r(this->alpha_n, x);
            const float near = x * fmaf(x, m, this->beta);
            const float far = fmaf(this->alpha_n, Base::exp(x), fmaf(-this->s_n, x, -this->alpha_n));
            point.value = Base::choose(x, near, far);
        } else {
            const float n = min_nan(x, 0.0f);
            const float p = fmaxf(x, 0.0f);
            const float e = Base::exp(n);
            const float small = n * fmaf(n, Base::r(1.0f, n), 1.0f);
            const float expm1 = Base::choose(n, small, e - 1.0f);
            // f' tends to -s_n, which may be far below the digits of α_n and β.
            const float rise = fmaf(2.0f * this->alpha_p, p, this->beta);
            point.slope =
                fmaf(this->alpha_n, n > Base::kNear ? small : e, n > Base::kNear ? rise : -this->s_n);
            point.terms[0] = upstream * p * p;
            point.terms[1] = upstream * (expm1 - n);
            point.terms[2] = upstream * (p + (this->raw ? expm1 : n));
        }
        return point;
    }
};

// The clamp at eps ≤ 0, with s_n > 0 not far below β, and α_p not 0. With c = x for x > 0, else min(x, eps):
//
//   c > τ:  f = c·(m·c + β) - s_n·(x - c)        c ≤ τ:  f = α_n·e^c - s_n·x - α_n
//
// which keeps the sign of -0 for eps = 0. For x ≥ eps, x ≤ 0 the part of f' with α_n is a constant: that of
// eps with the analytic gradient, -1 with autograd, and half of both at the tie.
template <class T>
struct XieluShortClamped : XieluShort<T> {
    using Base = XieluShort<T>;
    static constexpr int kParams = XieluParams::kParams;
    static constexpr u64 kName = loop_name("clamped");

    float tie, above;  // this constant at eps, and above

    __device__ explicit XieluShortClamped(const XieluParams& params) : Base(params) {
        const float at_eps = Base::expm1(params.eps);
        tie = params.autograd ? 0.5f * at_eps - 0.5f : at_eps;
        above = params.autograd ? -1.0f : at_eps;
    }

    template <Use kUse>
    __device__ Point<kParams> at(Order<2, kUse>, float x, float upstream) const {
        Point<kParams> point{};
        const bool positive = x > 0.0f;
        const float n = min_nan(x, this->eps);
        if constexpr (kUse == Use::Value) {
            const float c = positive ? x : n;
            const float m = positive ? this->alpha_p : Base::r(this->alpha_n, c);
            // fmaxf drops the NaN of inf - inf.
            const float near = fmaf(-this->s_n, fmaxf(x - c, 0.0f), c * fmaf(c, m, this->beta));
            const float far = fmaf(this->alpha_n, Base::exp(n), fmaf(-this->s_n, x, -this->alpha_n));
            point.value = Base::choose(c, near, far);
        } else {
            const float p = fmaxf(x, 0.0f);
            const float negative = min_nan(x, 0.0f);
            // Computed for every x, as `choose` is.
            const float of_n = Base::expm1(n);
            const float expm1 = positive ? 0.0f : of_n;
            float ideal = expm1;
            float clamped = x > this->eps ? above : tie;
            compute_both(ideal, clamped);
            clamped = positive ? 0.0f : clamped;
            const float slope = x >= this->eps ? clamped : ideal;
            point.slope = fmaf(this->alpha_n, slope, fmaf(2.0f * this->alpha_p, p, this->beta));
            point.terms[0] = upstream * p * p;
            point.terms[1] = upstream * (expm1 - negative);
            point.terms[2] = upstream * (p + (this->raw ? expm1 : negative));
        }
        return point;
    }
};

struct Xielu {
    static constexpr int kParams = XieluParams::kParams;
    static constexpr int kUsual = 2;  // β is rarely trained

    template <class T, class F>
    __device__ static void with(const ActivationArgs& args, F f) {
        XieluParams p;
        p.beta = args.params[2] != 0 ? read_param<T>(args, 2) : args.beta;
        p.eps = args.eps;
        p.raw = args.raw_params != 0;
        p.autograd = args.autograd != 0;
        const float a_p = read_param<T>(args, 0);
        const float a_n = read_param<T>(args, 1);
        if (p.raw) {
            const Softplus positive(a_p), negative(a_n);
            p.alpha_p = positive.value;
            p.s_n = negative.value;
            p.alpha_n = p.beta + p.s_n;
            p.chain[0] = positive.slope;
            p.chain[1] = negative.slope;
        } else {
            p.alpha_p = a_p;
            p.alpha_n = a_n;
            p.s_n = a_n - p.beta;
            p.chain[0] = 1.0f;
            p.chain[1] = 1.0f;
        }
        p.chain[2] = 1.0f;
        bool usual = p.alpha_p != 0.0f && p.s_n != 0.0f;
        if constexpr (kIsShort<T>) {
            // The backward multiplies the parameters of one side by 0 on the other.
            usual = usual && fabsf(p.alpha_p) < 0x1p127f && fabsf(p.alpha_n) < INFINITY;
            // XieluShortClamped forms f'(-inf) = -s_n as -α_n + β, and f(-0) with -s_n·0 as an addend.
            usual = usual && (p.eps > 0.0f || p.s_n > 0x1p-12f * fabsf(p.beta));
            // A positive eps has no effect.
            if (!usual) {
                f(XieluGeneral{p});
            } else if (p.eps > 0.0f) {
                f(XieluShortIdeal<T>(p));
            } else {
                f(XieluShortClamped<T>(p));
            }
        } else if (p.eps == INFINITY && usual) {
            f(XieluIdeal{p});
        } else {
            f(XieluGeneral{p});
        }
    }
};

}  // namespace xact

XACT_ACTIVATION(xielu, xact::Xielu)
