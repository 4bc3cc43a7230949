//! Activations with trainable scalars: their options, their f64 references and their names.
//!
//! An op is a small `Copy` value that holds its options, such as [`Xielu`]. The trait [`Activation`] is its f64 reference,
//! and [`Gated`] is the reference of its gated forms. [`AnyActivation`] is an op chosen by a string.
//! [`xact::cpu`](crate::cpu) and [`xact::cuda`](https://docs.rs/xact/latest/xact/cuda) compute the ops on tensors.

pub mod expanded;
mod op;
mod registry;
pub(crate) mod shared;
pub mod xatlu;
pub mod xgelu;
pub mod xielu;
pub mod xsilu;

pub(crate) use op::sealed;
pub use op::{Activation, Evaluation, Gated, MAX_PARAMS, Order, Signature, Term};
#[doc(hidden)]
pub use op::{Named, Registered, Sample};
#[allow(unused_imports)] // without `cuda`
pub(crate) use registry::SIGNATURES;
pub(crate) use registry::for_each_activation;
pub use registry::{AnyActivation, NAMES, ops, ops::*};
#[doc(hidden)]
pub use registry::{Visitor, for_each};
pub use xielu::{Compat, EpsGradient, Parameters};
