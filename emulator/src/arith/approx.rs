//! The `.approx` instructions: any value inside the documented error bound.
//!
//! The function is computed in f64, and [`Approx`] selects a value of the allowed interval.
//! Cases that the PTX ISA defines exactly are exact in every mode.

use super::float::{NAN32, Rounding, canonical, flush};
use super::half::Format;
use crate::settings::Approx;

/// How far a result may lie from the exact value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// Units in the last place from the correctly rounded result.
    Ulps(i32),
    Relative(f64),
    Absolute(f64),
}

/// Position of a float among all floats, in order.
fn order(x: f32) -> i32 {
    let b = x.to_bits() as i32;
    if b < 0 { i32::MIN.wrapping_sub(b) } else { b }
}

fn from_order(o: i32) -> f32 {
    f32::from_bits(if o < 0 { i32::MIN.wrapping_sub(o) } else { o } as u32)
}

/// The lowest and the highest float inside the bound, as positions.
fn interval(exact: f64, bound: Bound) -> (i32, i32) {
    let nearest = exact as f32;
    let near = order(nearest);
    let margin = match bound {
        Bound::Ulps(n) => return (near - n, near + n),
        Bound::Relative(r) => exact.abs() * r,
        Bound::Absolute(a) => a,
    };
    let (low, high) = (exact - margin, exact + margin);
    let mut lo = order(low as f32);
    if f64::from(from_order(lo)) < low {
        lo += 1;
    }
    let mut hi = order(high as f32);
    if f64::from(from_order(hi)) > high {
        hi -= 1;
    }
    // A subnormal or zero result may have no other float inside.
    (lo.min(near), hi.max(near))
}

/// A value inside the bound, of the sign of `exact`.
fn choose(mode: Approx, opcode: u64, operand: u64, exact: f64, bound: Bound) -> f32 {
    let x = choose_of_any_sign(mode, opcode, operand, exact, bound);
    if exact > 0.0 {
        x.max(0.0)
    } else if exact < 0.0 {
        x.min(-0.0)
    } else {
        x
    }
}

/// As [`choose`], where the result may have either sign.
fn choose_of_any_sign(mode: Approx, opcode: u64, operand: u64, exact: f64, bound: Bound) -> f32 {
    let nearest = exact as f32;
    if mode == Approx::Nearest || !nearest.is_finite() {
        return nearest;
    }
    let (lo, hi) = interval(exact, bound);
    from_order(match mode {
        Approx::Nearest => order(nearest),
        Approx::Lowest => lo,
        Approx::Highest => hi,
        Approx::Seeded(seed) => {
            let h = hash(seed ^ hash(opcode ^ hash(operand)));
            lo + ((u128::from(h) * u128::from((hi - lo) as u64 + 1)) >> 64) as i32
        }
    })
}

/// A well-mixed function of 64 bits (splitmix64's finaliser).
pub(crate) fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const NAN: f32 = f32::from_bits(NAN32);

fn key(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// Documented exact cases: ±0 → 1, −inf → 0, +inf → inf.
pub(crate) fn ex2(mode: Approx, x: f32, ftz: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if x == 0.0 || x.is_infinite() || x.is_nan() {
        return canonical(x.exp2());
    }
    let r = choose(mode, 1, key(x), exp2(f64::from(x)), Bound::Ulps(2));
    if ftz { flush(r) } else { r }
}

/// 2^x within 2^-46, for |x| below 2^31: a series on [−1/2, 1/2], no table, no call.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    // Past these the f32 result is 0 or infinite.
    let x = x.clamp(-160.0, 140.0);
    const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5·2^52: adding it rounds to an integer
    let shifted = x + MAGIC;
    let n = shifted - MAGIC;
    let t = (x - n) * std::f64::consts::LN_2;
    let mut r = 1.0 / 6_227_020_800.0;
    for k in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        r = r * t + 1.0 / k;
    }
    let scale = f64::from_bits(((n as i64 + 1023) as u64) << 52);
    r * scale
}

/// ±0 → −inf, negative → NaN, +inf → inf.
pub(crate) fn lg2(mode: Approx, x: f32, ftz: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x < 0.0 || x.is_nan() {
        return NAN;
    }
    if x.is_infinite() || x == 1.0 {
        return if x == 1.0 { 0.0 } else { x };
    }
    let bound = if x > 0.5 && x < 2.0 {
        Bound::Absolute(2f64.powi(-22))
    } else {
        Bound::Relative(2f64.powi(-22))
    };
    let exact = f64::from(x).log2();
    // Near 1 the bound is absolute and wider than the value: the sign is not promised.
    let r = match bound {
        Bound::Absolute(_) => choose_of_any_sign(mode, 2, key(x), exact, bound),
        _ => choose(mode, 2, key(x), exact, bound),
    };
    if ftz { flush(r) } else { r }
}

/// ±0 → ±inf, ±inf → ±0.
pub(crate) fn rcp(mode: Approx, x: f32, ftz: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if x == 0.0 || x.is_infinite() || x.is_nan() {
        return canonical(1.0 / x);
    }
    let r = choose(mode, 3, key(x), 1.0 / f64::from(x), Bound::Ulps(1));
    if ftz { flush(r) } else { r }
}

