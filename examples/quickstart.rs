//! Ten lines of xIELU: forward and backward on the best device of this machine.
//!
//! `cargo run --release --example quickstart`; `XACT_DEVICE=gpu|emulated` chooses the device.

#[path = "../tests/support/mod.rs"]
mod support;

use support::choose::{self, Choice};
use xact::activation::xielu::{Gradients, Params};
use xact::activation::{Backward, Forward, ParamGradients};
use xact::{Activation, Dtype, Workspace, Xielu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let choose::Gpu {
        device,
        stream,
        name,
        ..
    } = choose::open(Choice::from_env()?)?;
    println!("device: {name}");

    // What a training stack has: x and dy, and the two trainable scalars of the layer.
    let x = stream.clone_htod(&[-2.0_f32, -0.001, 0.0, 0.5, 3.0])?;
    let dy = stream.clone_htod(&[1.0_f32; 5])?;
    let (alpha_p, alpha_n) = (
        stream.clone_htod(&[0.2034_f32])?,
        stream.clone_htod(&[-1.0502_f32])?,
    );

    let xielu = Xielu::default(); // raw parameters, β = 0.5
    let params = || Params {
        alpha_p: &alpha_p,
        alpha_n: &alpha_n,
        beta: None,
    };

    let mut y = stream.alloc_zeros::<f32>(5)?;
    xielu.forward(
        &device,
        &stream,
        Forward {
            x: (&x).into(),
            params: params(),
            y: (&mut y).into(),
        },
    )?;

    let mut dx = stream.alloc_zeros::<f32>(5)?;
    let (mut dalpha_p, mut dalpha_n) =
        (stream.alloc_zeros::<f32>(1)?, stream.alloc_zeros::<f32>(1)?);
    let mut workspace = Workspace::new(&stream, Xielu::workspace_bytes(Dtype::F32, 5)?)?;
    let out = Gradients {
        dalpha_p: &mut dalpha_p,
        dalpha_n: &mut dalpha_n,
        dbeta: None,
    };
    let dparams = ParamGradients {
        out,
        accumulate: false,
        workspace: &mut workspace,
    };
    xielu.backward(
        &device,
        &stream,
        Backward {
            x: (&x).into(),
            dy: (&dy).into(),
            dx: (&mut dx).into(),
            y: None,
            params: params(),
            dparams,
        },
    )?;

    println!("y        = {:?}", stream.clone_dtoh(&y)?);
    println!("dx       = {:?}", stream.clone_dtoh(&dx)?);
    println!("dalpha_p = {:?}", stream.clone_dtoh(&dalpha_p)?[0]);
    println!("dalpha_n = {:?}", stream.clone_dtoh(&dalpha_n)?[0]);
    Ok(())
}
