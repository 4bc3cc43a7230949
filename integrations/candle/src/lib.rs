#![doc = include_str!("../README.md")]

mod activation;
mod cpu;
mod cross_entropy;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
mod cuda;
mod error;
mod memory;
pub mod nn;
mod summary;
mod tokens;
mod view;

pub use activation::{
    activation, gated, gated_halves, gated_interleaved, xatlu, xgelu, xielu, xsilu,
};
pub use cross_entropy::{CrossEntropyCall, Outputs, Reduction, cross_entropy};
pub use summary::Summary;
pub use tokens::{DeviceGoldfish, Tokens};

pub use xact;
