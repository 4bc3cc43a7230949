//! Cross-entropy over `[N, V]` logits, with Goldfish masking.
//!
//! For each of the N rows, let z be its V logits (after the softcap, if there is one), t its label and w its weight:
//!
//! ```text
//! lse  = log Σ_j e^(z_j)
//! loss = w·[ (1 − ε)·(lse − z_t) + ε·(lse − mean_j z_j) + λ·lse² ]
//! dz_j = g·[ (1 + 2λ·lse)·p_j − ε/V − (1 − ε)·1(j = t) ]·cap′(z_j)      g = w·dloss/normalizer
//! ```
//!
//! Here p = softmax(z), ε is [`label_smoothing`](CrossEntropy::label_smoothing), λ is
//! [`z_loss`](CrossEntropy::z_loss), and the softcap is cap(z) = c·tanh(z/c). Logits are f32, f16 or bf16, and arithmetic is
//! f32. Losses, lse and statistics are f32. dlogits have the type of the logits and are rounded once.
//!
//! A row is **masked** if its label is [`ignore_index`](CrossEntropy::ignore_index), if its weight is 0, or if
//! Goldfish drops it. The loss of a masked row is 0 and its gradient is exactly 0. Its logits are not read, except those of
//! a dropped row with the option [`dropped_loss`](CrossEntropy::dropped_loss). All other rows are **kept**.
//!
//! In a row of non-zero weight, a label that is neither a class nor `ignore_index` gives NaN in the loss and the gradient of
//! that row, and [`CrossEntropySummary::bad_row`] is the first such row. [`CrossEntropySummary::nan_row`] is the first other row whose
//! loss is NaN. Nothing is read or written out of bounds, and no other row changes.
//!
//! Special values:
//! - a logit of −inf has p = 0;
//! - a row with +inf or NaN, or with only −inf, gives NaN;
//! - a target logit of −inf gives a loss of +inf and a finite gradient;
//! - a softcap leaves −inf as it is, with a gradient of 0, and turns +inf into c;
//! - with label smoothing, the sum of a row's logits must fit into f32, and a logit of −inf makes the loss +inf.
//!
//! f16 gradients: p/normalizer underflows below 6e-8, which happens with a mean over 131,072 classes and a few thousand
//! rows. Either use [`Normalizer::None`] and scale where the gradient is used (the `alpha` of the next matrix product), or
//! scale the loss up through `dloss`.
//!
//! [`CrossEntropySummary::bad_row`]: crate::CrossEntropySummary::bad_row
//! [`CrossEntropySummary::nan_row`]: crate::CrossEntropySummary::nan_row

mod reference;

use crate::blocks::RowStats;
use crate::error::{Error, Result, check_length};

use super::goldfish::TokenId;

pub use reference::{Row, RowStatus};

/// An integer type of labels: [`i32`], [`i64`] or [`u32`]. u32 labels are unsigned: 4,294,967,196 does not equal an
/// `ignore_index` of −100.
pub trait Label: TokenId {}

impl Label for i32 {}
impl Label for i64 {}
impl Label for u32 {}

/// Cross-entropy and its options. The [module](self) has the formulas.
///
/// ```
/// use xact::CrossEntropy;
/// let op = CrossEntropy::default().label_smoothing(0.1).z_loss(1e-4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CrossEntropy {
    /// Rows with this label are masked. The default is −100, as in PyTorch, which no u32 label equals.
    pub ignore_index: i64,
    /// ε in [0, 1): the share of the target that is spread evenly over all classes. The default is 0.
    pub label_smoothing: f32,
    /// λ ≥ 0: adds λ·lse² to the loss of each row. The default is 0.
    pub z_loss: f32,
    /// c > 0: logits are replaced by c·tanh(z/c). The default is `None`, no softcap.
    pub softcap: Option<f32>,
    /// The number of columns that are classes. The other columns of a row are padding: they are not read, and their
    /// gradient is 0. The default is `None`: all columns are classes.
    pub vocab: Option<u64>,
    /// The number by which the mean loss and the gradients are divided. The default is [`Normalizer::Kept`].
    pub normalizer: Normalizer,
    /// Whether the mean over no rows is NaN, as in PyTorch, or 0, which is the default. Gradients are 0 either way.
    pub empty_is_nan: bool,
    /// Whether the loss of the rows that Goldfish drops is computed too, as a measure of memorisation. The default is
    /// false.
    pub dropped_loss: bool,
}

/// The number by which the mean loss and the gradients are divided (the reduction). A call may give a scalar of its own
/// instead, such as the number of tokens in all micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Normalizer {
    /// 1: the mean is the sum, as with `reduction="sum"` of PyTorch.
    None,
    /// The number of kept rows: those whose label is not `ignore_index`, whose weight is not 0, and which Goldfish does not
    /// drop. Without weights this is the mean of PyTorch.
    #[default]
    Kept,
    /// The number of rows whose label is not `ignore_index`, including rows of weight 0 and rows that Goldfish drops. Use it
    /// for weights that are part of the loss and may be 0, such as advantages.
    Labels,
    /// The sum of the weights of the kept rows. It is 0 for weights with mean 0, such as normalised advantages.
    Weight,
}

