//! xATLU: the arctangent gate g(x) = ½ + arctan(x)/π.
//!
//! With z = min(u, 1/u):  u ≤ 1: t = ½ − arctan(z)/π;  u > 1: t = arctan(z)/π, which keeps the digits
//! of the tail, and u·t = (arctan(z)/z)/π without forming u·z = 1.
//!   u·g′ = z/(π(1 + z²)) on both sides,  h = (2/π)·arctan(u)
//! t − u·g′ falls as u⁻³ and its addends only as u⁻¹: beyond SERIES it is a series in z, which keeps its digits, and from
//! DIFFERENCE to there a polynomial in u.

use std::f32::consts::FRAC_1_PI;
use std::marker::PhantomData;

use super::expanded::{Sides, Tail, on_cpu, with_sign};
use super::function::{Function, Point};
use super::math::min;
use super::short::Short;
use crate::activation::shared::polynomial;
use crate::activation::xatlu::{
    DIFFERENCE, MIDDLE, SERIES, arctan, arctan_bf16, arctan_f16, slope_middle, slope_tail,
};

#[derive(Clone, Copy)]
pub struct Arctan {
    u: f32,
    /// u > 1
    far: bool,
    /// min(u, 1/u) and its square.
    z: f32,
    y: f32,
    /// arctan(z)/(π·z)
    ratio: f32,
}

impl Arctan {
    /// arctan(z)/π
    #[inline(always)]
    fn angle(self) -> f32 {
        self.z * self.ratio
    }

    #[inline(always)]
    fn t(self) -> f32 {
        if self.far {
            self.angle()
        } else {
            0.5 - self.angle()
        }
    }
}

on_cpu!(Xatlu: Arctan, ShortArctan);

impl Tail for Arctan {
    const UNIT: f32 = 1.0;

    #[inline(always)]
    fn new(x: f32) -> Arctan {
        let u = x.abs();
        let far = u > 1.0;
        let z = if far { 1.0 / u } else { u };
        let y = z * z;
        Arctan {
            u,
            far,
            z,
            y,
            ratio: arctan(y) * FRAC_1_PI,
        }
    }

    #[inline(always)]
    fn plus_t(self, a: f32, k: f32) -> f32 {
        k.mul_add(self.t(), a)
    }

    #[inline(always)]
    fn ut(self, k: f32) -> f32 {
        let (near, u) = (0.5 - self.angle(), self.u);
        k * (if self.far { self.ratio } else { near }) * (if self.far { 1.0 } else { u })
    }

    #[inline(always)]
    fn plus_v(self, a: f32, k: f32) -> f32 {
        let near = (-FRAC_1_PI * self.z).mul_add(1.0 / (1.0 + self.y), self.t());
        let middle = slope_middle(self.u - MIDDLE);
        let inner = if self.u > DIFFERENCE { middle } else { near };
        let tail = self.y * slope_tail(self.y);
        // The last product of the tail is fused, which saves a rounding.
        if self.u > SERIES {
            (k * self.z).mul_add(tail, a)
        } else {
            k.mul_add(inner, a)
        }
    }

    #[inline(always)]
    fn slope(self, k: f32) -> f32 {
        // 1/(1 + u²), computed for u > 1 as z/(u + z): u² is not formed, so nothing overflows, and nothing underflows
        // before the end. (The kernel scales beyond a bound on u. Here that would prevent vector code and take three times
        // as long; z²/(1 + z²) has an error of 5.7 ulp.)
        let (w, far) = (if self.far { self.z } else { 1.0 }, self.u + self.z);
        let near = self.u.mul_add(self.u, 1.0);
        (k * FRAC_1_PI * w) * (1.0 / if self.far { far } else { near })
    }

    #[inline(always)]
    fn h(self) -> f32 {
        let angle = self.angle();
        if self.far {
            (-2f32).mul_add(angle, 1.0)
        } else {
            2.0 * angle
        }
    }
}

