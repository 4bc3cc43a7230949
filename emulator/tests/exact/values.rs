//! Integer types and floating-point formats: their values, and the one rounding of an exact result.

use crate::common::Random;

/// An integer type by its PTX name.
#[derive(Clone, Copy)]
pub struct Int(pub &'static str);

pub const INTS: [Int; 6] = [
    Int("u16"),
    Int("s16"),
    Int("u32"),
    Int("s32"),
    Int("u64"),
    Int("s64"),
];
pub const SIGNED: [Int; 3] = [Int("s16"), Int("s32"), Int("s64")];
pub const BITS: [Int; 3] = [Int("b16"), Int("b32"), Int("b64")];

impl Int {
    pub fn bits(self) -> u32 {
        self.0[1..].parse().unwrap()
    }

    /// The bits of a register of at least 16.
    pub fn register(self) -> u32 {
        self.bits().max(16)
    }

    pub fn min(self) -> i128 {
        if self.0.starts_with('s') {
            -1 << (self.bits() - 1)
        } else {
            0
        }
    }

    pub fn max(self) -> i128 {
        self.min() + (1 << self.bits()) - 1
    }

    /// The value of the low bits.
    pub fn value(self, raw: u64) -> i128 {
        let v = i128::from(raw) & ((1 << self.bits()) - 1);
        if v > self.max() {
            v - (1 << self.bits())
        } else {
            v
        }
    }

    /// Values of all sizes, and those where something ends.
    pub fn values(self, seed: u64) -> Vec<u64> {
        let mut r = Random(seed);
        let ends = [self.min(), self.max(), 0, 1, -1, self.max() / 2, 2, 7];
        (0..1500)
            .map(|i| match r.next() % 4 {
                0 => ends[r.next() as usize % ends.len()] as u64,
                _ => (r.next() >> (i * 7 % 64)) & ((1u128 << self.bits()) - 1) as u64,
            })
            .collect()
    }
}

pub fn low(v: i128, bits: u32) -> u64 {
    (v & ((1 << bits) - 1)) as u64
}

pub const ALL_INTS: [Int; 8] = [
    Int("u8"),
    Int("s8"),
    Int("u16"),
    Int("s16"),
    Int("u32"),
    Int("s32"),
    Int("u64"),
    Int("s64"),
];

/// A float's format: digits, and exponents of the smallest normal and largest numbers.
#[derive(Clone, Copy)]
pub struct Format {
    pub name: &'static str,
    pub bits: u32,
    pub digits: u32,
    pub least: i32,
    pub most: i32,
}

pub const F16: Format = Format {
    name: "f16",
    bits: 16,
    digits: 11,
    least: -14,
    most: 15,
};
pub const BF16: Format = Format {
    name: "bf16",
    bits: 16,
    digits: 8,
    least: -126,
    most: 127,
};
pub const F32: Format = Format {
    name: "f32",
    bits: 32,
    digits: 24,
    least: -126,
    most: 127,
};
pub const F64: Format = Format {
    name: "f64",
    bits: 64,
    digits: 53,
    least: -1022,
    most: 1023,
};

impl Format {
    pub fn value(self, raw: u64) -> f64 {
        match self.name {
            "f16" => half::f16::from_bits(raw as u16).to_f64(),
            "bf16" => half::bf16::from_bits(raw as u16).to_f64(),
            "f32" => f64::from(f32::from_bits(raw as u32)),
            _ => f64::from_bits(raw),
        }
    }

    /// Floats of moderate size: as integers in units of 2^-[`UNIT`] they and their products fit 128 bits.
    pub fn values(self, seed: u64) -> Vec<u64> {
        let mut r = Random(seed);
        let fraction = self.digits - 1;
        let bias = self.most;
        (0..3000)
            .map(|_| {
                let e = ((r.next() % 30) as i32 - 15).max(-bias);
                let sign = r.next() & 1;
                let digits = match r.next() % 4 {
                    0 => 0,
                    1 => (1 << fraction) - 1,
                    _ => r.next() & ((1 << fraction) - 1),
                };
                // Now and then 0.
                let kept = u64::from(!r.next().is_multiple_of(16));
                (sign << (self.bits - 1)) | (kept * (((e + bias) as u64) << fraction | digits))
            })
            .collect()
    }
}

/// All values here are multiples of 2^-UNIT: 24 digits below 2^-15.
pub const UNIT: i32 = 40;

/// An f32, f16 or bf16 of moderate size in units of 2^-UNIT, exactly.
pub fn units(x: f64) -> i128 {
    let scaled = x * 2f64.powi(UNIT);
    assert_eq!(scaled, scaled.trunc());
    scaled as i128
}

/// v·2^-scale rounded once to a format, by integer arithmetic.
pub fn rounded(v: i128, scale: i32, f: Format, mode: &str) -> f64 {
    if v == 0 {
        return 0.0;
    }
    let magnitude = v.unsigned_abs();
    let exponent = 127 - magnitude.leading_zeros() as i32 - scale;
    let ulp = exponent.max(f.least) - (f.digits as i32 - 1);
    let drop = ulp + scale;
    let up = |q: u128, rest: std::cmp::Ordering, exact: bool| match mode {
        "rn" => rest.is_gt() || rest.is_eq() && q & 1 == 1,
        "rz" => false,
        "rm" => !exact && v < 0,
        _ => !exact && v > 0,
    };
    let q = if drop <= 0 {
        magnitude << -drop
    } else {
        let drop = drop.min(126) as u32;
        let (q, rest) = (magnitude >> drop, magnitude & ((1 << drop) - 1));
        q + u128::from(up(q, rest.cmp(&(1 << (drop - 1))), rest == 0))
    };
    // In two steps, each exact: 2^-149 and its kin are no f64 divisors of their own.
    let r = q as f64 * 2f64.powi(ulp);
    let largest = (2.0 - 2f64.powi(1 - f.digits as i32)) * 2f64.powi(f.most);
    let r = if r <= largest {
        r
    } else if mode == "rn" || mode == "rp" && v > 0 || mode == "rm" && v < 0 {
        f64::INFINITY
    } else {
        largest
    };
    if v < 0 { -r } else { r }
}

pub const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];
