//! Cross-entropy on the CPU: the formulas, options and special values of [`CrossEntropy`], for slices.
//!
//! Each row is computed by one thread, unless there are too few rows for the threads: then the parts of long rows go to
//! different threads. A row is read once for its statistics and once more, from the cache, for its gradient, so the memory
//! traffic is one read and one write. Arithmetic on elements and the statistics of rows are f32; arithmetic on the few
//! numbers of a row is f64.
//!
//! ```
//! use xact::CrossEntropy;
//! use xact::cpu::cross_entropy;
//!
//! let mut logits = [1.0_f32, 2.0, 3.0, 0.0, 0.0, 0.0];
//! let mut loss = [0.0; 2];
//! let op = CrossEntropy::default();
//! let summary = cross_entropy::forward_with_gradient(&op, &mut logits, &[2_i64, -100]).loss(&mut loss).run()?;
//! assert_eq!((summary.kept, loss[1]), (1, 0.0));
//! assert!((summary.mean - 0.407_606).abs() < 1e-6);
//! # Ok::<(), xact::Error>(())
//! ```

mod loops;
mod row;

use std::fmt;

use super::goldfish;
use super::tensor::{Input, Output};
use crate::blocks::{CrossEntropySummary, RowStats};
use crate::dtype::{Convert, Element};
use crate::error::{Error, Result, check_length};
use crate::loss::cross_entropy::{CrossEntropy, Label, Normalizer, RowStatus, Shard, dloss_stride};
use crate::loss::goldfish::{Goldfish, TokenId, Tokens};
use crate::shape::Shape;
use loops::{AnyRows, Pass, Row};
pub(super) use row::NO_STATS;
use row::{Options, PartStats, RowLoss, Target, merged, rounded};

/// The inputs that decide which rows are kept.
pub(super) struct Rows<'a, L> {
    pub(super) labels: &'a [L],
    pub(super) weights: Option<&'a [f32]>,
    pub(super) goldfish: Option<(&'a Goldfish, Box<dyn Ids + 'a>)>,
    pub(super) shard: Option<Shard>,
}

impl<'a, L> Rows<'a, L> {
    pub(super) fn new(labels: &'a [L]) -> Self {
        Rows {
            labels,
            weights: None,
            goldfish: None,
            shard: None,
        }
    }
}

impl<L> fmt::Debug for Rows<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("labels", &self.labels.len())
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// Tokens of any type.
pub(super) trait Ids {
    fn len(&self) -> usize;
    fn keep(&self, goldfish: &Goldfish) -> Result<Vec<bool>>;
}

impl<I: TokenId> Ids for Tokens<'_, I> {
    fn len(&self) -> usize {
        self.hash_ids.len()
    }

    fn keep(&self, strategy: &Goldfish) -> Result<Vec<bool>> {
        goldfish::keep(strategy, self)
    }
}

/// The outputs of a forward, and its normaliser.
#[derive(Debug, Default)]
pub(super) struct Outputs<'a> {
    pub(super) loss: Option<&'a mut [f32]>,
    pub(super) z_loss: Option<&'a mut [f32]>,
    pub(super) lse: Option<&'a mut [f32]>,
    pub(super) argmax: Option<&'a mut [i32]>,
    pub(super) saved: Option<&'a mut [u8]>,
}

/// The upstream gradients: the one of row r is element `r·stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamGradient<'a> {
    pub(super) values: &'a [f32],
    /// `None`: 0 if there is one element, otherwise 1.
    pub(super) stride: Option<usize>,
}

/// The setters of the weights and of Goldfish.
macro_rules! row_setters {
    () => {
        /// Sets the weights of the rows, `[N] f32`. A row of weight 0 is masked. Negative weights are legal, and a NaN
        /// makes the loss and the gradient of its row NaN.
        pub fn weights(mut self, weights: &'a [f32]) -> Self {
            self.rows.weights = Some(weights);
            self
        }

        /// Drops rows by a Goldfish decision. `tokens` have one id for each row. The ids may differ from the labels and
        /// have another type: give the true ids where labels are ignored.
        pub fn goldfish<I: TokenId>(
            mut self,
            goldfish: &'a Goldfish,
            tokens: Tokens<'a, I>,
        ) -> Self {
            self.rows.goldfish = Some((goldfish, Box::new(tokens)));
            self
        }
    };
}
pub(super) use row_setters;

