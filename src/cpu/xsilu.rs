//! xSiLU: the logistic gate g(x) = 1/(1 + e⁻ˣ).
//!
//! With e = e⁻ᵘ:  t = e/(1 + e),  g′ = t·(1 − t),  h = tanh(u/2).

use std::f32::consts::LN_2;
use std::marker::PhantomData;

use super::expanded::{Tail, on_cpu};
use super::function::{Function, Point};
use super::math::{LOG2E, ScaledExp2, exp2_fraction, max, min};
use super::short::Short;
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

on_cpu!(Xsilu: Logistic, ShortLogistic);

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

/// The formulas for 16-bit types: G (ORDER 1) and f (ORDER 2).
///
/// ```text
/// G = K·σ(ρx) + C,  K = ρ·(1 + 2α),  with ρ = −1 and C = 1 + α for α < −½, else ρ = 1 and C = −α
/// f = x·G           f′ = K·σ(ρx)·(1 + ρx·(1 − σ(ρx))) + C           h = ρ·(2σ(ρx) − 1)
/// ```
///
/// On the side where the linear part C can be 0, σ(ρx) is the small tail, so that its digits are kept. With e = 2^z,
/// z = −ρx·log2 e, σ = 1/(e + 1). In bf16, e and σ are scaled by 2^∓64 to reach 2⁻¹⁴⁰, and z is halved, because it would
/// overflow at 2.4·10³⁸.
#[derive(Clone, Copy)]
pub struct ShortLogistic<T, const ORDER: u8> {
    rho: f32,
    /// z = a·x, or half of it
    a: f32,
    /// K/SCALE
    k: f32,
    c: f32,
    /// K/(SCALE·a) and C/a, for f = z·(…)
    k_over_a: f32,
    c_over_a: f32,
    /// The bound on z in f: finite if C is 0, where f(−inf) is the limit −0.
    far: f32,
    element: PhantomData<T>,
}

impl<T: Short, const ORDER: u8> ShortLogistic<T, ORDER> {
    /// The units of z in one of the exponent.
    const UNITS: f32 = if T::WIDE { 2.0 } else { 1.0 };
    /// Beyond these z, σ is taken to be constant. The tail at FAR vanishes also if v and dy are the largest numbers of the
    /// type.
    const NEAR: f32 = if T::WIDE { -31.0 } else { -42.0 };
    const FAR: f32 = 80.0;

    pub fn new(params: &[f32]) -> Self {
        let alpha = params[0];
        let mirrored = alpha < -0.5;
        let rho = if mirrored { -1.0 } else { 1.0 };
        let k = rho * 2f32.mul_add(alpha, 1.0) / T::SCALE;
        let c = if mirrored { 1.0 + alpha } else { -alpha };
        let a = -rho * LOG2E / Self::UNITS;
        ShortLogistic {
            rho,
            a,
            k,
            c,
            k_over_a: k / a,
            // A zero with the sign of K/a, so that the sum is not +0 at −inf.
            c_over_a: if c == 0.0 {
                0f32.copysign(k / a)
            } else {
                c / a
            },
            far: if c == 0.0 { Self::FAR } else { f32::INFINITY },
            element: PhantomData,
        }
    }

    /// h
    #[inline(always)]
    fn h(self, sigma: f32) -> f32 {
        sigma.mul_add(2.0 * self.rho / T::SCALE, -self.rho)
    }
}

impl<T: Short, const ORDER: u8> Function for ShortLogistic<T, ORDER> {
    const PARAMS: usize = 1;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let z = self.a * x;
        if ORDER == 1 {
            // The root of e, so that both tails of G′ = ρK·σ·(1 − σ) keep their digits.
            let half = (0.5 * Self::UNITS).mul_add(z, -0.5 * T::SHIFT);
            let root = T::exp2(max(min(half, 48.0), -126.0));
            let sigma = 1.0 / root.mul_add(root, 1.0 / T::SCALE);
            let root = root * sigma;
            return Point {
                value: sigma.mul_add(self.k, self.c),
                slope: self.rho * self.k * root * root,
                terms: [upstream * self.h(sigma), 0.0, 0.0],
            };
        }
        let near = max(min(z, Self::FAR), Self::NEAR);
        let e = T::exp2(Self::UNITS.mul_add(near, -T::SHIFT));
        let sigma = 1.0 / (e + 1.0 / T::SCALE);
        let q = Self::UNITS * LN_2;
        let bend = near.mul_add(sigma.mul_add(q / T::SCALE, -q), 1.0);
        Point {
            value: min(z, self.far) * sigma.mul_add(self.k_over_a, self.c_over_a),
            slope: (sigma * bend).mul_add(self.k, self.c),
            terms: [upstream * self.h(sigma) * x, 0.0, 0.0],
        }
    }
}
