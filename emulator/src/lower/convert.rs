//! `cvt`.

use super::floating::rounding;
use super::{Lowerer, Op, Words};
use crate::arith::float::{self, Rounding, canonical, flush, saturate};
use crate::arith::half::{self, Format};
use crate::lanes::{Exec, WARP, map1, map2};
use crate::ptx::{PtxError, type_size};

/// Source and destination types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Int { bits: u32, signed: bool },
    Half(Format),
    F32,
    F64,
}

fn parse_type(s: &str) -> Option<Type> {
    Some(match s {
        "f16" => Type::Half(Format::F16),
        "bf16" => Type::Half(Format::Bf16),
        "f32" => Type::F32,
        "f64" => Type::F64,
        s => {
            let signed = s.starts_with('s');
            if !signed && !s.starts_with('u') {
                return None;
            }
            Type::Int {
                bits: u32::from(type_size(s)?) * 8,
                signed,
            }
        }
    })
}

impl<'a> Lowerer<'a> {
    pub(super) fn convert(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let (from_word, to_word) = (w.last(), w.last());
        let ftz = w.take("ftz");
        let sat = w.take("sat");
        let integer_rounding = w.take_map(|m| match m {
            "rni" => Some(Rounding::Nearest),
            "rzi" => Some(Rounding::Zero),
            "rmi" => Some(Rounding::Down),
            "rpi" => Some(Rounding::Up),
            _ => None,
        });
        let mode = rounding(&mut w);
        if let ("f16x2" | "bf16x2", "f32") = (to_word, from_word) {
            // The first source becomes the upper half.
            let d = self.dest(&w, 0, 4)?.row;
            let (a, b) = (self.source(&w, 1, 4)?.row, self.source(&w, 2, 4)?.row);
            let run = if to_word == "f16x2" {
                map2(d, a, b, |hi: f32, lo: f32| {
                    u32::from(half::f32_to_f16(hi)) << 16 | u32::from(half::f32_to_f16(lo))
                })
            } else {
                map2(d, a, b, |hi: f32, lo: f32| {
                    u32::from(half::f32_to_bf16(hi)) << 16 | u32::from(half::f32_to_bf16(lo))
                })
            };
            return self.alu(&w, run);
        }
        let (from, to) = match (parse_type(from_word), parse_type(to_word)) {
            (Some(f), Some(t)) => (f, t),
            _ => return Err(w.unsupported()),
        };
        // Registers may be larger than the types.
        let size = |s: &str| type_size(s).unwrap_or(4);
        let d = self.dest_sized(&w, &w.inst.operands[0], size(to_word), true)?;
        let a = self.source_sized(&w, &w.inst.operands[1], size(from_word), true)?;
        let plain = !ftz && !sat;
        let run: Exec = match (from, to, mode, integer_rounding) {
            // The frequent ones, as plain loops.
            (Type::Half(Format::F16), Type::F32, None, None) if plain => {
                map1(d.row, a.row, half::f16_to_f32)
            }
            (Type::Half(Format::Bf16), Type::F32, None, None) if plain => {
                map1(d.row, a.row, half::bf16_to_f32)
            }
            (Type::F32, Type::Half(Format::F16), Some(Rounding::Nearest), None) if plain => {
                map1(d.row, a.row, half::f32_to_f16)
            }
            (Type::F32, Type::Half(Format::Bf16), Some(Rounding::Nearest), None) if plain => {
                map1(d.row, a.row, half::f32_to_bf16)
            }
            (Type::F32, Type::F32, None, None) if sat => map1(d.row, a.row, move |x: f32| {
                saturate(if ftz { flush(x) } else { x })
            }),
            (
                Type::Int {
                    bits: 32,
                    signed: true,
                },
                Type::F32,
                Some(Rounding::Nearest),
                None,
            ) if plain => map1(d.row, a.row, |x: i32| x as f32),
            (
                Type::Int { bits, signed },
                Type::Int {
                    bits: to_bits,
                    signed: to_signed,
                },
                None,
                None,
            ) => integer(d, a, (bits, signed), (to_bits, to_signed), sat),
            (from, to, mode, integer_rounding) => {
                let rule = mode.or(integer_rounding).unwrap_or(Rounding::Nearest);
                let to_integral = integer_rounding.is_some();
                Box::new(move |l, mask| {
                    let x = l.load_raw(a.row, a.wide);
                    let mut out = [0; WARP];
                    for i in 0..WARP {
                        out[i] = one(x[i], from, to, rule, to_integral, ftz, sat);
                    }
                    l.store_raw(d.row, d.wide, mask, &out);
                })
            }
        };
        self.alu(&w, run)
    }
}

