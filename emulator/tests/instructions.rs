//! Instructions against exact arithmetic.

mod common;

use common::{COMPARISONS, Random, apply, apply_with};
use cuda_emulator::{Approx, Settings};

const F32: [u32; 4] = [32; 4];

fn bits(v: &[f32]) -> Vec<u64> {
    v.iter().map(|x| u64::from(x.to_bits())).collect()
}

fn floats(n: usize, seed: u64) -> Vec<f32> {
    let mut r = Random(seed);
    (0..n).map(|_| r.f32()).collect()
}

/// Runs a float instruction and compares each result with `f`; NaN must be the canonical one.
fn check_f32(body: &str, n: usize, f: impl Fn(f32, f32, f32) -> f32) {
    let (a, b, c) = (floats(n, 1), floats(n, 2), floats(n, 3));
    let d = apply(body, F32, &bits(&a), &bits(&b), &bits(&c));
    for i in 0..n {
        let want = f(a[i], b[i], c[i]);
        let want = if want.is_nan() {
            0x7fff_ffff
        } else {
            want.to_bits()
        };
        assert_eq!(
            d[i] as u32, want,
            "{body} of {:?} {:?} {:?}",
            a[i], b[i], c[i]
        );
    }
}

#[test]
fn native_arithmetic() {
    let n = 20_000;
    check_f32("add.f32 %d, %a, %b;", n, |a, b, _| a + b);
    check_f32("sub.rn.f32 %d, %a, %b;", n, |a, b, _| a - b);
    check_f32("mul.f32 %d, %a, %b;", n, |a, b, _| a * b);
    check_f32("fma.rn.f32 %d, %a, %b, %c;", n, |a, b, c| a.mul_add(b, c));
    check_f32("div.rn.f32 %d, %a, %b;", n, |a, b, _| a / b);
    check_f32("sqrt.rn.f32 %d, %a;", n, |a, _, _| a.sqrt());
    check_f32("rcp.rn.f32 %d, %a;", n, |a, _, _| 1.0 / a);
    check_f32("add.f32 %d, %a, 0f3F800000;", n, |a, _, _| a + 1.0);
    // −0 lies below +0; a NaN counts only with `.NaN`.
    let min = |a: f32, b: f32| {
        if a == b {
            f32::from_bits(a.to_bits() | b.to_bits())
        } else {
            a.min(b)
        }
    };
    let max = |a: f32, b: f32| {
        if a == b {
            f32::from_bits(a.to_bits() & b.to_bits())
        } else {
            a.max(b)
        }
    };
    check_f32("min.f32 %d, %a, %b;", n, |a, b, _| min(a, b));
    check_f32("max.f32 %d, %a, %b;", n, |a, b, _| max(a, b));
    let nan = |a: f32, b: f32| a.is_nan() || b.is_nan();
    check_f32("max.NaN.f32 %d, %a, %b;", n, |a, b, _| {
        if nan(a, b) { f32::NAN } else { max(a, b) }
    });
    check_f32("min.NaN.f32 %d, %a, %b;", n, |a, b, _| {
        if nan(a, b) { f32::NAN } else { min(a, b) }
    });
    // In numbers, not by the formula above: a NaN of either side is kept, or without `.NaN` dropped.
    let (a, b) = ([f32::NAN, 1.0, 0.0, -0.0], [1.0, f32::NAN, -0.0, 0.0]);
    let minimum = |body| apply(body, F32, &bits(&a), &bits(&b), &[]);
    let zeros = [0x8000_0000, 0x8000_0000];
    let kept = minimum("min.NaN.f32 %d, %a, %b;");
    assert_eq!(
        (&kept[..2], &kept[2..]),
        (&[0x7fff_ffff; 2][..], &zeros[..])
    );
    let dropped = minimum("min.f32 %d, %a, %b;");
    assert_eq!(
        (&dropped[..2], &dropped[2..]),
        (&[0x3f80_0000; 2][..], &zeros[..])
    );
}

