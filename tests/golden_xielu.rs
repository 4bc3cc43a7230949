//! The kernels in `Compat` against what Hugging Face's module computes, within the bounds.

mod support;

use std::collections::BTreeMap;

use support::choose::{Choice, open};
use support::run::{self, How};
use xact::reference::{PARAM_GRADIENT_BOUND, ULPS, ulp};
use xact::{Activation, Compat, EpsGradient, Xielu};

#[test]
fn the_kernels_in_compat_are_hugging_face() {
    let gpu = open(Choice::from_env().unwrap()).unwrap();
    let file = include_bytes!("golden/xielu_hf.safetensors");
    let tensors: BTreeMap<_, Vec<f64>> = safetensors::SafeTensors::deserialize(file)
        .unwrap()
        .tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F64)
        .map(|(name, view)| (name, bytemuck::pod_collect_to_vec(view.data())))
        .collect();
    let f32s = |name: &str| tensors[name].iter().map(|&v| v as f32).collect::<Vec<_>>();
    let (x, gx, dy) = (f32s("x"), f32s("gradient.x"), f32s("gradient.dy"));

    // Computed in f64 with parameters and an eps that are f32 too, unlike those of `f64.initial`.
    for case in ["f64.default", "f64.apertus"] {
        let get = |name: &str| &tensors[&format!("{case}.{name}")];
        let params = [get("alpha_p")[0], get("alpha_n")[0]];
        let op = Xielu {
            compat: Some(Compat {
                eps: get("eps")[0] as f32,
                gradient: EpsGradient::Autograd,
            }),
            ..Xielu::default()
        };
        // The bound at the stored parameters: that of the formula, and that of the softplus.
        let within = |got: f32, theirs: f64, scale: f64| {
            let scale = scale.max(theirs.abs());
            let bound = ULPS * ulp::<f32>(scale) + op.parameter_ulps() * scale * 2f64.powi(-23);
            (f64::from(got) - theirs).abs() <= bound
        };
        let stored = params.map(|p| p as f32);
        let y = run::forward(&gpu, &op, &stored, &x, &How::default()).unwrap();
        let mut compared = 0;
        for ((&x, &y), &theirs) in x.iter().zip(&y).zip(get("y")) {
            let exact = op.evaluate(&params, f64::from(x)).y;
            if x == f32::NEG_INFINITY {
                assert!(
                    y == f32::INFINITY && theirs.is_nan(),
                    "the one point that differs on purpose"
                );
            } else if theirs.is_finite() {
                assert!(
                    within(y, theirs, exact.scale),
                    "{case} y({x:e}) = {y:e}, theirs {theirs:e}"
                );
                compared += 1;
            } else {
                assert!(f64::from(y) == theirs || y.is_nan() && theirs.is_nan());
            }
        }
        assert!(compared > 590);
        let (dx, dparams) = run::backward(&gpu, &op, &stored, &gx, &dy, &How::default()).unwrap();
        let mut magnitudes = [0.0; 2];
        for (i, &theirs) in get("dx").iter().enumerate() {
            let (x, dy) = (f64::from(gx[i]), f64::from(dy[i]));
            let exact = op.evaluate(&params, x);
            let scale = (exact.slope.scale * dy).abs();
            assert!(
                within(dx[i], theirs, scale),
                "{case} dx({x:e}) = {:e}, theirs {theirs:e}",
                dx[i]
            );
            for (magnitude, term) in magnitudes.iter_mut().zip(exact.dparams) {
                *magnitude += (dy * term).abs();
            }
        }
        let chain = op.chain(&params);
        for (p, name) in ["dalpha_p", "dalpha_n"].into_iter().enumerate() {
            let (ours, theirs) = (f64::from(dparams[p]), get(name)[0]);
            let bound = PARAM_GRADIENT_BOUND * magnitudes[p] * chain[p];
            assert!(
                (ours - theirs).abs() <= bound,
                "{case} {name}: {ours:e}, theirs {theirs:e}"
            );
        }
    }
}
