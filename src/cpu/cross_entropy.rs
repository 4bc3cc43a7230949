//! Cross-entropy on the CPU: the formulas, options and special values of [`CrossEntropy`], for slices.
//!
//! Rows are shared among threads, none is cut. A row is read once for its stats and once more, then from the cache,
//! for its gradient: the memory sees one read and one write. Arithmetic on elements and the statistics of rows are
//! f32, that on a row's few numbers is f64.
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
use row::{NO_STATS, Options, RowLoss, Target, merged, rounded};

/// What decides about the rows of a call.
struct Rows<'a, L> {
    labels: &'a [L],
    weights: Option<&'a [f32]>,
    goldfish: Option<(&'a Goldfish, Box<dyn Ids + 'a>)>,
    shard: Option<Shard>,
}

impl<'a, L> Rows<'a, L> {
    fn new(labels: &'a [L]) -> Self {
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
trait Ids {
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

/// Where the results of a forward go.
#[derive(Debug, Default)]
struct Outputs<'a> {
    loss: Option<&'a mut [f32]>,
    z_loss: Option<&'a mut [f32]>,
    lse: Option<&'a mut [f32]>,
    argmax: Option<&'a mut [i32]>,
    saved: Option<&'a mut [u8]>,
}

/// The gradients with respect to the losses: of row r it is element `r·stride`.
#[derive(Clone, Copy, Debug)]
struct UpstreamGradient<'a> {
    values: &'a [f32],
    /// `None`: 0 for one element, 1 for one of each row.
    stride: Option<usize>,
}

/// The setters of what decides about rows.
macro_rules! row_setters {
    () => {
        /// Sets the weights, `[N] f32`; a row of weight 0 is masked. Negative ones are legal; a NaN makes its row NaN.
        pub fn weights(mut self, weights: &'a [f32]) -> Self {
            self.rows.weights = Some(weights);
            self
        }

        /// Drops the rows that `goldfish` decides about from `tokens`, which have an id for each row. The ids need not
        /// be the labels, nor of their type: labels that are masked otherwise still have an id.
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

/// The setters of what a forward writes.
macro_rules! output_setters {
    () => {
        /// Writes the losses, `[N] f32`: weighted, not normalised; 0 of a masked row, NaN of one whose label is no class.
        pub fn loss(mut self, loss: &'a mut [f32]) -> Self {
            self.outputs.loss = Some(loss);
            self
        }

        /// Writes the part of each loss that is z-loss, `[N] f32`.
        pub fn z_loss(mut self, z_loss: &'a mut [f32]) -> Self {
            self.outputs.z_loss = Some(z_loss);
            self
        }

        /// Writes log Σ e^z, `[N] f32`; 0 of a masked row.
        pub fn lse(mut self, lse: &'a mut [f32]) -> Self {
            self.outputs.lse = Some(lse);
            self
        }

        /// Writes the class of the largest logit, `[N] i32`: the first of several; −1 of a masked row. It makes
        /// [`correct`](CrossEntropySummary::correct) be counted. Of a row with NaN it is the largest of the others.
        pub fn argmax(mut self, argmax: &'a mut [i32]) -> Self {
            self.outputs.argmax = Some(argmax);
            self
        }

        /// Saves what the backward needs, [`saved_bytes`](CrossEntropy::saved_bytes).
        pub fn saved(mut self, saved: &'a mut [u8]) -> Self {
            self.outputs.saved = Some(saved);
            self
        }

        /// Divides by this, not by what [`normalizer`](CrossEntropy::normalizer) says.
        pub fn normalizer(mut self, normalizer: f32) -> Self {
            self.normalizer = Some(normalizer);
            self
        }
    };
}

/// The setters of upstream gradients.
macro_rules! dloss_setters {
    () => {
        /// Multiplies the gradients by upstream ones: `[N] f32`, one of each row, or `[1] f32`, one that all share.
        pub fn dloss(mut self, dloss: &'a [f32]) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss,
                stride: None,
            });
            self
        }

        /// The same, with the number of elements from one row's to the next one's.
        pub fn dloss_strided(mut self, dloss: &'a [f32], stride: usize) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss,
                stride: Some(stride),
            });
            self
        }
    };
}

