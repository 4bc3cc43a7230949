//! xSiLU: the logistic gate g(x) = 1/(1 + e⁻ˣ).
//!
//! With e = e⁻ᵘ:  t = e/(1 + e),  g′ = t·(1 − t),  h = tanh(u/2).

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
/// On the side where the linear part C can be 0, σ(ρx) is the small tail, so that its digits are kept. With e = e^(−ρx),
/// σ = 1/(e + 1). In bf16, e and σ are scaled by 2^∓64 to reach 2⁻¹⁷³. With w = −ρx/256, exact for every 16-bit x, f is
/// w·(−256·ρG), in which the second factor becomes subnormal only where f vanishes.
#[derive(Clone, Copy)]
pub struct ShortLogistic<T, const ORDER: u8> {
    rho: f32,
    /// w = b·x
    b: f32,
    /// K/SCALE
    k: f32,
    c: f32,
    /// K/(SCALE·b) and C/b, for f = w·(…)
    k_over_b: f32,
    c_over_b: f32,
    /// The bound on w in f: finite if C is 0, where f(−inf) is the limit −0.
    far: f32,
    element: PhantomData<T>,
}

impl<T: Short, const ORDER: u8> ShortLogistic<T, ORDER> {
    /// ρx = −w·PER_W
    const PER_W: f32 = 256.0;
    /// The exponent of e for each w.
    const LOG2: f32 = Self::PER_W * LOG2E;
    /// Beyond these w, σ is taken to be constant. At FAR, σ is 2⁻¹⁷³ in bf16, and 2⁻¹²⁵·⁵ in f16.
    const NEAR: f32 = if T::WIDE { -42.0 } else { -29.0 } / Self::PER_W;
    const FAR: f32 = if T::WIDE { 120.0 } else { 87.0 } / Self::PER_W;

    pub fn new(params: &[f32]) -> Self {
        let alpha = params[0];
        let mirrored = alpha < -0.5;
        let rho = if mirrored { -1.0 } else { 1.0 };
        let k = rho * 2f32.mul_add(alpha, 1.0) / T::SCALE;
        let c = if mirrored { 1.0 + alpha } else { -alpha };
        let b = -rho / Self::PER_W;
        ShortLogistic {
            rho,
            b,
            k,
            c,
            k_over_b: k / b,
            // A zero with the sign of K/b, so that the sum is not +0 at −inf.
            c_over_b: if c == 0.0 {
                0f32.copysign(k / b)
            } else {
                c / b
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
        let w = self.b * x;
        if ORDER == 1 {
            // The root of e, so that both tails of G′ = ρK·σ·(1 − σ) keep their digits.
            let half = (0.5 * Self::LOG2).mul_add(w, -0.5 * T::SHIFT);
            let root = T::exp2(max(min(half, 63.0), -126.0));
            let sigma = 1.0 / root.mul_add(root, 1.0 / T::SCALE);
            let root = root * sigma;
            return Point {
                value: sigma.mul_add(self.k, self.c),
                slope: self.rho * self.k * root * root,
                terms: [upstream * self.h(sigma), 0.0, 0.0],
            };
        }
        let near = max(min(w, Self::FAR), Self::NEAR);
        let e = T::exp2(Self::LOG2.mul_add(near, -T::SHIFT));
        let sigma = 1.0 / (e + 1.0 / T::SCALE);
        let one_minus = sigma.mul_add(Self::PER_W / T::SCALE, -Self::PER_W);
        let bend = near.mul_add(one_minus, 1.0);
        Point {
            value: min(w, self.far) * sigma.mul_add(self.k_over_b, self.c_over_b),
            slope: (sigma * bend).mul_add(self.k, self.c),
            terms: [upstream * self.h(sigma) * x, 0.0, 0.0],
        }
    }
}
