//! The kernels with `Compat`, compared with the results of Hugging Face's module, within the bounds.

use std::collections::BTreeMap;

use xact::reference::{self, Bounds, PARAM_GRADIENT_BOUND, Report, ULPS, ulp};
use xact::{Activation, Compat, EpsGradient, Xielu};
use xact_dev::choose::gpu;
use xact_dev::run::{self, How};

#[test]
fn the_kernels_in_compat_are_hugging_face() {
    let gpu = gpu();
    let file = include_bytes!("../golden/xielu_hf.safetensors");
    let tensors: BTreeMap<_, Vec<f64>> = safetensors::SafeTensors::deserialize(file)
        .unwrap()
        .tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F64)
        .map(|(name, view)| (name, bytemuck::pod_collect_to_vec(view.data())))
        .collect();
    let f32s = |name: &str| tensors[name].iter().map(|&v| v as f32).collect::<Vec<_>>();
    let (x, gx, dy) = (f32s("x"), f32s("gradient.x"), f32s("gradient.dy"));

    // Computed in f64 with parameters and an eps that are f32 numbers, unlike those of `f64.initial`.
    for case in ["f64.default", "f64.apertus"] {
        let get = |name: &str| &tensors[&format!("{case}.{name}")];
        let params = [get("alpha_p")[0], get("alpha_n")[0]];
        let op = Xielu::default()
            .compat(Compat::new(get("eps")[0] as f32).gradient(EpsGradient::Autograd));
        // The bound at the stored parameters is that of the formula plus that of the softplus.
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
                    within(y, theirs, exact.largest_addend),
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
            let scale = (exact.slope.largest_addend * dy).abs();
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

/// In f32, Hugging Face computes expm1(x) − x and the slope e^x − 1 as differences, which lose their digits near 0. Their
/// results are within our bound only relative to their own addends; ours are within it relative to those of the function.
#[test]
fn in_f32_the_kernels_are_closer_than_hugging_face() {
    let gpu = gpu();
    let file = include_bytes!("../golden/xielu_hf.safetensors");
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let f32s = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        match view.dtype() {
            safetensors::Dtype::F32 => bytemuck::pod_collect_to_vec(view.data()),
            _ => bytemuck::pod_collect_to_vec::<u8, f64>(view.data())
                .into_iter()
                .map(|v| v as f32)
                .collect(),
        }
    };
    let all = f32s("x");
    let finite = |values: &[f32]| -> Vec<f32> {
        let pairs = all.iter().zip(values).filter(|(x, _)| x.is_finite());
        pairs.map(|(_, &v)| v).collect()
    };
    let (x, gx, dy) = (finite(&all), f32s("gradient.x"), f32s("gradient.dy"));
    assert!(x.len() > 590 && gx.len() > 590);
    let worst = |report: &Report| report.tensors[0].worst.expect("elements").ulps;

    for case in ["f32.initial", "f32.default", "f32.apertus"] {
        let get = |name: &str| f32s(&format!("{case}.{name}"));
        let stored = [get("alpha_p")[0], get("alpha_n")[0]];
        let (params, eps) = (stored.map(f64::from), get("eps")[0]);
        let op = Xielu::default().compat(Compat::new(eps).gradient(EpsGradient::Autograd));
        let bounds = Bounds::of(&op);
        let of_y = |y: &[f32]| reference::check_forward(&op, &params, &x, y, bounds).unwrap();
        let of_gradients = |dx: &[f32], dparams: &[f32]| {
            let dparams: Vec<_> = dparams.iter().map(|&v| f64::from(v)).collect();
            reference::check_gradients(&op, &params, &gx, &dy, dx, &dparams, bounds).unwrap()
        };
        let y = run::forward(&gpu, &op, &stored, &x, &How::default()).unwrap();
        let (dx, dparams) = run::backward(&gpu, &op, &stored, &gx, &dy, &How::default()).unwrap();
        let (y, gradients) = (of_y(&y), of_gradients(&dx, &dparams));
        assert!(y.ok() && gradients.ok(), "{case}:\n{y}\n{gradients}");

        let (their_y, their_dx) = (finite(&get("y")), get("dx"));
        let y_hf = of_y(&their_y);
        let gradients_hf = of_gradients(&their_dx, &[get("dalpha_p")[0], get("dalpha_n")[0]]);
        assert!(
            gradients_hf.parameters.iter().all(|p| p.ok),
            "{gradients_hf}"
        );
        eprintln!(
            "{case}: y {:.2} ulp, theirs {:.2}; dx {:.2} ulp, theirs {:.2}",
            worst(&y),
            worst(&y_hf),
            worst(&gradients),
            worst(&gradients_hf)
        );
        if case == "f32.apertus" {
            assert!(worst(&y_hf) > ULPS && worst(&gradients_hf) > ULPS);
        }
        // The function is the same, but α_n·(expm1(min(x, eps)) − x) has addends up to α_n·|x|, and α_n·e^x − α_n up to
        // α_n.
        let alpha_n = f64::from(op.beta) + params[1].max(0.0) + (-params[1].abs()).exp().ln_1p();
        let close = |theirs: f32, exact: f64, largest: f64| {
            let bound =
                ULPS * ulp::<f32>(largest) + bounds.parameter_ulps * largest * 2f64.powi(-23);
            (f64::from(theirs) - exact).abs() <= bound
        };
        for (&x, &theirs) in x.iter().zip(&their_y) {
            let exact = op.evaluate(&params, f64::from(x)).y;
            let addend = alpha_n * f64::from(x.abs().max(eps.abs()));
            let largest = if x > 0.0 {
                exact.largest_addend
            } else {
                exact.largest_addend.max(addend)
            };
            assert!(
                close(theirs, exact.value, largest),
                "{case} y({x:e}) = {theirs:e}"
            );
        }
        for ((&x, &dy), &theirs) in gx.iter().zip(&dy).zip(&their_dx) {
            let slope = op.evaluate(&params, f64::from(x)).slope;
            let largest = if x > 0.0 {
                slope.largest_addend
            } else {
                slope.largest_addend.max(alpha_n)
            };
            let dy = f64::from(dy);
            let (exact, largest) = (slope.value * dy, largest * dy.abs());
            assert!(
                close(theirs, exact, largest),
                "{case} dx({x:e}) = {theirs:e}"
            );
        }
    }
}
