//! xSiLU: the expanded logistic gate. At α = 0, f is SiLU (swish); gated with order 2 it is SwiGLU.

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// The activation xSiLU, f(x) = x·G(x) with the gate g(x) = 1/(1 + e^−x). The module [`expanded`](super::expanded) has the
/// formulas, the parameter α and the special values. At α = 0, f(−inf) is the limit −0, and f underflows to −0.
#[doc(alias = "xSwiGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xsilu;

impl Gate for Xsilu {
    /// At 1 the series of h ends. At 87.3 e⁻ᵘ reaches 2⁻¹²⁶. Then come the last exponent that is scaled, and the point from
    /// which e⁻ᵘ is taken to be 0.
    const SWITCH_OVERS: &'static [f64] = &[1.0, 87.336_5, 104.0, 120.0];

    fn tail(u: f64) -> Tail {
        let e = (-u).exp();
        let t = e / (1.0 + e);
        Tail {
            t,
            ut: if e == 0.0 { 0.0 } else { u * t },
            density: t / (1.0 + e),
            curve: if e == 0.0 {
                0.0
            } else {
                t - u * (t / (1.0 + e))
            },
            h: (u / 2.0).tanh(),
        }
    }
}

shared! {
    /// For larger u, t and u·t are below the smallest subnormal.
    constant FAR: 120.0;
    /// log2 e is LOG2E_HI + LOG2E_LO; this is its leading part.
    constant LOG2E_HI: 1.442_695;
    /// The rounding error of LOG2E_HI.
    constant LOG2E_LO: 1.925_963e-8;
    /// The natural logarithm of 2.
    constant LN2: 0.693_147_2;
    /// tanh(u/2)/u for u < 1, minimax in u²: relative error 2⁻³¹·⁵ before rounding.
    polynomial near: -3.229_212_8e-6, 4.155_216_4e-5, -0.000_421_042_32, 0.004_166_532, -0.041_666_657, 0.5;
}
