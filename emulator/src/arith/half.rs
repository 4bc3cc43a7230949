//! The 16-bit formats: conversions with a single rounding, and arithmetic.

use super::float::{self, Rounding};

/// The NaN that 16-bit arithmetic produces, in both formats.
pub(crate) const NAN16: u16 = 0x7fff;

/// A 16-bit floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F16,
    Bf16,
}

impl Format {
    /// The value, exactly.
    #[inline(always)]
    pub fn widen(self, h: u16) -> f32 {
        match self {
            Format::F16 => f16_to_f32(h),
            Format::Bf16 => bf16_to_f32(h),
        }
    }

    /// Rounds a double once.
    pub fn round(self, x: f64, mode: Rounding) -> u16 {
        if x.is_nan() {
            return NAN16;
        }
        match self {
            Format::F16 => {
                let r = float::round_to(x, 11, -14, 15, mode);
                f32_to_f16(r as f32)
            }
            Format::Bf16 => {
                let r = float::round_to(x, 8, -126, 127, mode);
                ((r as f32).to_bits() >> 16) as u16
            }
        }
    }
}

/// f16 to f32, exactly; every NaN becomes the canonical one.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let w = u32::from(h) << 16;
    let two_w = w.wrapping_add(w);
    // Normal numbers, inf and NaN: shift the exponent field up by 224, then scale by 2^-112.
    let normal =
        f32::from_bits((two_w >> 4).wrapping_add(0xe0 << 23)) * f32::from_bits(0x0780_0000);
    // Subnormals: put the digits under a 0.5 and take it away.
    let subnormal = f32::from_bits((two_w >> 17) | (126 << 23)) - 0.5;
    let magnitude = if two_w < (1 << 27) { subnormal } else { normal };
    if magnitude.is_nan() {
        f32::from_bits(float::NAN32)
    } else {
        f32::from_bits((w & 0x8000_0000) | magnitude.to_bits())
    }
}

/// f32 to f16, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let w = x.to_bits();
    // Scaling up and down by powers of two overflows exactly what f16 cannot hold, and leaves the
    // rest as it is.
    let scaled = (f32::from_bits(w & 0x7fff_ffff) * f32::from_bits(0x7780_0000))
        * f32::from_bits(0x0880_0000);
    let shl1 = w.wrapping_add(w);
    let bias = (shl1 & 0xff00_0000).max(0x7100_0000);
    // Adding a number of the right exponent makes the hardware round at the right digit.
    let bits = (f32::from_bits((bias >> 1) + 0x0780_0000) + scaled).to_bits();
    let magnitude = ((bits >> 13) & 0x7c00) + (bits & 0x0fff);
    if shl1 > 0xff00_0000 {
        NAN16
    } else {
        ((w >> 16) & 0x8000) as u16 | magnitude as u16
    }
}

/// bf16 to f32, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    float::canonical(f32::from_bits(u32::from(h) << 16))
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let w = x.to_bits();
    if x.is_nan() {
        NAN16
    } else {
        (w.wrapping_add(0x7fff + ((w >> 16) & 1)) >> 16) as u16
    }
}

/// Arithmetic with one rounding, to nearest even.
pub(crate) fn fma(f: Format, a: u16, b: u16, c: u16) -> u16 {
    let (a, b, c) = (f.widen(a), f.widen(b), f.widen(c));
    let native = a.mul_add(b, c);
    let finite = a.is_finite() && b.is_finite() && c.is_finite();
    if !finite || native == 0.0 {
        return f.round(f64::from(native), Rounding::Nearest);
    }
    f.round(float::fma_odd(a, b, c), Rounding::Nearest)
}

pub(crate) fn add(f: Format, a: u16, b: u16) -> u16 {
    let (a, b) = (f64::from(f.widen(a)), f64::from(f.widen(b)));
    if !a.is_finite() || !b.is_finite() || a + b == 0.0 {
        return f.round(a + b, Rounding::Nearest);
    }
    f.round(float::add_odd(a, b), Rounding::Nearest)
}

pub(crate) fn mul(f: Format, a: u16, b: u16) -> u16 {
    f.round(
        f64::from(f.widen(a)) * f64::from(f.widen(b)),
        Rounding::Nearest,
    )
}

pub(crate) fn min(f: Format, a: u16, b: u16, propagate: bool) -> u16 {
    f.round(
        f64::from(float::min(f.widen(a), f.widen(b), propagate)),
        Rounding::Nearest,
    )
}

pub(crate) fn max(f: Format, a: u16, b: u16, propagate: bool) -> u16 {
    f.round(
        f64::from(float::max(f.widen(a), f.widen(b), propagate)),
        Rounding::Nearest,
    )
}
