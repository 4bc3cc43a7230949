//! Floating point.

use crate::common::{Random, apply};
use crate::values::{BF16, F16, F32, MODES, UNIT, rounded, units};

/// Sums, products and fused products of f32 and the 16-bit formats against exact integers.
#[test]
fn float_arithmetic() {
    for f in [F32, F16, BF16] {
        let (a, b, c) = (f.values(1), f.values(2), f.values(3));
        let modes: &[&str] = if f.bits == 32 { &MODES } else { &MODES[..1] };
        for mode in modes {
            for (op, operands) in [("add", ""), ("sub", ""), ("mul", ""), ("fma", ", %c")] {
                let body = format!("{op}.{mode}.{} %d, %a, %b{operands};", f.name);
                let got = apply(&body, [f.bits; 4], &a, &b, &c);
                for i in 0..a.len() {
                    let [x, y, z] = [a[i], b[i], c[i]].map(|v| units(f.value(v)));
                    let (exact, scale) = match op {
                        "add" => (x + y, UNIT),
                        "sub" => (x - y, UNIT),
                        "mul" => (x * y, 2 * UNIT),
                        _ => (x * y + (z << UNIT), 2 * UNIT),
                    };
                    let want = rounded(exact, scale, f, mode);
                    let what = || format!("{body} of {:?}", [a[i], b[i], c[i]].map(|v| f.value(v)));
                    assert_eq!(f.value(got[i]), want, "{}", what());
                }
            }
        }
    }
    // The packed formats are two of the plain ones.
    for f in [F16, BF16] {
        let (lo, hi, c) = (f.values(4), f.values(5), f.values(6));
        let pairs: Vec<u64> = lo.iter().zip(&hi).map(|(l, h)| h << 16 | l).collect();
        let turned: Vec<u64> = pairs
            .iter()
            .map(|p| (p << 16 | p >> 16) & 0xffff_ffff)
            .collect();
        let thirds: Vec<u64> = c.iter().map(|c| c << 16 | c).collect();
        for op in [
            "add %d, %a, %b",
            "sub %d, %a, %b",
            "mul %d, %a, %b",
            "fma.rn %d, %a, %b, %c",
            "neg %d, %a",
            "abs %d, %a",
            "min %d, %a, %b",
            "max %d, %a, %b",
            "min.NaN %d, %a, %b",
            "max.NaN %d, %a, %b",
            "tanh.approx %d, %a",
        ] {
            let (name, operands) = op.split_once(' ').unwrap();
            let pair = apply(
                &format!("{name}.{}x2 {operands};", f.name),
                [32; 4],
                &pairs,
                &turned,
                &thirds,
            );
            let low = apply(
                &format!("{name}.{} {operands};", f.name),
                [16; 4],
                &lo,
                &hi,
                &c,
            );
            let high = apply(
                &format!("{name}.{} {operands};", f.name),
                [16; 4],
                &hi,
                &lo,
                &c,
            );
            for i in 0..pair.len() {
                assert_eq!(pair[i], high[i] << 16 | low[i], "{op} {}", f.name);
            }
        }
    }
}

