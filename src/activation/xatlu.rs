//! xATLU: the expanded arctangent gate. Its gated form is the xATGLU of the paper.

use std::f64::consts::{FRAC_1_PI, FRAC_2_PI};

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// The activation xATLU, f(x) = x·G(x) with the gate g(x) = ½ + arctan(x)/π. The module [`expanded`](super::expanded) has
/// the formulas, the parameter α and the special values. At α = 0, f(−inf) is the limit −1/π.
#[doc(alias = "xATGLU")]
#[doc(alias = "ATLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xatlu;

impl Gate for Xatlu {
    /// At 1 the formula changes from arctan(u) to arctan(1/u). From 2⁶⁰ on, u² is scaled.
    const SWITCH_OVERS: &'static [f64] = &[1.0, 1_152_921_504_606_846_976.0];

    fn tail(u: f64) -> Tail {
        // This is arctan(1/u) without a division by 0.
        let t = 1f64.atan2(u) * FRAC_1_PI;
        Tail {
            t,
            ut: if u.is_infinite() { FRAC_1_PI } else { u * t },
            density: FRAC_1_PI / (1.0 + u * u),
            h: u.atan() * FRAC_2_PI,
        }
    }
}

shared! {
    /// arctan(z)/z on [0, 1], minimax in z²: relative error 2⁻²⁸·⁶ before rounding.
    polynomial arctan: -0.001_753_937_1, 0.010_726_987, -0.030_804_707, 0.057_552_245, -0.083_773_26, 0.109_420_35, -0.142_619_34, 0.199_982_66, -0.333_332_84, 1.0;
}