#[test]
fn modifiers_ftz_and_sat() {
    let flush = |x: f32| {
        if x.is_subnormal() {
            0.0f32.copysign(x)
        } else {
            x
        }
    };
    let sat = |x: f32| {
        if x.is_nan() || x <= 0.0 {
            0.0
        } else {
            x.min(1.0)
        }
    };
    check_f32("add.ftz.f32 %d, %a, %b;", 20_000, |a, b, _| {
        flush(flush(a) + flush(b))
    });
    check_f32("mul.ftz.sat.f32 %d, %a, %b;", 20_000, |a, b, _| {
        sat(flush(flush(a) * flush(b)))
    });
    check_f32("fma.rn.sat.f32 %d, %a, %b, %c;", 20_000, |a, b, c| {
        sat(a.mul_add(b, c))
    });
    check_f32("cvt.sat.f32.f32 %d, %a;", 20_000, |a, _, _| sat(a));
    check_f32("cvt.ftz.f32.f32 %d, %a;", 20_000, |a, _, _| flush(a));
}

/// Directed roundings bracket the exact value: checked against the native result and its error.
#[test]
fn directed_rounding() {
    let n = 50_000;
    let (a, b, c) = (floats(n, 4), floats(n, 5), floats(n, 6));
    let run = |body: &str| {
        let d = apply(body, F32, &bits(&a), &bits(&b), &bits(&c));
        d.into_iter()
            .map(|x| f32::from_bits(x as u32))
            .collect::<Vec<_>>()
    };
    for op in ["add", "mul", "div", "fma"] {
        let rest = if op == "fma" {
            "%d, %a, %b, %c;"
        } else {
            "%d, %a, %b;"
        };
        let [rn, rz, rm, rp] =
            ["rn", "rz", "rm", "rp"].map(|m| run(&format!("{op}.{m}.f32 {rest}")));
        for i in 0..n {
            if rn[i].is_nan() {
                assert!(rz[i].is_nan() && rm[i].is_nan() && rp[i].is_nan());
                continue;
            }
            let what = (op, a[i], b[i], c[i], rn[i], rz[i], rm[i], rp[i]);
            assert!(rm[i] <= rn[i] && rn[i] <= rp[i], "{what:?}");
            // Neighbours, or one exact value.
            if rm[i] == rp[i] {
                assert_eq!(rz[i], rn[i], "{what:?}");
                assert_eq!(rm[i], rn[i], "{what:?}");
            } else {
                assert_eq!(rm[i].next_up(), rp[i], "{what:?}");
                assert!(rn[i] == rm[i] || rn[i] == rp[i], "{what:?}");
                assert_eq!(rz[i], if rm[i] >= 0.0 { rm[i] } else { rp[i] }, "{what:?}");
            }
            // Sums of two floats are exact in f64 when the exponents are near.
            if op == "mul" {
                let exact = f64::from(a[i]) * f64::from(b[i]);
                assert!(
                    f64::from(rm[i]) <= exact && exact <= f64::from(rp[i]),
                    "{what:?}"
                );
            }
        }
    }
}

#[test]
fn comparisons() {
    let n = 20_000;
    for (cmp, holds) in COMPARISONS {
        check_f32(
            &format!("setp.{cmp}.f32 %p1, %a, %b; selp.f32 %d, 0f3F800000, 0f00000000, %p1;"),
            n,
            |a, b, _| f32::from(holds(a.into(), b.into())),
        );
    }
    check_f32(
        "setp.lt.and.f32 %p1|%p2, %a, %b, !%p3; selp.f32 %d, 0f3F800000, 0f40000000, %p1;"
            .replace("setp.lt.and", "setp.eq.f32 %p3, %c, %c; setp.lt.and")
            .as_str(),
        n,
        |a, b, c| if a < b && c.is_nan() { 1.0 } else { 2.0 },
    );
    for (value, expected) in [("-1", 1.0), ("0", 2.0)] {
        check_f32(
            &format!("mov.pred %p1, {value}; selp.f32 %d, 0f3F800000, 0f40000000, %p1;"),
            n,
            |_, _, _| expected,
        );
    }
}

