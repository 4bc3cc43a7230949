//! xSiLU: the logistic gate g(x) = 1/(1 + e⁻ˣ).
//!
//! With e = e⁻ᵘ:  t = e/(1 + e),  g′ = t·(1 − t),  h = tanh(u/2).

use super::expanded::{Tail, on_cpu};
use super::math::{ScaledExp2, exp2_fraction, min, polynomial};

/// Beyond, t and u·t are below the smallest subnormal.
const FAR: f32 = 120.0;

// log2 e in two parts.
const LOG2E_HI: f32 = std::f32::consts::LOG2_E;
const LOG2E_LO: f32 = 1.925_963e-8;

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
    /// tanh(u/2)/u for u < 1, minimax in u²: relative error 2^-31.5 before rounding.
    #[inline(always)]
    fn near(self) -> f32 {
        polynomial!(self.near_u * self.near_u;
            -3.229_212_8e-6, 4.155_216_4e-5, -0.000_421_042_32,
            0.004_166_532, -0.041_666_657, 0.5)
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
