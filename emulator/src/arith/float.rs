//! IEEE arithmetic with any rounding.
//!
//! Every f32 operation that the native one does not cover is computed in f64 *rounded to odd*: the
//! exact result, truncated, with its last bit set if anything was lost. f64 has more than twice
//! the digits of f32 plus two, so one further rounding of that value, in any mode, is the rounding
//! of the exact result.

/// The NaN that arithmetic produces.
pub(crate) const NAN32: u32 = 0x7fff_ffff;

/// Rounding of floating-point results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Replaces any NaN by the NaN that the hardware returns.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN32) } else { x }
}

/// `.ftz`: a subnormal becomes zero of its sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    let b = x.to_bits();
    if b & 0x7f80_0000 == 0 {
        f32::from_bits(b & 0x8000_0000)
    } else {
        x
    }
}

/// `.sat`: into [0, 1]; NaN becomes 0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    // Written so that NaN and −0 give +0.
    if x > 0.0 {
        if x < 1.0 { x } else { 1.0 }
    } else {
        0.0
    }
}

/// The exact value `sum + error`, rounded to odd, where `sum` is a rounded result and `error` its rounding error.
fn to_odd(sum: f64, error: f64) -> f64 {
    if error == 0.0 || !sum.is_finite() || error.is_nan() {
        return sum;
    }
    let bits = sum.to_bits();
    if bits & 1 == 1 {
        return sum;
    }
    // Even: the neighbour towards the exact value is odd, and lies on the same side.
    let away = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// a + b rounded to odd. Finite operands whose sum does not overflow.
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    let error = (a - (s - t)) + (b - t);
    to_odd(s, error)
}

/// a·b + c for values of at most 24 digits: the product is exact in f64.
pub(crate) fn fma_odd(a: f32, b: f32, c: f32) -> f64 {
    add_odd(f64::from(a) * f64::from(b), f64::from(c))
}

pub(crate) fn div_odd(a: f32, b: f32) -> f64 {
    let (a, b) = (f64::from(a), f64::from(b));
    let q = a / b;
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    // The remainder a − q·b is a double; its sign over b's says on which side the quotient lies.
    let r = (-q).mul_add(b, a);
    to_odd(q, if b > 0.0 { r } else { -r })
}

pub(crate) fn sqrt_odd(a: f32) -> f64 {
    let a = f64::from(a);
    let s = a.sqrt();
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    to_odd(s, (-s).mul_add(s, a))
}

/// Rounds a double to a binary format with `digits` digits (the hidden one included) and exponents
/// down to `min_exp` (that of the smallest normal) and up to `max_exp`. The result is again a
/// double, possibly infinite.
pub(crate) fn round_to(x: f64, digits: i32, min_exp: i32, max_exp: i32, mode: Rounding) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let e = exponent(x).max(min_exp);
    // Spacing of the format's values near x: a power of two. Both scalings are exact, since all
    // formats here are much smaller than f64.
    let ulp = pow2(e - digits + 1);
    let scaled = x / ulp;
    let integer = match mode {
        Rounding::Nearest => scaled.round_ties_even(),
        Rounding::Zero => scaled.trunc(),
        Rounding::Down => scaled.floor(),
        Rounding::Up => scaled.ceil(),
    };
    let r = integer * ulp;
    let max = (2.0 - pow2(1 - digits)) * pow2(max_exp);
    let r = if r.abs() > max {
        match (mode, x > 0.0) {
            (Rounding::Nearest, _) | (Rounding::Up, true) | (Rounding::Down, false) => {
                f64::INFINITY.copysign(x)
            }
            _ => max.copysign(x),
        }
    } else {
        r
    };
    // Keeps the sign of a result that rounded to zero.
    if r == 0.0 { 0.0f64.copysign(x) } else { r }
}

/// floor(log2 |x|) of a finite nonzero double that is not subnormal.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

fn pow2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Rounds a double once to f32.
pub(crate) fn to_f32(x: f64, mode: Rounding) -> f32 {
    match mode {
        Rounding::Nearest => canonical(x as f32),
        _ if x.is_nan() => f32::from_bits(NAN32),
        _ => round_to(x, 24, -126, 127, mode) as f32,
    }
}

