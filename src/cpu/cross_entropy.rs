//! Cross-entropy on the CPU: the formulas, options and special values of [`CrossEntropy`], for slices.
//!
//! Rows are shared among threads, none is cut. A row is read once for its stats and once more, then from the cache,
//! for its gradient: the memory sees one read and one write. Arithmetic on elements and the statistics of rows are
//! f32, that on a row's few numbers is f64.
//!
//! ```
//! use xact::cpu::cross_entropy::{self, ForwardWithGradient, MatrixMut, Outputs, Rows};
//! use xact::CrossEntropy;
//!
//! let mut logits = [1.0_f32, 2.0, 3.0, 0.0, 0.0, 0.0];
//! let mut loss = [0.0; 2];
//! let summary = cross_entropy::forward_with_gradient(
//!     &CrossEntropy::default(),
//!     ForwardWithGradient {
//!         logits: MatrixMut::dense(&mut logits, 3),
//!         rows: Rows::new(&[2_i64, -100]),
//!         outputs: Outputs { loss: Some(&mut loss), ..Outputs::default() },
//!         normalizer: None,
//!         dloss: None,
//!     },
//! )?;
//! assert_eq!((summary.kept, loss[1]), (1, 0.0));
//! assert!((summary.mean - 0.407_606).abs() < 1e-6);
//! # Ok::<(), xact::Error>(())
//! ```

mod loops;
mod row;

use std::ops::Range;

pub(crate) use loops::RowLoops;

use super::convert::Convert;
use super::goldfish;
use crate::blocks::{CrossEntropySummary, RowStats};
use crate::dtype::Element;
use crate::error::{Error, Result, check_length};
use crate::loss::cross_entropy::{CrossEntropy, Fate, Label, Normalizer, Shard};
use crate::loss::goldfish::Tokens;
use loops::{Pass, Row};
use row::{NO_STATS, Options, RowLoss, Target, merged, rounded};

/// Rows that come in groups, as those of the view `logits[:, :-1]` of a `[B, S, V]` tensor do: B groups of S − 1 rows,
/// S·V elements apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Rows of a group, of which the number of rows is a multiple.
    pub rows: usize,
    /// Elements from the start of one group to the start of the next.
    pub pitch: usize,
}

/// A matrix that is read, of one row for each label.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// From the first element of the first row on; what follows the last row's columns may be missing.
    pub elements: &'a [T],
    /// Columns of a row.
    pub cols: usize,
    /// Elements from the start of one row to the start of the next, at least `cols`.
    pub pitch: usize,
    /// `None`: all rows are one group.
    pub groups: Option<Groups>,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows without gaps.
    pub fn dense(elements: &'a [T], cols: usize) -> Self {
        Matrix {
            elements,
            cols,
            pitch: cols,
            groups: None,
        }
    }
}

/// A [`Matrix`] that is written; what lies between its rows is not touched.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    /// As of [`Matrix`].
    pub elements: &'a mut [T],
    /// Columns of a row.
    pub cols: usize,
    /// Elements from the start of one row to the start of the next, at least `cols`.
    pub pitch: usize,
    /// `None`: all rows are one group.
    pub groups: Option<Groups>,
}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows without gaps.
    pub fn dense(elements: &'a mut [T], cols: usize) -> Self {
        MatrixMut {
            elements,
            cols,
            pitch: cols,
            groups: None,
        }
    }
}

/// What decides about the rows of a call. `L` is i32, i64 or u32.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, L> {
    /// `[N]`: the class of each row, or [`ignore_index`](CrossEntropy::ignore_index).
    pub labels: &'a [L],
    /// `[N]`: weights; a row of weight 0 is masked. Negative ones are legal; a NaN makes its row NaN.
    pub weights: Option<&'a [f32]>,
    /// Which rows are dropped.
    pub goldfish: Option<Goldfish<'a, L>>,
    /// Set where the columns are those of one rank of several;
    /// [`vocab`](CrossEntropy::vocab) is then the rank's own number of classes.
    pub shard: Option<Shard>,
}

impl<'a, L> Rows<'a, L> {
    /// Rows with labels and nothing else.
    pub fn new(labels: &'a [L]) -> Self {
        Rows {
            labels,
            weights: None,
            goldfish: None,
            shard: None,
        }
    }
}

