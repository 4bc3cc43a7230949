//! xSiLU: the logistic gate g(x) = 1/(1 + e⁻ˣ).
//!
//! With e = e⁻ᵘ:  t = e/(1 + e),  g′ = t·(1 − t),  h = tanh(u/2).

use super::expanded::{Tail, on_cpu};
use super::math::{ScaledExp2, exp2_fraction, min};
use crate::activation::xsilu::{FAR, LOG2E_HI, LOG2E_LO, near};

#[derive(Clone, Copy)]
pub struct Logistic {
    /// min(u, FAR)
    near_u: f32,
    /// e⁻ᵘ = m·UNIT·scale
    scale: f32,
    /// 1/(1 + e)
    one_minus_t: f32,
    /// t = b·UNIT·scale
    b: f32,
}

impl Logistic {
    /// tanh(u/2)/u for u < 1.
    #[inline(always)]
    fn near(self) -> f32 {
        near(self.near_u * self.near_u)
    }
}

on_cpu!(Xsilu: Logistic);

impl Tail for Logistic {
    const UNIT: f32 = ScaledExp2::TINY;

    #[inline(always)]
    fn new(x: f32) -> Logistic {
        let near_u = min(x.abs(), FAR);
        let e = ScaledExp2::new(-LOG2E_HI, near_u);
        let m = exp2_fraction((-LOG2E_LO).mul_add(near_u, e.fraction));
        let one_minus_t = 1.0 / (m * Self::UNIT).mul_add(e.scale, 1.0);
        Logistic {
            near_u,
            scale: e.scale,
            one_minus_t,
            b: m * one_minus_t,
        }
    }

    #[inline(always)]
    fn plus_t(self, a: f32, k: f32) -> f32 {
        (k * self.b).mul_add(self.scale, a)
    }

    #[inline(always)]
    fn ut(self, k: f32) -> f32 {
        k * self.b * (self.near_u * self.scale)
    }

    #[inline(always)]
    fn plus_v(self, a: f32, k: f32) -> f32 {
        let v = (-self.near_u).mul_add(self.one_minus_t, 1.0);
        (k * self.b * v).mul_add(self.scale, a)
    }

    #[inline(always)]
    fn slope(self, k: f32) -> f32 {
        k * self.b * (-Self::UNIT * self.b).mul_add(self.scale, 1.0) * self.scale
    }

    #[inline(always)]
    fn h(self) -> f32 {
        let (near, far) = (
            self.near_u * self.near(),
            self.plus_t(1.0, -2.0 * Self::UNIT),
        );
        if self.near_u < 1.0 { near } else { far }
    }
}