#[test]
fn half_conversions() {
    // Every f16 and bf16, both ways; then rounding of random floats against the half crate, which
    // rounds once from f32.
    let all: Vec<u64> = (0..=0xffff).collect();
    let wide = apply("cvt.f32.f16 %d, %a;", [16, 32, 32, 32], &all, &[], &[]);
    let narrow = apply("cvt.rn.f16.f32 %d, %a;", [32, 32, 32, 16], &wide, &[], &[]);
    for (h, (w, n)) in all.iter().zip(wide.iter().zip(&narrow)) {
        let want = half::f16::from_bits(*h as u16);
        if want.is_nan() {
            assert_eq!((*w, *n), (0x7fff_ffff, 0x7fff));
        } else {
            assert_eq!((*w as u32, *n), (want.to_f32().to_bits(), *h));
        }
    }
    let wide = apply("cvt.f32.bf16 %d, %a;", [16, 32, 32, 32], &all, &[], &[]);
    for (h, w) in all.iter().zip(&wide) {
        let want = half::bf16::from_bits(*h as u16);
        assert_eq!(
            *w as u32,
            if want.is_nan() {
                0x7fff_ffff
            } else {
                want.to_f32().to_bits()
            }
        );
    }
    // Around the range of f16 as well.
    let mut x = floats(50_000, 7);
    x.extend((0..50_000u32).map(|i| f32::from_bits(0x3280_0000 + i * 0x3711)));
    let f16 = apply(
        "cvt.rn.f16.f32 %d, %a;",
        [32, 32, 32, 16],
        &bits(&x),
        &[],
        &[],
    );
    let bf16 = apply(
        "cvt.rn.bf16.f32 %d, %a;",
        [32, 32, 32, 16],
        &bits(&x),
        &[],
        &[],
    );
    let pair = apply(
        "cvt.rn.bf16x2.f32 %d, %a, %b;",
        F32,
        &bits(&x),
        &bits(&[1.0]),
        &[],
    );
    for i in 0..x.len() {
        let want = half::f16::from_f32(x[i]);
        assert_eq!(
            f16[i],
            if x[i].is_nan() {
                0x7fff
            } else {
                u64::from(want.to_bits())
            },
            "{}",
            x[i]
        );
        let want = half::bf16::from_f32(x[i]);
        let want = if x[i].is_nan() {
            0x7fff
        } else {
            u64::from(want.to_bits())
        };
        assert_eq!(bf16[i], want, "{}", x[i]);
        assert_eq!(pair[i], want << 16 | 0x3f80);
    }
}

#[test]
fn half_arithmetic_rounds_once() {
    // Exact in f64 for f16: 11-digit factors, and sums over 40 binary orders.
    let n = 50_000;
    let mut r = Random(8);
    let mut h = || (0..n).map(|_| r.next() & 0xffff).collect::<Vec<u64>>();
    let (a, b, c) = (h(), h(), h());
    let d = apply("fma.rn.f16 %d, %a, %b, %c;", [16; 4], &a, &b, &c);
    let s = apply("add.f16 %d, %a, %b;", [16; 4], &a, &b, &[]);
    let v = |x: u64| half::f16::from_bits(x as u16).to_f64();
    for i in 0..n {
        // The neighbours of a correct rounding enclose the exact value, and it is the nearer one.
        for (got, exact) in [
            (d[i], v(a[i]) * v(b[i]) + v(c[i])),
            (s[i], v(a[i]) + v(b[i])),
        ] {
            let x = v(got);
            if exact.is_nan() {
                assert_eq!(got, 0x7fff);
            } else if x.is_infinite() {
                assert!(exact.abs() >= 65520.0, "{exact}");
            } else {
                let ulp = 2f64.powi((exact.abs().log2().floor() as i32 - 10).max(-24));
                assert!((x - exact).abs() <= ulp / 2.0, "{exact} {x}");
            }
        }
    }
}