/// The columns of one rank of a vocabulary that is sharded over ranks. A label that is a class of no rank gives a loss of
/// +inf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shard {
    /// The class of the first column of this rank.
    pub first_class: u64,
    /// The number of classes of all ranks.
    pub classes: u64,
}

impl Shard {
    /// The columns of this rank are the classes from `first_class` on, and all ranks together have `classes` classes.
    pub fn new(first_class: u64, classes: u64) -> Shard {
        Shard {
            first_class,
            classes,
        }
    }
}

/// The stride of the upstream gradients in a buffer of `len` elements: the given one, or else 0 for one element and 1 for
/// one element per row. With fewer than two rows it is 0.
pub(crate) fn dloss_stride(given: Option<usize>, rows: usize, len: usize) -> Result<usize> {
    let last = rows.saturating_sub(1);
    let stride = match given {
        Some(_) if last == 0 => 0,
        Some(stride) => stride,
        None if len == 1 => 0,
        None => {
            check_length("dloss", rows, len)?;
            1
        }
    };
    let needed = stride
        .checked_mul(last)
        .and_then(|n| n.checked_add(rows.min(1)));
    match needed {
        Some(needed) if needed <= len => Ok(stride),
        needed => Err(Error::Length {
            what: "dloss",
            expected: needed.map_or(u64::MAX, |n| n as u64),
            got: len as u64,
        }),
    }
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            ignore_index: -100,
            label_smoothing: 0.0,
            z_loss: 0.0,
            softcap: None,
            vocab: None,
            normalizer: Normalizer::Kept,
            empty_is_nan: false,
            dropped_loss: false,
        }
    }
}

/// Makes a setter for each option.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(=> $wrap:ident)?;)*) => {
        impl CrossEntropy {$(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: $type) -> CrossEntropy {
                self.$name = setters!(value $name $($wrap)?);
                self
            }
        )*}
    };
    (value $name:ident) => { $name };
    (value $name:ident $wrap:ident) => { $wrap($name) };
}

setters! {
    /// Sets the label whose rows are masked.
    ignore_index: i64;
    /// Sets ε of label smoothing, in [0, 1).
    label_smoothing: f32;
    /// Sets the factor λ ≥ 0 of lse².
    z_loss: f32;
    /// Sets c > 0 of the softcap c·tanh(z/c).
    softcap: f32 => Some;
    /// Sets the number of columns that are classes.
    vocab: u64 => Some;
    /// Sets the number by which the mean loss and the gradients are divided.
    normalizer: Normalizer;
    /// Sets whether the mean over no rows is NaN instead of 0.
    empty_is_nan: bool;
    /// Sets whether the loss of the rows that Goldfish drops is computed too.
    dropped_loss: bool;
}

impl CrossEntropy {
    /// Returns the size in bytes of the statistics that a forward with these options saves for the backward of `rows` rows.
    /// Their format is opaque and the same on every device and on the CPU, so those of several ranks can be gathered to
    /// `[ranks, saved_bytes] u8`.
    pub fn saved_bytes(&self, rows: u64) -> u64 {
        rows.saturating_mul(RowStats::BYTES as u64)
    }

    /// The number of ranks whose statistics of `rows` rows are in `len` bytes: rounded down, but at least 1.
    pub(crate) fn ranks(&self, rows: usize, len: usize) -> usize {
        let bytes = self.saved_bytes(rows as u64) as usize;
        len.checked_div(bytes).unwrap_or(1).max(1)
    }

    /// Fails unless every option is in its range. Every call makes this check itself.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or [`Error::Classes`] if `vocab` is 0.
    pub fn check(&self) -> Result<()> {
        let option = |what, got: f32, range| {
            Err(Error::OutOfRange {
                what,
                got: got.into(),
                range,
            })
        };
        let CrossEntropy {
            label_smoothing,
            z_loss,
            softcap,
            vocab,
            ..
        } = *self;
        if !(0.0..1.0).contains(&label_smoothing) {
            return option("label_smoothing", label_smoothing, "[0, 1)");
        }
        if !(z_loss >= 0.0 && z_loss.is_finite()) {
            return option("z_loss", z_loss, "[0, inf)");
        }
        // With a smaller cap, 2/c would be infinite in the kernel.
        match softcap {
            Some(cap) if !(cap.is_normal() && cap > 0.0) => option("softcap", cap, "[2^-126, inf)"),
            _ if vocab == Some(0) => Err(Error::Classes { classes: 0, end: 0 }),
            _ => Ok(()),
        }
    }
}