/// The setters of the outputs of a forward.
macro_rules! output_setters {
    () => {
        /// Sets an output for the loss of each row, `[N] f32`: weighted and not divided by the normaliser. It is 0 for a
        /// masked row, and NaN for a row whose label is not a class.
        pub fn loss(mut self, loss: &'a mut [f32]) -> Self {
            self.outputs.loss = Some(loss);
            self
        }

        /// Sets an output for the z-loss of each row, `[N] f32`, which is part of the loss.
        pub fn z_loss(mut self, z_loss: &'a mut [f32]) -> Self {
            self.outputs.z_loss = Some(z_loss);
            self
        }

        /// Sets an output for lse = log Σ e^z of each row, `[N] f32`. It is 0 for a masked row.
        pub fn lse(mut self, lse: &'a mut [f32]) -> Self {
            self.outputs.lse = Some(lse);
            self
        }

        /// Sets an output for the class of the largest logit of each row, `[N] i32`: the first of equal ones, ignoring NaN.
        /// It is −1 for a masked row. With it, the summary counts the [`correct`](CrossEntropySummary::correct) rows.
        pub fn argmax(mut self, argmax: &'a mut [i32]) -> Self {
            self.outputs.argmax = Some(argmax);
            self
        }

        /// Sets an output for the statistics that the backward needs, `[saved_bytes] u8`: see
        /// [`saved_bytes`](CrossEntropy::saved_bytes).
        pub fn saved(mut self, saved: &'a mut [u8]) -> Self {
            self.outputs.saved = Some(saved);
            self
        }

        /// Sets the normaliser, which is used instead of the option [`normalizer`](CrossEntropy::normalizer).
        pub fn normalizer(mut self, normalizer: f32) -> Self {
            self.normalizer = Some(normalizer);
            self
        }
    };
}
pub(super) use output_setters;

/// The setters of the upstream gradient.
macro_rules! dloss_setters {
    () => {
        /// Sets the upstream gradient, by which the gradients are multiplied: `[N] f32`, one for each row, or `[1] f32`, one
        /// for all rows. Without it, the upstream gradient is 1.
        pub fn dloss(mut self, dloss: &'a [f32]) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss,
                stride: None,
            });
            self
        }

        /// Sets the upstream gradient with a stride: the one of row r is element `r·stride`.
        pub fn dloss_strided(mut self, dloss: &'a [f32], stride: usize) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss,
                stride: Some(stride),
            });
            self
        }
    };
}
pub(super) use dloss_setters;

/// Returns a call that computes the losses of `[N, V]` logits in f32, f16 or bf16, and their summary. `labels` are `[N]`
/// i32, i64 or u32: the class of each row, or [`ignore_index`](CrossEntropy::ignore_index).
pub fn forward<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: &'a [L],
) -> Forward<'a, T, L> {
    Forward {
        op,
        logits: logits.into(),
        rows: Rows::new(labels),
        outputs: Outputs::default(),
        normalizer: None,
    }
}

/// A call of [`forward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Forward<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Input<'a, T>,
    rows: Rows<'a, L>,
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
}

impl<'a, T: Element, L: Label> Forward<'a, T, L> {
    row_setters!();
    output_setters!();

    /// Computes the losses.
    ///
    /// # Errors
    /// - [`Error::OutOfRange`]: an option, an offset of a Goldfish chunk or a number of labels that precede it is out of
    ///   range;
    /// - [`Error::Classes`]: there are no classes, too many, or not those of the logits;
    /// - [`Error::Length`], [`Error::Shape`], [`Error::Pitch`], [`Error::GroupPitch`], [`Error::TooLarge`]: a tensor has the
    ///   wrong size;
    /// - [`Error::Offsets`]: the offsets of Goldfish decrease.
    ///
    /// Nothing is written when a call fails.
    pub fn run(self) -> Result<CrossEntropySummary> {
        let Forward {
            op,
            logits,
            rows,
            outputs,
            normalizer,
        } = self;
        let shape = Shape::of_logits(logits.given(), logits.len(), rows.labels.len())?;
        let plan = Plan::new(op, &rows, Some(shape.cols))?;
        let logits = logits.check("logits", shape)?;
        outputs.check(op, plan.targets.len())?;
        let divisor = plan.divisor(op, normalizer);
        let logits = logits.rows().map(|row| (Some(row), [].as_mut_slice()));
        let stats = plan.run(true, outputs.argmax.is_some(), logits, &[]);
        Ok(plan.finish(op, &stats, divisor, outputs))
    }
}

