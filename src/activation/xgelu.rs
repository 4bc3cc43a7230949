//! xGELU: the expanded gate of the normal distribution. At α = 0, f is GELU; gated with order 2 it is
//! GEGLU.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// The activation xGELU, f(x) = x·G(x) with the gate g(x) = ½·(1 + erf(x/√2)): the exact erf, not the tanh approximation.
/// The module [`expanded`](super::expanded) has the formulas, the parameter α and the special values. At α = 0, f(−inf) is
/// the limit −0, and f underflows to −0.
#[doc(alias = "xGEGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xgelu;

impl Gate for Xgelu {
    /// At 0.625 the series of h ends. At 13.2 e^(−u²/2) reaches 2⁻¹²⁶. Then come the last exponent that is scaled, and the
    /// point from which e^(−u²/2) is taken to be 0.
    const SWITCH_OVERS: &'static [f64] = &[0.625, 13.215_9, 14.5, 16.0];

    /// u/√2 and u² are rounded: with 1/√2 the relative error is 2⁻⁵², and d ln g(−u) ≤ (u² + 1)·d ln u. Beyond u = 64 both
    /// g(−u) and g′(u) underflow.
    fn argument_error(u: f64) -> f64 {
        2f64.powi(-52) * (u.min(64.0).powi(2) + 1.0)
    }

    fn tail(u: f64) -> Tail {
        let z = u * FRAC_1_SQRT_2;
        let t = libm::erfc(z) / 2.0;
        let density = (-u * u / 2.0).exp() / (2.0 * PI).sqrt();
        Tail {
            t,
            ut: if t == 0.0 { 0.0 } else { u * t },
            density,
            curve: if density == 0.0 { 0.0 } else { t - u * density },
            h: libm::erf(z),
        }
    }
}

// With φ(u) = e^(−u²/2)/√(2π), both φ and its tail are formed from 2^(HALF_LOG2E·u²)·(1 + DRIFT·u²).
shared! {
    /// For larger u, t and u·t are below the smallest subnormal.
    constant FAR: 16.0;
    /// For larger u, h is computed as 1 − 2t.
    constant NEAR: 0.625;
    /// −(log2 e)/2.
    constant HALF_LOG2E: -0.721_347_5;
    /// The rounding error of HALF_LOG2E, as a factor.
    constant DRIFT: -6.674_879e-9;
    /// The numerator p of R(u)·(1 + DRIFT·u²) = p/(u·p + s) for u ≤ FAR, with R = t/φ(u), which falls slowly from √(π/2)
    /// to 1/u. All terms are positive: where t is small, u·p ≫ s, and the error of p cancels. Minimax with s(0) = 1 up to
    /// u = 14.4, where u·t vanishes: relative error 2⁻²⁶·¹ before rounding.
    polynomial mills_p: 0.010_192_719, 0.101_438_58, 0.458_783_98, 1.099_159_7, 1.253_314_1;
    /// The other part of the denominator, s.
    polynomial mills_s: 3.756_645_8e-6, 0.010_072_475, 0.103_263_08, 0.421_572_9, 1.0;
    /// erf(u/√2)/u for u < NEAR, minimax in u²: relative error 2⁻²⁴·² before rounding.
    polynomial near: -0.002_201_635_2, 0.019_905_329, -0.132_977_5, 0.797_884_5;
    // Of 16-bit tensors. Fitted to the error that their results may have, 2⁻¹⁵ (bf16) or 2⁻¹⁸ (f16) of t; one degree less
    // is not enough.
    /// 64 − log2 √(2π).
    constant LOG2_DENSITY_BF16: 62.674_25;
    /// −log2 √(2π).
    constant LOG2_DENSITY_F16: -1.325_748_1;
    /// c of v = 1/(u + c) for R = t/φ(u) = v·p(v).
    constant SHIFT_BF16: 3.3;
    /// p: minimax with the error 0 at u = 0, where bf16 has most of its numbers: 0.18·2⁻¹⁵ of t up to u = 13, and 0.6·2⁻¹⁵
    /// where u·t reaches the smallest subnormal f32.
    polynomial ratio_bf16: -251.623_58, 205.204_38, -3.232_933_3, 12.866_492, 3.148_070_8, 1.003_059_9;
    /// c where only t − u·φ and h are needed.
    constant SHIFT_SLOPE_BF16: 2.8;
    /// p there: 0.17·2⁻¹⁵ of the larger addend of t − u·φ.
    polynomial ratio_slope_bf16: -40.631_9, 38.123_74, 2.512_066_1, 3.144_297_4, 0.990_264_36;
    /// c of f16.
    constant SHIFT_F16: 3.4;
    /// p of f16: minimax with the error 0 at u = 0, 0.22·2⁻¹⁸ of t as far as u·t is a normal f16 number times 65504, and
    /// that part of the spacing of subnormals beyond.
    polynomial ratio_f16: -342.089_84, 307.735_78, -26.543_314, 17.364_279, 2.969_873_2, 1.011_091_7;
    /// c of f16 where only t − u·φ and h are needed.
    constant SHIFT_SLOPE_F16: 2.9;
    /// p there, in the same way: 0.65·2⁻¹⁸ of the larger addend of t − u·φ.
    polynomial ratio_slope_f16: -51.638_847, 52.877_33, -0.280_357_48, 3.648_29, 0.971_939;
}