/// A Goldfish decision.
#[derive(Clone, Copy, Debug)]
pub struct Goldfish<'a, L> {
    /// The strategy.
    pub strategy: &'a crate::Goldfish,
    /// The ids that decide, one for each row. They need not be the labels: labels that are masked otherwise
    /// still have an id.
    pub tokens: Tokens<'a, L>,
}

/// Where the results of a forward go.
#[derive(Debug, Default)]
pub struct Outputs<'a> {
    /// `[N]`: losses, weighted but not normalised; 0 of a masked row, NaN of one whose label is no class.
    pub loss: Option<&'a mut [f32]>,
    /// `[N]`: the part of each loss that is z-loss.
    pub z_loss: Option<&'a mut [f32]>,
    /// `[N]`: log Σ e^z; 0 of a masked row.
    pub lse: Option<&'a mut [f32]>,
    /// `[N]`: the class of the largest logit, the first of several; −1 of a masked row. It makes
    /// [`correct`](CrossEntropySummary::correct) be counted. Of a row with NaN it is the largest of the others.
    pub argmax: Option<&'a mut [i32]>,
    /// `[N]`: what the backward needs.
    pub stats: Option<&'a mut [RowStats]>,
}

/// The gradients with respect to the losses: of row r it is element `r·stride`.
#[derive(Clone, Copy, Debug)]
pub struct Dloss<'a> {
    /// The gradients.
    pub values: &'a [f32],
    /// 0 for one that all rows share, 1 for one of each, or any other.
    pub stride: usize,
}

/// The tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a, T, L> {
    /// `[N, V]`, N being the number of labels.
    pub logits: Matrix<'a, T>,
    /// The rows.
    pub rows: Rows<'a, L>,
    /// The results.
    pub outputs: Outputs<'a>,
    /// What to divide by, for [`Normalizer::External`].
    pub normalizer: Option<f32>,
}

/// The tensors of [`forward_with_gradient`].
#[derive(Debug)]
pub struct ForwardWithGradient<'a, T, L> {
    /// `[N, V]`, overwritten with the gradients; 0 in the columns that are no classes.
    pub logits: MatrixMut<'a, T>,
    /// The rows.
    pub rows: Rows<'a, L>,
    /// The results.
    pub outputs: Outputs<'a>,
    /// What to divide by, for [`Normalizer::External`].
    pub normalizer: Option<f32>,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
}

/// The tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a, T, L> {
    /// The logits of the forward.
    pub logits: Matrix<'a, T>,
    /// The rows of the forward.
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of the forward, or those of all ranks in their order.
    pub stats: &'a [RowStats],
    /// `[N, V]`, overwritten; 0 in the columns that are no classes.
    pub dlogits: MatrixMut<'a, T>,
    /// What gradients are divided by: [`normalizer`](CrossEntropySummary::normalizer) of the forward's summary, or
    /// a number of the caller's.
    pub divisor: f32,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
}

/// The tensors of [`backward_in_place`].
#[derive(Debug)]
pub struct BackwardInPlace<'a, T, L> {
    /// The logits of the forward, overwritten with the gradients.
    pub logits: MatrixMut<'a, T>,
    /// The rows of the forward.
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of the forward, or those of all ranks in their order.
    pub stats: &'a [RowStats],
    /// As of [`Backward`].
    pub divisor: f32,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
}

/// The tensors of [`partial_stats`].
#[derive(Debug)]
pub struct PartialStats<'a, T, L> {
    /// `[N, V of the rank]`.
    pub logits: Matrix<'a, T>,
    /// The rows, with their [`shard`](Rows::shard).
    pub rows: Rows<'a, L>,
    /// Whether the argmax will be asked for.
    pub with_argmax: bool,
    /// `[N]`: 20 bytes each, to be gathered from all ranks.
    pub stats: &'a mut [RowStats],
}

/// The tensors of [`finish`].
#[derive(Debug)]
pub struct Finish<'a, L> {
    /// The rows, with their [`shard`](Rows::shard).
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of all ranks in their order.
    pub gathered: &'a [RowStats],
    /// The results, the same on every rank; the stats are those of whole rows.
    pub outputs: Outputs<'a>,
    /// What to divide by, for [`Normalizer::External`].
    pub normalizer: Option<f32>,
}

