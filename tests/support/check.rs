//! Runs an op on the device and holds the result against the reference.

use xact::reference::{self, Bounds, Report};
use xact::{Activation, Element};

use super::choose::Gpu;
use super::run::{self, How};

/// The bounds at the parameters that the kernel uses.
fn at_measured(ulps: f64) -> Bounds {
    Bounds {
        ulps,
        parameter_ulps: 0.0,
    }
}

/// The forward of `op` on x, checked at the parameters that the kernel uses.
pub fn forward<A: Activation, T: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[f32],
    x: &[T],
    ulps: f64,
) -> Report {
    let y = run::forward(gpu, op, params, x, &How::default()).expect("forward");
    let params = measured(gpu, op, params);
    reference::check_forward(op, &params, x, &y, at_measured(ulps)).expect("equal lengths")
}

/// The backward of `op` on x and dy: dx at the parameters that the kernel uses, their gradients at the
/// stored ones.
pub fn backward<A: Activation, T: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[f32],
    x: &[T],
    dy: &[T],
    ulps: f64,
) -> Report {
    let (dx, dparams) = run::backward(gpu, op, params, x, dy, &How::default()).expect("backward");
    let dparams: Vec<_> = dparams.iter().map(|&v| f64::from(v)).collect();
    let check = |params: &[f64]| {
        reference::check_gradients(op, params, x, dy, &dx, &dparams, at_measured(ulps))
            .expect("equal lengths")
    };
    let stored: Vec<_> = params.iter().map(|&v| f64::from(v)).collect();
    let mut report = check(&measured(gpu, op, params));
    report.parameters = check(&stored).parameters;
    report
}

/// See [`Activation::measured`].
pub fn measured<A: Activation>(gpu: &Gpu, op: &A, params: &[f32]) -> Vec<f64> {
    op.measured(params, &mut |op, params, x| {
        run::forward(gpu, op, params, &[x], &How::default()).expect("one element")[0]
    })
}
