//! xSiLU: the expanded logistic gate. At α = 0, f is SiLU (swish); gated with order 2 it is SwiGLU.

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// xSiLU: g(x) = 1/(1 + e^−x). See [`expanded`](super::expanded) for f, its parameter and its special
/// values. The limit of f(−inf) at α = 0 is −0, and so is f where it is
/// below all numbers of the type.
#[doc(alias = "xSwiGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xsilu;

impl Gate for Xsilu {
    /// The series of h; where e⁻ᵘ reaches 2⁻¹²⁶, the last exponent that scales; where it is taken to be 0.
    const SWITCH_OVERS: &'static [f64] = &[1.0, 87.336_5, 104.0, 120.0];

    fn tail(u: f64) -> Tail {
        let e = (-u).exp();
        let t = e / (1.0 + e);
        Tail {
            t,
            ut: if e == 0.0 { 0.0 } else { u * t },
            density: t / (1.0 + e),
            h: (u / 2.0).tanh(),
        }
    }
}

shared! {
    /// Beyond, t and u·t are below the smallest subnormal.
    constant FAR: 120.0;
    /// log2 e in two parts: the first.
    constant LOG2E_HI: 1.442_695;
    /// What the first part rounds away.
    constant LOG2E_LO: 1.925_963e-8;
    /// tanh(u/2)/u for u < 1, minimax in u²: relative error 2⁻³¹·⁵ before rounding.
    polynomial near: -3.229_212_8e-6, 4.155_216_4e-5, -0.000_421_042_32, 0.004_166_532, -0.041_666_657, 0.5;
}
