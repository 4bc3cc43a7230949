//! The kernels of the expanded activations, plain and gated, compared with the formulas of the paper's author, within the
//! bounds.

use std::collections::BTreeMap;

use xact::activation::{Registered, Visitor};
use xact::reference::{PARAM_GRADIENT_BOUND, ULPS, ulp};
use xact::{Gated, Order};
use xact_dev::choose::{Gpu, gpu};
use xact_dev::run::{self, How};

/// The maximum error of f64 arithmetic in either formula, relative to the largest addend of ours.
const F64_ROUNDING: f64 = 4e-15;

/// The additional error of the author's G and G′, in units of 1 + |1 + 2α|: arctan(x)·k + ½ and 1 − σ are small differences
/// of larger numbers there. In f and f′ it is multiplied by x.
const LOST: f64 = 2.0 / (1u64 << 52) as f64;

struct Check {
    gpu: Gpu,
    tensors: BTreeMap<String, Vec<f64>>,
    compared: usize,
}

/// The data of the file for one form and one α.
struct Theirs<'a> {
    name: String,
    tensors: &'a BTreeMap<String, Vec<f64>>,
    compared: usize,
}

impl Theirs<'_> {
    fn get(&self, part: &str) -> &[f64] {
        &self.tensors[&format!("{}.{part}", self.name)]
    }

    /// `exact(i)` is the reference's value, its largest addend, the f32 by which the kernel multiplies it, and the possible
    /// error of the author's formula.
    fn compare(&mut self, part: &str, got: &[f32], exact: impl Fn(usize) -> [f64; 4]) {
        let theirs = self.get(part);
        assert_eq!(got.len(), theirs.len());
        for (i, (&got, &theirs)) in got.iter().zip(theirs).enumerate() {
            let [value, scale, factor, lost] = exact(i);
            let scale = (scale * factor).abs();
            let what = || format!("{}.{part}[{i}]: theirs {theirs:e}", self.name);
            let apart = F64_ROUNDING * scale + lost * factor.abs();
            let reference = value * factor;
            assert!(
                (reference - theirs).abs() <= apart,
                "{}, reference {reference:e}",
                what()
            );
            // A factor below the normal range is rounded to multiples of the smallest f32.
            let unit = ulp::<f32>(scale.max(theirs.abs())).max(ulp::<f32>(0.0) * factor.abs());
            assert!(
                (f64::from(got) - theirs).abs() <= ULPS * unit + apart,
                "{}, kernel {got:e}",
                what()
            );
        }
        self.compared += got.len();
    }

    /// `terms` are the upstream gradients, and their factors in the sum.
    fn compare_dalpha(&self, got: &[f32], terms: impl Iterator<Item = (f64, f64)>) {
        let (theirs, got) = (self.get("dalpha")[0], f64::from(got[0]));
        let (mut sum, mut magnitude, mut upstream) = (0.0, 0.0, 0.0);
        for (factor, term) in terms {
            sum += factor * term;
            magnitude += (factor * term).abs();
            upstream += factor.abs() * term.abs().max(1.0);
        }
        // The author's sum may be Σ 2·dy·σ − Σ dy.
        assert!(
            (sum - theirs).abs() <= 1e-13 * upstream,
            "{}.dalpha: theirs {theirs:e}, reference {sum:e}",
            self.name
        );
        assert!(
            (got - theirs).abs() <= PARAM_GRADIENT_BOUND * magnitude,
            "{}.dalpha: theirs {theirs:e}, kernel {got:e}, magnitude {magnitude:e}",
            self.name
        );
    }
}

impl Visitor for Check {
    fn visit<A: Registered>(&mut self) {}

    fn visit_gated<A: Gated + Registered>(&mut self) {
        let op = A::samples()[0].op;
        let [x, v, dy] = ["x", "v", "dy"].map(|name| &self.tensors[name][..]);
        let f32s = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let (xs, vs, dys) = (f32s(x), f32s(v), f32s(dy));
        for case in ["initial", "trained", "constant"] {
            let alpha = self.tensors[&format!("{case}.alpha")][0];
            let (params, stored) = ([alpha], [alpha as f32]);
            let lost = LOST * (1.0 + (1.0 + 2.0 * alpha).abs());
            let theirs = |form| Theirs {
                name: format!("{}.{case}.{form}", A::NAME),
                tensors: &self.tensors,
                compared: 0,
            };

            let mut plain = theirs("plain");
            let points: Vec<_> = x.iter().map(|&x| op.evaluate(&params, x)).collect();
            let y = run::forward(&self.gpu, &op, &stored, &xs, &How::default()).unwrap();
            plain.compare("y", &y, |i| {
                let y = points[i].y;
                [y.value, y.largest_addend, 1.0, lost * x[i].abs()]
            });
            let (dx, dalpha) =
                run::backward(&self.gpu, &op, &stored, &xs, &dys, &How::default()).unwrap();
            plain.compare("dx", &dx, |i| {
                let slope = points[i].slope;
                [
                    slope.value,
                    slope.largest_addend,
                    dy[i],
                    lost * (1.0 + x[i].abs()),
                ]
            });
            let terms = points.iter().zip(dy).map(|(p, &dy)| (dy, p.dparams[0]));
            plain.compare_dalpha(&dalpha, terms);
            let mut compared = plain.compared;

            for (order, form) in [(Order::First, "first"), (Order::Second, "second")] {
                let mut gated = theirs(form);
                let evaluate = |&x: &f64| op.evaluate_order(order, &params, x);
                let points: Vec<_> = x.iter().map(evaluate).collect();
                let times_x = |i: usize| {
                    if order == Order::First {
                        1.0
                    } else {
                        x[i].abs()
                    }
                };
                let how = How::default();
                let y = run::gated_forward(&self.gpu, &op, order, &stored, [&xs, &vs], &how);
                gated.compare("y", &y.unwrap(), |i| {
                    let y = points[i].y;
                    [y.value, y.largest_addend, v[i], lost * times_x(i)]
                });
                let tensors = [&xs[..], &vs, &dys];
                let ([dx, dv], dalpha) =
                    run::gated_backward(&self.gpu, &op, order, &stored, tensors, &how).unwrap();
                gated.compare("dx", &dx, |i| {
                    let slope = points[i].slope;
                    let lost = lost * (1.0 + times_x(i));
                    [slope.value, slope.largest_addend, dy[i] * v[i], lost]
                });
                gated.compare("dv", &dv, |i| {
                    let y = points[i].y;
                    [y.value, y.largest_addend, dy[i], lost * times_x(i)]
                });
                let upstream = dy.iter().zip(v).map(|(dy, v)| dy * v);
                let terms = upstream.zip(points.iter().map(|p| p.dparams[0]));
                gated.compare_dalpha(&dalpha, terms);
                compared += gated.compared;
            }
            self.compared += compared;
        }
    }
}

#[test]
fn the_kernels_are_the_formulas_of_the_papers_author() {
    let file = include_bytes!("../golden/expanded_paper.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let mut check = Check {
        gpu: gpu(),
        tensors: tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, bytemuck::pod_collect_to_vec(view.data())))
            .collect(),
        compared: 0,
    };
    let len = check.tensors["x"].len();
    xact::activation::for_each(&mut check);
    // 3 activations and 3 values of α; y and dx of 3 forms, and dv of 2.
    assert!(len > 250 && check.compared == 3 * 3 * 8 * len);
}
