//! The approximations that the ops share, each with its error. They are those of `kernels/common/math.cuh`.
//!
//! Everything is branch-free f32, so that loops over it become vector code. A choice is a select, and fused operations are
//! written as `mul_add`, because rustc fuses nothing by itself. `f32::min` and `f32::max` are not used because they drop a
//! NaN, and `as i32` is not used because it saturates, which costs instructions.

use std::f32::consts::LN_2;

use crate::activation::shared::polynomial;
use crate::activation::xielu;

/// log2 e, rounded to f32.
pub const LOG2E: f32 = std::f32::consts::LOG2_E;

/// 1.5·2²³. Adding this number rounds to an integer, whose value is then in the low bits; subtracting it gives the integer.
pub const ROUND: f32 = 12_582_912.0;

/// The number of fraction bits of an f32, and below it the bias of the exponent.
pub const FRACTION_BITS: u32 = 23;
pub const BIAS: u32 = 127;

/// 2^f for |f| ≤ ½: relative error 2⁻²⁸·³ before rounding, 1 at 0 exactly.
#[inline(always)]
pub fn exp2_fraction(f: f32) -> f32 {
    polynomial!(f;
        0.000_153_293_1, 0.001_339_097, 0.009_618_499,
        0.055_503_596, 0.240_226_48, LN_2, 1.0,
    )
}

/// 2^t for −127 ≤ t ≤ 127, and 0 where that is subnormal. NaN gives NaN.
#[inline(always)]
pub fn exp2(t: f32) -> f32 {
    let rounded = t + ROUND;
    let f = t - (rounded - ROUND);
    let scale = rounded.to_bits().wrapping_add(BIAS) << FRACTION_BITS;
    exp2_fraction(f) * f32::from_bits(scale)
}

/// 2^(a·z + …) = m·scale·TINY for −190 ≤ a·z ≤ 0, with m near 1 and scale = 2⁻ⁿ/TINY an exact power of
/// two, so that a product with it keeps its digits until the product itself is subnormal. The factor TINY lets scale reach
/// 2⁻¹⁹⁰; it costs nothing if it is part of a constant factor.
///
/// n is the integer nearest to −a·z, and f = a·z + n is computed in one fused step, because the rounding of a product near
/// 150 would cost 60 ulp.
#[derive(Clone, Copy)]
pub struct ScaledExp2 {
    /// f. The caller adds the part of the exponent that a·z omits, and then computes 2^f.
    pub fraction: f32,
    /// 2⁻ⁿ/TINY.
    pub scale: f32,
}

impl ScaledExp2 {
    const SHIFT: u32 = 64;
    /// 2⁻⁶⁴
    pub const TINY: f32 = f32::from_bits((BIAS - Self::SHIFT) << FRACTION_BITS);

    #[inline(always)]
    pub fn new(a: f32, z: f32) -> ScaledExp2 {
        let rounded = a.mul_add(z, ROUND);
        let n = ROUND - rounded;
        let scale = rounded.to_bits().wrapping_add(BIAS + Self::SHIFT) << FRACTION_BITS;
        ScaledExp2 {
            fraction: a.mul_add(z, n),
            scale: f32::from_bits(scale),
        }
    }
}

/// `a` if it is below `b` or NaN, else `b`.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    if a > b { b } else { a }
}

/// `a` if it is above `b` or NaN, else `b`.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a < b { b } else { a }
}

/// expm1(x) for x ≤ 0, and q(x) = expm1(x) − x, both without cancellation.
///
/// ```text
/// −5/4 < x ≤ 0:  q = x²·r,  r = ½ + x·R(x) with R of degree 5, minimax for the relative error of
///                q (2⁻²⁸·⁵ before rounding, below 3·2⁻²⁴ after);  expm1 = x + q
///      x ≤ −5/4: expm1 = 2^(x·log2 e) − 1, where 2^… ≤ 0.29, so that its error and that of the
///                argument vanish beside the 1;  q = expm1 − x, a sum of positive terms
/// ```
///
/// q(−inf) = inf, expm1(−inf) = −1; NaN gives NaN.
#[derive(Clone, Copy)]
pub struct Expm1 {
    x: f32,
    /// x > −5/4; false for NaN.
    pub near: bool,
    /// q/x² where near.
    pub r: f32,
    /// eˣ where not near.
    pub exp: f32,
    /// expm1(x) where not near.
    pub far: f32,
}

impl Expm1 {
    #[inline(always)]
    pub fn new(x: f32) -> Expm1 {
        let t = x * LOG2E;
        let exp = exp2(if t < -127.0 { -127.0 } else { t });
        Expm1 {
            x,
            near: x > xielu::NEAR,
            r: xielu::q_over_square(x),
            exp,
            far: exp - 1.0,
        }
    }

    #[inline(always)]
    pub fn expm1(self) -> f32 {
        if self.near {
            (self.x * self.x).mul_add(self.r, self.x)
        } else {
            self.far
        }
    }

    #[inline(always)]
    pub fn q(self) -> f32 {
        if self.near {
            self.x * self.x * self.r
        } else {
            self.far - self.x
        }
    }
}

/// softplus(z) = max(0, z) + log1p(e^−|z|), which has no cut-off, and its derivative, the logistic
/// function: in f64, rounded once.
pub fn softplus(z: f32) -> (f32, f32) {
    let z = f64::from(z);
    let e = (-z.abs()).exp();
    let value = if z > 0.0 { z } else { 0.0 } + e.ln_1p();
    let slope = if z > 0.0 { 1.0 } else { e } / (1.0 + e);
    // The comparison above would drop a NaN.
    (
        if z.is_nan() { f32::NAN } else { value as f32 },
        slope as f32,
    )
}