/// ±0 → ±0, +inf → inf, negative → NaN.
pub(crate) fn sqrt(mode: Approx, x: f32, ftz: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if x == 0.0 || x.is_nan() || x < 0.0 || x.is_infinite() {
        return canonical(x.sqrt());
    }
    let r = choose(
        mode,
        4,
        key(x),
        f64::from(x).sqrt(),
        Bound::Relative(2f64.powi(-23)),
    );
    if ftz { flush(r) } else { r }
}

/// ±0 → ±inf, +inf → 0, negative → NaN.
pub(crate) fn rsqrt(mode: Approx, x: f32, ftz: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if x == 0.0 {
        return f32::INFINITY.copysign(x);
    }
    if x.is_nan() || x < 0.0 {
        return NAN;
    }
    if x.is_infinite() {
        return 0.0;
    }
    choose(
        mode,
        5,
        key(x),
        1.0 / f64::from(x).sqrt(),
        Bound::Relative(2f64.powf(-22.9)),
    )
}

/// `div.approx` (`full` false) loses divisors above 2^126: finite/b is 0 and inf/b is NaN.
pub(crate) fn div(mode: Approx, a: f32, b: f32, ftz: bool, full: bool) -> f32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let exact = f64::from(a) / f64::from(b);
    if !full && b.is_finite() && b.abs() > 2f32.powi(126) {
        return if a.is_infinite() || a.is_nan() {
            NAN
        } else {
            0.0f32.copysign(exact as f32)
        };
    }
    if a == 0.0 || b == 0.0 || !a.is_finite() || !b.is_finite() {
        return canonical(a / b);
    }
    let r = choose(mode, 6, key(a) << 32 | key(b), exact, Bound::Ulps(2));
    if ftz { flush(r) } else { r }
}

/// ±0 → ±0, ±inf → ±1, never beyond ±1.
pub(crate) fn tanh(mode: Approx, x: f32) -> f32 {
    if x == 0.0 || x.is_nan() || x.is_infinite() {
        return canonical(x.tanh());
    }
    choose(
        mode,
        7,
        key(x),
        f64::from(x).tanh(),
        Bound::Relative(2f64.powi(-11)),
    )
    .clamp(-1.0, 1.0)
}

/// `ex2.approx` of f16 (relative error 2^-9.9) and, with `.ftz`, of bf16 (2^-7).
pub(crate) fn ex2_half(mode: Approx, f: Format, x: u16) -> u16 {
    let wide = f.widen(x);
    let wide = if f == Format::Bf16 { flush(wide) } else { wide };
    if wide == 0.0 || !wide.is_finite() {
        return f.round(f64::from(wide.exp2()), Rounding::Nearest);
    }
    let relative = 2f64.powf(if f == Format::F16 { -9.9 } else { -7.0 });
    let exact = exp2(f64::from(wide));
    let y = choose_half(mode, 10, f, x, exact, exact * relative);
    let subnormal = f == Format::Bf16 && y & 0x7f80 == 0;
    if subnormal { y & 0x8000 } else { y }
}

/// `tanh.approx` of f16 (absolute error 2^-10.987) and bf16 (2^-8); never beyond ±1.
pub(crate) fn tanh_half(mode: Approx, f: Format, x: u16) -> u16 {
    let wide = f.widen(x);
    if wide == 0.0 || !wide.is_finite() {
        return f.round(f64::from(wide.tanh()), Rounding::Nearest);
    }
    let absolute = 2f64.powf(if f == Format::F16 { -10.987 } else { -8.0 });
    let y = choose_half(mode, 11, f, x, f64::from(wide).tanh(), absolute);
    f.round(f64::from(f.widen(y).clamp(-1.0, 1.0)), Rounding::Nearest)
}

/// A 16-bit value within `margin` of `exact`; the nearest one if there is no other.
fn choose_half(mode: Approx, opcode: u64, f: Format, operand: u16, exact: f64, margin: f64) -> u16 {
    let at = match mode {
        Approx::Nearest => 0.0,
        Approx::Lowest => -1.0,
        Approx::Highest => 1.0,
        Approx::Seeded(seed) => {
            let h = hash(seed ^ hash(opcode ^ hash(u64::from(operand))));
            (h >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    };
    // Towards the exact value, so that rounding does not leave the interval. The correctly rounded value is
    // always allowed, also where it is infinite or there is no other.
    let inward = if at > 0.0 {
        Rounding::Down
    } else {
        Rounding::Up
    };
    let nearest = f.round(exact, Rounding::Nearest);
    let y = f.round(exact + at * margin, inward);
    let beyond = match mode {
        Approx::Lowest => f.widen(y) > f.widen(nearest),
        Approx::Highest => f.widen(y) < f.widen(nearest),
        _ => false,
    };
    if at == 0.0 || beyond || (f64::from(f.widen(y)) - exact).abs() > margin {
        nearest
    } else {
        y
    }
}
