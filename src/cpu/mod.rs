//! The ops on the CPU, near the speed of memory: the formulas and the semantics of the kernels, in vector
//! code for the instruction set that is found at run time, on the threads of rayon's current pool (feature
//! `rayon`).
//!
//! Tensors are slices of f32, f16 or bf16, whole or as rows with a pitch; arithmetic is f32, rounded once at the store.
//! Parameters and their gradients are f32, in the order of [`Signature::params`](crate::Signature::params); those at
//! the end that are optional may be left out. Accuracy is that of
//! [`reference::ULPS_EXACT`](crate::reference::ULPS_EXACT), special values are those of the op.
//!
//! A function takes what must be given and returns a call; its methods set what may be given, and `run` runs it.
//!
//! Activations are here; [`cross_entropy`] and [`goldfish`] have the losses, with the options of the device.
//!
//! The same input gives the same bits, whatever the number of threads and the instruction set. On x86-64
//! without FMA, results are right but slow.
//!
//! ```
//! use xact::{Xielu, cpu};
//!
//! let op = Xielu::default();
//! let params = [0.2034, -1.0502];
//! let x = [-1.0_f32, 0.0, 2.0];
//! let mut y = [0.0; 3];
//! cpu::forward(&op, &x, &params, &mut y).run()?;
//!
//! let (dy, mut dx, mut dparams) = ([1.0; 3], [0.0; 3], [0.0; 2]);
//! cpu::backward(&op, &x, &dy, &params, &mut dx).gradients(&mut dparams).run()?;
//! # Ok::<(), xact::Error>(())
//! ```

mod activation;
mod block;
mod call;
pub mod cross_entropy;
mod expanded;
mod function;
pub mod goldfish;
mod map;
mod math;
mod on_cpu;
mod segment;
mod simd;
mod tensor;

/// A module for each op of the registry.
macro_rules! modules {
    (
        plain {$($plain:ident: $Plain:ident $params:tt;)*}
        gated {$($gated:ident: $Gated:ident $gated_params:tt;)*}
    ) => {
        $(mod $plain;)*
        $(mod $gated;)*
    };
}
crate::activation::for_each_activation!(modules);

pub use activation::{
    Backward, Forward, GatedBackward, GatedForward, backward, backward_in_place, forward,
    forward_in_place, gated_backward, gated_backward_in_place, gated_forward,
};
#[doc(hidden)]
pub use simd::InstructionSet;
pub use tensor::{Input, Output, Pair, PairMut};
