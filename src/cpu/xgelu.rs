//! xGELU: the normal distribution function g(x) = ½·(1 + erf(x/√2)); the exact erf.
//!
//! With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = φ(u)·R(u), g′ = φ,  h = erf(u/√2), where R falls slowly
//! from √(π/2) to 1/u.

use super::expanded::{Tail, on_cpu};
use super::math::{ScaledExp2, exp2_fraction, min, polynomial};

/// Beyond, t and u·t are below the smallest subnormal.
const FAR: f32 = 16.0;
/// Beyond, h is formed as 1 − 2t.
const NEAR: f32 = 0.625;

// 2·φ(u) = √(2/π)·2^(HALF_LOG2E·u²)·(1 + DRIFT·u²): DRIFT is what HALF_LOG2E, −(log2 e)/2, rounds away.
const HALF_LOG2E: f32 = -0.721_347_5;
const DRIFT: f32 = -6.674_879e-9;
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
    /// R(u)·(1 + DRIFT·u²) = p/(u·p + s) for u ≤ FAR, all terms positive: where t is small, u·p ≫ s, and
    /// the error of p cancels. Minimax with s(0) = 1 up to u = 14.4, where u·t vanishes: relative error
    /// 2^-26.1 before rounding.
    #[inline(always)]
    fn tail(self) -> f32 {
        let u = self.near_u;
        let p = polynomial!(u;
            0.010_192_719, 0.101_438_58, 0.458_783_98, 1.099_159_7, 1.253_314_1);
        let s = polynomial!(u;
            3.756_645_8e-6, 0.010_072_475, 0.103_263_08, 0.421_572_9, 1.0);
        p / u.mul_add(p, s)
    }

    /// v·(1 + DRIFT·u²)
    #[inline(always)]
    fn drifted(self, v: f32) -> f32 {
        (DRIFT * self.square).mul_add(v, v)
    }

    /// erf(u/√2)/u for u < NEAR, minimax in u²: relative error 2^-24.2 before rounding.
    #[inline(always)]
    fn near(self) -> f32 {
        polynomial!(self.square;
            -0.002_201_635_2, 0.019_905_329, -0.132_977_5, 0.797_884_5)
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
        // What the square rounds away would cost 10 ulp far out.
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
