//! Conversions.

use crate::common::{Random, apply};
use crate::values::{ALL_INTS, BF16, F16, F32, F64, MODES, low, rounded};

#[test]
fn conversions_between_integers() {
    for from in ALL_INTS {
        for to in ALL_INTS {
            let a = from.values(1);
            for sat in ["", ".sat"] {
                let body = format!("cvt{sat}.{}.{} %d, %a;", to.0, from.0);
                let got = apply(
                    &body,
                    [from.register(), 32, 32, to.register()],
                    &a,
                    &[],
                    &[],
                );
                for i in 0..a.len() {
                    let v = from.value(a[i]);
                    let v = if sat.is_empty() {
                        v
                    } else {
                        v.clamp(to.min(), to.max())
                    };
                    // Extended to the register.
                    let want = low(to.value(low(v, to.bits())), to.register());
                    assert_eq!(got[i], want, "{body} of {v}");
                }
            }
        }
    }
}

#[test]
fn conversions_of_integers_to_floats() {
    for from in ALL_INTS {
        let a = from.values(1);
        for to in [F32, F16, BF16, F64] {
            for mode in if to.bits == 64 {
                &MODES[..1]
            } else {
                &MODES[..]
            } {
                let body = format!("cvt.{mode}.{}.{} %d, %a;", to.name, from.0);
                let got = apply(&body, [from.register(), 32, 32, to.bits], &a, &[], &[]);
                for i in 0..a.len() {
                    let v = from.value(a[i]);
                    assert_eq!(to.value(got[i]), rounded(v, 0, to, mode), "{body} of {v}");
                }
            }
        }
        let got = apply(
            &format!("cvt.rn.sat.f32.{} %d, %a;", from.0),
            [from.register(), 32, 32, 32],
            &a,
            &[],
            &[],
        );
        for i in 0..a.len() {
            assert_eq!(F32.value(got[i]), from.value(a[i]).clamp(0, 1) as f64);
        }
    }
}

#[test]
fn conversions_of_floats_to_integers() {
    for from in [F32, F16, BF16, F64] {
        let mut a = from.values(1);
        // Beyond all ends; −0, infinities and NaN.
        let ends = [
            0.0,
            -0.0,
            0.5,
            1.5,
            2.5,
            -0.5,
            -1.5,
            1e3,
            1e9,
            1e30,
            -1e30,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        a.extend(ends.map(|x| match from.name {
            "f16" => u64::from(half::f16::from_f64(x).to_bits()),
            "bf16" => u64::from(half::bf16::from_f64(x).to_bits()),
            "f32" => u64::from((x as f32).to_bits()),
            _ => x.to_bits(),
        }));
        type Round = (&'static str, fn(f64) -> f64);
        let modes: [Round; 4] = [
            ("rni", f64::round_ties_even),
            ("rzi", f64::trunc),
            ("rmi", f64::floor),
            ("rpi", f64::ceil),
        ];
        for (mode, round) in modes {
            for to in ALL_INTS {
                let body = format!("cvt.{mode}.{}.{} %d, %a;", to.0, from.name);
                let got = apply(&body, [from.bits, 32, 32, to.register()], &a, &[], &[]);
                for i in 0..a.len() {
                    let x = from.value(a[i]);
                    // NaN has a bit of its own where a side is of 64 bits.
                    let want = if x.is_nan() && from.bits.max(to.bits()) == 64 {
                        1i128 << (to.bits() - 1)
                    } else {
                        // `as` takes NaN to 0 and clamps, to a type that holds all of these.
                        (round(x) as i128).clamp(to.min(), to.max())
                    };
                    let want = to.value(low(want, to.bits()));
                    assert_eq!(got[i], low(want, to.register()), "{body} of {x}");
                }
            }
            let body = format!("cvt.{mode}.{0}.{0} %d, %a;", from.name);
            let got = apply(&body, [from.bits, 32, 32, from.bits], &a, &[], &[]);
            for i in 0..a.len() {
                let (x, y) = (from.value(a[i]), from.value(got[i]));
                assert!(
                    y == round(x) || y.is_nan() && x.is_nan(),
                    "{body} of {x}: {y}"
                );
                assert!(
                    x.is_nan() || y.is_sign_negative() == x.is_sign_negative(),
                    "{body} of {x}"
                );
            }
        }
    }
}

#[test]
fn conversions_between_floats() {
    // Down, in every mode: from f64 with its 53 digits, of moderate size and around the subnormals of f16.
    let mut r = Random(11);
    let wide: Vec<u64> = (0..4000)
        .map(|_| {
            let digits = r.next() >> 20 & (u64::MAX << (r.next() % 45));
            let x = digits as f64 * 2f64.powi(-(r.next() as i32 & 31) - 38);
            (if r.next() & 1 == 0 { x } else { -x }).to_bits()
        })
        .collect();
    let exact = |x: f64| ((x * 2f64.powi(80)) as i128, 80);
    for mode in MODES {
        for to in [F32, F16] {
            let body = format!("cvt.{mode}.{}.f64 %d, %a;", to.name);
            let got = apply(&body, [64, 32, 32, to.bits], &wide, &[], &[]);
            for i in 0..wide.len() {
                let x = f64::from_bits(wide[i]);
                let (v, scale) = exact(x);
                assert_eq!(
                    to.value(got[i]),
                    rounded(v, scale, to, mode),
                    "{body} of {x:e}"
                );
            }
        }
        let narrow: Vec<u64> = wide
            .iter()
            .map(|&x| u64::from((f64::from_bits(x) as f32).to_bits()))
            .collect();
        for to in [F16, BF16] {
            if to.name == "bf16" && mode != "rn" && mode != "rz" {
                continue;
            }
            let body = format!("cvt.{mode}.{}.f32 %d, %a;", to.name);
            let got = apply(&body, [32, 32, 32, 16], &narrow, &[], &[]);
            for i in 0..narrow.len() {
                let x = F32.value(narrow[i]);
                let (v, scale) = exact(x);
                assert_eq!(
                    to.value(got[i]),
                    rounded(v, scale, to, mode),
                    "{body} of {x:e}"
                );
            }
        }
    }
    // Up: the same value.
    let all: Vec<u64> = (0..=0xffff).collect();
    let up = apply("cvt.f64.f16 %d, %a;", [16, 32, 32, 64], &all, &[], &[]);
    let floats: Vec<u64> = (0..65536).map(|i| Random(i).next() >> 32).collect();
    let doubles = apply("cvt.f64.f32 %d, %a;", [32, 32, 32, 64], &floats, &[], &[]);
    let sat = apply("cvt.sat.f32.f16 %d, %a;", [16, 32, 32, 32], &all, &[], &[]);
    for i in 0..all.len() {
        let same = |got: f64, want: f64| got == want || got.is_nan() && want.is_nan();
        assert!(same(f64::from_bits(up[i]), F16.value(all[i])));
        assert!(same(f64::from_bits(doubles[i]), F32.value(floats[i])));
        let x = F16.value(all[i]);
        assert_eq!(F32.value(sat[i]), if x > 0.0 { x.min(1.0) } else { 0.0 });
    }
    let flushed = apply(
        "cvt.ftz.f64.f32 %d, %a;",
        [32, 32, 32, 64],
        &[1, 0x8000_0001, 0x0080_0000],
        &[],
        &[],
    );
    assert_eq!(
        flushed,
        [0, 1 << 63, f64::from(f32::MIN_POSITIVE).to_bits()]
    );
}
