//! Element types.

use half::{bf16, f16};

/// An element type at run time.
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
    /// All of them.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// `"f32"`, `"f16"` or `"bf16"`; also the suffix of kernel entries.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes of an element.
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

mod sealed {
    #[cfg(feature = "cuda")]
    use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

    /// With the feature `cuda`, elements can also live on a device.
    #[cfg(feature = "cuda")]
    pub trait Sealed:
        crate::cpu::Convert + crate::cpu::RowLoops + DeviceRepr + ValidAsZeroBits + Unpin
    {
    }
    #[cfg(not(feature = "cuda"))]
    pub trait Sealed: crate::cpu::Convert + crate::cpu::RowLoops {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element of a tensor: [`f32`], [`struct@f16`] or [`bf16`].
pub trait Element:
    bytemuck::Pod + Into<f64> + sealed::Sealed + Send + Sync + std::fmt::Debug
{
    /// The type as a value.
    const DTYPE: Dtype;
    /// Distance from 1 to the next value, as a power of two: −23, −10 or −7.
    const ULP_EXPONENT: i32;
    /// Exponent of the smallest normal value: −126, −14 or −126.
    const MIN_EXPONENT: i32;

    /// The value, exactly.
    fn to_f64(self) -> f64;

    /// The nearest value, ties to even, in one rounding; overflow gives ±inf. (The conversions of the
    /// `half` crate from f64 round twice.)
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

/// The f32 that a later rounding to fewer digits cannot tell from `value`: exact if it can be, else
/// the neighbour whose last bit is 1.
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
}
