//! xGELU: the gate is the normal distribution function g(x) = ½·(1 + erf(x/√2)), with the exact erf.
//!
//! With φ(u) = e^(−u²/2)/√(2π):  t = ½·erfc(u/√2) = φ(u)·R(u), g′ = φ,  h = erf(u/√2), where R falls slowly
//! from √(π/2) to 1/u.

use std::marker::PhantomData;

use super::expanded::{Sides, Tail, on_cpu, with_sign};
use super::function::{Function, Point};
use super::math::{ScaledExp2, exp2_fraction, min};
use super::short::Short;
use crate::activation::xgelu::{
    DRIFT, FAR, HALF_LOG2E, LOG2_DENSITY_BF16, LOG2_DENSITY_F16, NEAR, SHIFT_BF16, SHIFT_F16,
    mills_p, mills_s, near, ratio_bf16, ratio_f16,
};

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

on_cpu!(Xgelu: Normal, ShortNormal);

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

/// The formulas for 16-bit types: G (ORDER 1) and f (ORDER 2).
///
/// ```text
/// f = |x|·(c − k·t)    f′ = ±(c − k·(t − u·φ))    G = ±(c − k·t)    G′ = k·φ    h = ±(1 − 2t),   with the sign of x
/// k = 1 + 2α,  c = 1 + α for x ≥ 0 and α for x < 0,  u = |x|
/// ```
///
/// t = φ·R and t − u·φ = φ·(R − u), where R = v·p(v), v = 1/(u + const).
#[derive(Clone, Copy)]
pub struct ShortNormal<T, const ORDER: u8> {
    sides: Sides,
    /// k/SCALE
    k: f32,
    element: PhantomData<T>,
}

impl<T: Short, const ORDER: u8> ShortNormal<T, ORDER> {
    /// For larger u, t and u·t are below the smallest subnormal. In f16, t is 2⁻¹²⁷ there.
    const FAR: f32 = if T::WIDE { 16.0 } else { 13.0 };

    pub fn new(params: &[f32]) -> Self {
        ShortNormal {
            sides: Sides::new(params[0], Self::FAR),
            k: 2f32.mul_add(params[0], 1.0) / T::SCALE,
            element: PhantomData,
        }
    }

    /// φ(u)·SCALE and R(u), for u ≤ FAR.
    #[inline(always)]
    fn factors(u: f32) -> (f32, f32) {
        let (exponent, ratio) = if T::WIDE {
            let v = 1.0 / (u + SHIFT_BF16);
            (LOG2_DENSITY_BF16, v * ratio_bf16(v))
        } else {
            let v = 1.0 / (u + SHIFT_F16);
            (LOG2_DENSITY_F16, v * ratio_f16(v))
        };
        // u² is exact: u has at most 11 bits.
        (T::exp2((u * u).mul_add(HALF_LOG2E, exponent)), ratio)
    }
}

impl<T: Short, const ORDER: u8> Function for ShortNormal<T, ORDER> {
    const PARAMS: usize = 1;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let u = x.abs();
        let near_u = min(u, Self::FAR);
        let (phi, ratio) = Self::factors(near_u);
        let (c, _) = self.sides.at(x);
        let t = phi * ratio;
        let inner = t.mul_add(-self.k, c);
        let h = t.mul_add(-2.0 / T::SCALE, 1.0);
        if ORDER == 1 {
            return Point {
                value: with_sign(inner, x),
                slope: self.k * phi,
                terms: [upstream * h.copysign(x), 0.0, 0.0],
            };
        }
        let bend = phi * (ratio - near_u);
        // Where c is 0, k·t would be subnormal before f is.
        let curved = t * near_u * -self.k;
        Point {
            value: if c == 0.0 { curved } else { u * inner },
            slope: with_sign(bend.mul_add(-self.k, c), x),
            terms: [upstream * h * u, 0.0, 0.0],
        }
    }
}
