//! Integers and bits.

use crate::common::{Random, apply};
use crate::values::{BITS, INTS, Int, SIGNED, low};

/// Checks an instruction for some types; `wide` results have twice the bits, and so has c.
fn check(
    name: &str,
    operands: &str,
    types: &[Int],
    wide: bool,
    f: impl Fn(Int, [i128; 3]) -> i128,
) {
    for &ty in types {
        let d = ty.bits() * if wide { 2 } else { 1 };
        let of_c = if wide {
            Int(["u32", "u64"][ty.bits() as usize / 32])
        } else {
            ty
        };
        let (a, b, c) = (ty.values(1), ty.values(2), of_c.values(3));
        let body = format!("{name}.{} {operands};", ty.0);
        let got = apply(&body, [ty.bits(), ty.bits(), d, d], &a, &b, &c);
        for i in 0..a.len() {
            let v = [ty.value(a[i]), ty.value(b[i]), of_c.value(c[i])];
            assert_eq!(got[i], low(f(ty, v), d), "{body} of {v:?}");
        }
    }
}

#[test]
fn integer_arithmetic() {
    const D2: &str = "%d, %a, %b";
    const D3: &str = "%d, %a, %b, %c";
    check("add", D2, &INTS, false, |_, [a, b, _]| a + b);
    check("sub", D2, &INTS, false, |_, [a, b, _]| a - b);
    let s32 = [Int("s32")];
    check("add.sat", D2, &s32, false, |t, [a, b, _]| {
        (a + b).clamp(t.min(), t.max())
    });
    check("sub.sat", D2, &s32, false, |t, [a, b, _]| {
        (a - b).clamp(t.min(), t.max())
    });
    check("mul.lo", D2, &INTS, false, |_, [a, b, _]| a.wrapping_mul(b));
    check("mul.hi", D2, &INTS, false, |t, [a, b, _]| match t.0 {
        "u64" => ((a as u128 * b as u128) >> 64) as i128,
        _ => (a * b) >> t.bits(),
    });
    check("mad.lo", D3, &INTS, false, |_, [a, b, c]| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    check("mad.hi", D3, &INTS, false, |t, [a, b, c]| match t.0 {
        "u64" => ((a as u128 * b as u128) >> 64) as i128 + c,
        _ => ((a * b) >> t.bits()) + c,
    });
    check("mul.wide", D2, &INTS[..4], true, |_, [a, b, _]| a * b);
    check("mad.wide", D3, &INTS[..4], true, |_, [a, b, c]| a * b + c);
    check(
        "div",
        D2,
        &INTS,
        false,
        |_, [a, b, _]| if b == 0 { -1 } else { a / b },
    );
    check(
        "rem",
        D2,
        &INTS,
        false,
        |_, [a, b, _]| if b == 0 { a } else { a % b },
    );
    check("min", D2, &INTS, false, |_, [a, b, _]| a.min(b));
    check("max", D2, &INTS, false, |_, [a, b, _]| a.max(b));
    check("neg", "%d, %a", &SIGNED, false, |_, [a, ..]| -a);
    check("abs", "%d, %a", &SIGNED, false, |_, [a, ..]| a.abs());
    check("not", "%d, %a", &BITS, false, |_, [a, ..]| !a);
    check("and", D2, &BITS, false, |_, [a, b, _]| a & b);
    check("or", D2, &BITS, false, |_, [a, b, _]| a | b);
    check("xor", D2, &BITS, false, |_, [a, b, _]| a ^ b);
}

/// Instructions whose other operands have 32 bits.
#[test]
fn shifts_and_fields() {
    let check = |name: &str,
                 operands: &str,
                 types: &[Int],
                 d: Option<u32>,
                 f: &dyn Fn(Int, i128, u64, u64) -> i128| {
        for &ty in types {
            let mut r = Random(4);
            let amounts = |r: &mut Random| {
                (0..1500)
                    .map(|_| {
                        [r.next() % 80, r.next() >> 32][usize::from(r.next().is_multiple_of(8))]
                    })
                    .collect::<Vec<u64>>()
            };
            let (a, b, c) = (ty.values(1), amounts(&mut r), amounts(&mut r));
            let bits = d.unwrap_or(ty.bits());
            let body = format!("{name}.{} {operands};", ty.0);
            let got = apply(&body, [ty.bits(), 32, 32, bits], &a, &b, &c);
            for i in 0..a.len() {
                let v = ty.value(a[i]);
                assert_eq!(
                    got[i],
                    low(f(ty, v, b[i], c[i]), bits),
                    "{body} of {v:#x} {} {}",
                    b[i],
                    c[i]
                );
            }
        }
    };
    let all = [&INTS[..], &BITS[..]].concat();
    check("shl", "%d, %a, %b", &BITS, None, &|t, a, n, _| {
        if n >= u64::from(t.bits()) { 0 } else { a << n }
    });
    check("shr", "%d, %a, %b", &all, None, &|_, a, n, _| {
        a >> n.min(127)
    });
    check("popc", "%d, %a", &BITS[1..], Some(32), &|_, a, _, _| {
        i128::from(a.count_ones())
    });
    check("clz", "%d, %a", &BITS[1..], Some(32), &|t, a, _, _| {
        i128::from(a.leading_zeros() + t.bits()) - 128
    });
    // The field lies at the low byte of one amount and has the low byte of the other as its length; past the end
    // there is the sign, or 0.
    check("bfe", "%d, %a, %b, %c", &INTS[2..], None, &|t, a, p, n| {
        let (p, n) = ((p & 255).min(127), n & 255);
        let sign = if t.0.starts_with('s') && n > 0 {
            a >> (p + n - 1).min(u64::from(t.bits()) - 1) & 1
        } else {
            0
        };
        let inside = u64::from(t.bits()).saturating_sub(p).min(n);
        let field = a >> p & ((1 << inside) - 1);
        field | -sign << inside
    });
    check(
        "bfi",
        "%d, %a, %a, %b, %c",
        &BITS[1..],
        None,
        &|t, a, p, n| {
            let (p, n) = (p & 255, (n & 255).min(u64::from(t.bits())));
            if p >= u64::from(t.bits()) {
                return a;
            }
            let field = ((1 << n) - 1) << p;
            a & !field | a << p & field
        },
    );
    for (mode, wrap) in [("wrap", true), ("clamp", false)] {
        let n = move |n: u64| if wrap { n & 31 } else { n.min(32) };
        let both = |a: i128| a << 32 | a;
        check(
            &format!("shf.l.{mode}"),
            "%d, %a, %a, %b",
            &BITS[1..2],
            None,
            &|_, a, b, _| both(a) << n(b) >> 32,
        );
        check(
            &format!("shf.r.{mode}"),
            "%d, %a, %a, %b",
            &BITS[1..2],
            None,
            &|_, a, b, _| both(a) >> n(b),
        );
    }
    check(
        "prmt",
        "%d, %a, %b, %c",
        &BITS[1..2],
        None,
        &|_, a, b, selector| {
            let bytes = (i128::from(b) << 32 | a) as u64;
            (0..4).fold(0, |d, i| {
                let s = selector >> (4 * i);
                let byte = (bytes >> (8 * (s & 7))) as u8;
                let byte = if s & 8 == 0 {
                    byte
                } else {
                    ((byte as i8) >> 7) as u8
                };
                d | i128::from(byte) << (8 * i)
            })
        },
    );
}

#[test]
fn carries() {
    // 128-bit sums and differences by halves of 32 and 64 bits, with carries in the middle.
    for (op, subtract) in [("add", false), ("sub", true)] {
        for (bits, kinds) in [(32u32, ["u32", "s32"]), (64, ["u64", "s64"])] {
            for kind in kinds {
                let c = format!("{op}c.{kind}");
                let cc = format!("{op}c.cc.{kind}");
                // %d is the third word of the sum of (a, b, a) and (b, c, a).
                let body = format!(
                    ".reg .b{bits} %t<3>; {op}.cc.{kind} %t1, %a, %b; {cc} %t2, %b, %c; {c} %d, %a, %a;"
                );
                let ty = Int(if bits == 32 { "u32" } else { "u64" });
                let (a, b, c) = (ty.values(1), ty.values(2), ty.values(3));
                let got = apply(&body, [bits; 4], &a, &b, &c);
                for i in 0..a.len() {
                    let step = |x: u64, y: u64, carry: i128| {
                        let (x, y) = (ty.value(x), ty.value(y));
                        let full = if subtract {
                            x - y - carry
                        } else {
                            x + y + carry
                        };
                        (low(full, bits), i128::from(!(0..1 << bits).contains(&full)))
                    };
                    let (_, carry) = step(a[i], b[i], 0);
                    let (_, carry) = step(b[i], c[i], carry);
                    assert_eq!(got[i], step(a[i], a[i], carry).0, "{body}");
                }
            }
        }
    }
}