/// Returns a call that computes what [`forward`] computes, and overwrites the `[N, V]` logits with their gradients. The
/// gradients in columns that are not classes are 0.
pub fn forward_with_gradient<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Output<'a, T>>,
    labels: &'a [L],
) -> ForwardWithGradient<'a, T, L> {
    ForwardWithGradient {
        op,
        logits: logits.into(),
        rows: Rows::new(labels),
        outputs: Outputs::default(),
        normalizer: None,
        dloss: None,
    }
}

/// A call of [`forward_with_gradient`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct ForwardWithGradient<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Output<'a, T>,
    rows: Rows<'a, L>,
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
    dloss: Option<UpstreamGradient<'a>>,
}

impl<'a, T: Element, L: Label> ForwardWithGradient<'a, T, L> {
    row_setters!();
    output_setters!();
    dloss_setters!();

    /// Computes the losses and the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<CrossEntropySummary> {
        let ForwardWithGradient {
            op,
            logits,
            rows,
            outputs,
            normalizer,
            dloss,
        } = self;
        let shape = Shape::of_logits(logits.given(), logits.len(), rows.labels.len())?;
        let mut plan = Plan::new(op, &rows, Some(shape.cols))?;
        let logits = logits.check("logits", shape)?;
        outputs.check(op, plan.targets.len())?;
        let divisor = plan.divisor(op, normalizer);
        plan.multiply(dloss, divisor)?;
        let logits = logits.rows_mut().map(|row| (None, row));
        let stats = plan.run(true, outputs.argmax.is_some(), logits, &[]);
        Ok(plan.finish(op, &stats, divisor, outputs))
    }
}

/// Returns a call that computes the gradients `dlogits`, `[N, V]` of the type of the logits, from the statistics that a
/// forward with the same options, labels, weights and Goldfish decision has saved. `saved` is `[saved_bytes] u8`, or with a
/// sharded vocabulary the gathered statistics of all ranks in their order, `[ranks, saved_bytes] u8`. The gradients are
/// divided by `normalizer`: that of the forward's summary, or a number of yours.
pub fn backward<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: &'a [L],
    saved: &'a [u8],
    normalizer: f32,
    dlogits: impl Into<Output<'a, T>>,
) -> Backward<'a, T, L> {
    Backward {
        op,
        logits: Some(logits.into()),
        rows: Rows::new(labels),
        saved,
        normalizer,
        dlogits: dlogits.into(),
        dloss: None,
    }
}

/// Like [`backward`], but overwrites the logits with the gradients.
pub fn backward_in_place<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Output<'a, T>>,
    labels: &'a [L],
    saved: &'a [u8],
    normalizer: f32,
) -> Backward<'a, T, L> {
    Backward {
        op,
        logits: None,
        rows: Rows::new(labels),
        saved,
        normalizer,
        dlogits: logits.into(),
        dloss: None,
    }
}

/// A call of [`backward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Backward<'a, T, L> {
    op: &'a CrossEntropy,
    /// `None` if the logits are in `dlogits`.
    logits: Option<Input<'a, T>>,
    rows: Rows<'a, L>,
    saved: &'a [u8],
    normalizer: f32,
    dlogits: Output<'a, T>,
    dloss: Option<UpstreamGradient<'a>>,
}

impl<'a, T: Element, L: Label> Backward<'a, T, L> {
    row_setters!();
    dloss_setters!();

    /// Sets which classes the columns are, for a vocabulary that is sharded over ranks. [`vocab`](CrossEntropy::vocab) is
    /// then the number of classes of this rank.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.rows.shard = Some(shard);
        self
    }

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<()> {
        let Backward {
            op,
            logits,
            rows,
            saved,
            normalizer,
            dlogits,
            dloss,
        } = self;
        let n = rows.labels.len();
        let shape = match &logits {
            Some(logits) => Shape::of_logits(logits.given().or(dlogits.given()), logits.len(), n)?,
            None => Shape::of_logits(dlogits.given(), dlogits.len(), n)?,
        };
        let mut plan = Plan::new(op, &rows, Some(shape.cols))?;
        let logits = logits
            .map(|logits| logits.check("logits", shape))
            .transpose()?;
        let dlogits = dlogits.check(
            if logits.is_some() {
                "dlogits"
            } else {
                "logits"
            },
            shape,
        )?;
        plan.multiply(dloss, normalizer)?;
        let stats = plan.merge(op, saved)?;
        let mut logits = logits.map(|logits| logits.rows());
        let tensors = dlogits
            .rows_mut()
            .map(move |row| (logits.as_mut().and_then(Iterator::next), row));
        plan.run(false, false, tensors, &stats);
        Ok(())
    }
}