/// Signs, minima, maxima and special values.
#[test]
fn float_special_cases() {
    let all: Vec<u64> = (0..=0xffff).collect();
    let turned: Vec<u64> = all.iter().map(|x| x.wrapping_mul(40503) & 0xffff).collect();
    for f in [F16, BF16] {
        for (op, largest, keeps_nan) in [
            ("min", false, false),
            ("max", true, false),
            ("min.NaN", false, true),
            ("max.NaN", true, true),
        ] {
            let got = apply(
                &format!("{op}.{} %d, %a, %b;", f.name),
                [16; 4],
                &all,
                &turned,
                &[],
            );
            for i in 0..all.len() {
                let (x, y) = (f.value(all[i]), f.value(turned[i]));
                // −0 lies below +0.
                let order = |v: u64| (f.value(v), v & 0x8000 == 0);
                let want = match (x.is_nan(), y.is_nan()) {
                    (true, true) => 0x7fff,
                    (true, false) | (false, true) if keeps_nan => 0x7fff,
                    (true, false) => turned[i],
                    (false, true) => all[i],
                    _ if (order(all[i]) > order(turned[i])) == largest => all[i],
                    _ => turned[i],
                };
                assert_eq!(got[i], want, "{op} {} of {x} {y}", f.name);
            }
        }
        let negated = apply(&format!("neg.{} %d, %a;", f.name), [16; 4], &all, &[], &[]);
        let absolute = apply(&format!("abs.{} %d, %a;", f.name), [16; 4], &all, &[], &[]);
        for i in 0..all.len() {
            assert_eq!(
                (negated[i], absolute[i]),
                (all[i] ^ 0x8000, all[i] & 0x7fff)
            );
        }
    }
    let x: Vec<f64> = (0..4000u64)
        .map(|i| f64::from_bits(Random(i).next() >> 2 << 2))
        .collect();
    let y: Vec<f64> = (0..4000).map(|i| x[(i * 7 + 1) % 4000] * 0.5).collect();
    let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
    type Case = (&'static str, fn(f64, f64) -> f64);
    let cases: [Case; 7] = [
        ("add.f64 %d, %a, %b", |a, b| a + b),
        ("sub.rn.f64 %d, %a, %b", |a, b| a - b),
        ("mul.f64 %d, %a, %b", |a, b| a * b),
        ("div.rn.f64 %d, %a, %b", |a, b| a / b),
        ("fma.rn.f64 %d, %a, %b, %a", |a, b| a.mul_add(b, a)),
        ("neg.f64 %d, %a", |a, _| -a),
        ("abs.f64 %d, %a", |a, _| a.abs()),
    ];
    for (body, f) in cases {
        let got = apply(&format!("{body};"), [64; 4], &bits(&x), &bits(&y), &[]);
        for i in 0..x.len() {
            let (got, want) = (f64::from_bits(got[i]), f(x[i], y[i]));
            assert!(
                got == want || got.is_nan() && want.is_nan(),
                "{body} {} {}",
                x[i],
                y[i]
            );
        }
    }
    // Directed roots, quotients and reciprocals: the bracket, and on which side the exact value lies.
    let a: Vec<u64> = F32.values(7).iter().map(|x| x & 0x7fff_ffff).collect();
    let b = F32.values(8);
    let value = |v: u64| f64::from(f32::from_bits(v as u32));
    for op in ["sqrt", "rcp", "div"] {
        let run = |mode: &str| {
            let operands = if op == "div" { "%d, %a, %b" } else { "%d, %a" };
            apply(
                &format!("{op}.{mode}.f32 {operands};"),
                [32; 4],
                &a,
                &b,
                &[],
            )
        };
        let [rn, rz, rm, rp] = MODES.map(run);
        for i in 0..a.len() {
            let (x, y) = (value(a[i]), value(b[i]));
            if x == 0.0 || op == "div" && y == 0.0 {
                continue;
            }
            let [rn, rz, rm, rp] = [rn[i], rz[i], rm[i], rp[i]].map(value);
            // r is below the result if r·r < x, r·x < 1, r·y < x: exact in f64.
            let below = |r: f64| match op {
                "sqrt" => r * r <= x,
                "rcp" => r * x <= 1.0,
                _ if y > 0.0 => r * y <= x,
                _ => r * y >= x,
            };
            let above = |r: f64| match op {
                "sqrt" => r * r >= x,
                "rcp" => r * x >= 1.0,
                _ if y > 0.0 => r * y >= x,
                _ => r * y <= x,
            };
            assert!(below(rm) && above(rp), "{op} {x} {y}: {rm} {rp}");
            assert!(
                rm == rp || (rm as f32).next_up() == rp as f32,
                "{op} {x} {y}"
            );
            assert!(rn == rm || rn == rp);
            assert_eq!(rz, if rn < 0.0 { rp } else { rm }, "{op} {x} {y}");
        }
    }
}
