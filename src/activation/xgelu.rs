//! xGELU: the expanded gate of the normal distribution. At α = 0, f is GELU; gated with order 2 it is
//! GEGLU.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// xGELU: g(x) = ½·(1 + erf(x/√2)), the exact erf, not the tanh form. See
/// [`expanded`](super::expanded) for f, its parameter and its special values. The limit of f(−inf) at
/// α = 0 is −0, and so is f where it is below all numbers of the type.
#[doc(alias = "xGEGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xgelu;

impl Gate for Xgelu {
    /// The series of h; where e^(−u²/2) reaches 2⁻¹²⁶, the last exponent that scales; where it is taken to be 0.
    const SWITCH_OVERS: &'static [f64] = &[0.625, 13.215_9, 14.5, 16.0];

    /// u/√2 and u² are rounded: with 1/√2 to a relative 2⁻⁵², and d ln g(−u) ≤ (u² + 1)·d ln u. Beyond u = 64 nothing
    /// is left of either.
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
    /// Beyond, t and u·t are below the smallest subnormal.
    constant FAR: 16.0;
    /// Beyond, h is formed as 1 − 2t.
    constant NEAR: 0.625;
    /// −(log2 e)/2.
    constant HALF_LOG2E: -0.721_347_5;
    /// What HALF_LOG2E rounds away, as a factor.
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
