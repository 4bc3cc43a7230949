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
        Tail {
            t,
            ut: if t == 0.0 { 0.0 } else { u * t },
            density: (-u * u / 2.0).exp() / (2.0 * PI).sqrt(),
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
}
