//! The element types of tensors: f32, f16 and bf16.

use half::{bf16, f16};

/// The element type of a tensor, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16: 11 significant bits, largest finite value 65504.
    F16,
    /// The upper half of a binary32: 8 significant bits.
    Bf16,
}

impl Dtype {
    /// All element types.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Returns `"f32"`, `"f16"` or `"bf16"`. The names of kernel entries end with it.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// The size of an element in bytes: 4 or 2.
    pub const fn size(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Types that can also be elements of a device buffer. Without the feature `cuda` every type is one.
#[cfg(feature = "cuda")]
mod portable {
    use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

    pub trait Portable: DeviceRepr + ValidAsZeroBits + Unpin {}
    impl<T: DeviceRepr + ValidAsZeroBits + Unpin> Portable for T {}
}
#[cfg(not(feature = "cuda"))]
mod portable {
    pub trait Portable {}
    impl<T> Portable for T {}
}
pub(crate) use portable::Portable;

/// Conversions between elements and f32. They are branch-free, so that they become vector code in any instruction set and
/// give the same bits in all of them. (`half` converts single values by a call, and slices by instructions that depend on
/// the CPU.)
pub trait Convert: Copy {
    /// Converts the element to f32, exactly.
    fn widen(self) -> f32;
    /// Rounds to the nearest value, ties to even; overflow gives ±inf. Every NaN becomes the same NaN, because the compiler
    /// decides which NaN an operation returns.
    fn narrow(value: f32) -> Self;
}

impl Convert for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        if value.is_nan() { f32::NAN } else { value }
    }
}

impl Convert for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        let bits = value.to_bits();
        // Rounds up if the lower half is above the midpoint, or at the midpoint and the upper half is odd.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let bits = if value.is_nan() {
            f32::NAN.to_bits()
        } else {
            rounded
        };
        bf16::from_bits((bits >> 16) as u16)
    }
}

/// The difference between the exponent biases of f32 and f16, shifted to the exponent bits of an f32.
const REBIAS: u32 = (127 - 15) << 23;
/// The number of fraction bits that an f32 has more than an f16.
const EXTRA: u32 = 23 - 10;

impl Convert for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << EXTRA;
        let normal = magnitude + REBIAS;
        // An infinity or a NaN has the largest exponent in f32 too.
        let special = normal + REBIAS;
        // A subnormal is a fraction without the leading 1 of the smallest normal value, 2⁻¹⁴.
        let smallest = 113 << 23;
        let subnormal = f32::from_bits(magnitude + smallest) - f32::from_bits(smallest);
        let result = if magnitude < 1 << 23 {
            subnormal.to_bits()
        } else {
            normal
        };
        let result = if magnitude >= 31 << 23 {
            special
        } else {
            result
        };
        f32::from_bits(result | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> f16 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Rounds as for bf16. A value that rounds up to 2¹⁶ becomes infinity without a special case.
        let half = (1 << (EXTRA - 1)) - 1 + (magnitude >> EXTRA & 1);
        let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(half) >> EXTRA;
        // Below 2⁻¹⁴ the addition rounds to the spacing of f32 at ½, which is the spacing of f16 subnormals.
        let subnormal = (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0.5f32.to_bits());
        let result = if magnitude < 113 << 23 {
            subnormal
        } else {
            normal
        };
        let result = if magnitude >= 143 << 23 {
            0x7c00
        } else {
            result
        };
        let result = result | (bits >> 16 & 0x8000);
        let result = if value.is_nan() { 0x7e00 } else { result };
        f16::from_bits(result as u16)
    }
}

/// An element type of tensors: [`f32`], [`struct@f16`] or [`bf16`]. The trait is sealed.
pub trait Element:
    bytemuck::Pod + Convert + Into<f64> + Portable + Send + Sync + std::fmt::Debug
{
    /// The type as a value.
    const DTYPE: Dtype;
    /// The base-2 logarithm of the distance from 1 to the next value: −23 (f32), −10 (f16) or −7 (bf16).
    const ULP_EXPONENT: i32;
    /// The exponent of the smallest normal value: −126 (f32), −14 (f16) or −126 (bf16).
    const MIN_EXPONENT: i32;

    /// Converts the element to f64, exactly.
    fn to_f64(self) -> f64;

    /// Rounds to the nearest value once, ties to even; overflow gives ±inf. (The conversions of the `half` crate from f64
    /// round twice.)
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const ULP_EXPONENT: i32 = -23;
    const MIN_EXPONENT: i32 = -126;

    #[inline]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    const ULP_EXPONENT: i32 = -10;
    const MIN_EXPONENT: i32 = -14;

    #[inline]
    fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }

    #[inline]
    fn from_f64(value: f64) -> Self {
        f16::from_f32(round_to_odd(value))
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    const ULP_EXPONENT: i32 = -7;
    const MIN_EXPONENT: i32 = -126;

    #[inline]
    fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }

    #[inline]
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(round_to_odd(value))
    }
}