/// A sum rounded in a directed mode. An exact zero is −0 when rounding down, and +0 otherwise.
fn directed_sum(x: f64, mode: Rounding) -> f32 {
    match (x == 0.0, mode) {
        (true, Rounding::Down) => -0.0,
        (true, _) => 0.0,
        _ => to_f32(x, mode),
    }
}

/// a + b.
pub(crate) fn add(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest || !a.is_finite() || !b.is_finite() {
        return canonical(a + b);
    }
    // The sign of a sum of zeros.
    if a == 0.0 && b == 0.0 && a.is_sign_negative() == b.is_sign_negative() {
        return a;
    }
    directed_sum(add_odd(f64::from(a), f64::from(b)), mode)
}

/// a · b.
pub(crate) fn mul(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a * b);
    }
    to_f32(f64::from(a) * f64::from(b), mode)
}

/// a · b + c, rounded once.
pub(crate) fn fma(a: f32, b: f32, c: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest || !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return canonical(a.mul_add(b, c));
    }
    let p = f64::from(a) * f64::from(b);
    if p == 0.0 && c == 0.0 && p.is_sign_negative() == c.is_sign_negative() {
        return c;
    }
    directed_sum(fma_odd(a, b, c), mode)
}

/// a / b.
pub(crate) fn div(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a / b);
    }
    to_f32(div_odd(a, b), mode)
}

/// √a.
pub(crate) fn sqrt(a: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a.sqrt());
    }
    to_f32(sqrt_odd(a), mode)
}

/// `min`: a NaN operand is ignored unless `propagate`; −0 is below +0.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32, propagate: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return nan_of(a, b, propagate);
    }
    if a == b {
        return if a.is_sign_negative() { a } else { b };
    }
    if a < b { a } else { b }
}

/// `max`: a NaN operand is ignored unless `propagate`; +0 is above −0.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32, propagate: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return nan_of(a, b, propagate);
    }
    if a == b {
        return if a.is_sign_negative() { b } else { a };
    }
    if a > b { a } else { b }
}

fn nan_of(a: f32, b: f32, propagate: bool) -> f32 {
    if propagate || (a.is_nan() && b.is_nan()) {
        f32::from_bits(NAN32)
    } else if a.is_nan() {
        b
    } else {
        a
    }
}

/// All lanes of `fma.rn.f32`: the native instruction where the CPU has it.
#[inline]
pub(crate) fn fma_lanes(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32]) -> [f32; 32] {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn native(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32]) -> [f32; 32] {
            let mut out = [0.0; 32];
            for i in 0..32 {
                out[i] = canonical(a[i].mul_add(b[i], c[i]));
            }
            out
        }
        if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has both features, as just asked.
            return unsafe { native(a, b, c) };
        }
    }
    let mut out = [0.0; 32];
    for i in 0..32 {
        out[i] = canonical(a[i].mul_add(b[i], c[i]));
    }
    out
}

/// A float that is no NaN to an integer of `bits` bits, saturating. The result is sign- or zero-extended.
pub(crate) fn to_integer(x: f64, mode: Rounding, signed: bool, bits: u32) -> u64 {
    let x = match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    };
    // `as` saturates; narrower types are clamped after it.
    if signed {
        let (lo, hi) = if bits == 64 {
            (i64::MIN, i64::MAX)
        } else {
            (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1)
        };
        (x as i64).clamp(lo, hi) as u64
    } else {
        (x as u64).min(if bits == 64 {
            u64::MAX
        } else {
            (1 << bits) - 1
        })
    }
}

/// An integer of at most 64 bits, rounded to odd: one further rounding to f32 or 16 bits is exact.
pub(crate) fn integer_odd(v: i128) -> f64 {
    let magnitude = v.unsigned_abs();
    let lost = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let sticky = u128::from(magnitude & ((1 << lost) - 1) != 0);
    let x = ((magnitude >> lost) | sticky) as f64 * pow2(lost as i32);
    if v < 0 { -x } else { x }
}

/// An integer to f32, rounded once.
pub(crate) fn from_integer(v: i128, mode: Rounding) -> f32 {
    to_f32(integer_odd(v), mode)
}
