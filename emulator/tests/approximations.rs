//! Every row of `.approx` instructions: in each mode inside its documented interval, and at the ends of it under
//! `Lowest` and `Highest`.

mod common;

use common::{Random, apply_with};
use cuda_emulator::{Approx, Settings};

const MODES: [Approx; 4] = [
    Approx::Nearest,
    Approx::Lowest,
    Approx::Highest,
    Approx::Seeded(9),
];

/// The documented error.
#[derive(Clone, Copy)]
enum Bound {
    Ulps(i64),
    Relative(f64),
    /// Absolute on (0.5, 2), relative elsewhere: `lg2`.
    Logarithm(f64),
}

/// Position of a float among all floats.
fn order(x: f32) -> i64 {
    let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
    if x.is_sign_negative() {
        -magnitude
    } else {
        magnitude
    }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

impl Bound {
    /// Whether y is allowed for an exact result of the operand x. The correctly rounded value always is.
    fn allows(self, x: f32, y: f32, exact: f64) -> bool {
        let near = exact as f32;
        let error = (f64::from(y) - exact).abs();
        y == near
            || match self {
                Bound::Ulps(n) => (order(y) - order(near)).abs() <= n,
                Bound::Relative(r) => error <= exact.abs() * r,
                Bound::Logarithm(r) if x > 0.5 && x < 2.0 => error <= r,
                Bound::Logarithm(r) => error <= exact.abs() * r,
            }
    }
}

fn run(approx: Approx, body: &str, a: &[f32], b: &[f32]) -> Vec<f32> {
    let settings = Settings {
        approx,
        ..Settings::default()
    };
    let bits = |v: &[f32]| v.iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>();
    let d = apply_with(settings, body, [32; 4], &bits(a), &bits(b), &[]);
    d.into_iter().map(|d| f32::from_bits(d as u32)).collect()
}

#[test]
fn single_precision() {
    type Row = (&'static str, &'static str, Bound, fn(f64, f64) -> f64);
    let near = Bound::Relative(2f64.powf(-22.9));
    let rows: [Row; 15] = [
        ("ex2.approx", "%a", Bound::Ulps(2), |x, _| x.exp2()),
        ("ex2.approx.ftz", "%a", Bound::Ulps(2), |x, _| x.exp2()),
        (
            "lg2.approx",
            "%b",
            Bound::Logarithm(2f64.powi(-22)),
            |_, x| x.log2(),
        ),
        (
            "lg2.approx.ftz",
            "%b",
            Bound::Logarithm(2f64.powi(-22)),
            |_, x| x.log2(),
        ),
        ("rcp.approx", "%b", Bound::Ulps(1), |_, x| 1.0 / x),
        ("rcp.approx.ftz", "%b", Bound::Ulps(1), |_, x| 1.0 / x),
        (
            "sqrt.approx",
            "%b",
            Bound::Relative(2f64.powi(-23)),
            |_, x| x.sqrt(),
        ),
        (
            "sqrt.approx.ftz",
            "%b",
            Bound::Relative(2f64.powi(-23)),
            |_, x| x.sqrt(),
        ),
        ("rsqrt.approx", "%b", near, |_, x| 1.0 / x.sqrt()),
        ("rsqrt.approx.ftz", "%b", near, |_, x| 1.0 / x.sqrt()),
        (
            "tanh.approx",
            "%a",
            Bound::Relative(2f64.powi(-11)),
            |x, _| x.tanh(),
        ),
        ("div.approx", "%a, %b", Bound::Ulps(2), |x, y| x / y),
        ("div.approx.ftz", "%a, %b", Bound::Ulps(2), |x, y| x / y),
        ("div.full", "%a, %b", Bound::Ulps(2), |x, y| x / y),
        ("div.full.ftz", "%a, %b", Bound::Ulps(2), |x, y| x / y),
    ];
    // Moderate arguments of both signs; positive ones of every size, near 1 too.
    let mut r = Random(1);
    let a: Vec<f32> = (0..20_000)
        .map(|_| (r.next() >> 40) as f32 / 2f32.powi(17) - 64.0)
        .collect();
    let b: Vec<f32> = (0..20_000)
        .map(|i| match i % 3 {
            0 => 1.0 + (r.next() as i32 >> 12) as f32 * 2f32.powi(-21),
            _ => f32::from_bits((r.next() % 0x7e80_0000) as u32 + 1),
        })
        .map(f32::abs)
        .collect();
    for (name, operands, bound, exact) in rows {
        let ftz = name.ends_with("ftz");
        let body = format!("{name}.f32 %d, {operands};");
        let [nearest, lowest, highest, seeded] = MODES.map(|m| run(m, &body, &a, &b));
        let mut beyond = 0;
        for i in 0..a.len() {
            let keep = |x: f32| if ftz { flush(x) } else { x };
            let (x, y) = (keep(a[i]), keep(b[i]));
            let what = format!("{name} of {x:e} {y:e}");
            let exact = exact(f64::from(x), f64::from(y));
            if !(exact as f32).is_finite() || exact == 0.0 {
                assert_eq!(nearest[i], exact as f32, "{what}");
                continue;
            }
            assert_eq!(nearest[i], keep(exact as f32), "{what}");
            assert!(
                lowest[i] <= nearest[i] && nearest[i] <= highest[i],
                "{what}"
            );
            assert!(lowest[i] <= seeded[i] && seeded[i] <= highest[i], "{what}");
            let of = if operands == "%b" { y } else { x };
            for got in [lowest[i], highest[i], seeded[i]] {
                let flushed = got == 0.0 && ftz && exact.abs() < 2.0 * f64::from(f32::MIN_POSITIVE);
                assert!(
                    flushed || bound.allows(of, got, exact),
                    "{what}: {got:e}, {exact:e}"
                );
            }
            // One float further is not allowed: these are the ends. Some functions stop at a value of their own.
            let wall = name == "tanh.approx" && (exact.abs() > 0.999 || exact.abs() < 1e-30);
            if lowest[i] != 0.0 && highest[i] != 0.0 && !wall {
                let low = lowest[i].next_down();
                let high = highest[i].next_up();
                assert!(!bound.allows(of, low, exact), "{what}: {low:e} is allowed");
                assert!(
                    !bound.allows(of, high, exact),
                    "{what}: {high:e} is allowed"
                );
                beyond += 1;
            }
        }
        assert!(beyond > 1_000, "{name}: {beyond}");
        assert!(lowest != seeded && highest != seeded, "{name}");
    }
}

/// The cases that the ISA names are the same in every mode.
#[test]
fn exact_cases() {
    let inf = f32::INFINITY;
    type Case<'a> = (&'a str, &'a [(f32, f32)]);
    let cases: [Case; 6] = [
        (
            "ex2.approx",
            &[
                (0.0, 1.0),
                (-0.0, 1.0),
                (inf, inf),
                (-inf, 0.0),
                (1e-45, 1.0),
            ],
        ),
        (
            "lg2.approx",
            &[(0.0, -inf), (-0.0, -inf), (inf, inf), (1.0, 0.0)],
        ),
        (
            "rcp.approx",
            &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0)],
        ),
        ("sqrt.approx", &[(0.0, 0.0), (-0.0, -0.0), (inf, inf)]),
        ("rsqrt.approx", &[(0.0, inf), (-0.0, -inf), (inf, 0.0)]),
        (
            "tanh.approx",
            &[(0.0, 0.0), (-0.0, -0.0), (inf, 1.0), (-inf, -1.0)],
        ),
    ];
    for (name, values) in cases {
        for mode in MODES {
            let x: Vec<f32> = values.iter().map(|v| v.0).collect();
            let y = run(mode, &format!("{name}.f32 %d, %a;"), &x, &[]);
            for (&(x, want), y) in values.iter().zip(y) {
                // 2^x of the smallest subnormal is 1 to far more than 2 ulp, and may be any of those.
                let far = if x == 1e-45 { 2 } else { 0 };
                assert!(
                    (order(y) - order(want)).abs() <= far,
                    "{name} {x} {mode:?}: {y}"
                );
                assert!(y != 0.0 || y.is_sign_negative() == want.is_sign_negative());
            }
            let nan = [
                f32::NAN,
                if name == "ex2.approx" || name == "tanh.approx" || name == "rcp.approx" {
                    f32::NAN
                } else {
                    -1.0
                },
            ];
            for y in run(mode, &format!("{name}.f32 %d, %a;"), &nan, &[]) {
                assert_eq!(y.to_bits(), 0x7fff_ffff, "{name} {mode:?}");
            }
        }
    }
    // Division: a divisor beyond 2^126 is lost without `.full`.
    let (a, b) = ([1.0, inf, 0.0, 1.0, 1.0], [3e38, 3e38, 5.0, 0.0, inf]);
    for mode in MODES {
        let y = run(mode, "div.approx.f32 %d, %a, %b;", &a, &b);
        assert!(y[0] == 0.0 && y[1].is_nan() && y[2] == 0.0 && y[3] == inf && y[4] == 0.0);
        let y = run(mode, "div.full.f32 %d, %a, %b;", &a, &b);
        assert!(y[0] > 0.0 && y[1] == inf && y[2] == 0.0 && y[3] == inf && y[4] == 0.0);
    }
}