/// Losses, statistics and the summary of `logits`, `[N, V]`, N being the number of `labels`. A label is the class of
/// a row, or [`ignore_index`](CrossEntropy::ignore_index).
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
    /// [`Error::OutOfRange`], [`Error::Classes`] (no classes, or not those of the logits), [`Error::Length`] (a tensor
    /// is not as long as it must be), [`Error::Shape`], [`Error::Pitch`], [`Error::TooLarge`], [`Error::Offsets`].
    /// Nothing is written then.
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

/// The same, and the logits overwritten with their gradients; 0 in the columns that are no classes.
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

/// The gradients `dlogits`, `[N, V]`, from what a forward with the same options and rows has saved, or from what all
/// ranks have, in their order, `[ranks, saved_bytes]`. They are divided by `normalizer`: that of the forward's summary,
/// or a number of yours.
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

/// The same, over the logits.
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
    /// `None`: they are in `dlogits`.
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

    /// The columns are those of one rank of several; [`vocab`](CrossEntropy::vocab) is then the rank's own number
    /// of classes.
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

/// What a rank saves of its columns, for [`finish`] and [`backward`] once it is gathered from all ranks. It is that of
/// the device: ranks of both kinds may be mixed.
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

    /// [`finish`] will be asked for the argmax.
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

/// Losses and the summary from what all ranks have saved, in their order, `[ranks, saved_bytes]`: the same bits on
/// every rank. What is saved here is that of whole rows.
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
    op: &'a CrossEntropy,
    rows: Rows<'a, L>,
    gathered: &'a [u8],
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
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

/// Writes stats as they are saved.
fn save(stats: &[RowStats], saved: &mut [u8]) {
    for (bytes, stats) in saved.as_chunks_mut().0.iter_mut().zip(stats) {
        *bytes = stats.to_bytes();
    }
}

impl Outputs<'_> {
    fn check(&self, op: &CrossEntropy, rows: usize) -> Result<()> {
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

/// A call: what decides about its rows.
struct Plan {
    options: Options,
    targets: Vec<Target>,
    /// Rows that are not ignored by their label.
    labels: u64,
    /// Rows that count, and their weight.
    kept: u64,
    weight: f32,
}

impl Plan {
    /// `cols` are the columns of the logits, where there are logits.
    fn new<L: Label>(op: &CrossEntropy, rows: &Rows<'_, L>, cols: Option<usize>) -> Result<Plan> {
        op.check()?;
        let n = rows.labels.len();
        let vocab = match cols {
            Some(cols) => op.vocab.unwrap_or(cols as u64),
            None => 0,
        };
        // An empty batch need not know how many columns its rows would have.
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
        // Classes are counted by 32 bits.
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
            // From 0, not std's −0, so that of no rows it is what a device finds.
            weight: rounded(kept.fold(0.0, |sum, target| sum + f64::from(target.weight))),
            targets,
        })
    }

    /// What the mean is divided by.
    fn divisor(&self, op: &CrossEntropy, given: Option<f32>) -> f32 {
        given.unwrap_or(match op.normalizer {
            Normalizer::None => 1.0,
            Normalizer::Kept => self.kept as f32,
            Normalizer::Labels => self.labels as f32,
            Normalizer::Weight => self.weight,
        })
    }

    /// The upstream gradients, and what they are divided by.
    fn multiply(&mut self, dloss: Option<UpstreamGradient<'_>>, divisor: f32) -> Result<()> {
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

    /// The stats of whole rows from what all ranks have saved.
    fn merge(&self, op: &CrossEntropy, saved: &[u8]) -> Result<Vec<RowStats>> {
        let n = self.targets.len();
        let bytes = op.saved_bytes(n as u64) as usize;
        check_length("saved", op.ranks(n, saved.len()) * bytes, saved.len())?;
        let stats = saved.as_chunks().0;
        let row = |row| {
            let of_ranks = stats.iter().skip(row).step_by(n).map(RowStats::from_bytes);
            merged(self.options.cap, of_ranks)
        };
        Ok((0..n).map(row).collect())
    }

    /// Runs over the logits and gradients of all rows; their stats, found or as given.
    fn run<'a, T: Element>(
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

    /// The outputs and the summary, from the stats of whole rows.
    fn finish(
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
