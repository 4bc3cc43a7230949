//! Cross-entropy, by itself and with the matrix product of a language model's head, and Goldfish: their options and their f64 or integer references.

pub mod cross_entropy;
pub mod goldfish;
pub mod linear_cross_entropy;

pub use cross_entropy::{CrossEntropy, Label, Normalizer, Shard};
pub use goldfish::{Goldfish, Strategy, TokenId, Tokens};
pub use linear_cross_entropy::{LinearCrossEntropy, Logits};

/// The names of the ops of this module. Their kernel files and kernel entries have these stems.
pub const NAMES: &[&str] = &["cross_entropy", "goldfish"];
