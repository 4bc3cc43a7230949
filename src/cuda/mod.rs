//! The ops on a CUDA device.
//!
//! A [`Queue`] holds the kernels of a context, a stream, and a workspace. A function such as [`forward`] takes the required
//! arguments and returns a call. The methods of the call set optional arguments, and `launch` launches it on a queue. A
//! launch never allocates, synchronises or chooses a stream, so it can be captured in a CUDA graph.
//!
//! ```no_run
//! use xact::{Queue, Xsilu, cuda, cudarc::driver::CudaContext};
//!
//! let stream = CudaContext::new(0)?.new_stream()?;
//! let mut queue = Queue::new(&stream)?;
//! let x = stream.clone_htod(&[-1.0_f32, 0.0, 2.0])?;
//! let alpha = stream.clone_htod(&[0.25_f32])?;
//! let mut y = stream.alloc_zeros::<f32>(3)?;
//! cuda::forward(&Xsilu, &x, Xsilu::params(&alpha), &mut y).launch(&mut queue)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This module has the activations, [`cross_entropy`] and [`goldfish`] have the losses, and [`raw`] has the same calls on
//! device pointers.

mod activation;
pub mod cross_entropy;
mod device;
mod driver;
mod entry;
pub mod goldfish;
mod grid;
mod image;
mod launch;
mod params;
mod preload;
mod queue;
pub mod raw;
mod slots;
mod tensor;

pub use activation::{
    Backward, Forward, GatedBackward, GatedForward, backward, backward_in_place, forward,
    forward_in_place, gated_backward, gated_backward_in_place, gated_forward,
};
pub use cudarc;
pub use device::Device;
pub use driver::check_driver;
#[doc(hidden)]
pub use image::{Cubin, Image, Kernels, cubins, images};
pub use params::{Gradients, Params};
#[doc(hidden)]
pub use preload::entry_names;
pub use queue::Queue;
pub use tensor::{Input, Output, Pair, PairMut};
