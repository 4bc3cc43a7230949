//! xIELU on the first GPU: forward, and backward with the gradients of its two trainable scalars.

use std::process::ExitCode;

use xact::{Device, Queue, Xielu, cuda};

pub(crate) fn run() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::new(0)?;
    let stream = device.context().new_stream()?;
    let mut queue = Queue::new(&stream)?;

    let x = stream.clone_htod(&[-2.0_f32, -0.001, 0.0, 0.5, 3.0])?;
    let alpha_p = stream.clone_htod(&[0.2034_f32])?;
    let alpha_n = stream.clone_htod(&[-1.0502_f32])?;
    let mut y = stream.alloc_zeros::<f32>(5)?;
    let xielu = Xielu::default(); // raw parameters, β = 0.5
    cuda::forward(&xielu, &x, Xielu::params(&alpha_p, &alpha_n), &mut y).launch(&mut queue)?;

    let dy = stream.clone_htod(&[1.0_f32; 5])?;
    let mut dx = stream.alloc_zeros::<f32>(5)?;
    let (mut dalpha_p, mut dalpha_n) = (stream.alloc_zeros(1)?, stream.alloc_zeros(1)?);
    let call = cuda::backward(&xielu, &x, &dy, Xielu::params(&alpha_p, &alpha_n), &mut dx)
        .gradients(Xielu::gradients(&mut dalpha_p, &mut dalpha_n));
    queue.reserve(call.workspace_bytes()?)?;
    call.launch(&mut queue)?;

    println!("y = {:?}", stream.clone_dtoh(&y)?);
    println!("dx = {:?}", stream.clone_dtoh(&dx)?);
    let [dalpha_p, dalpha_n] = [dalpha_p, dalpha_n].map(|d| stream.clone_dtoh(&d));
    println!("dalpha_p, dalpha_n = {:?}", (dalpha_p?, dalpha_n?));
    Ok(())
}

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{error}");
    ExitCode::from(2)
}
