//! Inputs for tests.

use xact::activation::{Registered, Sample};
use xact::{Dtype, Element};

/// All 65,536 values of a 16-bit type.
pub fn every_16_bit<T: Element>() -> Vec<T> {
    assert_eq!(size_of::<T>(), 2);
    (0..=u16::MAX)
        .map(|bits| bytemuck::pod_read_unaligned(&bits.to_ne_bytes()))
        .collect()
}

/// f32 values of all magnitudes and both signs, 0, ±inf and NaN: `count` values spread evenly over the bit patterns
/// (logarithmically over the values), and `count` spread evenly over [-24, 24].
pub fn f32_sweep(count: u32) -> Vec<f32> {
    let step = u32::MAX / count;
    let by_bits = (0..count).map(|i| f32::from_bits(i * step));
    let evenly = (0..count).map(|i| (f64::from(i) / f64::from(count) * 48.0 - 24.0) as f32);
    by_bits.chain(evenly).chain(cruel()).collect()
}

/// Single values that are known to break kernels.
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

/// The points where f or f′ changes its sign, except 0, to the accuracy of f64.
fn roots<A: Registered>(op: &A, params: &[f64]) -> Vec<f64> {
    /// From 1e-6 to 1e6, in steps of a factor of 1.05.
    const STEPS: i32 = 566;
    let mut roots = Vec::new();
    for sign in [-1.0, 1.0] {
        for part in [false, true] {
            let f = |x: f64| {
                let point = op.evaluate(params, sign * x);
                if part { point.slope } else { point.y }.value
            };
            let grid = (0..=STEPS).map(|i| 1e-6 * 1.05f64.powi(i));
            for (mut low, mut high) in grid.clone().zip(grid.skip(1)) {
                if f(low) * f(high) >= 0.0 {
                    continue;
                }
                while let middle = f64::midpoint(low, high)
                    && low < middle
                    && middle < high
                {
                    if f(low) * f(middle) <= 0.0 {
                        high = middle;
                    } else {
                        low = middle;
                    }
                }
                roots.push(sign * low);
            }
        }
    }
    roots
}

/// `point`, and its neighbours at the distances of all powers of two from the size of the point to an ulp.
fn around(point: f64) -> impl Iterator<Item = f64> {
    let near = (1..24).map(|k| 2f64.powi(-k)).flat_map(|d| [d, -d]);
    near.chain([0.0]).map(move |d| point * (1.0 + d))
}

/// The inputs of an accuracy test in T. For a 16-bit type all values; for f32 `2 · count` values, the critical values, and
/// the neighbourhoods of the roots of f and f′ and of the switch-over points.
pub fn accuracy<A: Registered, T: Element>(sample: &Sample<A>, count: u32) -> Vec<T> {
    if size_of::<T>() == 2 {
        return every_16_bit();
    }
    let params: Vec<_> = sample.params.iter().map(|&p| f64::from(p)).collect();
    let points = roots(&sample.op, &params)
        .into_iter()
        .chain(A::SWITCH_OVERS.iter().flat_map(|&u| [u, -u]));
    f32_sweep(count)
        .into_iter()
        .map(f64::from)
        .chain(points.flat_map(around))
        .map(T::from_f64)
        .collect()
}

/// f32 values from `min` < 0 to `max` > 0, as dense on a linear axis as on a logarithmic one.
pub fn along(min: f64, max: f64) -> Vec<f32> {
    const COUNT: i32 = 1 << 15;
    /// The smallest magnitude, relative to the ends.
    const DEPTH: f64 = 1e-12;
    let part = |i: i32| f64::from(i) / f64::from(COUNT);
    let linear = (0..=COUNT).map(|i| min + (max - min) * part(i));
    let by_size = (0..=COUNT).flat_map(|i| [min, max].map(|end| end * DEPTH.powf(part(i))));
    linear.chain(by_size).map(|x| x as f32).collect()
}

/// The values of the exhaustive gated tests: signs, sizes, zero and an exact 1.
pub const VALUES: [f64; 5] = [1.0, -0.75, 3.0, -1e-3, 0.0];

/// The upstream gradients. Their number differs, so that every value meets every gradient.
pub const GRADIENTS: [f64; 3] = [1.0, -2.5, 0.125];

/// Pairs of a value and an upstream gradient of which one or both are large for T: times them, a result shows the digits
/// that it has far below the numbers of T. Their products are f32 numbers, as dx needs them to be.
pub fn large<T: Element>() -> Vec<[f64; 2]> {
    let numbers: &[f64] = if T::DTYPE == Dtype::F16 {
        &[512.0, 4096.0, 65504.0]
    } else {
        &[1e3, 1e6, 1e18, 1e30]
    };
    let pairs = numbers.iter().flat_map(|&n| [[n, 1.0], [-1.0, n], [n, -n]]);
    pairs
        .filter(|[v, dy]| ((v * dy) as f32).is_finite())
        .collect()
}

/// The parameters of `s`; and if it is the α of a gate, numbers so near 0 that a tail must have vanished beside them.
pub fn parameters_and_tiny_ones<A: Registered>(s: &Sample<A>) -> Vec<Vec<f32>> {
    let tiny = A::gate(0.0).map_or(&[][..], |_| &[1e-30, -1e-30]);
    let tiny = tiny.iter().map(|&alpha| vec![alpha]);
    tiny.chain([s.params.clone()]).collect()
}

/// `len` elements that repeat `values`, starting at index `first`. If `first` takes every index, every element meets every
/// value.
pub fn cycle<T: Element>(values: &[f64], first: usize, len: usize) -> Vec<T> {
    let values = values.iter().cycle().skip(first).take(len);
    values.map(|&v| T::from_f64(v)).collect()
}

/// The values whose sums of squares are finite and significant.
pub fn summable<T: Element>(x: &[T]) -> Vec<T> {
    x.iter()
        .copied()
        .filter(|x| x.to_f64().abs() < 1e4)
        .collect()
}

/// A fast and reproducible pseudo-random generator.
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

    /// `len` numbers of the size of activations, approximately normal with deviation `scale`.
    pub fn normal<T: Element>(&mut self, len: usize, scale: f64) -> Vec<T> {
        (0..len)
            .map(|_| {
                let sum: f64 = (0..6).map(|_| self.uniform()).sum();
                T::from_f64(sum / 2f64.sqrt() * scale)
            })
            .collect()
    }
}