#[test]
fn float_to_integer() {
    let x = floats(20_000, 9);
    type Case = (&'static str, fn(f32) -> u32);
    let cases: [Case; 6] = [
        ("cvt.rzi.s32.f32", |x| x as i32 as u32),
        ("cvt.rni.s32.f32", |x| x.round_ties_even() as i32 as u32),
        ("cvt.rmi.s32.f32", |x| x.floor() as i32 as u32),
        ("cvt.rpi.u32.f32", |x| x.ceil() as u32),
        ("cvt.rmi.f32.f32", |x| {
            if x.is_nan() {
                0x7fff_ffff
            } else {
                x.floor().to_bits()
            }
        }),
        ("cvt.rni.f32.f32", |x| {
            if x.is_nan() {
                0x7fff_ffff
            } else {
                x.round_ties_even().to_bits()
            }
        }),
    ];
    for (name, f) in cases {
        let d = apply(&format!("{name} %d, %a;"), F32, &bits(&x), &[], &[]);
        for (x, d) in x.iter().zip(d) {
            assert_eq!(d as u32, f(*x), "{name} {x}");
        }
    }
    let v: Vec<u64> = (0..10_000).map(|i| Random(i).next() >> (i % 64)).collect();
    let d = apply("cvt.rn.f32.u64 %d, %a;", [64, 32, 32, 32], &v, &[], &[]);
    let e = apply("cvt.rn.f32.s64 %d, %a;", [64, 32, 32, 32], &v, &[], &[]);
    for i in 0..v.len() {
        assert_eq!(d[i] as u32, (v[i] as f32).to_bits());
        assert_eq!(e[i] as u32, (v[i] as i64 as f32).to_bits());
    }
}

/// Checks an instruction on 64-bit or 32-bit integers.
fn check_int(body: &str, sizes: [u32; 4], f: impl Fn(u64, u64, u64) -> u64) {
    let mut r = Random(10);
    let mask = |bits: u32| u64::MAX >> (64 - bits);
    let mut v = |bits: u32| {
        (0..4000)
            .map(|i| (r.next() >> (i * 7 % 64)) & mask(bits))
            .collect::<Vec<u64>>()
    };
    let (a, b, c) = (v(sizes[0]), v(sizes[1]), v(sizes[2]));
    let d = apply(body, sizes, &a, &b, &c);
    for i in 0..a.len() {
        assert_eq!(
            d[i],
            f(a[i], b[i], c[i]) & mask(sizes[3]),
            "{body} of {:x} {:x} {:x}",
            a[i],
            b[i],
            c[i]
        );
    }
}

#[test]
fn integers() {
    let s = |x: u64| x as i32 as i64;
    check_int("add.s32 %d, %a, %b;", [32; 4], |a, b, _| a + b);
    check_int("sub.s64 %d, %a, %b;", [64; 4], |a, b, _| a.wrapping_sub(b));
    check_int("mul.hi.u32 %d, %a, %b;", [32; 4], |a, b, _| (a * b) >> 32);
    check_int("mul.hi.u64 %d, %a, %b;", [64; 4], |a, b, _| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    });
    check_int("mul.wide.u32 %d, %a, %b;", [32, 32, 32, 64], |a, b, _| {
        a * b
    });
    check_int("mul.wide.s32 %d, %a, %b;", [32, 32, 32, 64], |a, b, _| {
        (s(a) * s(b)) as u64
    });
    check_int("mad.lo.s64 %d, %a, %b, %c;", [64; 4], |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    check_int("mad.hi.u32 %d, %a, %b, %c;", [32; 4], |a, b, c| {
        ((a * b) >> 32) + c
    });
    check_int("div.s32 %d, %a, %b;", [32; 4], |a, b, _| {
        if b == 0 {
            u64::MAX
        } else {
            (s(a) / s(b)) as u64
        }
    });
    check_int("rem.u64 %d, %a, %b;", [64; 4], |a, b, _| {
        if b == 0 { a } else { a % b }
    });
    check_int("shl.b32 %d, %a, %b;", [32; 4], |a, b, _| {
        if b > 31 { 0 } else { a << b }
    });
    check_int("shr.s32 %d, %a, %b;", [32; 4], |a, b, _| {
        (s(a) >> b.min(31)) as u64
    });
    check_int("shr.u64 %d, %a, %b;", [64, 32, 32, 64], |a, b, _| {
        if b > 63 { 0 } else { a >> b }
    });
    check_int("min.s32 %d, %a, %b;", [32; 4], |a, b, _| {
        s(a).min(s(b)) as u64
    });
    check_int("max.u64 %d, %a, %b;", [64; 4], |a, b, _| a.max(b));
    check_int("popc.b64 %d, %a;", [64, 32, 32, 32], |a, _, _| {
        u64::from(a.count_ones())
    });
    check_int("clz.b32 %d, %a;", [32; 4], |a, _, _| {
        u64::from((a as u32).leading_zeros())
    });
    check_int("xor.b32 %d, %a, -1;", [32; 4], |a, _, _| !a);
    check_int("abs.s32 %d, %a;", [32; 4], |a, _, _| s(a).unsigned_abs());
    check_int("cvt.s64.s32 %d, %a;", [32, 32, 32, 64], |a, _, _| {
        s(a) as u64
    });
    check_int("cvt.u16.u64 %d, %a;", [64, 32, 32, 16], |a, _, _| a);
    check_int("cvt.s32.s8 %d, %a;", [32; 4], |a, _, _| a as i8 as u64);
    check_int("cvt.sat.s8.s32 %d, %a;", [32; 4], |a, _, _| {
        s(a).clamp(-128, 127) as u64
    });
    check_int("shf.l.wrap.b32 %d, %a, %b, %c;", [32; 4], |a, b, c| {
        ((b << 32 | a) << (c & 31)) >> 32
    });
    check_int("shf.r.clamp.b32 %d, %a, %b, %c;", [32; 4], |a, b, c| {
        (b << 32 | a) >> c.min(32)
    });
    check_int(
        "and.b32 %r1, %c, 31; bfe.u32 %d, %a, %r1, 5;",
        [32; 4],
        |a, _, c| (a >> (c & 31)) & 31,
    );
    check_int("bfe.s32 %d, %a, 4, 8;", [32; 4], |a, _, _| {
        (a >> 4) as i8 as u64
    });
    check_int("bfi.b64 %d, %a, %b, 16, 16;", [64; 4], |a, b, _| {
        b & !0xffff_0000 | (a & 0xffff) << 16
    });
    check_int("prmt.b32 %d, %a, %b, 0x5410;", [32; 4], |a, b, _| {
        a & 0xffff | b << 16
    });
    check_int(
        "mov.b32 {%h1, %h2}, %a; mov.b32 %d, {%h2, %h1};",
        [32; 4],
        |a, _, _| a.rotate_left(16) | a >> 16,
    );
    check_int("not.b64 %d, %a;", [64; 4], |a, _, _| !a);
    check_int("neg.s32 %d, %a;", [32; 4], |a, _, _| a.wrapping_neg());
    // 64-bit addition by halves.
    check_int(
        "mov.b64 {%r1, %r2}, %a; mov.b64 {%r3, %r4}, %b; add.cc.u32 %r5, %r1, %r3; addc.u32 %r6, %r2, %r4; mov.b64 %d, {%r5, %r6};",
        [64; 4],
        |a, b, _| a.wrapping_add(b),
    );
    check_int("set.lt.u32.s32 %d, %a, %b;", [32; 4], |a, b, _| {
        if s(a) < s(b) { 0xffff_ffff } else { 0 }
    });
}

/// Approximations stay inside their bounds, reach them, and are exact where the ISA says so.
#[test]
fn approximations() {
    let x: Vec<f32> = (0..20_000).map(|i| -90.0 + i as f32 * 0.0087).collect();
    let modes = [
        Approx::Nearest,
        Approx::Lowest,
        Approx::Highest,
        Approx::Seeded(5),
    ];
    let run = |approx, body: &str, x: &[f32]| {
        let settings = Settings {
            approx,
            ..Settings::default()
        };
        let d = apply_with(settings, body, F32, &bits(x), &[], &[]);
        d.into_iter()
            .map(|b| f32::from_bits(b as u32))
            .collect::<Vec<_>>()
    };
    let order = |x: f32| i64::from(x.to_bits());
    for approx in modes {
        let y = run(approx, "ex2.approx.ftz.f32 %d, %a;", &x);
        for (x, y) in x.iter().zip(&y) {
            let exact = f64::from(*x).exp2() as f32;
            let far = order(*y) - order(exact);
            assert!(far.abs() <= 2, "{x} {y} {exact}");
            match approx {
                Approx::Nearest => assert_eq!(far, 0),
                Approx::Lowest => assert_eq!(far, if *x == 0.0 { 0 } else { -2 }),
                Approx::Highest => assert_eq!(far, if *x == 0.0 { 0 } else { 2 }),
                Approx::Seeded(_) => {}
            }
        }
        let special = [
            0.0,
            -0.0,
            f32::NEG_INFINITY,
            f32::INFINITY,
            -200.0,
            200.0,
            1e-40,
        ];
        let y = run(approx, "ex2.approx.ftz.f32 %d, %a;", &special);
        assert_eq!(y, [1.0, 1.0, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 1.0]);
        let y = run(approx, "tanh.approx.f32 %d, %a;", &x);
        for (x, y) in x.iter().zip(&y) {
            let exact = f64::from(*x).tanh();
            assert!(
                (f64::from(*y) - exact).abs() <= exact.abs() * 2f64.powi(-11) + 1e-12
                    && y.abs() <= 1.0
            );
        }
        let y = run(approx, "rcp.approx.ftz.f32 %d, %a;", &x);
        for (x, y) in x.iter().zip(&y) {
            assert!((order(*y) - order(1.0 / x)).abs() <= 1);
        }
        // Zeros and flushed subnormals become infinite; the reciprocal of MAX is flushed too.
        let special = [
            0.0,
            -0.0,
            5e-39,
            -1e-45,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::NAN,
        ];
        let inf = f32::INFINITY;
        let y = run(approx, "rcp.approx.ftz.f32 %d, %a;", &special);
        let want = [inf, -inf, inf, -inf, 0.0, -0.0, 0.0];
        assert_eq!(bits(&y[..7]), bits(&want));
        assert_eq!(y[7].to_bits(), 0x7fff_ffff);
        // Without `.ftz` only those whose reciprocal is beyond the range.
        let y = run(approx, "rcp.approx.f32 %d, %a;", &special[..4]);
        assert!(y[0] == inf && y[1] == -inf && y[3] == -inf);
        let positive: Vec<f32> = (1..20_000).map(|i| i as f32 * 0.0003).collect();
        let y = run(approx, "lg2.approx.f32 %d, %a;", &positive);
        for (x, y) in positive.iter().zip(&y) {
            let exact = f64::from(*x).log2();
            let bound = if *x > 0.5 && *x < 2.0 {
                1.0
            } else {
                exact.abs()
            } * 2f64.powi(-22);
            assert!(
                (f64::from(*y) - exact).abs() <= bound * 1.000001,
                "{x} {y} {exact}"
            );
        }
        let y = run(approx, "rsqrt.approx.f32 %d, %a;", &positive);
        for (x, y) in positive.iter().zip(&y) {
            let exact = 1.0 / f64::from(*x).sqrt();
            assert!((f64::from(*y) - exact).abs() <= exact * 2f64.powf(-22.9) * 1.000001);
        }
        let y = run(
            approx,
            "lg2.approx.f32 %d, %a;",
            &[0.0, -1.0, f32::INFINITY, 1.0],
        );
        assert!(y[0] == f32::NEG_INFINITY && y[1].is_nan() && y[2] == f32::INFINITY && y[3] == 0.0);
    }
    // The trap of div.approx: a divisor above 2^126.
    let d = apply(
        "div.approx.f32 %d, %a, %b;",
        F32,
        &bits(&[1e38, 3.0]),
        &bits(&[2e38, 2.0]),
        &[],
    );
    assert_eq!(d, bits(&[0.0, 1.5]));
    let d = apply(
        "div.full.f32 %d, %a, %b;",
        F32,
        &bits(&[1e38, 3.0]),
        &bits(&[2e38, 2.0]),
        &[],
    );
    assert_eq!(d, bits(&[0.5, 1.5]));
}

#[test]
fn half_approximations() {
    let all: Vec<u64> = (0..=0xffff).collect();
    for approx in [
        Approx::Nearest,
        Approx::Lowest,
        Approx::Highest,
        Approx::Seeded(3),
    ] {
        let settings = Settings {
            approx,
            ..Settings::default()
        };
        let e = apply_with(
            settings,
            "ex2.approx.f16 %d, %a;",
            [16, 32, 32, 16],
            &all,
            &[],
            &[],
        );
        let t = apply_with(
            settings,
            "tanh.approx.bf16 %d, %a;",
            [16, 32, 32, 16],
            &all,
            &[],
            &[],
        );
        for i in 0..all.len() {
            let (x, y) = (
                half::f16::from_bits(i as u16).to_f64(),
                half::f16::from_bits(e[i] as u16).to_f64(),
            );
            let exact = x.exp2();
            // Or half of the spacing of subnormals, or infinite where f16 ends.
            let fine = (y - exact).abs() <= (exact * 2f64.powf(-9.9)).max(2f64.powi(-25));
            assert!(
                fine || x.is_nan() || (exact > 65400.0 && y.is_infinite()),
                "{x} {y}"
            );
            let (x, y) = (
                half::bf16::from_bits(i as u16).to_f64(),
                half::bf16::from_bits(t[i] as u16).to_f64(),
            );
            assert!(
                x.is_nan() || ((y - x.tanh()).abs() <= 2f64.powi(-8) && y.abs() <= 1.0),
                "{x} {y}"
            );
        }
    }
}
