//! `mov`, `cvta`, `selp`, `setp`, `set`.

use super::{Lowerer, Op, Slot, Words};
use crate::arith::float::flush;
use crate::arith::half::{bf16_to_f32, f16_to_f32};
use crate::lanes::{Exec, Lane, Lanes, WARP, compare, map1};
use crate::memory::{LOCAL_BASE, SHARED_BASE};
use crate::ptx::ast::Operand;
use crate::ptx::{PtxError, type_size};

/// A comparison of two rows, giving the lanes where it holds.
type Compare = Box<dyn Fn(&Lanes) -> u32 + Send + Sync>;

/// How a comparison's result is combined with a predicate.
#[derive(Clone, Copy)]
enum Combine {
    And,
    Or,
    Xor,
}

impl<'a> Lowerer<'a> {
    pub(super) fn data(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        match w.inst.opcode.as_str() {
            "mov" => self.mov(w),
            "cvta" => self.cvta(w),
            "selp" => {
                let ty = w.last();
                let size = type_size(ty).ok_or_else(|| w.unsupported())?;
                let d = self.dest(&w, 0, size)?;
                let (a, b) = (self.source(&w, 1, size)?, self.source(&w, 2, size)?);
                let (p, negated) = self.pred(&w, &w.inst.operands[3])?;
                w.finish()?;
                let (a, b) = if negated { (b, a) } else { (a, b) };
                Ok(Op::Select { d, a, b, p })
            }
            "setp" => self.setp(w),
            "set" => self.set(w),
            _ => Err(w.unsupported()),
        }
    }

    fn mov(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ty = w.last();
        let ops = &w.inst.operands;
        if ty == "pred" {
            let d = self.pred_dest(&w, &ops[0])?;
            // As nvcc writes true and false: any number but 0, and 0.
            if let Operand::Integer(value) = ops[1] {
                let all = if value == 0 { 0 } else { u32::MAX };
                return self.alu(&w, pred_exec(d, move |_| all));
            }
            let (p, negated) = self.pred(&w, &ops[1])?;
            return self.alu(
                &w,
                pred_exec(d, move |l| {
                    l.preds[p as usize] ^ if negated { u32::MAX } else { 0 }
                }),
            );
        }
        let size = type_size(ty).ok_or_else(|| w.unsupported())?;
        match (&ops[0], &ops[1]) {
            (Operand::Vector(parts), source) => {
                let a = self.source_sized(&w, source, size, false)?;
                let each = part_size(&w, size, parts.len())?;
                let parts = parts
                    .iter()
                    .map(|o| self.dest_sized(&w, o, each, false))
                    .collect::<Result<Vec<_>, _>>()?;
                self.alu(&w, unpack(a, parts, each))
            }
            (_, Operand::Vector(parts)) => {
                let d = self.dest(&w, 0, size)?;
                let each = part_size(&w, size, parts.len())?;
                let parts = parts
                    .iter()
                    .map(|o| self.source_sized(&w, o, each, false))
                    .collect::<Result<Vec<_>, _>>()?;
                self.alu(&w, pack(d, parts, each))
            }
            _ => {
                let d = self.dest(&w, 0, size)?;
                let a = self.source(&w, 1, size)?;
                let run = if size == 8 {
                    map1(d.row, a.row, |a: u64| a)
                } else {
                    map1(d.row, a.row, |a: u32| a)
                };
                self.alu(&w, run)
            }
        }
    }

    fn cvta(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let to = w.take("to");
        let (space, _) = (w.first(), w.take("u64"));
        let d = self.dest(&w, 0, 8)?;
        let a = self.source(&w, 1, 8)?;
        let base = match space {
            "shared" | "shared::cta" => SHARED_BASE,
            "local" => LOCAL_BASE,
            // Addresses of these are generic addresses already.
            _ => 0,
        };
        let add = if to { 0u64.wrapping_sub(base) } else { base };
        self.alu(&w, map1(d.row, a.row, move |a: u64| a.wrapping_add(add)))
    }

