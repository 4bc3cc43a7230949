//! Moves and comparisons.

use crate::common::{COMPARISONS, Random, apply};
use crate::values::{BF16, BITS, F16, F64, INTS, Int};

#[test]
fn comparisons_of_all_types() {
    type Case = (&'static str, fn(std::cmp::Ordering) -> bool);
    let signed: [Case; 6] = [
        ("eq", std::cmp::Ordering::is_eq),
        ("ne", std::cmp::Ordering::is_ne),
        ("lt", std::cmp::Ordering::is_lt),
        ("le", std::cmp::Ordering::is_le),
        ("gt", std::cmp::Ordering::is_gt),
        ("ge", std::cmp::Ordering::is_ge),
    ];
    let unsigned: [Case; 4] = [
        ("lo", std::cmp::Ordering::is_lt),
        ("ls", std::cmp::Ordering::is_le),
        ("hi", std::cmp::Ordering::is_gt),
        ("hs", std::cmp::Ordering::is_ge),
    ];
    for ty in [&INTS[..], &BITS[..]].concat() {
        let (a, mut b) = (ty.values(1), ty.values(2));
        for i in (0..b.len()).step_by(5) {
            b[i] = a[i];
        }
        let cases = match &ty.0[..1] {
            "b" => signed[..2].to_vec(),
            "s" => signed.to_vec(),
            _ => [&signed[..], &unsigned[..]].concat(),
        };
        for (cmp, holds) in cases {
            // Both results, combined with a third predicate in each way.
            let body = format!(
                "setp.{cmp}.{0} %p1, %a, %b; setp.{cmp}.xor.{0} %p2|%p3, %a, %b, %p1; setp.{cmp}.or.{0} _|%p0, %a, %b, !%p1;
                selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 2, 0, %p2; selp.b32 %r3, 4, 0, %p3; selp.b32 %r4, 8, 0, %p0;
                or.b32 %r1, %r1, %r2; or.b32 %r3, %r3, %r4; or.b32 %d, %r1, %r3;",
                ty.0
            );
            let got = apply(&body, [ty.bits(), ty.bits(), 32, 32], &a, &b, &[]);
            // set has no 16-bit sources of bits here, and gives all ones or 1.0.
            let ones = apply(
                &format!("set.{cmp}.u32.{} %d, %a, %b;", ty.0),
                [ty.bits(), ty.bits(), 32, 32],
                &a,
                &b,
                &[],
            );
            let float = apply(
                &format!("set.{cmp}.f32.{} %d, %a, %b;", ty.0),
                [ty.bits(), ty.bits(), 32, 32],
                &a,
                &b,
                &[],
            );
            for i in 0..a.len() {
                let h = holds(ty.value(a[i]).cmp(&ty.value(b[i])));
                // p2 = h ^ p1 = false; p3 = !h ^ p1 = true; p0 = !h | !p1.
                assert_eq!(
                    got[i],
                    u64::from(h) | 4 | if h { 0 } else { 8 },
                    "{cmp} {}",
                    ty.0
                );
                assert_eq!(
                    (ones[i], float[i]),
                    if h {
                        (0xffff_ffff, 0x3f80_0000)
                    } else {
                        (0, 0)
                    }
                );
            }
        }
    }
    // Floats, NaN too.
    for f in [F16, BF16, F64] {
        let a: Vec<u64> = (0..3000)
            .map(|i| Random(i).next() >> (64 - f.bits))
            .collect();
        let nan = f64::NAN.to_bits() >> (64 - f.bits) | 0x7fff >> (f.bits / 8);
        let b: Vec<u64> = (0..3000)
            .map(|i| [a[i], a[(i * 7 + 3) % 3000], nan][i % 3])
            .collect();
        for (cmp, holds) in COMPARISONS {
            let body = format!("setp.{cmp}.{} %p1, %a, %b; selp.b32 %d, 1, 0, %p1;", f.name);
            let got = apply(&body, [f.bits, f.bits, 32, 32], &a, &b, &[]);
            let set = apply(
                &format!("set.{cmp}.s32.{} %d, %a, %b;", f.name),
                [f.bits, f.bits, 32, 32],
                &a,
                &b,
                &[],
            );
            for i in 0..a.len() {
                let h = holds(f.value(a[i]), f.value(b[i]));
                assert_eq!(
                    (got[i] == 1, set[i] != 0),
                    (h, h),
                    "{body} {:x} {:x}",
                    a[i],
                    b[i]
                );
            }
        }
        if f.bits == 16 {
            let one = if f.name == "f16" { 0x3c00 } else { 0x3f80 };
            let same = apply(
                &format!("set.le.{0}.{0} %d, %a, %a;", f.name),
                [16; 4],
                &a,
                &[],
                &[],
            );
            let ones = apply(
                &format!("set.le.u16.{} %d, %a, %a;", f.name),
                [16; 4],
                &a,
                &[],
                &[],
            );
            for i in 0..a.len() {
                let number = !f.value(a[i]).is_nan();
                assert_eq!(
                    (same[i], ones[i]),
                    if number { (one, 0xffff) } else { (0, 0) }
                );
            }
        }
    }
}

#[test]
fn moves() {
    let v = Int("u64").values(1);
    let w = Int("u64").values(2);
    // Through four halves and back, in another order.
    let got = apply(
        "mov.b64 {%h1, %h2, %h3, %h4}, %a; mov.b64 %d, {%h4, %h3, %h2, %h1};",
        [64; 4],
        &v,
        &[],
        &[],
    );
    for (v, got) in v.iter().zip(got) {
        let h = |i: u64| v >> (16 * i) & 0xffff;
        assert_eq!(got, h(0) << 48 | h(1) << 32 | h(2) << 16 | h(3));
    }
    for ty in [
        "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64",
    ] {
        let bits: u32 = ty[1..].parse().unwrap();
        let mask = u64::MAX >> (64 - bits);
        let body = format!(
            "mov.{ty} %d, %a; and.b32 %r1, %c, 1; setp.eq.b32 %p1, %r1, 0; selp.{ty} %d, %d, %b, %p1;"
        );
        let got = apply(&body, [bits, bits, 32, bits], &v, &w, &v);
        for i in 0..v.len() {
            assert_eq!(
                got[i],
                if v[i] & 1 == 0 { v[i] } else { w[i] } & mask,
                "{body}"
            );
        }
    }
    // Predicates: each operation, of plain and negated ones.
    let body = "and.b32 %r1, %a, 1; setp.ne.b32 %p1, %r1, 0; and.b32 %r1, %a, 2; setp.ne.b32 %p2, %r1, 0;
        and.pred %p3, %p1, !%p2; or.pred %p0, %p3, %p2; xor.pred %p0, %p0, %p3; not.pred %p0, %p0; mov.pred %p3, !%p0;
        selp.b32 %d, 1, 0, %p3;";
    for (v, got) in v
        .iter()
        .zip(apply(body, [64, 32, 32, 32].map(|_| 32), &v, &[], &[]))
    {
        let (p, q) = (v & 1 != 0, v & 2 != 0);
        assert_eq!(got == 1, (p || q) ^ (p && !q));
    }
    // An address in each window and back.
    for space in [
        "shared",
        "local",
        "global",
        "const",
        "param",
        "shared::cta",
        "param::entry",
    ] {
        let body = format!("cvta.{space}.u64 %rd3, %a; cvta.to.{space}.u64 %d, %rd3;");
        assert_eq!(apply(&body, [64; 4], &v, &[], &[]), v);
    }
}
