//! The f64 references, compared with independent sources: 60-digit arithmetic, the results of Hugging Face, and finite
//! differences. They need no device.

use std::collections::BTreeMap;

use approx::{abs_diff_eq, abs_diff_ne, assert_abs_diff_eq};
use xact::activation::expanded::Tail;
use xact::activation::{Registered, Visitor};
use xact::reference::finite_differences;
use xact::{Activation, Compat, EpsGradient, Gated, Parameters, Xielu};

/// The maximum error of f64 arithmetic in these formulas, relative to the largest addend.
const F64_ROUNDING: f64 = 2e-15;

fn close(what: &str, x: f64, got: f64, exact: f64, scale: f64, tolerance: f64) {
    assert!(
        abs_diff_eq!(got, exact, epsilon = tolerance * scale + f64::from_bits(4)),
        "{what} at {x:e}: {got:e}, exact {exact:e}, {:e} of the largest addend",
        (got - exact).abs() / scale
    );
}

#[test]
fn every_op_has_an_oracle_and_matches_it() {
    struct Check(Vec<&'static str>);
    impl Visitor for Check {
        fn visit<A: Registered>(&mut self) {
            match A::NAME {
                "xielu" => xielu_matches_60_digit_arithmetic(),
                name => assert!(
                    A::gate(1.0).is_some(),
                    "nothing independent says what {name} is: see tests/golden/README.md"
                ),
            }
            self.0.push(A::NAME);
        }

        fn visit_gated<A: Gated + Registered>(&mut self) {
            expanded_matches_400_digit_arithmetic::<A>();
        }
    }
    let mut check = Check(Vec::new());
    xact::activation::for_each(&mut check);
    assert_eq!(check.0, xact::activation::NAMES);
}

fn xielu_matches_60_digit_arithmetic() {
    #[derive(serde::Deserialize)]
    struct Case {
        raw: bool,
        params: Vec<f64>,
        beta: f32,
        y: Vec<f64>,
        slope: Vec<f64>,
        dalpha_p: Vec<f64>,
        dalpha_n: Vec<f64>,
    }
    #[derive(serde::Deserialize)]
    struct Oracle {
        x: Vec<f64>,
        cases: BTreeMap<String, Case>,
    }
    let oracle: Oracle = serde_json::from_str(include_str!("../golden/xielu_oracle.json")).unwrap();
    assert!(oracle.x.len() > 350 && oracle.cases.len() == 5);
    for (name, case) in &oracle.cases {
        let op = Xielu::default()
            .parameters(if case.raw {
                Parameters::Raw
            } else {
                Parameters::Effective
            })
            .beta(case.beta);
        let chain = op.chain(&case.params);
        for (i, &x) in oracle.x.iter().enumerate() {
            let got = op.evaluate(&case.params, x);
            let what = |part| format!("{name} {part}");
            close(
                &what("y"),
                x,
                got.y.value,
                case.y[i],
                got.y.largest_addend,
                F64_ROUNDING,
            );
            close(
                &what("slope"),
                x,
                got.slope.value,
                case.slope[i],
                got.slope.largest_addend,
                F64_ROUNDING,
            );
            for (p, exact) in [case.dalpha_p[i], case.dalpha_n[i]].into_iter().enumerate() {
                close(
                    &what("dparams"),
                    x,
                    got.dparams[p] * chain[p],
                    exact,
                    exact,
                    F64_ROUNDING,
                );
            }
        }
    }
}

/// If the argument of an exponential is rounded, g(−u) and g′(u) lose accuracy in f64, and so do the addends of f, f′ and G
/// that contain only these two.
fn expanded_matches_400_digit_arithmetic<G: Gated + Registered>() {
    #[derive(serde::Deserialize)]
    struct Values {
        dalpha: Vec<f64>,
        gate_dalpha: Vec<f64>,
        density: Vec<f64>,
        y: Vec<Vec<f64>>,
        slope: Vec<Vec<f64>>,
        gate: Vec<Vec<f64>>,
    }
    #[derive(serde::Deserialize)]
    struct Oracle {
        x: Vec<f64>,
        alpha: Vec<f64>,
        gates: BTreeMap<String, Values>,
    }

    let oracle: Oracle =
        serde_json::from_str(include_str!("../golden/expanded_oracle.json")).unwrap();
    assert!(oracle.x.len() > 350 && oracle.alpha.len() == 6 && oracle.gates.len() >= 3);
    let values = oracle.gates.get(G::NAME);
    let values = values.unwrap_or_else(|| panic!("{} is not in expanded_oracle.json", G::NAME));
    for (a, &alpha) in oracle.alpha.iter().enumerate() {
        let (op, params, k) = (G::default(), [alpha], 1.0 + 2.0 * alpha);
        for (i, &x) in oracle.x.iter().enumerate() {
            let (f, g) = (op.evaluate(&params, x), op.evaluate_gate(&params, x));
            let (Tail { t, ut, density, .. }, argument) = G::gate(x.abs()).expect("a gate");
            let lost = |part: f64| argument * (k * part).abs();
            for (part, got, exact, scale, lost) in [
                ("f", f.y.value, values.y[a][i], f.y.largest_addend, lost(ut)),
                (
                    "f'",
                    f.slope.value,
                    values.slope[a][i],
                    f.slope.largest_addend,
                    lost(t + x.abs() * density),
                ),
                (
                    "G",
                    g.y.value,
                    values.gate[a][i],
                    g.y.largest_addend,
                    lost(t),
                ),
                (
                    "G'",
                    g.slope.value,
                    k * values.density[i],
                    (k * values.density[i]).abs(),
                    lost(density),
                ),
                (
                    "df/dalpha",
                    f.dparams[0],
                    values.dalpha[i],
                    values.dalpha[i].abs(),
                    0.0,
                ),
                (
                    "dG/dalpha",
                    g.dparams[0],
                    values.gate_dalpha[i],
                    values.gate_dalpha[i].abs(),
                    0.0,
                ),
            ] {
                let what = format!("{} {part}, alpha {alpha:e},", G::NAME);
                close(
                    &what,
                    x,
                    got,
                    exact,
                    scale + lost / F64_ROUNDING,
                    F64_ROUNDING,
                );
            }
        }
    }
}

#[test]
fn derivatives_match_finite_differences() {
    struct Check(usize);
    impl Visitor for Check {
        fn visit<A: Registered>(&mut self) {
            let x: Vec<f64> = (0..300)
                .map(|i| 1e-4 * 1.05f64.powi(i))
                .filter(|x| *x < 100.0)
                .flat_map(|x| [x, -x])
                .collect();
            for sample in A::samples() {
                let params: Vec<_> = sample.params.iter().map(|&p| f64::from(p)).collect();
                let found = finite_differences(&sample.op, &params, &x);
                assert!(
                    found.slope < 1e-6 && found.dparams < 1e-6,
                    "{sample:?}: {found:?}"
                );
                self.0 += 1;
            }
        }
    }
    let mut check = Check(0);
    xact::activation::for_each(&mut check);
    assert!(check.0 > 0);
}

#[test]
fn special_values() {
    let params = [0.8, 0.8];
    let op = Xielu::default().parameters(Parameters::Effective);
    let at = |op: &Xielu, params: &[f64], x: f64| op.evaluate(params, x);
    let inf = f64::INFINITY;
    assert_eq!(at(&op, &params, inf).y.value, inf);
    assert_eq!(at(&op, &params, -inf).y.value, inf);
    assert_eq!(at(&op, &params, -inf).slope.value, f64::from(op.beta) - 0.8);
    assert!(at(&op, &params, f64::NAN).y.value.is_nan());
    assert!(at(&op, &params, f64::NAN).slope.value.is_nan());
    assert!(at(&op, &params, -0.0).y.value.is_sign_negative());
    assert!(at(&op, &params, 0.0).y.value.is_sign_positive());
    // For α_n = β, the left side has a finite limit; for α_p = 0, the right side is linear.
    assert_eq!(at(&op, &[0.8, 0.5], -inf).y.value, -0.5);
    assert_eq!(at(&op, &[0.0, 0.8], inf).y.value, inf);
    assert_eq!(at(&op, &[0.0, 0.8], inf).slope.value, 0.5);
    // The clamp changes f(0), and autograd changes the slope there.
    let compat = |gradient| op.compat(Compat::new(-1e-6).gradient(gradient));
    let autograd = compat(EpsGradient::Autograd);
    assert_abs_diff_eq!(
        at(&autograd, &params, 0.0).y.value,
        -0.8e-6,
        epsilon = 1e-12
    );
    assert_eq!(at(&autograd, &params, 0.0).slope.value, 0.5 - 0.8);
    let analytic = compat(EpsGradient::Analytic);
    assert_abs_diff_eq!(at(&analytic, &params, 0.0).slope.value, 0.5, epsilon = 1e-6);
}

/// The tensors of xielu_hf.safetensors, as f64.
struct HuggingFace(BTreeMap<String, Vec<f64>>);

impl HuggingFace {
    fn load() -> HuggingFace {
        let file =
            safetensors::SafeTensors::deserialize(include_bytes!("../golden/xielu_hf.safetensors"));
        let tensors = file.unwrap().tensors().into_iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                safetensors::Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(data),
                safetensors::Dtype::F32 => bytemuck::pod_collect_to_vec::<u8, f32>(data)
                    .into_iter()
                    .map(f64::from)
                    .collect(),
                other => panic!("{other:?}"),
            };
            (name, values)
        });
        HuggingFace(tensors.collect())
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.0[name]
    }

    fn case(&self, case: &str) -> (Vec<f64>, f64) {
        let params = ["alpha_p", "alpha_n"].map(|p| self.get(&format!("{case}.{p}"))[0]);
        (params.to_vec(), self.get(&format!("{case}.eps"))[0])
    }
}

