//! Losses: which labels count, and what they cost.

pub mod cross_entropy;
pub mod goldfish;

pub use cross_entropy::{CrossEntropy, Normalizer};
pub use goldfish::{Goldfish, Strategy};

#[cfg(feature = "cuda")]
use crate::launch::Entry;

/// The names of all ops of this module: their modules, their kernel files and the stems of their entries.
pub const NAMES: &[&str] = &["cross_entropy", "goldfish"];

/// Every entry of every loss.
#[cfg(feature = "cuda")]
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    cross_entropy::entries().chain(goldfish::entries())
}