/// Losses, statistics and the summary.
///
/// # Errors
/// [`Error::Option`], [`Error::Classes`] (no classes, or not those of the logits), [`Error::Length`] (a tensor is
/// not as long as it must be, or there is no external normaliser), [`Error::Pitch`], [`Error::TooLarge`],
/// [`Error::Offsets`]. Nothing is written then.
pub fn forward<T: Element, L: Label>(
    op: &CrossEntropy,
    call: Forward<'_, T, L>,
) -> Result<CrossEntropySummary> {
    let Forward {
        logits,
        rows,
        outputs,
        normalizer,
    } = call;
    let plan = Plan::new(op, &rows, Some(logits.cols))?;
    let ranges = plan.ranges(
        "logits",
        logits.elements,
        logits.cols,
        logits.pitch,
        logits.groups,
    )?;
    outputs.check(plan.targets.len())?;
    let divisor = plan.divisor(op, normalizer)?;
    let logits = ranges.map(|range| (Some(&logits.elements[range]), [].as_mut_slice()));
    let stats = plan.run(true, outputs.argmax.is_some(), logits, &[]);
    Ok(plan.finish(op, &stats, divisor, outputs))
}

/// The same, and the logits overwritten with their gradients.
///
/// # Errors
/// As [`forward`].
pub fn forward_with_gradient<T: Element, L: Label>(
    op: &CrossEntropy,
    call: ForwardWithGradient<'_, T, L>,
) -> Result<CrossEntropySummary> {
    let ForwardWithGradient {
        logits,
        rows,
        outputs,
        normalizer,
        dloss,
    } = call;
    let mut plan = Plan::new(op, &rows, Some(logits.cols))?;
    let ranges = plan.ranges(
        "logits",
        logits.elements,
        logits.cols,
        logits.pitch,
        logits.groups,
    )?;
    outputs.check(plan.targets.len())?;
    let divisor = plan.divisor(op, normalizer)?;
    plan.multiply(dloss, divisor)?;
    let logits = split(logits.elements, ranges).map(|logits| (None, logits));
    let stats = plan.run(true, outputs.argmax.is_some(), logits, &[]);
    Ok(plan.finish(op, &stats, divisor, outputs))
}

/// The gradients, from the stats of a forward with the same options and rows.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element, L: Label>(op: &CrossEntropy, call: Backward<'_, T, L>) -> Result<()> {
    let Backward {
        logits,
        rows,
        stats,
        dlogits,
        divisor,
        dloss,
    } = call;
    let mut plan = Plan::new(op, &rows, Some(logits.cols))?;
    let ranges = plan.ranges(
        "logits",
        logits.elements,
        logits.cols,
        logits.pitch,
        logits.groups,
    )?;
    check_length("a row of dlogits", logits.cols, dlogits.cols)?;
    let written = plan.ranges(
        "dlogits",
        dlogits.elements,
        dlogits.cols,
        dlogits.pitch,
        dlogits.groups,
    )?;
    plan.multiply(dloss, divisor)?;
    let stats = plan.merge(stats)?;
    let logits = ranges.map(|range| Some(&logits.elements[range]));
    let pairs = logits.zip(split(dlogits.elements, written));
    plan.run(false, false, pairs, &stats);
    Ok(())
}

/// The same, over the logits.
///
/// # Errors
/// As [`forward`].
pub fn backward_in_place<T: Element, L: Label>(
    op: &CrossEntropy,
    call: BackwardInPlace<'_, T, L>,
) -> Result<()> {
    let BackwardInPlace {
        logits,
        rows,
        stats,
        divisor,
        dloss,
    } = call;
    let mut plan = Plan::new(op, &rows, Some(logits.cols))?;
    let ranges = plan.ranges(
        "logits",
        logits.elements,
        logits.cols,
        logits.pitch,
        logits.groups,
    )?;
    plan.multiply(dloss, divisor)?;
    let stats = plan.merge(stats)?;
    let logits = split(logits.elements, ranges).map(|logits| (None, logits));
    plan.run(false, false, logits, &stats);
    Ok(())
}