const F64_CASES: [&str; 3] = ["f64.initial", "f64.default", "f64.apertus"];

#[test]
fn compat_is_hugging_face() {
    let hf = HuggingFace::load();
    let (x, gx, dy) = (hf.get("x"), hf.get("gradient.x"), hf.get("gradient.dy"));
    for case in F64_CASES {
        let (params, eps) = hf.case(case);
        let op = Xielu::default().compat(Compat::new(eps as f32).gradient(EpsGradient::Autograd));
        // Hugging Face computes expm1(x) − x as a difference.
        let lost = |x: f64| 4e-16 * 200.0 * x.abs();
        // The eps of f64.initial is not an f32 number.
        let moved = 200.0 * (eps - f64::from(eps as f32)).abs();
        let mut compared = 0;
        for (&x, &theirs) in x.iter().zip(hf.get(&format!("{case}.y"))) {
            let ours = op.evaluate(&params, x).y;
            if x == f64::NEG_INFINITY {
                assert!(theirs.is_nan() && ours.value == f64::INFINITY);
            } else if !x.is_finite() {
                assert!(theirs == ours.value || theirs.is_nan() && ours.value.is_nan());
            } else {
                let allowed = 4e-15 * ours.largest_addend + lost(x) + moved;
                assert!(
                    abs_diff_eq!(ours.value, theirs, epsilon = allowed),
                    "{case} y({x:e}): {ours:?} {theirs:e}"
                );
                compared += 1;
            }
        }
        assert!(compared > 590);
        let mut sums = [(0.0, 0.0); 2];
        for ((&x, &dy), &theirs) in gx.iter().zip(dy).zip(hf.get(&format!("{case}.dx"))) {
            if x == f64::from(eps as f32) && x != eps {
                continue; // a tie with our eps, below theirs
            }
            let ours = op.evaluate(&params, x);
            let (value, scale) = (
                dy * ours.slope.value,
                (dy * ours.slope.largest_addend).abs(),
            );
            // The derivative of Hugging Face's α_n·(expm1(x) − x) is α_n·(e^x − 1), a difference.
            let allowed = 4e-15 * scale + (4e-16 * 42.0 + moved) * dy.abs();
            assert!(
                abs_diff_eq!(value, theirs, epsilon = allowed),
                "{case} dx({x:e}): {value:e} {theirs:e}"
            );
            for (sum, term) in sums.iter_mut().zip(ours.dparams) {
                *sum = (sum.0 + dy * term, sum.1 + (dy * term).abs());
            }
        }
        let chain = op.chain(&params);
        for (p, name) in ["dalpha_p", "dalpha_n"].into_iter().enumerate() {
            let theirs = hf.get(&format!("{case}.{name}"))[0];
            let (sum, magnitude) = (sums[p].0 * chain[p], sums[p].1 * chain[p]);
            assert!(
                abs_diff_eq!(sum, theirs, epsilon = 1e-12 * magnitude),
                "{case} {name}: {sum:e} {theirs:e}"
            );
        }
    }
}

