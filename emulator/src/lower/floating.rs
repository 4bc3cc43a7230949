//! Floating-point arithmetic: f32, f64, f16, bf16 and the packed pairs.

use super::{Lowerer, Op, Words};
use crate::arith::approx;
use crate::arith::float::{self, Rounding, canonical, flush, saturate};
use crate::arith::half::{self, Format};
use crate::lanes::{Exec, Lane, approx1, map1, map2, map3};
use crate::ptx::PtxError;
use crate::settings::Approx;

impl<'a> Lowerer<'a> {
    pub(super) fn floating(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        match w.last() {
            "f32" => self.f32(w),
            "f64" => self.f64(w),
            "f16" => self.half(w, Format::F16, false),
            "bf16" => self.half(w, Format::Bf16, false),
            "f16x2" => self.half(w, Format::F16, true),
            _ => self.half(w, Format::Bf16, true),
        }
    }

    fn f32(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ops = w.inst.operands.len();
        let opcode = w.inst.opcode.as_str();
        let d = self.dest(&w, 0, 4)?.row;
        let a = self.source(&w, 1, 4)?.row;
        let b = if ops > 2 {
            self.source(&w, 2, 4)?.row
        } else {
            a
        };
        let c = if ops > 3 {
            self.source(&w, 3, 4)?.row
        } else {
            a
        };
        let ftz = w.take("ftz");
        let sat = w.take("sat");
        let approx = w.take("approx");
        let full = w.take("full");
        let rn = rounding(&mut w).unwrap_or(Rounding::Nearest);
        // What surrounds an operation that is neither the plain one nor frequent.
        let before = move |x: f32| if ftz { flush(x) } else { x };
        let after = move |x: f32| {
            let x = if ftz { flush(x) } else { x };
            if sat { saturate(x) } else { x }
        };
        let plain = !ftz && !sat && rn == Rounding::Nearest;
        let nan = w.take("NaN");
        let run: Exec = match (opcode, ops) {
            ("add", 3) if plain => map2(d, a, b, |a: f32, b: f32| canonical(a + b)),
            ("sub", 3) if plain => map2(d, a, b, |a: f32, b: f32| canonical(a - b)),
            ("mul", 3) if plain => map2(d, a, b, |a: f32, b: f32| canonical(a * b)),
            ("fma", 4) if plain => Box::new(move |l, mask| {
                let (a, b, c) = (f32::load(l, a), f32::load(l, b), f32::load(l, c));
                f32::store(l, d, mask, &float::fma_lanes(&a, &b, &c));
            }),
            ("add", 3) => map2(d, a, b, move |a, b| {
                after(float::add(before(a), before(b), rn))
            }),
            ("sub", 3) => map2(d, a, b, move |a, b: f32| {
                after(float::add(before(a), -before(b), rn))
            }),
            ("mul", 3) => map2(d, a, b, move |a, b| {
                after(float::mul(before(a), before(b), rn))
            }),
            ("fma", 4) => map3(d, a, b, c, move |a, b, c| {
                after(float::fma(before(a), before(b), before(c), rn))
            }),
            ("div", 3) if approx || full => Box::new(move |l, mask| {
                let (a, b, mode) = (f32::load(l, a), f32::load(l, b), l.approx);
                let mut out = [0.0; 32];
                for i in (0..32).filter(|i| mask & (1 << i) != 0) {
                    out[i] = approx::div(mode, a[i], b[i], ftz, full);
                }
                f32::store(l, d, mask, &out);
            }),
            ("div", 3) if plain => map2(d, a, b, |a: f32, b: f32| canonical(a / b)),
            ("div", 3) => map2(d, a, b, move |a, b| {
                after(float::div(before(a), before(b), rn))
            }),
            ("rcp", 2) if approx => approx1(d, a, move |m, x| approx::rcp(m, x, ftz)),
            ("rcp", 2) => map1(d, a, move |a| after(float::div(1.0, before(a), rn))),
            ("sqrt", 2) if approx => approx1(d, a, move |m, x| approx::sqrt(m, x, ftz)),
            ("sqrt", 2) if plain => map1(d, a, |a: f32| canonical(a.sqrt())),
            ("sqrt", 2) => map1(d, a, move |a| after(float::sqrt(before(a), rn))),
            ("rsqrt", 2) => approx1(d, a, move |m, x| approx::rsqrt(m, x, ftz)),
            ("ex2", 2) => approx1(d, a, move |m, x| approx::ex2(m, x, ftz)),
            ("lg2", 2) => approx1(d, a, move |m, x| approx::lg2(m, x, ftz)),
            ("tanh", 2) => approx1(d, a, approx::tanh),
            ("neg", 2) => map1(d, a, move |a| -before(a)),
            ("abs", 2) => map1(d, a, move |a| before(a).abs()),
            ("min", 3) if !ftz => map2(d, a, b, move |a, b| float::min(a, b, nan)),
            ("max", 3) if !ftz => map2(d, a, b, move |a, b| float::max(a, b, nan)),
            ("min", 3) => map2(d, a, b, move |a, b| float::min(before(a), before(b), nan)),
            ("max", 3) => map2(d, a, b, move |a, b| float::max(before(a), before(b), nan)),
            // d has the sign of a and the magnitude of b.
            ("copysign", 3) => map2(d, a, b, |a: f32, b: f32| b.copysign(a)),
            _ => return Err(w.unsupported()),
        };
        self.alu(&w, run)
    }