    fn setp(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ops = &w.inst.operands;
        let cmp = w.first();
        let combine = take_combine(&mut w);
        let ftz = w.take("ftz");
        let ty = w.last();
        if ops.len() != 3 + usize::from(combine.is_some()) {
            return Err(w.bad("a predicate to combine with, or none"));
        }
        let (d, second) = match &ops[0] {
            Operand::Pair(p, q) => (self.pred_dest(&w, p)?, Some(self.pred_dest(&w, q)?)),
            o => (self.pred_dest(&w, o)?, None),
        };
        let f = self.comparison(&mut w, cmp, ty, ftz)?;
        let with = match combine {
            None => None,
            Some(c) => {
                let (p, negated) = self.pred(&w, &ops[3])?;
                Some((c, p as usize, negated))
            }
        };
        let run: Exec = match (second, with) {
            (None, None) => pred_exec(d, f),
            _ => Box::new(move |l, mask| {
                let hold = f(l);
                let apply = |v: u32, l: &Lanes| match with {
                    None => v,
                    Some((c, p, negated)) => {
                        let p = l.preds[p] ^ if negated { u32::MAX } else { 0 };
                        match c {
                            Combine::And => v & p,
                            Combine::Or => v | p,
                            Combine::Xor => v ^ p,
                        }
                    }
                };
                let (yes, no) = (apply(hold, l), apply(!hold, l));
                set_pred(l, d, mask, yes);
                if let Some(q) = second {
                    set_pred(l, q, mask, no);
                }
            }),
        };
        self.alu(&w, run)
    }

    fn set(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ops = &w.inst.operands;
        let cmp = w.first();
        let ftz = w.take("ftz");
        let (from, to) = (w.last(), w.last());
        let size = type_size(to).ok_or_else(|| w.unsupported())?;
        let one = match to {
            "f32" => 0x3f80_0000,
            "f16" => 0x3c00,
            "bf16" => 0x3f80,
            "u16" => 0xffff,
            _ => 0xffff_ffff,
        };
        let d = self.dest_sized(&w, &ops[0], size, false)?;
        let f = self.comparison(&mut w, cmp, from, ftz)?;
        let run: Exec = Box::new(move |l, mask| {
            let hold = f(l);
            let mut out = [0u32; WARP];
            for (i, o) in out.iter_mut().enumerate() {
                *o = if hold & (1 << i) != 0 { one } else { 0 };
            }
            u32::store(l, d.row, mask, &out);
        });
        self.alu(&w, run)
    }

    /// The comparison `cmp` of operands 1 and 2 as values of type `ty`.
    fn comparison(
        &mut self,
        w: &mut Words<'a>,
        cmp: &str,
        ty: &str,
        ftz: bool,
    ) -> Result<Compare, PtxError> {
        let size = type_size(ty).ok_or_else(|| w.unsupported())?;
        let (a, b) = (self.source(w, 1, size)?.row, self.source(w, 2, size)?.row);
        macro_rules! ordered {
            ($t:ty) => {
                match cmp {
                    "eq" => holds(a, b, |a: $t, b| a == b),
                    "ne" => holds(a, b, |a: $t, b| a != b),
                    "lt" | "lo" => holds(a, b, |a: $t, b| a < b),
                    "le" | "ls" => holds(a, b, |a: $t, b| a <= b),
                    "gt" | "hi" => holds(a, b, |a: $t, b| a > b),
                    "ge" | "hs" => holds(a, b, |a: $t, b| a >= b),
                    _ => return Err(w.unsupported()),
                }
            };
        }
        macro_rules! float {
            ($t:ty, $f:expr) => {{
                let f = $f;
                match cmp {
                    "eq" => holds(a, b, move |a: $t, b| f(a) == f(b)),
                    "ne" => holds(a, b, move |a: $t, b| f(a) < f(b) || f(a) > f(b)),
                    "lt" => holds(a, b, move |a: $t, b| f(a) < f(b)),
                    "le" => holds(a, b, move |a: $t, b| f(a) <= f(b)),
                    "gt" => holds(a, b, move |a: $t, b| f(a) > f(b)),
                    "ge" => holds(a, b, move |a: $t, b| f(a) >= f(b)),
                    "equ" => holds(a, b, move |a: $t, b| !(f(a) < f(b) || f(a) > f(b))),
                    "neu" => holds(a, b, move |a: $t, b| f(a) != f(b)),
                    "ltu" => holds(a, b, move |a: $t, b| !(f(a) >= f(b))),
                    "leu" => holds(a, b, move |a: $t, b| !(f(a) > f(b))),
                    "gtu" => holds(a, b, move |a: $t, b| !(f(a) <= f(b))),
                    "geu" => holds(a, b, move |a: $t, b| !(f(a) < f(b))),
                    "num" => holds(a, b, move |a: $t, b| f(a) == f(a) && f(b) == f(b)),
                    "nan" => holds(a, b, move |a: $t, b| f(a) != f(a) || f(b) != f(b)),
                    _ => return Err(w.unsupported()),
                }
            }};
        }
        #[allow(clippy::neg_cmp_op_on_partial_ord, clippy::eq_op)]
        Ok(match ty {
            "b16" | "u16" => ordered!(u16),
            "s16" => ordered!(i16),
            "b32" | "u32" => ordered!(u32),
            "s32" => ordered!(i32),
            "b64" | "u64" => ordered!(u64),
            "s64" => ordered!(i64),
            "f32" if ftz => float!(f32, flush),
            "f32" => float!(f32, |x: f32| x),
            "f64" => float!(f64, |x: f64| x),
            "f16" if !ftz => float!(u16, f16_to_f32),
            "bf16" if !ftz => float!(u16, bf16_to_f32),
            _ => return Err(w.unsupported()),
        })
    }
}

