//! Launches on raw device pointers and a raw stream, for tensors of other frameworks and for C.
//!
//! The calls check what the host can check (null, alignment, pitches, overlap, workspace size), and write nothing when a
//! check fails. They never allocate, synchronise or choose a stream. Before a capture, call
//! [`Device::preload`](crate::Device::preload).
//!
//! An output may be exactly the matrix of an input of the same call (in place). Otherwise no output may overlap another
//! buffer of the call.

pub(super) mod activation;
mod blocks;
pub mod cross_entropy;
pub mod goldfish;

pub use activation::{
    Backward, Common, Dparams, Forward, GatedBackward, GatedForward, Pair, backward, forward,
    gated_backward, gated_forward, partials, workspace_bytes,
};
pub use blocks::Blocks;
pub use cudarc::driver::sys::{CUdeviceptr, CUstream};

pub use crate::blocks::Matrix;
