//! xSiLU: the expanded logistic gate. At α = 0, f is SiLU (swish); gated with order 2 it is SwiGLU.

use super::expanded::{Gate, Tail};

/// xSiLU: g(x) = 1/(1 + e^−x). See [`expanded`](super::expanded) for f, its parameter and its special
/// values. The limit of f(−inf) at α = 0 is −0, and so is f where it is
/// below all numbers of the type.
#[doc(alias = "xSwiGLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xsilu;

impl Gate for Xsilu {
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