#[test]
fn the_ideal_function_differs_from_hugging_face_only_between_eps_and_0() {
    let hf = HuggingFace::load();
    for case in F64_CASES {
        let (params, eps) = hf.case(case);
        let op = Xielu::default();
        let mut differing = 0;
        for (&x, &theirs) in hf.get("x").iter().zip(hf.get(&format!("{case}.y"))) {
            if !x.is_finite() {
                continue;
            }
            let ours = op.evaluate(&params, x).y;
            let allowed = 4e-15 * ours.largest_addend + 8e-14 * x.abs();
            let apart = abs_diff_ne!(ours.value, theirs, epsilon = allowed);
            assert!(!apart || (eps < x && x <= 0.0), "{case} y({x:e})");
            differing += usize::from(apart);
        }
        assert!(differing > 5, "the file holds inputs between eps and 0");
    }
}

#[test]
fn reports_find_what_is_wrong() {
    use xact::reference::{Bounds, check_forward, check_gradients};
    let op = Xielu::default().parameters(Parameters::Effective);
    let params = [0.8, 0.8];
    let x = [-2.0_f32, -0.5, -0.0, 0.25, 3.0, f32::INFINITY];
    let exact: Vec<f32> = xact::reference::forward(&op, &params, &x)
        .iter()
        .map(|&y| y as f32)
        .collect();
    let ok = |y: &[f32]| {
        check_forward(&op, &params, &x, y, Bounds::of(&op))
            .unwrap()
            .ok()
    };
    assert!(ok(&exact));
    // A relative error of 1e-5, a wrong sign of zero, a wrong infinity, and a NaN.
    for (at, wrong) in [
        (0, exact[0] * 1.00001),
        (2, 0.0),
        (5, f32::MAX),
        (3, f32::NAN),
    ] {
        let mut y = exact.clone();
        y[at] = wrong;
        let report = check_forward(&op, &params, &x, &y, Bounds::of(&op)).unwrap();
        assert!(
            !report.ok() && report.tensors[0].failures[0].at == at,
            "{report}"
        );
    }
    let dy = [1.0_f32; 4];
    let (dx, dparams) = xact::reference::backward(&op, &params, &x[..4], &dy).unwrap();
    let dx: Vec<f32> = dx.iter().map(|&v| v as f32).collect();
    let check = |dparams: &[f64]| {
        check_gradients(&op, &params, &x[..4], &dy, &dx, dparams, Bounds::of(&op))
    };
    assert!(check(&dparams).unwrap().ok());
    assert!(!check(&[dparams[0] * 1.00001, dparams[1]]).unwrap().ok());
    assert!(matches!(
        check(&dparams[..1]),
        Err(xact::Error::Length {
            what: "dparams",
            ..
        })
    ));
}
