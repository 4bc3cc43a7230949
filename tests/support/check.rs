//! Runs an op on the device and holds the result against the reference.

use xact::reference::{self, Report};
use xact::{Activation, Element};

use super::choose::Gpu;
use super::run::{self, How};

/// The forward of `op` on x, checked at the parameters that the kernel uses.
pub fn forward<A: Activation, T: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[f32],
    x: &[T],
    ulps: f64,
) -> Report {
    let y = run::forward(gpu, op, params, x, &How::default()).expect("forward");
    let (measured, effective) = measured(gpu, op, params);
    reference::check_forward(&measured, &effective, x, &y, ulps).expect("equal lengths")
}

/// The backward of `op` on x and dy, likewise.
pub fn backward<A: Activation, T: Element>(
    gpu: &Gpu,
    op: &A,
    params: &[f32],
    x: &[T],
    dy: &[T],
    ulps: f64,
) -> Report {
    let (dx, dparams) = run::backward(gpu, op, params, x, dy, &How::default()).expect("backward");
    let (op_measured, effective) = measured(gpu, op, params);
    let check = |report: xact::Result<Report>| report.expect("equal lengths");
    let dparams: Vec<_> = dparams.iter().map(|&v| f64::from(v)).collect();
    let stored: Vec<_> = params.iter().map(|&v| f64::from(v)).collect();
    let mut report = check(reference::check_gradients(
        &op_measured,
        &effective,
        x,
        dy,
        &dx,
        &dparams,
        ulps,
    ));
    // The terms of the sums do not depend on the parameters, the chain factor does on the stored ones.
    report.parameters = check(reference::check_gradients(
        op, &stored, x, dy, &dx, &dparams, ulps,
    ))
    .parameters;
    report
}

/// See [`Activation::measured`].
pub fn measured<A: Activation>(gpu: &Gpu, op: &A, params: &[f32]) -> (A, Vec<f64>) {
    op.measured(params, &mut |op, params, x| {
        run::forward(gpu, op, params, &[x], &How::default()).expect("one element")[0]
    })
}
