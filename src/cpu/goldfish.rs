//! Goldfish masks on the CPU.

use crate::error::Result;
use crate::loss::goldfish::{Goldfish, TokenId, Tokens};

/// For each label whether it is kept.
pub(super) fn keep<I: TokenId>(goldfish: &Goldfish, tokens: &Tokens<'_, I>) -> Result<Vec<bool>> {
    goldfish.keep(tokens)
}
