//! PTX text to an abstract syntax tree.
//!
//! The tree keeps what an instruction says and nothing of what it means: opcodes and modifiers stay
//! words, judged in [`crate::lower`]. Names of registers are resolved here, because nested `{ }`
//! scopes may declare the same name twice.

pub(crate) mod ast;
mod lex;
mod parse;

pub(crate) use parse::{parse, type_size};

use std::fmt;

/// Why a text is not PTX that this crate takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PtxError {
    /// Line of the text, from 1.
    pub line: u32,
    pub message: String,
}

impl PtxError {
    pub fn new(line: u32, message: impl Into<String>) -> Self {
        PtxError {
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for PtxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ptx line {}: {}", self.line, self.message)
    }
}