/// Integer to integer: truncation, extension or, with `.sat`, clamping.
fn integer(d: super::Slot, a: super::Slot, from: (u32, bool), to: (u32, bool), sat: bool) -> Exec {
    if !sat && !d.wide && !a.wide && from.0 == 32 && to.0 == 16 && !to.1 {
        return map1(d.row, a.row, |x: u32| x as u16);
    }
    Box::new(move |l, mask| {
        let x = l.load_raw(a.row, a.wide);
        let mut out = [0; WARP];
        for i in 0..WARP {
            let v = extend(x[i], from.0, from.1);
            out[i] = if sat {
                clamp(v, from.1, to.0, to.1)
            } else {
                extend(v, to.0, to.1)
            };
        }
        if !d.wide && to.0 == 16 {
            // 16-bit registers hold no sign above their bits.
            for v in &mut out {
                *v &= 0xffff;
            }
        }
        l.store_raw(d.row, d.wide, mask, &out);
    })
}

/// The low `bits` of v, sign- or zero-extended.
#[inline(always)]
fn extend(v: u64, bits: u32, signed: bool) -> u64 {
    let s = 64 - bits;
    if signed {
        ((v << s) as i64 >> s) as u64
    } else {
        v << s >> s
    }
}

fn clamp(v: u64, from_signed: bool, bits: u32, signed: bool) -> u64 {
    let v = if from_signed {
        i128::from(v as i64)
    } else {
        i128::from(v)
    };
    let (lo, hi) = if signed {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    v.clamp(lo, hi) as u64
}

/// Any conversion that involves a float.
fn one(
    raw: u64,
    from: Type,
    to: Type,
    mode: Rounding,
    to_integral: bool,
    ftz: bool,
    sat: bool,
) -> u64 {
    let x = match from {
        Type::Int { bits, signed } => {
            let v = extend(raw, bits, signed);
            let v = if signed {
                i128::from(v as i64)
            } else {
                i128::from(v)
            };
            return match to {
                Type::F32 => {
                    let x = float::from_integer(v, mode);
                    u64::from(if sat { saturate(x) } else { x }.to_bits())
                }
                // i128 to f64 rounds to nearest, once.
                Type::F64 => (v as f64).to_bits(),
                Type::Half(f) => u64::from(f.round(float::integer_odd(v), mode)),
                Type::Int { .. } => v as u64,
            };
        }
        Type::Half(f) => f64::from(f.widen(raw as u16)),
        Type::F32 => {
            let x = f32::from_bits(raw as u32);
            f64::from(if ftz { flush(x) } else { x })
        }
        Type::F64 => f64::from_bits(raw),
    };
    let integral = |x: f64| match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    };
    let x = if to_integral && !matches!(to, Type::Int { .. }) {
        integral(x)
    } else {
        x
    };
    match to {
        Type::Int { bits, signed } => {
            let v = if !x.is_nan() {
                float::to_integer(x, mode, signed, bits)
            } else if from == Type::F64 || bits == 64 {
                extend(1 << (bits - 1), bits, signed)
            } else {
                0
            };
            v & if bits == 16 { 0xffff } else { u64::MAX }
        }
        Type::Half(f) => {
            let x = if sat {
                f64::from(saturate(x as f32))
            } else {
                x
            };
            u64::from(f.round(x, if to_integral { Rounding::Nearest } else { mode }))
        }
        Type::F32 => {
            let y = if from == Type::F64 && !to_integral {
                float::to_f32(x, mode)
            } else {
                canonical(x as f32)
            };
            let y = if ftz { flush(y) } else { y };
            u64::from(if sat { saturate(y) } else { y }.to_bits())
        }
        Type::F64 => x.to_bits(),
    }
}