    fn f64(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ops = w.inst.operands.len();
        let d = self.dest(&w, 0, 8)?.row;
        let a = self.source(&w, 1, 8)?.row;
        let b = if ops > 2 {
            self.source(&w, 2, 8)?.row
        } else {
            a
        };
        let c = if ops > 3 {
            self.source(&w, 3, 8)?.row
        } else {
            a
        };
        w.take("rn");
        let run = match (w.inst.opcode.as_str(), ops) {
            ("add", 3) => map2(d, a, b, |a: f64, b: f64| a + b),
            ("sub", 3) => map2(d, a, b, |a: f64, b: f64| a - b),
            ("mul", 3) => map2(d, a, b, |a: f64, b: f64| a * b),
            ("div", 3) => map2(d, a, b, |a: f64, b: f64| a / b),
            ("fma", 4) => map3(d, a, b, c, |a: f64, b: f64, c: f64| a.mul_add(b, c)),
            ("neg", 2) => map1(d, a, |a: f64| -a),
            ("abs", 2) => map1(d, a, |a: f64| a.abs()),
            _ => return Err(w.unsupported()),
        };
        self.alu(&w, run)
    }

    /// 16-bit formats; `pair` for two values in 32 bits.
    fn half(&mut self, mut w: Words<'a>, f: Format, pair: bool) -> Result<Op, PtxError> {
        let ops = w.inst.operands.len();
        let size = if pair { 4 } else { 2 };
        let d = self.dest(&w, 0, size)?.row;
        let a = self.source(&w, 1, size)?.row;
        let b = if ops > 2 {
            self.source(&w, 2, size)?.row
        } else {
            a
        };
        let c = if ops > 3 {
            self.source(&w, 3, size)?.row
        } else {
            a
        };
        w.take("rn");
        let nan = w.take("NaN");
        w.take("approx");
        // Of bf16 `ex2` has a flushing form, and no other.
        w.take("ftz");
        let sign = 0x8000u16;
        let run = match (w.inst.opcode.as_str(), ops) {
            ("add", 3) => halves2(pair, d, a, b, move |a, b| half::add(f, a, b)),
            ("sub", 3) => halves2(pair, d, a, b, move |a, b| half::add(f, a, b ^ sign)),
            ("mul", 3) => halves2(pair, d, a, b, move |a, b| half::mul(f, a, b)),
            ("min", 3) => halves2(pair, d, a, b, move |a, b| half::min(f, a, b, nan)),
            ("max", 3) => halves2(pair, d, a, b, move |a, b| half::max(f, a, b, nan)),
            ("fma", 4) => {
                let one = move |a, b, c| half::fma(f, a, b, c);
                if pair {
                    map3(d, a, b, c, move |a: u32, b: u32, c: u32| {
                        join(
                            one(a as u16, b as u16, c as u16),
                            one(high(a), high(b), high(c)),
                        )
                    })
                } else {
                    map3(d, a, b, c, one)
                }
            }
            ("ex2", 2) => halves_approx(pair, d, a, move |m, x| approx::ex2_half(m, f, x)),
            ("tanh", 2) => halves_approx(pair, d, a, move |m, x| approx::tanh_half(m, f, x)),
            ("neg", 2) => halves2(pair, d, a, a, move |a, _| a ^ sign),
            ("abs", 2) => halves2(pair, d, a, a, move |a, _| a & !sign),
            _ => return Err(w.unsupported()),
        };
        self.alu(&w, run)
    }
}

fn high(x: u32) -> u16 {
    (x >> 16) as u16
}

fn join(lo: u16, hi: u16) -> u32 {
    u32::from(hi) << 16 | u32::from(lo)
}

fn halves2(
    pair: bool,
    d: u32,
    a: u32,
    b: u32,
    f: impl Fn(u16, u16) -> u16 + Send + Sync + 'static,
) -> Exec {
    if pair {
        map2(d, a, b, move |a: u32, b: u32| {
            join(f(a as u16, b as u16), f(high(a), high(b)))
        })
    } else {
        map2(d, a, b, f)
    }
}

/// `.rn`, `.rz`, `.rm`, `.rp`.
pub(super) fn rounding(w: &mut Words) -> Option<Rounding> {
    w.take_map(|m| match m {
        "rn" => Some(Rounding::Nearest),
        "rz" => Some(Rounding::Zero),
        "rm" => Some(Rounding::Down),
        "rp" => Some(Rounding::Up),
        _ => None,
    })
}

/// An approximation of one or two halves.
fn halves_approx(
    pair: bool,
    d: u32,
    a: u32,
    f: impl Fn(Approx, u16) -> u16 + Send + Sync + 'static,
) -> Exec {
    Box::new(move |l, mask| {
        let (a, mode) = (u32::load(l, a), l.approx);
        let mut out = [0; 32];
        for i in (0..32).filter(|i| mask & (1 << i) != 0) {
            let upper = if pair { f(mode, high(a[i])) } else { 0 };
            out[i] = join(f(mode, a[i] as u16), upper);
        }
        u32::store(l, d, mask, &out);
    })
}
