// docs.rs builds with a nightly compiler and this cfg: every item then says which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(feature = "cuda", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "cuda"),
    doc = "The CPU backend and the f64 references of xact, built without its CUDA kernels."
)]

/// The measured errors of every op. This is `docs/accuracy.md` of the repository.
#[cfg(doc)]
#[doc = include_str!("../docs/accuracy.md")]
pub mod accuracy {}
pub mod activation;
mod blocks;
#[cfg(doc)]
#[doc = include_str!("../docs/building.md")]
pub mod building {}
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
#[cfg(feature = "cuda")]
mod geometry;
pub mod loss;
#[cfg(all(doc, feature = "cuda"))]
#[doc = include_str!("../docs/losses.md")]
pub mod losses {}
/// The measured speeds, and how they are measured. This is `docs/performance.md` of the repository.
#[cfg(doc)]
#[doc = include_str!("../docs/performance.md")]
pub mod performance {}
#[cfg(doc)]
#[doc = include_str!("../docs/pitfalls.md")]
pub mod pitfalls {}
pub mod reference;
mod shape;
#[doc(hidden)]
pub mod span;

pub use activation::ops::*;
pub use activation::{
    Activation, AnyActivation, Compat, EpsGradient, Gated, Order, Parameters, Signature,
};
pub use blocks::CrossEntropySummary;
#[doc(hidden)]
pub use blocks::RowStats;
#[cfg(feature = "cuda")]
pub use cuda::{Device, Queue, cudarc, raw};
pub use dtype::{Dtype, Element, ParamOf};
pub use error::{Error, Result};
pub use loss::{
    CrossEntropy, Goldfish, LinearCrossEntropy, Logits, Normalizer, Shard, Strategy, Tokens,
};
pub use shape::{Halves, Rows};

pub use half;
