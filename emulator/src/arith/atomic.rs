//! The arithmetic of atomics.

use super::float::{canonical, flush};
use super::half::{self, Format};
use crate::lower::AtomicKind;

/// The new value of a memory cell.
pub(crate) fn combine(kind: AtomicKind, width: u8, shared: bool, old: u64, b: u64, c: u64) -> u64 {
    // A 16-bit register may hold more above its bits.
    let (b, c) = if width == 2 {
        (b & 0xffff, c & 0xffff)
    } else {
        (b, c)
    };
    let signed = |v: u64| {
        let s = 64 - 8 * u32::from(width);
        (v << s) as i64 >> s
    };
    let pair = |f: fn(Format, u16, u16) -> u16, format| {
        u64::from(f(format, old as u16, b as u16))
            | u64::from(f(format, (old >> 16) as u16, (b >> 16) as u16)) << 16
    };
    match kind {
        AtomicKind::And => old & b,
        AtomicKind::Or => old | b,
        AtomicKind::Xor => old ^ b,
        AtomicKind::Exchange => b,
        AtomicKind::CompareAndSwap => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomicKind::Add => old.wrapping_add(b),
        AtomicKind::AddF32 => {
            let (x, y) = (f32::from_bits(old as u32), f32::from_bits(b as u32));
            let sum = if shared {
                x + y
            } else {
                flush(flush(x) + flush(y))
            };
            u64::from(canonical(sum).to_bits())
        }
        AtomicKind::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomicKind::AddF16 => u64::from(half::add(Format::F16, old as u16, b as u16)),
        AtomicKind::AddBf16 => u64::from(half::add(Format::Bf16, old as u16, b as u16)),
        AtomicKind::AddF16x2 => pair(half::add, Format::F16),
        AtomicKind::AddBf16x2 => pair(half::add, Format::Bf16),
        AtomicKind::Increment => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomicKind::MinU => old.min(b),
        AtomicKind::MaxU => old.max(b),
        AtomicKind::MinS => signed(old).min(signed(b)) as u64,
        AtomicKind::MaxS => signed(old).max(signed(b)) as u64,
    }
}
