//! A layer of a trainer, generic over its activation, with its own parameters and their gradients.
//!
//! The op is chosen by name, as in a configuration: `cargo run --release --example layer -- xsilu`.

use std::error::Error;

use xact::cuda::{self, Gradients, Params, cudarc::driver::CudaSlice};
use xact::{Activation, AnyActivation, Device, Element, Queue};

/// An activation with f32 scalars and tensors of any type.
pub(crate) struct Layer<A> {
    op: A,
    params: Vec<CudaSlice<f32>>,
    /// Every backward adds to these gradients.
    gradients: Vec<CudaSlice<f32>>,
}

impl<A: Activation> Layer<A> {
    pub(crate) fn new(op: A, initial: &[f32], queue: &Queue) -> Result<Layer<A>, Box<dyn Error>> {
        let stream = queue.stream();
        let upload = |&value| stream.clone_htod(&[value]);
        let zero = |_: &f32| stream.alloc_zeros(1);
        Ok(Layer {
            op,
            params: initial.iter().map(upload).collect::<Result<_, _>>()?,
            gradients: initial.iter().map(zero).collect::<Result<_, _>>()?,
        })
    }

    /// y = f(x).
    pub(crate) fn forward<T: Element>(
        &self,
        x: &CudaSlice<T>,
        queue: &mut Queue,
    ) -> Result<CudaSlice<T>, Box<dyn Error>> {
        let mut y = queue.stream().alloc_zeros(x.len())?;
        cuda::forward(&self.op, x, Params::list(&self.params), &mut y).launch(queue)?;
        Ok(y)
    }

    /// Computes dx, and adds the gradients of the parameters.
    pub(crate) fn backward<T: Element>(
        &mut self,
        x: &CudaSlice<T>,
        dy: &CudaSlice<T>,
        queue: &mut Queue,
    ) -> Result<CudaSlice<T>, Box<dyn Error>> {
        let mut dx = queue.stream().alloc_zeros(x.len())?;
        let call = cuda::backward(&self.op, x, dy, Params::list(&self.params), &mut dx)
            .accumulate(Gradients::list(&mut self.gradients));
        // A trainer does this once, for its largest tensor.
        queue.reserve(call.workspace_bytes()?)?;
        call.launch(queue)?;
        Ok(dx)
    }
}

/// Runs two steps of a layer of the op of this name.
pub(crate) fn run(name: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let device = Device::new(0)?;
    let mut queue = Queue::new(&device.context().new_stream()?)?;
    let op: AnyActivation = name.parse()?;
    let needed = op.signature().params.len() - op.signature().optional;
    let mut layer = Layer::new(op, &vec![0.25; needed], &queue)?;
    let x = queue.stream().clone_htod(&[-2.0_f32, -0.5, 0.5, 2.0])?;
    for _ in 0..2 {
        let y = layer.forward(&x, &mut queue)?;
        layer.backward(&x, &y, &mut queue)?;
    }
    let gradients = layer.gradients.iter().map(|g| queue.stream().clone_dtoh(g));
    let gradients = gradients.collect::<Result<Vec<_>, _>>()?;
    Ok(gradients.concat())
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1);
    let name = name.as_deref().unwrap_or("xielu");
    println!("gradients of the parameters of {name}: {:?}", run(name)?);
    Ok(())
}
