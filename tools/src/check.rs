//! Runs an op on the device, and compares the result with the reference.

use cuda_emulator::{Approx, Settings};
use xact::activation::Registered;
use xact::reference::{self, Bounds, GatedGradients, Report, ULPS, ULPS_EXACT};
use xact::{Element, Gated, Order};

use super::choose::Gpu;
use super::limits;
use super::machine::Machine;

/// All modes of approximate instructions.
pub const EVERY: [Approx; 4] = [
    Approx::Nearest,
    Approx::Lowest,
    Approx::Highest,
    Approx::Seeded(1),
];

/// Settings for each of `approximations`, with the bound on y and dx in that mode. A real device has only one mode.
pub fn modes(gpu: &Gpu, approximations: &[Approx]) -> Vec<(Settings, f64)> {
    if !gpu.emulated {
        return vec![(Settings::default(), ULPS)];
    }
    let mode = |&approx: &Approx| {
        let settings = Settings {
            approx,
            ..Settings::default()
        };
        let exact = approx == Approx::Nearest;
        (settings, if exact { ULPS_EXACT } else { ULPS })
    };
    approximations.iter().map(mode).collect()
}

/// Runs the forward of `op` on x, and checks it at the parameters that the kernel uses.
pub fn forward<'m, A: Registered, T: Element>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    params: &[f32],
    x: &[T],
    ulps: f64,
) -> Report {
    let machine = machine.into();
    let y = machine.forward(op, params, x).expect("forward");
    let params = measured(machine, op, params);
    reference::check_forward(op, &params, x, &y, Bounds::new(ulps)).expect("equal lengths")
}

/// Runs the backward of `op` on x and dy, and checks dx at the parameters that the kernel uses, and the gradients of the
/// parameters at the stored ones.
pub fn backward<'m, A: Registered, T: Element>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    params: &[f32],
    x: &[T],
    dy: &[T],
    ulps: f64,
) -> Report {
    let machine = machine.into();
    let (dx, dparams) = machine.backward(op, params, x, dy).expect("backward");
    let dparams: Vec<_> = dparams.iter().map(|&v| f64::from(v)).collect();
    let check = |params: &[f64]| {
        reference::check_gradients(op, params, x, dy, &dx, &dparams, Bounds::new(ulps))
            .expect("equal lengths")
    };
    let stored: Vec<_> = params.iter().map(|&v| f64::from(v)).collect();
    let measured = measured(machine, op, params);
    let mut report = check(&measured);
    if measured != stored {
        report.parameters = check(&stored).parameters;
    }
    report
}

/// Runs and checks the gated forward of `op`. (Gated ops use the parameters as they are stored.)
pub fn gated_forward<'m, A: Gated + Registered, T: Element>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    order: Order,
    params: &[f32],
    [x, v]: [&[T]; 2],
    ulps: f64,
) -> Report {
    let machine = machine.into();
    let y = machine.gated_forward(op, order, params, [x, v]);
    let stored: Vec<_> = params.iter().map(|&p| f64::from(p)).collect();
    let y = y.expect("gated forward");
    reference::check_gated_forward(op, order, &stored, x, v, &y, Bounds::new(ulps))
        .expect("equal lengths")
}

/// Runs and checks the gated backward of `op`.
pub fn gated_backward<'m, A: Gated + Registered, T: Element>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    order: Order,
    params: &[f32],
    [x, v, dy]: [&[T]; 3],
    ulps: f64,
) -> Report {
    let machine = machine.into();
    let results = machine.gated_backward(op, order, params, [x, v, dy]);
    let ([dx, dv], dparams) = results.expect("gated backward");
    let stored: Vec<_> = params.iter().map(|&p| f64::from(p)).collect();
    let dparams: Vec<_> = dparams.iter().map(|&p| f64::from(p)).collect();
    let tensors = GatedGradients {
        x,
        v,
        dy,
        dx: &dx,
        dv: &dv,
    };
    reference::check_gated_gradients(op, order, &stored, &tensors, &dparams, Bounds::new(ulps))
        .expect("equal lengths")
}

/// Compares the results at [`limits::X`].
///
/// # Errors
/// As [`limits::compare`].
pub fn limits<'m, A: Registered, T: Element>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    params: &[f32],
) -> Result<(), String> {
    let machine = machine.into();
    let (x, ones) = (limits::X.map(T::from_f64), [T::from_f64(1.0); 4]);
    let y = machine.forward(op, params, &x).expect("forward");
    let (dx, _) = machine.backward(op, params, &x, &ones).expect("backward");
    limits::compare(op, &measured(machine, op, params), &y, &dx)
}

/// See [`Registered::measured`].
pub fn measured<'m, A: Registered>(
    machine: impl Into<Machine<'m>>,
    op: &A,
    params: &[f32],
) -> Vec<f64> {
    let machine = machine.into();
    op.measured(params, &mut |op, params, x| {
        machine.forward(op, params, &[x]).expect("one element")[0]
    })
}
