//! The head of a language model: the matrix product that makes logits, and [cross-entropy](super::cross_entropy) over them,
//! without the `[N, V]` logits in memory.
//!
//! With hidden states x, `[N, H]`, and weights W, `[V, H]`:
//!
//! ```text
//! z = x·Wᵀ      dz = the gradient of cross-entropy      dx = dz·W      dW = dzᵀ·x
//! ```
//!
//! The rows are divided into chunks whose logits fit into [`max_bytes`](LinearCrossEntropy::max_bytes). Each chunk computes
//! its logits, overwrites them with their gradients, and multiplies these with W and x, so gradients cost three products of
//! 2·K·H·V floating-point operations. K is the number of rows that need logits: a masked row is never multiplied, and its dx is
//! exactly 0. Goldfish with k = 4 thus saves a quarter of the work.
//!
//! A caller that knows the kept rows can list them. The list is only an optimisation: a row that is not listed has the
//! weight 0, and a listed row that is masked is computed as masked, so any list that has all kept rows is right.
//!
//! All options, special values and statistics are those of [`CrossEntropy`]. There is no bias: append a column of ones to the
//! hidden states and the bias to the weights.
//!
//! Errors of the products (u = 2⁻²⁴):
//! - a logit errs by at most 2u·H·Σ|x·W|, and of [`Logits::Narrow`] by its rounding besides: in bf16 by up to 0.03 where |z| is
//!   between 8 and 16;
//! - dx and dW err by what the error of the logits does to dz, by 2u·V·Σ|dz·W| and 2u·K·Σ|dz·x|, and are rounded once: dW of a
//!   16-bit type once for each chunk.
//!
//! A bad label, or a NaN in the hidden states of a kept row, makes the dx of its row NaN, and all of dW: dW is a sum over rows.

mod reference;

use super::cross_entropy::CrossEntropy;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

pub use reference::{Evaluation, Target};

/// The element type of the logits of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Logits {
    /// The type of the hidden states. Half the memory with f16 and bf16, so that a chunk has twice as many rows, at the cost
    /// of five digits of the loss.
    Narrow,
    /// f32. The default: products sum in f32 anyway, and on the CPU rounding takes more time than the memory saves.
    #[default]
    F32,
}

/// The matrix product of a language model's head and cross-entropy, with their options. The [module](self) has the formulas.
///
/// ```
/// use xact::{CrossEntropy, LinearCrossEntropy};
/// let loss = CrossEntropy::default().z_loss(1e-4);
/// let op = LinearCrossEntropy::new(loss).max_bytes(256 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearCrossEntropy {
    /// The loss. Its option [`vocab`](CrossEntropy::vocab) is the number of rows of the weights that are classes: the others
    /// are padding, which is not read, and whose gradient is 0.
    pub loss: CrossEntropy,
    /// The element type of the logits of a chunk. The default is [`Logits::F32`].
    pub logits: Logits,
    /// The most bytes that a call uses besides its inputs and outputs: logits, packed operands and lists of rows. The default
    /// is 1 GiB. More rows in a chunk read and write the weights and their gradient less often.
    pub max_bytes: u64,
    /// The number of rows of a chunk. The default is `None`: as many as fit into `max_bytes`, in chunks of equal size, which
    /// is a multiple of 128 if there are several.
    pub chunk_rows: Option<u64>,
}

impl Default for LinearCrossEntropy {
    fn default() -> Self {
        LinearCrossEntropy {
            loss: CrossEntropy::default(),
            logits: Logits::default(),
            max_bytes: 1 << 30,
            chunk_rows: None,
        }
    }
}

/// The chunks of a call, and what the call costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// The number of chunks.
    pub chunks: u64,
    /// The number of rows of a chunk. The last may have fewer.
    pub chunk_rows: u64,
    /// The bytes that the call uses besides its inputs and outputs.
    pub bytes: u64,
    /// The floating-point operations of the matrix products: 2·H·V for each row and product.
    pub flops: u64,
}

/// The memory of a call besides its inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The bytes that do not depend on the chunks.
    pub(crate) fixed: u64,
    /// The bytes for each row of a chunk.
    pub(crate) per_row: u64,
}

/// Several chunks have a multiple of so many rows: whole tiles of the matrix products of a device.
const MULTIPLE: u64 = 128;

impl LinearCrossEntropy {
    /// Returns the op with this loss, and with the other options at their defaults.
    pub fn new(loss: CrossEntropy) -> LinearCrossEntropy {
        LinearCrossEntropy {
            loss,
            ..LinearCrossEntropy::default()
        }
    }

    /// Sets the element type of the logits of a chunk.
    #[must_use]
    pub fn logits(mut self, logits: Logits) -> LinearCrossEntropy {
        self.logits = logits;
        self
    }

    /// Sets the most bytes that a call uses besides its inputs and outputs.
    #[must_use]
    pub fn max_bytes(mut self, max_bytes: u64) -> LinearCrossEntropy {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets the number of rows of a chunk.
    #[must_use]
    pub fn chunk_rows(mut self, chunk_rows: u64) -> LinearCrossEntropy {
        self.chunk_rows = Some(chunk_rows);
        self
    }

    /// Returns the element type of the logits of a chunk, given that of the hidden states.
    pub fn logits_dtype(&self, hidden: Dtype) -> Dtype {
        match self.logits {
            Logits::Narrow => hidden,
            Logits::F32 => Dtype::F32,
        }
    }

    /// Fails unless every option is in its range. Every call makes this check itself.
    ///
    /// # Errors
    /// Those of [`CrossEntropy::check`], and [`Error::OutOfRange`] if a chunk has no rows.
    pub fn check(&self) -> Result<()> {
        if self.chunk_rows == Some(0) {
            return Err(Error::OutOfRange {
                what: "chunk_rows",
                got: 0.0,
                range: "[1, 2^63)",
            });
        }
        self.loss.check()
    }

    /// The rows of a chunk for `rows` rows that need logits. Several chunks have multiples of `multiple`
    /// rows, or of 128, if so many fit.
    pub(crate) fn chunk(&self, rows: u64, memory: Memory, multiple: u64) -> Result<u64> {
        let Memory { fixed, per_row } = memory;
        let needed = |rows: u64| fixed.saturating_add(per_row.saturating_mul(rows));
        let check = |rows| match needed(rows) {
            needed if needed <= self.max_bytes => Ok(()),
            needed => Err(Error::Budget {
                max_bytes: self.max_bytes,
                needed,
            }),
        };
        if let Some(chunk_rows) = self.chunk_rows {
            let chunk_rows = chunk_rows.min(rows);
            check(chunk_rows)?;
            return Ok(chunk_rows);
        }
        check(rows.min(1))?;
        let most = (self.max_bytes - fixed) / per_row.max(1);
        if rows <= most {
            return Ok(rows);
        }
        let step = [multiple, MULTIPLE]
            .into_iter()
            .find(|step| *step <= most)
            .unwrap_or(1);
        let chunks = rows.div_ceil(most / step * step);
        Ok(rows.div_ceil(chunks).next_multiple_of(step))
    }
}
