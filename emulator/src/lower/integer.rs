//! Integer, bit and predicate arithmetic.

use super::data::pred_exec;
use super::{Lowerer, Op, Words};
use crate::lanes::{Exec, Lane, Lanes, WARP, map1, map2, map3};
use crate::ptx::{PtxError, type_size};

/// Instantiates an expression for a signed or unsigned integer type named by a PTX word.
macro_rules! by_type {
    ($w:expr, $ty:expr, $t:ident => $e:expr) => {
        match $ty {
            "u16" | "b16" => {
                type $t = u16;
                $e
            }
            "s16" => {
                type $t = i16;
                $e
            }
            "u32" | "b32" => {
                type $t = u32;
                $e
            }
            "s32" => {
                type $t = i32;
                $e
            }
            "u64" | "b64" => {
                type $t = u64;
                $e
            }
            "s64" => {
                type $t = i64;
                $e
            }
            _ => return Err($w.unsupported()),
        }
    };
}

impl<'a> Lowerer<'a> {
    pub(super) fn integer(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let inst = w.inst;
        let opcode = inst.opcode.as_str();
        let ty = w.last();
        if ty == "pred" {
            return self.logic(w);
        }
        let size = type_size(ty).ok_or_else(|| w.unsupported())?;
        let n = inst.operands.len();
        match (opcode, n) {
            ("mul" | "mad", _) => return self.multiply(w, ty, size),
            ("add" | "sub", _) if w.take("cc") => {
                return self.carry(w, size, opcode == "sub", false, true);
            }
            ("addc" | "subc", _) => {
                let out = w.take("cc");
                return self.carry(w, size, opcode == "subc", true, out);
            }
            ("shf", _) => return self.funnel(w),
            _ => {}
        }
        let shift = matches!(opcode, "shl" | "shr");
        // popc and clz give 32 bits whatever they count in.
        let counts = matches!(opcode, "popc" | "clz");
        let d = self.dest(&w, 0, if counts { 4 } else { size })?.row;
        let a = self.source(&w, 1, size)?.row;
        if n == 2 {
            let run = match opcode {
                "neg" => by_type!(w, ty, T => map1(d, a, |a: T| a.wrapping_neg())),
                "not" => by_type!(w, ty, T => map1(d, a, |a: T| !a)),
                "abs" => match ty {
                    "s16" => map1(d, a, |a: i16| a.wrapping_abs()),
                    "s32" => map1(d, a, |a: i32| a.wrapping_abs()),
                    "s64" => map1(d, a, |a: i64| a.wrapping_abs()),
                    _ => return Err(w.unsupported()),
                },
                "popc" => by_type!(w, ty, T => map1(d, a, |a: T| a.count_ones())),
                "clz" => by_type!(w, ty, T => map1(d, a, |a: T| a.leading_zeros())),
                _ => return Err(w.unsupported()),
            };
            return self.alu(&w, run);
        }
        let b = self
            .source(
                &w,
                2,
                if shift || matches!(opcode, "bfe" | "prmt") {
                    4
                } else {
                    size
                },
            )?
            .row;
        if n == 3 {
            let run = match opcode {
                "add" if !w.take("sat") => {
                    by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a.wrapping_add(b)))
                }
                "add" if ty == "s32" => map2(d, a, b, |a: i32, b: i32| a.saturating_add(b)),
                "sub" if !w.take("sat") => {
                    by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a.wrapping_sub(b)))
                }
                "sub" if ty == "s32" => map2(d, a, b, |a: i32, b: i32| a.saturating_sub(b)),
                // By zero: unspecified by the ISA; all ones, as devices do.
                "div" => {
                    by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) }))
                }
                "rem" => {
                    by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) }))
                }
                "min" => by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a.min(b))),
                "max" => by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a.max(b))),
                "and" => by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a & b)),
                "or" => by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a | b)),
                "xor" => by_type!(w, ty, T => map2(d, a, b, |a: T, b: T| a ^ b)),
                // Shift amounts saturate.
                "shl" => {
                    by_type!(w, ty, T => map2(d, a, b, |a: T, s: u32| if s >= T::BITS { 0 } else { a << s }))
                }
                "shr" => by_type!(w, ty, T => map2(d, a, b, |a: T, s: u32| {
                    // An arithmetic shift fills with the sign, a logical one with zeros.
                    if s >= T::BITS { (a >> (T::BITS - 1)) >> 1 } else { a >> s }
                })),
                _ => return Err(w.unsupported()),
            };
            return self.alu(&w, run);
        }
        if n == 4 {
            let c = self.source(&w, 3, 4)?.row;
            let run = match (opcode, ty) {
                ("bfe", "u32") => map3(d, a, b, c, |a: u32, p: u32, n: u32| {
                    extract(u64::from(a), p, n, 32, false) as u32
                }),
                ("bfe", "s32") => map3(d, a, b, c, |a: u32, p: u32, n: u32| {
                    extract(u64::from(a), p, n, 32, true) as u32
                }),
                ("bfe", "u64") => map3(d, a, b, c, |a: u64, p: u32, n: u32| {
                    extract(a, p, n, 64, false)
                }),
                ("bfe", "s64") => map3(d, a, b, c, |a: u64, p: u32, n: u32| {
                    extract(a, p, n, 64, true)
                }),
                ("prmt", "b32") => map3(d, a, b, c, permute),
                _ => return Err(w.unsupported()),
            };
            return self.alu(&w, run);
        }
        if n == 5 {
            let (c, e) = (self.source(&w, 3, 4)?.row, self.source(&w, 4, 4)?.row);
            let run = match (opcode, size) {
                ("bfi", 4) => insert::<u32>(d, a, b, c, e),
                ("bfi", 8) => insert::<u64>(d, a, b, c, e),
                _ => return Err(w.unsupported()),
            };
            return self.alu(&w, run);
        }
        Err(w.unsupported())
    }

    /// `and.pred` and its kin: one operation for all lanes.
    fn logic(&mut self, w: Words<'a>) -> Result<Op, PtxError> {
        let ops = &w.inst.operands;
        let d = self.pred_dest(&w, &ops[0])?;
        let mut sources = Vec::new();
        for o in &ops[1..] {
            let (p, negated) = self.pred(&w, o)?;
            sources.push((p as usize, if negated { u32::MAX } else { 0 }));
        }
        let run = match (w.inst.opcode.as_str(), sources.as_slice()) {
            ("not", &[(a, na)]) => pred_exec(d, move |l| !(l.preds[a] ^ na)),
            ("and", &[(a, na), (b, nb)]) => {
                pred_exec(d, move |l| (l.preds[a] ^ na) & (l.preds[b] ^ nb))
            }
            ("or", &[(a, na), (b, nb)]) => {
                pred_exec(d, move |l| (l.preds[a] ^ na) | (l.preds[b] ^ nb))
            }
            ("xor", &[(a, na), (b, nb)]) => {
                pred_exec(d, move |l| (l.preds[a] ^ na) ^ (l.preds[b] ^ nb))
            }
            _ => return Err(w.unsupported()),
        };
        self.alu(&w, run)
    }

    fn multiply(&mut self, mut w: Words<'a>, ty: &str, size: u8) -> Result<Op, PtxError> {
        let half = w.take_map(|m| match m {
            "lo" => Some('l'),
            "hi" => Some('h'),
            "wide" => Some('w'),
            _ => None,
        });
        let half = half.ok_or_else(|| w.unsupported())?;
        let mad = w.inst.opcode == "mad";
        let wide_size = if half == 'w' { size * 2 } else { size };
        let d = self.dest(&w, 0, wide_size)?.row;
        let (a, b) = (self.source(&w, 1, size)?.row, self.source(&w, 2, size)?.row);
        // mul is mad with 0.
        let c = if mad {
            self.source(&w, 3, wide_size)?.row
        } else {
            self.constant(super::Constant::Value(0), wide_size == 8).row
        };
        let run = match (half, ty) {
            ('l', "u16" | "s16") => map3(d, a, b, c, |a: u16, b: u16, c: u16| {
                a.wrapping_mul(b).wrapping_add(c)
            }),
            ('l', "u32" | "s32" | "b32") if mad => map3(d, a, b, c, |a: u32, b: u32, c: u32| {
                a.wrapping_mul(b).wrapping_add(c)
            }),
            ('l', "u32" | "s32" | "b32") => map2(d, a, b, |a: u32, b: u32| a.wrapping_mul(b)),
            ('l', "u64" | "s64" | "b64") if mad => map3(d, a, b, c, |a: u64, b: u64, c: u64| {
                a.wrapping_mul(b).wrapping_add(c)
            }),
            ('l', "u64" | "s64" | "b64") => map2(d, a, b, |a: u64, b: u64| a.wrapping_mul(b)),
            ('h', "u16") => map3(d, a, b, c, |a: u16, b: u16, c: u16| {
                (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c)
            }),
            ('h', "s16") => map3(d, a, b, c, |a: i16, b: i16, c: u16| {
                (((i32::from(a) * i32::from(b)) >> 16) as u16).wrapping_add(c)
            }),
            ('h', "u32") => map3(d, a, b, c, |a: u32, b: u32, c: u32| {
                ((u64::from(a) * u64::from(b)) >> 32).wrapping_add(u64::from(c)) as u32
            }),
            ('h', "s32") => map3(d, a, b, c, |a: i32, b: i32, c: u32| {
                ((i64::from(a) * i64::from(b)) >> 32).wrapping_add(i64::from(c)) as u32
            }),
            ('h', "u64") => map3(d, a, b, c, |a: u64, b: u64, c: u64| {
                ((u128::from(a) * u128::from(b)) >> 64).wrapping_add(u128::from(c)) as u64
            }),
            ('h', "s64") => map3(d, a, b, c, |a: i64, b: i64, c: u64| {
                ((i128::from(a) * i128::from(b)) >> 64).wrapping_add(i128::from(c)) as u64
            }),
            ('w', "u16") => map3(d, a, b, c, |a: u16, b: u16, c: u32| {
                (u32::from(a) * u32::from(b)).wrapping_add(c)
            }),
            ('w', "s16") => map3(d, a, b, c, |a: i16, b: i16, c: i32| {
                (i32::from(a) * i32::from(b)).wrapping_add(c)
            }),
            ('w', "u32") => map3(d, a, b, c, |a: u32, b: u32, c: u64| {
                (u64::from(a) * u64::from(b)).wrapping_add(c)
            }),
            ('w', "s32") => map3(d, a, b, c, |a: i32, b: i32, c: i64| {
                (i64::from(a) * i64::from(b)).wrapping_add(c)
            }),
            _ => return Err(w.unsupported()),
        };
        self.alu(&w, run)
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`.
    fn carry(
        &mut self,
        w: Words<'a>,
        size: u8,
        subtract: bool,
        take: bool,
        give: bool,
    ) -> Result<Op, PtxError> {
        let d = self.dest(&w, 0, size)?;
        let (a, b) = (self.source(&w, 1, size)?, self.source(&w, 2, size)?);
        let bits = u32::from(size) * 8;
        let run: Exec = Box::new(move |l: &mut Lanes, mask| {
            let (x, y) = (l.load_raw(a.row, a.wide), l.load_raw(b.row, b.wide));
            let mut out = [0; WARP];
            let mut carry = 0;
            for i in 0..WARP {
                let c = u128::from(take && l.carry & (1 << i) != 0);
                let full = if subtract {
                    u128::from(x[i])
                        .wrapping_sub(u128::from(y[i]))
                        .wrapping_sub(c)
                } else {
                    u128::from(x[i]) + u128::from(y[i]) + c
                };
                out[i] = full as u64;
                carry |= u32::from(full >> bits & 1 != 0) << i;
            }
            l.store_raw(d.row, d.wide, mask, &out);
            if give {
                l.carry = l.carry & !mask | carry & mask;
            }
        });
        self.alu(&w, run)
    }

    /// `shf.{l,r}.{wrap,clamp}.b32 d, lo, hi, n`.
    fn funnel(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let (left, wrap) = (w.first() == "l", w.first() == "wrap");
        let d = self.dest(&w, 0, 4)?.row;
        let (a, b, c) = (
            self.source(&w, 1, 4)?.row,
            self.source(&w, 2, 4)?.row,
            self.source(&w, 3, 4)?.row,
        );
        self.alu(
            &w,
            map3(d, a, b, c, move |lo: u32, hi: u32, n: u32| {
                let n = if wrap { n & 31 } else { n.min(32) };
                let both = u64::from(hi) << 32 | u64::from(lo);
                if left {
                    ((u128::from(both) << n) >> 32) as u32
                } else {
                    (both >> n) as u32
                }
            }),
        )
    }
}

/// `bfe`.
fn extract(a: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (p, n) = (position & 0xff, length & 0xff);
    let top = (p + n).min(bits).wrapping_sub(1) & 63;
    let sign = signed && n != 0 && a >> top.min(bits - 1) & 1 != 0;
    let fill = if sign { u64::MAX } else { 0 };
    if n == 0 {
        return 0;
    }
    let shifted = if p >= bits { 0 } else { a >> p };
    let have = bits.saturating_sub(p).min(n);
    if have >= 64 {
        shifted
    } else {
        shifted & ((1 << have) - 1) | fill << have
    }
}

/// `bfi`: `length` bits of a inserted into b at `position`.
fn insert<T: Lane + Into<u64>>(d: u32, a: u32, b: u32, position: u32, length: u32) -> Exec {
    let wide = size_of::<T>() == 8;
    Box::new(move |l, mask| {
        let (x, y) = (T::load(l, a), T::load(l, b));
        let (p, n) = (u32::load(l, position), u32::load(l, length));
        let mut out = [0u64; WARP];
        for i in 0..WARP {
            let (p, n) = (p[i] & 0xff, n[i] & 0xff);
            let field = if n >= 64 { u64::MAX } else { (1 << n) - 1 };
            let field = if p >= 64 { 0 } else { field << p };
            let value = if p >= 64 { 0 } else { x[i].into() << p };
            out[i] = y[i].into() & !field | value & field;
        }
        l.store_raw(d, wide, mask, &out);
    })
}

/// `prmt` in its default mode.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for i in 0..4 {
        let s = selector >> (4 * i);
        let byte = (bytes >> (8 * (s & 7)) & 0xff) as u32;
        let byte = if s & 8 != 0 { (byte >> 7) * 0xff } else { byte };
        out |= byte << (8 * i);
    }
    out
}