/// The formulas for 16-bit types: G (ORDER 1) and f (ORDER 2).
///
/// With u = |x|, z = min(u, 1/u), y = z², w = arctan(z)/π, k = 1 + 2α, and c = 1 + α for x ≥ 0 and α for x < 0:
///
/// ```text
///            f = |x|·(…)      G = ±(…)      f′ = ±(…)                      G′ = k·(…)        h = ±(…)
/// u ≤ 1:     ±½ + k·w                       ±½ + k·(w + v)                 1/(π·(1 + y))     2w
/// u > 1:      c − k·w                        c − k·(w − v)                 y/(π·(1 + y))     1 − 2w
/// ```
///
/// with v = z/(π·(1 + y)) and ± the sign of x. For derivatives q is a polynomial, w = v·(1 + y·q), so that w − v = v·y·q does
/// not cancel in the tail.
#[derive(Clone, Copy)]
pub struct ShortArctan<T, const ORDER: u8> {
    sides: Sides,
    k: f32,
    element: PhantomData<T>,
}

/// c, u (bounded where c is 0), u > 1 and z at an x.
struct Folded {
    c: f32,
    u: f32,
    far: bool,
    z: f32,
}

impl<T: Short, const ORDER: u8> ShortArctan<T, ORDER> {
    /// A bound on |x| where f has no linear part: it is ∓1/π there. G needs none.
    const FAR: f32 = if ORDER == 1 { f32::INFINITY } else { 1.0e30 };

    pub fn new(params: &[f32]) -> Self {
        ShortArctan {
            sides: Sides::new(params[0], Self::FAR),
            k: 2f32.mul_add(params[0], 1.0),
            element: PhantomData,
        }
    }

    #[inline(always)]
    fn fold(self, x: f32) -> Folded {
        let (c, bound) = self.sides.at(x);
        let u = min(x.abs(), bound);
        let far = u > 1.0;
        let z = if far { 1.0 / u } else { u };
        Folded { c, u, far, z }
    }

    /// arctan(z)/z
    #[inline(always)]
    fn arctan(y: f32) -> f32 {
        if T::WIDE {
            arctan_bf16(y)
        } else {
            arctan_f16(y)
        }
    }

    /// q = ((1 + y)·arctan(z)/z − 1)/y: relative error 2⁻¹⁹·⁸ (f16), 2⁻¹⁶·⁹ (bf16).
    #[inline(always)]
    fn tail(y: f32) -> f32 {
        if T::WIDE {
            polynomial!(y; 0.005_379_238, -0.022_644_112, 0.054_436_293, -0.133_031_47, 0.666_661_14)
        } else {
            polynomial!(y; -0.002_614_687_2, 0.011_882_817, -0.028_296_98, 0.056_436_855, -0.133_278_25, 0.666_666)
        }
    }

    /// ±½ + k·near, or c − k·far beyond u = 1.
    #[inline(always)]
    fn sum(self, x: f32, c: f32, is_far: bool, near: f32, far: f32) -> f32 {
        let (base, k, w) = if is_far {
            (c, -self.k, far)
        } else {
            (0.5f32.copysign(x), self.k, near)
        };
        w.mul_add(k, base)
    }
}

impl<T: Short, const ORDER: u8> Function for ShortArctan<T, ORDER> {
    const PARAMS: usize = 1;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let Folded { c, u, far, z } = self.fold(x);
        let y = z * z;
        let r = 1.0 / (1.0 + y);
        let v = z * r * FRAC_1_PI;
        let yq = y * Self::tail(y);
        let w = v.mul_add(yq, v);
        let value = self.sum(x, c, far, w, w);
        let h = if far {
            (-2f32).mul_add(w, 1.0)
        } else {
            2.0 * w
        };
        if ORDER == 1 {
            // y may be subnormal, and is not formed.
            let z = if far { z } else { 1.0 };
            return Point {
                value: with_sign(value, x),
                slope: self.k * FRAC_1_PI * r * z * z,
                terms: [upstream * h.copysign(x), 0.0, 0.0],
            };
        }
        let slope = self.sum(x, c, far, w + v, v * yq);
        Point {
            value: u * value,
            slope: with_sign(slope, x),
            terms: [upstream * h * x.abs(), 0.0, 0.0],
        }
    }

    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        let Folded { c, u, far, z } = self.fold(x);
        let w = z * Self::arctan(z * z) * FRAC_1_PI;
        let inner = self.sum(x, c, far, w, w);
        if ORDER == 1 {
            with_sign(inner, x)
        } else {
            u * inner
        }
    }
}
