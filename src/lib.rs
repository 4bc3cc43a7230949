#![cfg_attr(feature = "cuda", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "cuda"),
    doc = "The CPU backend and the f64 references of xact, built without its CUDA kernels."
)]

pub mod activation;
mod blocks;
pub mod cpu;
mod dtype;
mod error;
pub mod loss;
pub mod reference;

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod geometry;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
pub mod raw;
#[cfg(feature = "cuda")]
mod tensor;

pub use activation::{
    Activation, Compat, EpsGradient, Gated, Order, Parameters, Xatlu, Xgelu, Xielu, Xsilu,
};
pub use blocks::{CrossEntropySummary, RowStats};
pub use dtype::{Dtype, Element};
pub use error::{Error, Result};

#[cfg(feature = "cuda")]
pub use cudarc;
#[cfg(feature = "cuda")]
pub use device::{Device, Image, Workspace, images};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use launch::entry_names;
pub use loss::{CrossEntropy, Goldfish, Normalizer, Strategy};

pub use half;
