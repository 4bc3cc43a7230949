//! xATLU: the arctangent gate g(x) = ½ + arctan(x)/π.
//!
//! With z = min(u, 1/u):  u ≤ 1: t = ½ − arctan(z)/π;  u > 1: t = arctan(z)/π, which keeps the digits
//! of the tail, and u·t = (arctan(z)/z)/π without forming u·z = 1.
//!   u·g′ = z/(π(1 + z²)) on both sides,  h = (2/π)·arctan(u)
//! t − u·g′ falls as u⁻³ and its addends only as u⁻¹: beyond SERIES it is a series in z, which keeps its digits, and from
//! DIFFERENCE to there a polynomial in u.

use std::f32::consts::FRAC_1_PI;

use super::expanded::{Tail, on_cpu};
use crate::activation::xatlu::{DIFFERENCE, MIDDLE, SERIES, arctan, slope_middle, slope_tail};

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

on_cpu!(Xatlu: Arctan);

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
