//! Losses: which labels count, and what they cost.

pub mod goldfish;

pub use goldfish::{Goldfish, Strategy};

#[cfg(feature = "cuda")]
use crate::launch::Entry;

/// The names of all ops of this module: their modules, their kernel files and the stems of their entries.
pub const NAMES: &[&str] = &["goldfish"];

/// Every entry of every loss.
#[cfg(feature = "cuda")]
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    goldfish::entries()
}