/// All values of the 16-bit formats.
#[test]
fn sixteen_bits() {
    let all: Vec<u64> = (0..=0xffff).collect();
    let f16 = |x: u64| half::f16::from_bits(x as u16).to_f64();
    let bf16 = |x: u64| half::bf16::from_bits(x as u16).to_f64();
    type Row<'a> = (&'a str, &'a dyn Fn(u64) -> f64, f64, f64, f64);
    // Name, value of bits, relative and absolute bound, the smallest bound.
    let rows: [Row; 4] = [
        ("ex2.approx.f16", &f16, 2f64.powf(-9.9), 0.0, 2f64.powi(-25)),
        (
            "ex2.approx.ftz.bf16",
            &bf16,
            2f64.powi(-7),
            0.0,
            2f64.powi(-126),
        ),
        ("tanh.approx.f16", &f16, 0.0, 2f64.powf(-10.987), 0.0),
        ("tanh.approx.bf16", &bf16, 0.0, 2f64.powi(-8), 0.0),
    ];
    for (name, value, relative, absolute, least) in rows {
        let [nearest, lowest, highest, seeded] = MODES.map(|approx| {
            let settings = Settings {
                approx,
                ..Settings::default()
            };
            apply_with(
                settings,
                &format!("{name} %d, %a;"),
                [16; 4],
                &all,
                &[],
                &[],
            )
        });
        let mut apart = 0;
        for i in 0..all.len() {
            let x = value(all[i]);
            let ys = [nearest[i], lowest[i], highest[i], seeded[i]].map(value);
            if x.is_nan() {
                assert!(ys.iter().all(|y| y.is_nan()), "{name} of NaN");
                continue;
            }
            let exact = if name.starts_with("ex2") {
                x.exp2()
            } else {
                x.tanh()
            };
            let [near, low, high, seed] = ys;
            assert!(
                low <= near && near <= high && low <= seed && seed <= high,
                "{name} of {x}: {ys:?}"
            );
            apart += usize::from(low < high);
            for y in ys {
                // Half of the spacing of subnormals, or 0 where they are flushed; infinite where the format ends.
                let margin = (exact * relative + absolute).max(least);
                let over = y.is_infinite() && exact > 65400.0;
                assert!(
                    over || (y - exact).abs() <= margin,
                    "{name} of {x}: {y}, {exact}"
                );
                assert!(!name.starts_with("tanh") || y.abs() <= 1.0);
            }
            if x == 0.0 || x.is_infinite() {
                assert!(ys.iter().all(|&y| y == exact), "{name} of {x}");
            }
        }
        assert!(apart > 3000, "{name}: {apart}");
    }
}
