//! xGELU: the gate is the normal distribution function g(x) = ½·(1 + erf(x/√2)), with the exact erf.
//!
//! With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = φ(u)·R(u), g′ = φ,  h = erf(u/√2), where R falls slowly
//! from √(π/2) to 1/u.

use super::expanded::{Tail, on_cpu};
use super::math::{ScaledExp2, exp2_fraction, min};
use crate::activation::xgelu::{DRIFT, FAR, HALF_LOG2E, NEAR, mills_p, mills_s, near};

/// √(2/π)
const TWICE_PEAK: f32 = 0.797_884_6;

#[derive(Clone, Copy)]
pub struct Normal {
    u: f32,
    /// min(u, FAR)
    near_u: f32,
    /// near_u²
    square: f32,
    /// m·scale = 2·φ(u)/(1 + DRIFT·u²)/TINY
    m: f32,
    scale: f32,
}

impl Normal {
    /// R(u)·(1 + DRIFT·u²)
    #[inline(always)]
    fn tail(self) -> f32 {
        let u = self.near_u;
        let p = mills_p(u);
        p / u.mul_add(p, mills_s(u))
    }

    /// v·(1 + DRIFT·u²)
    #[inline(always)]
    fn drifted(self, v: f32) -> f32 {
        (DRIFT * self.square).mul_add(v, v)
    }

    /// erf(u/√2)/u for u < NEAR.
    #[inline(always)]
    fn near(self) -> f32 {
        near(self.square)
    }
}

on_cpu!(Xgelu: Normal);

impl Tail for Normal {
    const UNIT: f32 = 0.5 * ScaledExp2::TINY;

    #[inline(always)]
    fn new(x: f32) -> Normal {
        let u = x.abs();
        let near_u = min(u, FAR);
        let square = near_u * near_u;
        let e = ScaledExp2::new(HALF_LOG2E, square);
        // Ignoring the rounding error of the square would cost 10 ulp at large |x|.
        let f = HALF_LOG2E.mul_add(near_u.mul_add(near_u, -square), e.fraction);
        Normal {
            u,
            near_u,
            square,
            m: TWICE_PEAK * exp2_fraction(f),
            scale: e.scale,
        }
    }

    #[inline(always)]
    fn plus_t(self, a: f32, k: f32) -> f32 {
        (k * self.tail() * self.m).mul_add(self.scale, a)
    }

    #[inline(always)]
    fn ut(self, k: f32) -> f32 {
        k * self.tail() * self.m * (self.near_u * self.scale)
    }

    #[inline(always)]
    fn plus_v(self, a: f32, k: f32) -> f32 {
        let v = self.tail() - self.drifted(self.near_u);
        (k * v * self.m).mul_add(self.scale, a)
    }

    #[inline(always)]
    fn slope(self, k: f32) -> f32 {
        k * self.drifted(self.m) * self.scale
    }

    #[inline(always)]
    fn h(self) -> f32 {
        let (near, far) = (self.u * self.near(), self.plus_t(1.0, -2.0 * Self::UNIT));
        if self.u < NEAR { near } else { far }
    }
}