/// Bytes of one of the registers that are packed into `size` bytes: 2 or 4 of equal size.
fn part_size(w: &Words, size: u8, parts: usize) -> Result<u8, PtxError> {
    match (size, parts) {
        (4, 2) => Ok(2),
        (8, 2) => Ok(4),
        (8, 4) => Ok(2),
        _ => Err(w.bad(&format!("{parts} parts of {size} bytes"))),
    }
}

fn take_combine(w: &mut Words) -> Option<Combine> {
    w.take_map(|m| match m {
        "and" => Some(Combine::And),
        "or" => Some(Combine::Or),
        "xor" => Some(Combine::Xor),
        _ => None,
    })
}

fn holds<T: Lane>(a: u32, b: u32, f: impl Fn(T, T) -> bool + Send + Sync + 'static) -> Compare {
    Box::new(move |l| compare(l, a, b, &f))
}

pub(super) fn set_pred(l: &mut Lanes, d: u32, mask: u32, value: u32) {
    let p = &mut l.preds[d as usize];
    *p = *p & !mask | value & mask;
}

/// A predicate computed for all lanes at once.
pub(super) fn pred_exec(d: u32, f: impl Fn(&Lanes) -> u32 + Send + Sync + 'static) -> Exec {
    Box::new(move |l, mask| {
        let v = f(l);
        set_pred(l, d, mask, v);
    })
}

/// `mov.b32 {a, b}, r`.
fn unpack(a: Slot, parts: Vec<Slot>, each: u8) -> Exec {
    let bits = u32::from(each) * 8;
    Box::new(move |l, mask| {
        let v = l.load_raw(a.row, a.wide);
        for (i, part) in parts.iter().enumerate() {
            let mut out = [0; WARP];
            for k in 0..WARP {
                out[k] = v[k] >> (bits * i as u32) & ((1 << bits) - 1);
            }
            l.store_raw(part.row, part.wide, mask, &out);
        }
    })
}

/// `mov.b32 r, {a, b}`.
fn pack(d: Slot, parts: Vec<Slot>, each: u8) -> Exec {
    let bits = u32::from(each) * 8;
    Box::new(move |l, mask| {
        let mut out = [0u64; WARP];
        for (i, part) in parts.iter().enumerate() {
            let v = l.load_raw(part.row, part.wide);
            for k in 0..WARP {
                out[k] |= (v[k] & ((1 << bits) - 1)) << (bits * i as u32);
            }
        }
        l.store_raw(d.row, d.wide, mask, &out);
    })
}