/// Returns a call that saves the statistics of one rank's columns of a sharded vocabulary, `[saved_bytes] u8`. Gather those
/// of all ranks and give them to [`finish`] and [`backward`]. A device saves the same format, so the ranks may be devices
/// and CPUs.
pub fn partial<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: &'a [L],
    shard: Shard,
    saved: &'a mut [u8],
) -> Partial<'a, T, L> {
    Partial {
        op,
        logits: logits.into(),
        rows: Rows {
            shard: Some(shard),
            ..Rows::new(labels)
        },
        with_argmax: false,
        saved,
    }
}

/// A call of [`partial`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Partial<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Input<'a, T>,
    rows: Rows<'a, L>,
    with_argmax: bool,
    saved: &'a mut [u8],
}

impl<'a, T: Element, L: Label> Partial<'a, T, L> {
    row_setters!();

    /// Computes the argmax too. Needed if [`finish`] has an output for the argmax.
    pub fn with_argmax(mut self) -> Self {
        self.with_argmax = true;
        self
    }

    /// Computes the statistics.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<()> {
        let Partial {
            op,
            logits,
            rows,
            with_argmax,
            saved,
        } = self;
        let shape = Shape::of_logits(logits.given(), logits.len(), rows.labels.len())?;
        let plan = Plan::new(op, &rows, Some(shape.cols))?;
        let logits = logits.check("logits", shape)?;
        check_length(
            "saved",
            op.saved_bytes(plan.targets.len() as u64) as usize,
            saved.len(),
        )?;
        let logits = logits.rows().map(|row| (Some(row), [].as_mut_slice()));
        let stats = plan.run(true, with_argmax, logits, &[]);
        save(&stats, saved);
        Ok(())
    }
}

/// Returns a call that computes the losses and the summary from the gathered statistics of all ranks in their order,
/// `[ranks, saved_bytes] u8`. The results have the same bits on every rank. The output `saved` of this call has the
/// statistics of whole rows.
pub fn finish<'a, L: Label>(
    op: &'a CrossEntropy,
    labels: &'a [L],
    shard: Shard,
    gathered: &'a [u8],
) -> Finish<'a, L> {
    Finish {
        op,
        rows: Rows {
            shard: Some(shard),
            ..Rows::new(labels)
        },
        gathered,
        outputs: Outputs::default(),
        normalizer: None,
    }
}

/// A call of [`finish`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Finish<'a, L> {
    pub(super) op: &'a CrossEntropy,
    pub(super) rows: Rows<'a, L>,
    pub(super) gathered: &'a [u8],
    pub(super) outputs: Outputs<'a>,
    pub(super) normalizer: Option<f32>,
}

impl<'a, L: Label> Finish<'a, L> {
    row_setters!();
    output_setters!();

    /// Computes the losses.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<CrossEntropySummary> {
        let Finish {
            op,
            rows,
            gathered,
            outputs,
            normalizer,
        } = self;
        let plan = Plan::new(op, &rows, None)?;
        outputs.check(op, plan.targets.len())?;
        let divisor = plan.divisor(op, normalizer);
        let mut stats = plan.merge(op, gathered)?;
        if outputs.argmax.is_none() {
            stats.iter_mut().for_each(|stats| stats.argmax = u32::MAX);
        }
        Ok(plan.finish(op, &stats, divisor, outputs))
    }
}

/// Writes stats in the format of a saved buffer.
pub(super) fn save(stats: &[RowStats], saved: &mut [u8]) {
    for (bytes, stats) in saved.as_chunks_mut().0.iter_mut().zip(stats) {
        *bytes = stats.to_bytes();
    }
}

impl Outputs<'_> {
    pub(super) fn check(&self, op: &CrossEntropy, rows: usize) -> Result<()> {
        let floats = [
            ("loss", &self.loss),
            ("z_loss", &self.z_loss),
            ("lse", &self.lse),
        ];
        for (what, output) in floats {
            output
                .as_ref()
                .map_or(Ok(()), |output| check_length(what, rows, output.len()))?;
        }
        let argmax = self.argmax.as_ref().map_or(rows, |argmax| argmax.len());
        check_length("argmax", rows, argmax)?;
        let bytes = op.saved_bytes(rows as u64) as usize;
        let saved = self.saved.as_ref().map_or(bytes, |saved| saved.len());
        check_length("saved", bytes, saved)
    }
}

