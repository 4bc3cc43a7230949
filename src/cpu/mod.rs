//! The ops on the CPU: the formulas, options and special values of the kernels, near the speed of memory. It is vector code
//! for the instruction set that is detected at run time, on the threads of rayon's current pool (feature `rayon`).
//!
//! Tensors are slices of f32, f16 or bf16, whole or as rows with a pitch. Arithmetic is f32, rounded once at the store.
//! Parameters and their gradients are f32, in the order of [`Signature::params`](crate::Signature::params); optional ones at
//! the end may be left out. The error bound is [`reference::ULPS_EXACT`](crate::reference::ULPS_EXACT), and the special
//! values are those of the op.
//!
//! A function such as [`forward`] takes the required arguments and returns a call. The methods of the call set optional
//! arguments, and `run` runs it.
//!
//! This module has the activations; [`cross_entropy`], [`linear_cross_entropy`] and [`goldfish`] have the losses.
//!
//! The same input gives the same bits, whatever the number of threads and the instruction set. On x86-64 without FMA,
//! results are correct but slow.
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
pub mod linear_cross_entropy;
mod map;
mod math;
mod on_cpu;
mod product;
mod segment;
mod short;
mod simd;
mod tensor;

/// Declares a module for each op of the registry.
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
pub use linear_cross_entropy::{KeptRows, kept_rows};
#[doc(hidden)]
pub use simd::InstructionSet;
pub use tensor::{Input, Output, Pair, PairMut};
