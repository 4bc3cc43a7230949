//! xGELU: the expanded gate of the normal distribution. At α = 0, f is GELU; gated with order 2 it is
//! GEGLU.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::expanded::{Gate, Tail};

/// xGELU: g(x) = ½·(1 + erf(x/√2)), the exact erf, not the tanh form. See
/// [`expanded`](super::expanded) for f, its parameter and its special values. The limit of f(−inf) at
/// α = 0 is −0, and so is f where it is below all numbers of the type.
#[doc(alias = "xGEGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xgelu;

impl Gate for Xgelu {
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
