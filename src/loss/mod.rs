//! Cross-entropy and Goldfish: their options and their f64 or integer references.

pub mod cross_entropy;
pub mod goldfish;

pub use cross_entropy::{CrossEntropy, Label, Normalizer, Shard};
pub use goldfish::{Goldfish, Strategy, TokenId, Tokens};

/// The names of the ops of this module. Their kernel files and kernel entries have these stems.
pub const NAMES: &[&str] = &["cross_entropy", "goldfish"];
