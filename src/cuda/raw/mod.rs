//! Launches on raw device pointers and a raw stream: for tensors of other frameworks, for C, and where a call of the
//! safe functions does not fit.
//!
//! The calls check what can be checked on the host (null, alignment, pitches, overlap, workspace
//! size) and write nothing when a check fails. They do not allocate, synchronise or choose a stream.
//! Before a capture, call [`Device::preload`](crate::Device::preload).
//!
//! An output may be the very matrix of an input of the same call (in place); otherwise no element of an
//! output may belong to anything else of the call.

pub(super) mod activation;
mod blocks;
pub mod cross_entropy;
pub mod goldfish;

pub use activation::{
    Backward, Common, Dparams, Forward, GatedBackward, GatedForward, backward, forward,
    gated_backward, gated_forward, partials, workspace_bytes,
};
pub use blocks::Blocks;
pub use cudarc::driver::sys::{CUdeviceptr, CUstream};

pub use crate::blocks::Matrix;