/// The stats of a rank's columns, for [`finish`] and [`backward`] once those of all ranks are gathered. They are
/// those of the device: ranks of both kinds may be mixed.
///
/// # Errors
/// As [`forward`].
pub fn partial_stats<T: Element, L: Label>(
    op: &CrossEntropy,
    call: PartialStats<'_, T, L>,
) -> Result<()> {
    let PartialStats {
        logits,
        rows,
        with_argmax,
        stats,
    } = call;
    let plan = Plan::new(op, &rows, Some(logits.cols))?;
    let ranges = plan.ranges(
        "logits",
        logits.elements,
        logits.cols,
        logits.pitch,
        logits.groups,
    )?;
    check_length("stats", plan.targets.len(), stats.len())?;
    let logits = ranges.map(|range| (Some(&logits.elements[range]), [].as_mut_slice()));
    stats.copy_from_slice(&plan.run(true, with_argmax, logits, &[]));
    Ok(())
}

/// Losses and the summary from the stats of all ranks, the same bits on every rank.
///
/// # Errors
/// As [`forward`].
pub fn finish<L: Label>(op: &CrossEntropy, call: Finish<'_, L>) -> Result<CrossEntropySummary> {
    let Finish {
        rows,
        gathered,
        outputs,
        normalizer,
    } = call;
    let plan = Plan::new(op, &rows, None)?;
    outputs.check(plan.targets.len())?;
    let divisor = plan.divisor(op, normalizer)?;
    let mut stats = plan.merge(gathered)?;
    if outputs.argmax.is_none() {
        stats.iter_mut().for_each(|stats| stats.argmax = u32::MAX);
    }
    Ok(plan.finish(op, &stats, divisor, outputs))
}

impl Outputs<'_> {
    fn check(&self, rows: usize) -> Result<()> {
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
        let stats = self.stats.as_ref().map_or(rows, |stats| stats.len());
        check_length("stats", rows, stats)
    }
}

