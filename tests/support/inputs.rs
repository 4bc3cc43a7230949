//! Inputs worth testing.

use xact::Element;

/// Every one of the 65,536 values of a 16-bit type.
pub fn every_16_bit<T: Element>() -> Vec<T> {
    assert_eq!(size_of::<T>(), 2);
    (0..=u16::MAX)
        .map(|bits| bytemuck::pod_read_unaligned(&bits.to_ne_bytes()))
        .collect()
}

/// f32 values of all magnitudes and both signs, 0, ±inf and NaN, `count` spread evenly over the bit
/// patterns (which is logarithmically over the values) and `count` evenly over [-24, 24].
pub fn f32_sweep(count: u32) -> Vec<f32> {
    let step = u32::MAX / count;
    let by_bits = (0..count).map(|i| f32::from_bits(i * step));
    let evenly = (0..count).map(|i| (f64::from(i) / f64::from(count) * 48.0 - 24.0) as f32);
    by_bits.chain(evenly).chain(cruel()).collect()
}

/// Single values that have broken somebody's kernel.
pub fn cruel() -> Vec<f32> {
    let positive = [
        0.0,
        f32::from_bits(1),
        1e-40,
        f32::MIN_POSITIVE,
        1e-30,
        1e-9,
        1e-7,
        1e-6,
        9.98e-7,
        1.013e-6,
        1e-4,
        1e-3,
        0.00195,
        0.01,
        0.05,
        0.5,
        1.0,
        1.25,
        2.4,
        19.9,
        80.0,
        87.5,
        88.8,
        104.0,
        400.0,
        65504.0,
        1.4e18,
        1e30,
        f32::MAX,
        f32::INFINITY,
    ];
    let mut values = Vec::new();
    for v in positive {
        for v in [v, v.next_up(), v.next_down()] {
            values.extend([v, -v]);
        }
    }
    values.push(f32::NAN);
    values
}

/// The inputs of an accuracy test in T: all values of a 16-bit type, `2 · count` and some of f32.
pub fn accuracy<T: Element>(count: u32) -> Vec<T> {
    if size_of::<T>() == 2 {
        every_16_bit()
    } else {
        f32_sweep(count)
            .into_iter()
            .map(|v| T::from_f64(f64::from(v)))
            .collect()
    }
}

/// The values of the exhaustive gated tests: signs, sizes, zero, an exact 1.
pub const VALUES: [f64; 5] = [1.0, -0.75, 3.0, -1e-3, 0.0];

/// Their upstream gradients: of another period, so that every value meets every gradient.
pub const GRADIENTS: [f64; 3] = [1.0, -2.5, 0.125];

/// `len` elements that repeat `values`.
pub fn cycle<T: Element>(values: &[f64], len: usize) -> Vec<T> {
    let values = values.iter().cycle().take(len);
    values.map(|&v| T::from_f64(v)).collect()
}

/// Those whose sums of squares are finite and say something.
pub fn summable<T: Element>(x: &[T]) -> Vec<T> {
    x.iter()
        .copied()
        .filter(|x| x.to_f64().abs() < 1e4)
        .collect()
}

/// A cheap reproducible stream of numbers.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits (Steele, Lea & Flood's SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-52) - 1.0
    }

    /// `len` numbers of the size of activations, roughly normal with deviation `scale`.
    pub fn normal<T: Element>(&mut self, len: usize, scale: f64) -> Vec<T> {
        (0..len)
            .map(|_| {
                let sum: f64 = (0..6).map(|_| self.uniform()).sum();
                T::from_f64(sum / 2f64.sqrt() * scale)
            })
            .collect()
    }
}
