//! Cross-entropy of long rows of logits, with Goldfish masking.
//!
//! For each row of N, with z its V logits (capped if there is a softcap), t its label, w its weight:
//!
//! ```text
//! lse  = log Σ_j e^(z_j)
//! loss = w·[ (1 − ε)·(lse − z_t) + ε·(lse − mean_j z_j) + λ·lse² ]
//! dz_j = g·[ (1 + 2λ·lse)·p_j − ε/V − (1 − ε)·1(j = t) ]·cap′(z_j)      g = w·dloss/normalizer
//! ```
//!
//! with p = softmax(z), ε [`label_smoothing`](CrossEntropy::label_smoothing), λ
//! [`z_loss`](CrossEntropy::z_loss), and cap(z) = c·tanh(z/c). Arithmetic is f32 whatever the type of the
//! logits; losses and statistics are f32, gradients are rounded once to the type of the logits.
//!
//! A row is **masked** if its label is [`ignore_index`](CrossEntropy::ignore_index), if its weight is 0, or if
//! Goldfish drops it. Its logits are not read (those of a dropped row are if
//! [`dropped_loss`](CrossEntropy::dropped_loss) is asked for), its loss is 0 and its gradient exactly 0. All
//! others are **kept**. A label that is no class is reported in [`CrossEntropySummary::bad_row`] and gives NaN in
//! the loss and the gradient of its own row; the first other row whose loss is NaN is reported in
//! [`CrossEntropySummary::nan_row`]; nothing is read or written out of bounds, and no other row changes.
//!
//! Special values: a logit of −inf has p = 0. A row with +inf or NaN, or of −inf alone, gives NaN. A target of
//! −inf gives a loss of +inf and a finite gradient. A softcap leaves −inf what it is, no class, with a gradient of 0,
//! and makes +inf the finite c first. With label smoothing the sum of a row's logits must itself be an f32; one of −inf
//! makes the loss +inf.
//!
//! Gradients in f16: p/normalizer underflows below 6e-8, which a mean over 131,072 classes and a few thousand
//! rows reaches. Either keep the normaliser out ([`Normalizer::None`]) and scale what consumes the gradient
//! instead (the `alpha` of the next matrix product), or scale the loss up through `dloss`.
//!
//! [`CrossEntropySummary::bad_row`]: crate::CrossEntropySummary::bad_row
//! [`CrossEntropySummary::nan_row`]: crate::CrossEntropySummary::nan_row

mod reference;

use crate::blocks::RowStats;
use crate::error::{Error, Result, check_length};

use super::goldfish::TokenId;

pub use reference::{Row, RowStatus};

/// An integer type of labels: [`i32`], [`i64`] or [`u32`]. u32 labels are read as such: 4,294,967,196 is not the −100
/// that is ignored.
pub trait Label: TokenId {}

impl Label for i32 {}
impl Label for i64 {}
impl Label for u32 {}

/// The options of the loss.
///
/// ```
/// use xact::CrossEntropy;
/// let op = CrossEntropy::default().label_smoothing(0.1).z_loss(1e-4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CrossEntropy {
    /// Rows with this label are masked. −100, as in PyTorch; of u32 labels no label is that.
    pub ignore_index: i64,
    /// ε, in [0, 1): this part of the target is spread evenly over all classes. 0.
    pub label_smoothing: f32,
    /// λ ≥ 0: adds λ·lse² to the loss of each row. 0.
    pub z_loss: f32,
    /// c > 0: logits pass through c·tanh(z/c). None.
    pub softcap: Option<f32>,
    /// Columns that are classes, if fewer than a row has. The others are not read, and their gradient is 0.
    pub vocab: Option<u64>,
    /// What the mean and the gradients are divided by. The number of kept rows.
    pub normalizer: Normalizer,
    /// Whether the mean over no rows is NaN, as in PyTorch. Off: it is 0. Gradients are 0 either way.
    pub empty_is_nan: bool,
    /// Whether the loss of the rows that Goldfish drops is computed too: a gauge of memorisation. Off.
    pub dropped_loss: bool,
}

/// What the mean loss and the gradients are divided by, unless a call brings a number of its own, such as the number of
/// tokens in all micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Normalizer {
    /// 1: the mean is the sum.
    None,
    /// The number of kept rows: a label that is not ignored, a weight that is not 0, not dropped by Goldfish. As
    /// PyTorch's mean where there are no weights.
    #[default]
    Kept,
    /// The number of rows whose label is not ignored, whatever their weight and whether Goldfish drops them: for
    /// weights that are part of the loss and may be 0, such as advantages.
    Labels,
    /// The sum of the weights of the kept rows. 0 for weights that are centred.
    Weight,
}

/// A rank's columns among those of all ranks. A label that is a class of no rank gives a loss of +inf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shard {
    /// The class of the rank's first column.
    pub first_class: u64,
    /// Classes of all ranks.
    pub classes: u64,
}

impl Shard {
    /// Columns from `first_class` on, of `classes` classes of all ranks.
    pub fn new(first_class: u64, classes: u64) -> Shard {
        Shard {
            first_class,
            classes,
        }
    }
}

/// Elements from the upstream gradient of one row to that of the next, in a buffer of `len`: what is given, or 0 for one
/// element and 1 for one of each row. Where there is no second row it is 0, whatever is given.
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

/// Setters of the options.
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
    /// Sets ε, in [0, 1).
    label_smoothing: f32;
    /// Sets λ ≥ 0.
    z_loss: f32;
    /// Sets c > 0.
    softcap: f32 => Some;
    /// Sets the number of columns that are classes.
    vocab: u64 => Some;
    /// Sets what the mean and the gradients are divided by.
    normalizer: Normalizer;
    /// Sets whether the mean over no rows is NaN.
    empty_is_nan: bool;
    /// Sets whether the loss of the rows that Goldfish drops is computed too.
    dropped_loss: bool;
}

impl CrossEntropy {
    /// Bytes in which a forward with these options saves what the backward needs of `rows` rows. They are opaque, and
    /// the same on every device, so that those of several ranks can be gathered: `[ranks, saved_bytes]`.
    pub fn saved_bytes(&self, rows: u64) -> u64 {
        rows.saturating_mul(RowStats::BYTES as u64)
    }

    /// How many ranks have saved `len` bytes of `rows` rows, rounded down but at least 1; of no rows nothing is saved.
    pub(crate) fn ranks(&self, rows: usize, len: usize) -> usize {
        let bytes = self.saved_bytes(rows as u64) as usize;
        len.checked_div(bytes).unwrap_or(1).max(1)
    }

    /// Fails unless every option is in its range. All calls check it themselves.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Classes`] if there are none.
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
        // Of a smaller cap the kernel's 2/c would be infinite.
        match softcap {
            Some(cap) if !(cap.is_normal() && cap > 0.0) => option("softcap", cap, "[2^-126, inf)"),
            _ if vocab == Some(0) => Err(Error::Classes { classes: 0, end: 0 }),
            _ => Ok(()),
        }
    }
}