/// The rows of a matrix, one after the other.
fn split<T>(
    mut rest: &mut [T],
    ranges: impl Iterator<Item = Range<usize>>,
) -> impl Iterator<Item = &mut [T]> {
    let mut at = 0;
    ranges.map(move |range| {
        let row = rest
            .split_off_mut(range.start - at..)
            .and_then(|mut from| {
                let row = from.split_off_mut(..range.len());
                rest = from;
                row
            })
            .unwrap_or_default();
        at = range.end;
        row
    })
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
            Some(Goldfish { strategy, tokens }) => {
                check_length("hash_ids", n, tokens.hash_ids.len())?;
                goldfish::keep(strategy, tokens)?
            }
            None => Vec::new(),
        };
        let targets: Vec<Target> = (0..n)
            .map(|row| {
                let label: i64 = rows.labels[row].into();
                let weight = rows.weights.map_or(1.0, |weights| weights[row]);
                let dropped = keep.get(row).is_some_and(|keep| !keep);
                let fate = op.fate(label, weight, dropped, classes);
                let class = u64::try_from(label).unwrap_or(u64::MAX);
                let column = class.checked_sub(first_class).filter(|&c| c < vocab);
                Target {
                    fate,
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
        let counts = |target: &&Target| matches!(target.fate, Fate::Kept | Fate::Bad);
        let kept = targets.iter().filter(counts);
        Ok(Plan {
            options: Options::new(op, classes, first_class, vocab as usize),
            labels: labels.count() as u64,
            kept: kept.clone().count() as u64,
            weight: rounded(kept.map(|target| f64::from(target.weight)).sum()),
            targets,
        })
    }

    /// Where the rows of a matrix are.
    fn ranges<T>(
        &self,
        what: &'static str,
        elements: &[T],
        cols: usize,
        pitch: usize,
        groups: Option<Groups>,
    ) -> Result<impl Iterator<Item = Range<usize>> + use<T>> {
        let n = self.targets.len();
        let of_group = groups.map_or(n, |groups| groups.rows);
        if n > 0 && of_group == 0 {
            return Err(Error::TooSmall {
                what: "the number of rows of a group",
                least: 1,
                got: 0,
            });
        }
        if n.checked_rem(of_group).unwrap_or(0) != 0 {
            return Err(Error::Length {
                what: "labels",
                expected: n.checked_next_multiple_of(of_group).unwrap_or(0) as u64,
                got: n as u64,
            });
        }
        if of_group > 1 && pitch < cols {
            return Err(Error::Pitch {
                what,
                pitch: pitch as u64,
                cols: cols as u64,
            });
        }
        let too_large = Error::TooLarge {
            rows: n as u64,
            cols: pitch as u64,
        };
        let whole = of_group
            .checked_mul(pitch.max(cols))
            .ok_or(too_large.clone())?;
        // What follows the last row of a group need not be there.
        let len = whole - (pitch.max(cols) - cols) * of_group.min(1);
        let count = n.checked_div(of_group).unwrap_or(0);
        let group_pitch = groups.map_or(whole, |groups| groups.pitch);
        if count > 1 && group_pitch < len {
            return Err(Error::GroupPitch {
                what,
                pitch: group_pitch as u64,
                len: len as u64,
            });
        }
        let group_pitch = group_pitch.max(len);
        let whole = count.checked_mul(group_pitch).ok_or(too_large)?;
        let least = whole - (group_pitch - len) * count.min(1);
        check_length(what, elements.len().clamp(least, whole), elements.len())?;
        Ok((0..n).map(move |row| {
            let start = row / of_group * group_pitch + row % of_group * pitch;
            start..start + cols
        }))
    }

    /// What the mean is divided by.
    fn divisor(&self, op: &CrossEntropy, external: Option<f32>) -> Result<f32> {
        match op.normalizer {
            Normalizer::None => Ok(1.0),
            Normalizer::Kept => Ok(self.kept as f32),
            Normalizer::Labels => Ok(self.labels as f32),
            Normalizer::Weight => Ok(self.weight),
            Normalizer::External => external.ok_or(Error::Length {
                what: "the normalizer",
                expected: 1,
                got: 0,
            }),
        }
    }

    /// What the gradients are multiplied with, and divided by.
    fn multiply(&mut self, dloss: Option<Dloss<'_>>, divisor: f32) -> Result<()> {
        if let Some(Dloss { values, stride }) = dloss {
            let needed = match self.targets.len() {
                0 => Some(0),
                n => stride.checked_mul(n - 1).and_then(|n| n.checked_add(1)),
            };
            if needed.is_none_or(|needed| needed > values.len()) {
                return Err(Error::Length {
                    what: "dloss",
                    expected: needed.map_or(u64::MAX, |needed| needed as u64),
                    got: values.len() as u64,
                });
            }
            for (row, target) in self.targets.iter_mut().enumerate() {
                target.upstream *= f64::from(values[row * stride]);
            }
        }
        for target in &mut self.targets {
            target.upstream /= f64::from(divisor);
        }
        Ok(())
    }

    /// The stats of whole rows from those of all ranks.
    fn merge(&self, stats: &[RowStats]) -> Result<Vec<RowStats>> {
        let n = self.targets.len();
        // Without rows there is nothing to be merged.
        let ranks = stats.len().checked_div(n).unwrap_or(1);
        check_length("stats", ranks.max(1) * n, stats.len())?;
        let row = |row| merged(self.options.cap, stats.iter().skip(row).step_by(n).copied());
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
        let mut rows: Vec<_> = (self.targets.iter().zip(tensors).enumerate())
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
        T::run(&pass, &mut rows);
        rows.into_iter().map(|row| row.stats).collect()
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
            let of_row = match target.fate {
                Fate::Bad => RowLoss::NAN,
                fate if self.options.has_loss(fate) => {
                    RowLoss::new(&self.options, stats, target.weight)
                }
                _ => RowLoss::ZERO,
            };
            let counted = match target.fate {
                Fate::Masked => RowLoss::ZERO,
                Fate::Dropped => {
                    summary.dropped += 1;
                    dropped_loss += of_row.loss;
                    RowLoss::ZERO
                }
                Fate::Bad => {
                    summary.bad_row = summary.bad_row.min(row as u64);
                    of_row
                }
                Fate::Kept => {
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
            if let Some(out) = &mut outputs.stats {
                out[row] = *stats;
            }
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