/// The status of every row of a call.
pub(super) struct Plan {
    pub(super) options: Options,
    pub(super) targets: Vec<Target>,
    /// The number of rows whose label is not `ignore_index`.
    labels: u64,
    /// The number of kept rows, and the sum of their weights.
    kept: u64,
    weight: f32,
}

impl Plan {
    /// The bytes of the lists of a call for each row, generously: targets, statistics and the tensors' rows.
    pub(super) const ROW_BYTES: usize = 256;

    /// `cols` is the number of columns of the logits, if the call has logits.
    pub(super) fn new<L: Label>(
        op: &CrossEntropy,
        rows: &Rows<'_, L>,
        cols: Option<usize>,
    ) -> Result<Plan> {
        op.check()?;
        let n = rows.labels.len();
        let vocab = match cols {
            Some(cols) => op.vocab.unwrap_or(cols as u64),
            None => 0,
        };
        // Without rows, the number of columns does not matter.
        if let Some(cols) = cols.filter(|&cols| n > 0 && vocab > cols as u64) {
            return Err(Error::Length {
                what: "a row of logits",
                expected: vocab,
                got: cols as u64,
            });
        }
        let (first_class, classes) = match rows.shard {
            Some(shard) => (shard.first_class, shard.classes),
            None if cols.is_none() => (0, op.vocab.unwrap_or(0)),
            None => (0, vocab),
        };
        // Kernels count classes with 32 bits.
        let end = first_class.checked_add(vocab);
        let known = classes > 0 && classes < u64::from(u32::MAX);
        let some = cols.is_none() || vocab > 0;
        if n > 0 && !(known && some && end.is_some_and(|end| end <= classes)) {
            return Err(Error::Classes {
                classes,
                end: end.unwrap_or(u64::MAX),
            });
        }
        if let Some(weights) = rows.weights {
            check_length("weights", n, weights.len())?;
        }
        let keep = match &rows.goldfish {
            Some((goldfish, tokens)) => {
                check_length("hash_ids", n, tokens.len())?;
                tokens.keep(goldfish)?
            }
            None => Vec::new(),
        };
        let targets: Vec<Target> = (0..n)
            .map(|row| {
                let label: i64 = rows.labels[row].into();
                let weight = rows.weights.map_or(1.0, |weights| weights[row]);
                let dropped = keep.get(row).is_some_and(|keep| !keep);
                let status = op.row_status(label, weight, dropped, classes);
                let class = u64::try_from(label).unwrap_or(u64::MAX);
                let column = class.checked_sub(first_class).filter(|&c| c < vocab);
                Target {
                    status,
                    weight,
                    class,
                    column: column.map(|column| column as usize),
                    upstream: f64::from(weight),
                }
            })
            .collect();
        let labels = rows
            .labels
            .iter()
            .filter(|&&label| label.into() != op.ignore_index);
        let counts = |target: &&Target| matches!(target.status, RowStatus::Kept | RowStatus::Bad);
        let kept = targets.iter().filter(counts);
        Ok(Plan {
            options: Options::new(op, classes, first_class, vocab as usize),
            labels: labels.count() as u64,
            kept: kept.clone().count() as u64,
            // The sum starts from 0 and not from −0 as in std, so that the sum over no rows equals that of a device.
            weight: rounded(kept.fold(0.0, |sum, target| sum + f64::from(target.weight))),
            targets,
        })
    }

    /// The plan of some of the rows, without totals.
    pub(super) fn of_rows(&self, rows: &[usize]) -> Plan {
        Plan {
            options: self.options,
            targets: rows.iter().map(|&row| self.targets[row]).collect(),
            labels: 0,
            kept: 0,
            weight: 0.0,
        }
    }

    /// The normaliser.
    pub(super) fn divisor(&self, op: &CrossEntropy, given: Option<f32>) -> f32 {
        given.unwrap_or(match op.normalizer {
            Normalizer::None => 1.0,
            Normalizer::Kept => self.kept as f32,
            Normalizer::Labels => self.labels as f32,
            Normalizer::Weight => self.weight,
        })
    }