/// A type for the trainable scalars of an activation on tensors of `T`, and for the gradient of a head's weights: f32, or `T`
/// itself.
pub trait ParamOf<T: Element>: Element {}
impl<T: Element> ParamOf<T> for f32 {}
impl ParamOf<f16> for f16 {}
impl ParamOf<bf16> for bf16 {}

/// Rounds to f32 so that a later rounding to fewer digits gives the same as one rounding of `value`: the result is exact, or
/// else the neighbour whose last bit is 1.
#[inline]
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || nearest.is_nan() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    // `nearest` is even and not exact, so the neighbour on the value's other side is odd.
    let away_from_zero = value.abs() > back.abs();
    f32::from_bits(if away_from_zero {
        nearest.to_bits() + 1
    } else {
        nearest.to_bits() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_f64_rounds_once() {
        // half's own conversion gives 1.0 here: it rounds to f32 first, to a tie.
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(<bf16 as Element>::from_f64(value).to_f32(), 1.0078125);
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(
            <f16 as Element>::from_f64(value).to_f32(),
            1.0 + 2f32.powi(-10)
        );
    }

    /// Every 16-bit value survives the round trip, and every midpoint of neighbours goes to the even
    /// one, nudged values to the nearer one.
    fn round_trips<T: Element + PartialEq>(from_bits: impl Fn(u16) -> T) {
        for bits in 0..0x7fffu16 {
            let (low, high) = (from_bits(bits), from_bits(bits + 1));
            let (a, b) = (low.to_f64(), high.to_f64());
            if !a.is_finite() {
                break;
            }
            assert_eq!(T::from_f64(a), low);
            assert_eq!(T::from_f64(-a).to_f64(), -a);
            if !b.is_finite() {
                continue;
            }
            let middle = (a + b) / 2.0;
            let even = if bits & 1 == 0 { low } else { high };
            assert_eq!(T::from_f64(middle), even, "{bits:#x}");
            assert_eq!(T::from_f64(middle * (1.0 + 1e-15)), high, "{bits:#x}");
            assert_eq!(T::from_f64(middle * (1.0 - 1e-15)), low, "{bits:#x}");
        }
    }

    #[test]
    fn every_16_bit_value_and_midpoint() {
        round_trips(f16::from_bits);
        round_trips(bf16::from_bits);
    }

    #[test]
    fn specials() {
        assert!(<f16 as Element>::from_f64(f64::NAN).is_nan());
        assert_eq!(<f16 as Element>::from_f64(65520.0), f16::INFINITY);
        assert_eq!(<f16 as Element>::from_f64(65519.999).to_f32(), 65504.0);
        assert_eq!(<bf16 as Element>::from_f64(1e300), bf16::INFINITY);
        assert_eq!(<f16 as Element>::from_f64(1e-300).to_f32(), 0.0);
        assert!(<f16 as Element>::from_f64(-1e-300).is_sign_negative());
    }

    /// Every value survives; midpoints of neighbours go to the even one, their neighbours to the nearer.
    fn agrees_with_half<T: Element + PartialEq>(
        from_bits: impl Fn(u16) -> T,
        widen: impl Fn(T) -> f32,
        narrow: impl Fn(f32) -> T,
    ) {
        for bits in 0..=u16::MAX {
            let value = from_bits(bits);
            let wide = widen(value);
            assert!(
                value.widen().to_bits() == wide.to_bits() || wide.is_nan(),
                "{bits:#x}"
            );
            assert_eq!(value.widen().is_nan(), wide.is_nan());
            if wide.is_nan() {
                assert!(narrow(wide).to_f64().is_nan() && T::narrow(wide).to_f64().is_nan());
                continue;
            }
            let middle = f32::midpoint(wide, widen(from_bits(bits.wrapping_add(1))));
            for v in [wide, middle] {
                for v in [v, v.next_up(), v.next_down()] {
                    if !v.is_nan() {
                        let (got, expected) = (T::narrow(v).to_f64(), narrow(v).to_f64());
                        assert_eq!(got.to_bits(), expected.to_bits(), "{v:e}");
                    }
                }
            }
        }
        for bits in (0..u32::MAX - 99_991).step_by(99_991) {
            let v = f32::from_bits(bits);
            let (got, expected) = (T::narrow(v).to_f64(), narrow(v).to_f64());
            assert!(
                got.to_bits() == expected.to_bits() || (got.is_nan() && v.is_nan()),
                "{v:e}"
            );
        }
    }

    #[test]
    fn conversions_are_those_of_half() {
        agrees_with_half(f16::from_bits, f16::to_f32, f16::from_f32);
        agrees_with_half(bf16::from_bits, bf16::to_f32, bf16::from_f32);
    }
}
