//! Losses: which labels count, and what they cost.

pub mod cross_entropy;
pub mod goldfish;

pub use cross_entropy::{CrossEntropy, Label, Normalizer, Shard};
pub use goldfish::{Goldfish, Strategy, TokenId, Tokens};

/// The names of all ops of this module: their modules, their kernel files and the stems of their entries.
pub const NAMES: &[&str] = &["cross_entropy", "goldfish"];