    /// Multiplies each row's upstream gradient by `dloss`, and divides it by the normaliser.
    pub(super) fn multiply(
        &mut self,
        dloss: Option<UpstreamGradient<'_>>,
        divisor: f32,
    ) -> Result<()> {
        if let Some(UpstreamGradient { values, stride }) = dloss {
            let stride = dloss_stride(stride, self.targets.len(), values.len())?;
            for (row, target) in self.targets.iter_mut().enumerate() {
                target.upstream *= f64::from(values[row * stride]);
            }
        }
        for target in &mut self.targets {
            target.upstream /= f64::from(divisor);
        }
        Ok(())
    }

    /// The stats of whole rows, merged from the saved ones of all ranks.
    pub(super) fn merge(&self, op: &CrossEntropy, saved: &[u8]) -> Result<Vec<RowStats>> {
        let n = self.targets.len();
        let bytes = op.saved_bytes(n as u64) as usize;
        check_length("saved", op.ranks(n, saved.len()) * bytes, saved.len())?;
        let stats = saved.as_chunks().0;
        let row = |row| {
            let of_ranks = stats.iter().skip(row).step_by(n).map(RowStats::from_bytes);
            merged(self.options.cap, of_ranks.map(PartStats::from))
        };
        Ok((0..n).map(row).collect())
    }

    /// Computes the stats of all rows, or takes the given ones, and writes the gradients.
    pub(super) fn run<'a, T: Element>(
        &self,
        find_stats: bool,
        with_argmax: bool,
        tensors: impl Iterator<Item = (Option<&'a [T]>, &'a mut [T])>,
        stats: &[RowStats],
    ) -> Vec<RowStats> {
        let rows: Vec<_> = (self.targets.iter().zip(tensors).enumerate())
            .map(|(row, (&target, (logits, dlogits)))| Row {
                logits,
                dlogits,
                target,
                stats: stats.get(row).copied().unwrap_or(NO_STATS),
            })
            .collect();
        let pass = Pass {
            options: Options {
                with_argmax,
                ..self.options
            },
            find_stats,
        };
        pass.run(AnyRows::from(rows))
    }

    /// Writes the outputs and returns the summary, from the stats of whole rows.
    pub(super) fn finish(
        &self,
        op: &CrossEntropy,
        stats: &[RowStats],
        divisor: f32,
        mut outputs: Outputs<'_>,
    ) -> CrossEntropySummary {
        let mut summary = CrossEntropySummary {
            normalizer: divisor,
            weight: self.weight,
            labels: self.labels,
            kept: self.kept,
            bad_row: u64::MAX,
            nan_row: u64::MAX,
            ..CrossEntropySummary::default()
        };
        let [mut loss, mut z_loss, mut dropped_loss] = [0.0; 3];
        for (row, (target, stats)) in self.targets.iter().zip(stats).enumerate() {
            let of_row = match target.status {
                RowStatus::Bad => RowLoss::NAN,
                status if self.options.has_loss(status) => {
                    RowLoss::new(&self.options, stats, target.weight)
                }
                _ => RowLoss::ZERO,
            };
            let counted = match target.status {
                RowStatus::Masked => RowLoss::ZERO,
                RowStatus::Dropped => {
                    summary.dropped += 1;
                    dropped_loss += of_row.loss;
                    RowLoss::ZERO
                }
                RowStatus::Bad => {
                    summary.bad_row = summary.bad_row.min(row as u64);
                    of_row
                }
                RowStatus::Kept => {
                    if of_row.loss.is_nan() {
                        summary.nan_row = summary.nan_row.min(row as u64);
                    }
                    summary.correct += u64::from(u64::from(stats.argmax) == target.class);
                    of_row
                }
            };
            loss += counted.loss;
            z_loss += counted.z_loss;
            let floats = [
                (&mut outputs.loss, counted.loss),
                (&mut outputs.z_loss, counted.z_loss),
                (&mut outputs.lse, of_row.lse),
            ];
            for (output, value) in floats {
                if let Some(output) = output {
                    output[row] = rounded(value);
                }
            }
            if let Some(argmax) = &mut outputs.argmax {
                argmax[row] = stats.argmax as i32;
            }
        }
        if let Some(saved) = outputs.saved {
            save(stats, saved);
        }
        summary.loss = rounded(loss);
        summary.z_loss = rounded(z_loss);
        summary.dropped_loss = rounded(dropped_loss);
        summary.mean = match self.kept {
            0 if op.empty_is_nan => f32::NAN,
            0 => 0.0,
            _ => f32::narrow(summary.loss / summary.normalizer),
        };
        summary
    }
}
