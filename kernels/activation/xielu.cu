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

    __device__ Point<kParams> at(Order<2>, float x, float upstream) const {
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

// All other cases: the clamp, and α_p or s_n of 0, where 0·inf would give NaN.
struct XieluGeneral : XieluParams {
    static constexpr u64 kName = loop_name("general");

    __device__ Point<kParams> at(Order<2>, float x, float upstream) const {
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
        if (p.eps == INFINITY && p.alpha_p != 0.0f && p.s_n != 0.0f) {
            f(XieluIdeal{p});
        } else {
            f(XieluGeneral{p});
        }
    }
};

}  // namespace xact

XACT_ACTIVATION(xielu, xact::Xielu)
