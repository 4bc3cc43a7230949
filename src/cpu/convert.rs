//! Elements to f32 and back, branch-free, so that the conversions are vector code in any instruction set
//! and agree in every bit. (`half` converts single values by a call, and slices by whatever the CPU has.)

use half::{bf16, f16};

use crate::dtype::Element;

/// An element that the loops can read and write.
pub trait Convert: Copy {
    /// The value, exactly.
    fn widen(self) -> f32;
    /// The nearest value, ties to even; overflow gives ±inf. Every NaN becomes the same one: which NaN an
    /// operation passes on is up to the compiler.
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
        // Up to the next where the lower half is above the middle, or at it and the upper half odd.
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
        bf16::from_bits(if value.is_nan() {
            0x7fc0
        } else {
            rounded as u16
        })
    }
}

/// Difference of the exponents' biases, in the place of an f32's exponent.
const REBIAS: u32 = (127 - 15) << 23;
/// Bits of fraction that an f32 has and an f16 has not.
const EXTRA: u32 = 23 - 10;

impl Convert for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << EXTRA;
        let normal = magnitude + REBIAS;
        // Of infinities and NaNs the exponent is the largest again.
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
        // Half to even, as for bf16; what rounds up to 2¹⁶ becomes infinity by itself.
        let half = (1 << (EXTRA - 1)) - 1 + (magnitude >> EXTRA & 1);
        let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(half) >> EXTRA;
        // Below 2⁻¹⁴: the addition rounds to the spacing of f32 at ½, which is that of f16 there.
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
        f16::from_bits(if value.is_nan() {
            0x7e00
        } else {
            result as u16
        })
    }
}

/// Elements of a block: the arrays of a backward stay in the first-level cache.
pub const BLOCK: usize = 256;

/// A block on the stack, at the start of a cache line: a vector that straddles two costs twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block(pub [f32; BLOCK]);

impl Block {
    pub const ZERO: Block = Block([0.0; BLOCK]);

    /// Converts what `from` has, at most a block; the rest becomes 0.
    #[inline(always)]
    pub fn load<T: Element>(&mut self, from: &[T]) {
        if let Ok(from) = <&[T; BLOCK]>::try_from(from) {
            for (to, from) in self.0.iter_mut().zip(from) {
                *to = from.widen();
            }
        } else {
            self.0 = [0.0; BLOCK];
            for (to, from) in self.0.iter_mut().zip(from) {
                *to = from.widen();
            }
        }
    }

    /// Converts as much as `to` has, at most a block.
    #[inline(always)]
    pub fn store<T: Element>(&self, to: &mut [T]) {
        if let Ok(to) = <&mut [T; BLOCK]>::try_from(&mut *to) {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = T::narrow(*from);
            }
        } else {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = T::narrow(*from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
