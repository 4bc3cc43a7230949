//! Verifies a backward of your own against the f64 reference, on a machine without a GPU.
//!
//! Two backwards of xIELU are checked: an accurate one in f32, and one that computes `exp(x) - 1`, as other implementations
//! do, and so loses the accuracy of the gradient of α_n near 0.
//!
//! `cargo run --release --example check_gradients`

use xact::activation::xielu::{Parameters, Xielu};
use xact::reference::{self, Bounds};

const BETA: f32 = 0.5;

/// dx, dα_p and dα_n of an implementation of xIELU, given its expm1.
fn somebodys_backward(
    expm1: fn(f32) -> f32,
    [alpha_p, alpha_n]: [f32; 2],
    x: &[f32],
    dy: &[f32],
) -> (Vec<f32>, Vec<f64>) {
    let (mut dalpha_p, mut dalpha_n) = (0.0, 0.0);
    let dx = x
        .iter()
        .zip(dy)
        .map(|(&x, &dy)| {
            if x > 0.0 {
                dalpha_p += f64::from(dy * x * x);
                dy * (2.0 * alpha_p * x + BETA)
            } else {
                dalpha_n += f64::from(dy * (expm1(x) - x));
                dy * (alpha_n * expm1(x) + BETA)
            }
        })
        .collect();
    (dx, vec![dalpha_p, dalpha_n])
}

fn main() -> Result<(), xact::Error> {
    let op = Xielu::default()
        .parameters(Parameters::Effective)
        .beta(BETA);
    // The layer-0 parameters of Apertus-8B, and inputs of the size near the end of training.
    let params = [166.0_f32, 41.25];
    let x: Vec<f32> = (-2000..2000).map(|i| i as f32 * 1e-5).collect();
    let dy: Vec<f32> = (0..4000).map(|i| 1.0 + (i % 7) as f32).collect();

    let params_f64 = params.map(f64::from);
    let careful: fn(f32) -> f32 = f32::exp_m1;
    for (name, expm1) in [("expm1(x)", careful), ("exp(x) - 1", |x| x.exp() - 1.0)] {
        let (dx, dparams) = somebodys_backward(expm1, params, &x, &dy);
        let report =
            reference::check_gradients(&op, &params_f64, &x, &dy, &dx, &dparams, Bounds::of(&op))?;
        println!("a backward with {name}:\n{report}\n");
    }

    let differences = reference::finite_differences(&op, &params_f64, &[-3.0, -0.3, 0.2, 4.0]);
    println!(
        "the reference against its own finite differences: f' {:.1e}, dparams {:.1e}",
        differences.slope, differences.dparams
    );
    Ok(())
}
