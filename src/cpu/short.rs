//! What the formulas for f16 and bf16 share. They are as accurate as the type can show (see [`crate::reference`]), which takes
//! about half the instructions of the formulas for f32.

use super::math::{FRACTION_BITS, ROUND};
use crate::activation::shared::polynomial;

/// A 16-bit element type.
pub trait Short: Copy + Send + Sync {
    /// Whether the type has the range of f32, as bf16 has. The small tail of a gate is then computed times 2⁶⁴.
    const WIDE: bool;
    /// The base-2 logarithm of SCALE.
    const SHIFT: f32 = if Self::WIDE { 64.0 } else { 0.0 };
    /// The factor by which the tails of gates are too large: 2⁶⁴ or 1.
    const SCALE: f32 = if Self::WIDE {
        18_446_744_073_709_551_616.0
    } else {
        1.0
    };

    /// 2^f for |f| ≤ ½, and 1 at 0 exactly.
    fn exp2_fraction(f: f32) -> f32;

    /// 2^t for −126 ≤ t ≤ 126, and any number for another t. NaN gives NaN.
    #[inline(always)]
    fn exp2(t: f32) -> f32 {
        let rounded = t + ROUND;
        let m = Self::exp2_fraction(t - (rounded - ROUND));
        // Adds the integer, which is in the low bits of `rounded`, to the exponent. Those of a NaN are 0, as in its element.
        f32::from_bits(m.to_bits().wrapping_add(rounded.to_bits() << FRACTION_BITS))
    }
}

impl Short for half::f16 {
    const WIDE: bool = false;

    /// Relative error 2⁻²³·⁴.
    #[allow(clippy::approx_constant)] // a coefficient is near ln 2, but fitted
    #[inline(always)]
    fn exp2_fraction(f: f32) -> f32 {
        polynomial!(f; 0.001_326_472_7, 0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0)
    }
}

impl Short for half::bf16 {
    const WIDE: bool = true;

    /// Relative error 2⁻¹⁸·⁴.
    #[inline(always)]
    fn exp2_fraction(f: f32) -> f32 {
        polynomial!(f; 0.009_582_853, 0.055_906_426, 0.240_240_99, 0.693_124_2, 1.0)
    }
}
