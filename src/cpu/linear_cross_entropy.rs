//! The head of a language model on the CPU: the formulas and options of
//! [`LinearCrossEntropy`](crate::loss::linear_cross_entropy), for slices.
//!
//! Only rows that need logits are multiplied. Losses, lse and statistics have the bits that [`cross_entropy`] gives for whole
//! logits, whatever the chunks and the list of kept rows. The gradients have the same bits for the same chunks; in f32, and
//! with chunks of a multiple of 256 rows, for any.
//!
//! [`cross_entropy`]: super::cross_entropy
//!
//! ```
//! use xact::LinearCrossEntropy;
//! use xact::cpu::linear_cross_entropy;
//!
//! // Two rows of hidden states, and three classes.
//! let hidden = [1.0_f32, 0.0, 0.5, 2.0];
//! let weight = [1.0_f32, 0.0, 2.0, 1.0, 3.0, -1.0];
//! let (mut d_hidden, mut d_weight) = ([0.0; 4], [0.0_f32; 6]);
//! let op = LinearCrossEntropy::default();
//! let summary = linear_cross_entropy::forward_with_gradient(&op, &hidden, &weight, &[2_i64, -100])
//!     .d_hidden(&mut d_hidden)
//!     .d_weight(&mut d_weight)
//!     .run()?;
//! // The logits of the first row are 1, 2 and 3.
//! assert!((summary.mean - 0.407_606).abs() < 1e-6);
//! assert_eq!(d_hidden[2..], [0.0; 2]);
//! # Ok::<(), xact::Error>(())
//! ```

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cross_entropy::{
    NO_STATS, Outputs, Plan, Rows as Labelled, UpstreamGradient, dloss_setters, output_setters,
    row_setters, save,
};
use super::product::{self, Lines, Operand, Product, Starts, Tiling};
use super::tensor::{Checked, Input, Output};
use crate::blocks::{CrossEntropySummary, RowStats};
use crate::dtype::{Dtype, Element, ParamOf};
use crate::error::{Error, Result, check_length};
use crate::loss::cross_entropy::{CrossEntropy, Label, RowStatus, Shard};
use crate::loss::goldfish::{Goldfish, TokenId, Tokens};
use crate::loss::linear_cross_entropy::{Cost, LinearCrossEntropy, Logits, Memory};
use crate::shape::Shape;

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The floating-point operations of the matrix products that are done.
    pub done: u64,
    /// Those of the whole call: the [`flops`](Cost::flops) of its cost.
    pub total: u64,
}

/// The tensors that a call reads, and how it reads them.
struct Head<'a, T> {
    op: &'a LinearCrossEntropy,
    hidden: Input<'a, T>,
    weight: Input<'a, T>,
    kept_rows: Option<&'a [i32]>,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl<T> fmt::Debug for Head<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("op", self.op)
            .field("hidden", &self.hidden.len())
            .field("weight", &self.weight.len())
            .finish_non_exhaustive()
    }
}

/// The gradients that a call writes.
#[derive(Debug)]
struct Gradients<'a, T> {
    d_hidden: Option<Output<'a, T>>,
    d_weight: Option<WeightGradient<Output<'a, f32>, Output<'a, T>>>,
    accumulate: bool,
}

/// A gradient of the weights, in f32 or in their type.
#[derive(Debug)]
enum WeightGradient<F, T> {
    F32(F),
    Same(T),
}

impl<T> Gradients<'_, T> {
    const NONE: Self = Gradients {
        d_hidden: None,
        d_weight: None,
        accumulate: false,
    };
}

impl<'a, T: Element> Gradients<'a, T> {
    fn set_d_weight<D: ParamOf<T>>(&mut self, d_weight: Output<'a, D>, accumulate: bool) {
        self.accumulate = accumulate;
        self.d_weight = Some(match D::DTYPE {
            Dtype::F32 => WeightGradient::F32(d_weight.cast()),
            _ => WeightGradient::Same(d_weight.cast()),
        });
    }
}

/// The setters of all calls on tensors.
macro_rules! head_setters {
    () => {
        /// Calls `progress` after every tile of a matrix product, on the thread that computed it.
        pub fn progress(mut self, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
            self.head.progress = Some(progress);
            self
        }

        list_setter!(head);
    };
}

/// The setter of the list of kept rows.
macro_rules! list_setter {
    ($($head:ident)?) => {
        /// Sets the rows that may be kept, in any order; -1 is padding. A row that is not listed has the weight 0, and a
        /// listed row that is masked stays masked. [`kept_rows`] makes such a list.
        pub fn kept_rows(mut self, kept_rows: &'a [i32]) -> Self {
            self.$($head.)?kept_rows = Some(kept_rows);
            self
        }
    };
}

/// The setters of the gradients.
macro_rules! gradient_setters {
    () => {
        /// Sets an output for the gradient of the hidden states, `[N, H]` of their type. Masked rows become 0. With a sharded
        /// vocabulary it is that of this rank's columns: the sum over the ranks is the gradient.
        pub fn d_hidden(mut self, d_hidden: impl Into<Output<'a, T>>) -> Self {
            self.gradients.d_hidden = Some(d_hidden.into());
            self
        }

        /// Sets an output for the gradient of the weights, `[V, H]` in f32 or in the type of the weights. Rows that are not
        /// classes become 0.
        pub fn d_weight<D: ParamOf<T>>(mut self, d_weight: impl Into<Output<'a, D>>) -> Self {
            self.gradients.set_d_weight(d_weight.into(), false);
            self
        }

        /// Adds the gradient of the weights to `d_weight`, `[V, H]` in f32 or in the type of the weights: a `main_grad`, or
        /// the gradient of an embedding that shares the weights. Rows that are not classes are not touched.
        pub fn accumulate_d_weight<D: ParamOf<T>>(
            mut self,
            d_weight: impl Into<Output<'a, D>>,
        ) -> Self {
            self.gradients.set_d_weight(d_weight.into(), true);
            self
        }

        dloss_setters!();
    };
}

fn head<'a, T>(
    op: &'a LinearCrossEntropy,
    hidden: impl Into<Input<'a, T>>,
    weight: impl Into<Input<'a, T>>,
) -> Head<'a, T> {
    Head {
        op,
        hidden: hidden.into(),
        weight: weight.into(),
        kept_rows: None,
        progress: None,
    }
}

/// Returns a call that computes the losses of hidden states, `[N, H]` in f32, f16 or bf16, and their summary. `weight` is
/// `[V, H]` of the same type. `labels` are `[N]` i32, i64 or u32: the class of each row, or
/// [`ignore_index`](CrossEntropy::ignore_index).
pub fn forward<'a, T: Element, L: Label>(
    op: &'a LinearCrossEntropy,
    hidden: impl Into<Input<'a, T>>,
    weight: impl Into<Input<'a, T>>,
    labels: &'a [L],
) -> Forward<'a, T, L> {
    Forward {
        head: head(op, hidden, weight),
        rows: Labelled::new(labels),
        outputs: Outputs::default(),
        normalizer: None,
    }
}

/// A call of [`forward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Forward<'a, T, L> {
    head: Head<'a, T>,
    rows: Labelled<'a, L>,
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
}

impl<'a, T: Element, L: Label> Forward<'a, T, L> {
    row_setters!();
    output_setters!();
    head_setters!();

    /// Returns what the call costs, without running it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn cost(self) -> Result<Cost> {
        self.without_gradients().cost()
    }

    /// Computes the losses.
    ///
    /// # Errors
    /// - [`Error::OutOfRange`], [`Error::Classes`], [`Error::Length`], [`Error::Shape`], [`Error::Pitch`],
    ///   [`Error::GroupPitch`], [`Error::TooLarge`], [`Error::Offsets`]: as
    ///   [cross-entropy](super::cross_entropy::Forward::run), of the hidden states and the weights;
    /// - [`Error::Groups`]: the rows of the weights are in groups;
    /// - [`Error::KeptRow`]: the list has a row that does not exist, or a row twice;
    /// - [`Error::Budget`]: `max_bytes` is too small for a row, or for the given number of rows of a chunk.
    ///
    /// Nothing is written when a call fails.
    pub fn run(self) -> Result<CrossEntropySummary> {
        self.without_gradients().run()
    }

    /// The call that computes the same, with outputs for no gradients.
    fn without_gradients(self) -> ForwardWithGradient<'a, T, L> {
        let Forward {
            head,
            rows,
            outputs,
            normalizer,
        } = self;
        ForwardWithGradient {
            head,
            rows,
            outputs,
            normalizer,
            dloss: None,
            gradients: Gradients::NONE,
        }
    }
}

/// Returns a call that computes what [`forward`] computes, and the gradients that have outputs.
pub fn forward_with_gradient<'a, T: Element, L: Label>(
    op: &'a LinearCrossEntropy,
    hidden: impl Into<Input<'a, T>>,
    weight: impl Into<Input<'a, T>>,
    labels: &'a [L],
) -> ForwardWithGradient<'a, T, L> {
    ForwardWithGradient {
        head: head(op, hidden, weight),
        rows: Labelled::new(labels),
        outputs: Outputs::default(),
        normalizer: None,
        dloss: None,
        gradients: Gradients::NONE,
    }
}

/// A call of [`forward_with_gradient`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct ForwardWithGradient<'a, T, L> {
    head: Head<'a, T>,
    rows: Labelled<'a, L>,
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
    dloss: Option<UpstreamGradient<'a>>,
    gradients: Gradients<'a, T>,
}

impl<'a, T: Element, L: Label> ForwardWithGradient<'a, T, L> {
    row_setters!();
    output_setters!();
    head_setters!();
    gradient_setters!();

    /// Returns what the call costs, without running it.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn cost(self) -> Result<Cost> {
        let mut weights = Vec::new();
        let rows = listed(self.rows, self.head.kept_rows, &mut weights)?;
        let call = self.head.check(self.gradients, rows.labels.len())?;
        Ok(call.work(&call.plan(&rows)?, true)?.cost)
    }

    /// Computes the losses and the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<CrossEntropySummary> {
        let mut weights = Vec::new();
        let rows = listed(self.rows, self.head.kept_rows, &mut weights)?;
        let (op, n) = (&self.head.op.loss, rows.labels.len());
        let call = self.head.check(self.gradients, n)?;
        let mut plan = call.plan(&rows)?;
        self.outputs.check(op, n)?;
        let divisor = plan.divisor(op, self.normalizer);
        plan.multiply(self.dloss, divisor)?;
        let work = call.work(&plan, true)?;
        let stats = call.run(&plan, &work, self.outputs.argmax.is_some(), None);
        Ok(plan.finish(op, &stats, divisor, self.outputs))
    }
}

/// Returns a call that computes the gradients that have outputs, from the statistics that a forward with the same options,
/// labels, weights, Goldfish decision and list of kept rows has saved. The logits are computed again. `saved` and `normalizer`
/// are those of [cross-entropy](super::cross_entropy::backward).
pub fn backward<'a, T: Element, L: Label>(
    op: &'a LinearCrossEntropy,
    hidden: impl Into<Input<'a, T>>,
    weight: impl Into<Input<'a, T>>,
    labels: &'a [L],
    saved: &'a [u8],
    normalizer: f32,
) -> Backward<'a, T, L> {
    Backward {
        head: head(op, hidden, weight),
        rows: Labelled::new(labels),
        saved,
        normalizer,
        dloss: None,
        gradients: Gradients::NONE,
    }
}

/// A call of [`backward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Backward<'a, T, L> {
    head: Head<'a, T>,
    rows: Labelled<'a, L>,
    saved: &'a [u8],
    normalizer: f32,
    dloss: Option<UpstreamGradient<'a>>,
    gradients: Gradients<'a, T>,
}

impl<'a, T: Element, L: Label> Backward<'a, T, L> {
    row_setters!();
    head_setters!();
    gradient_setters!();

    /// Sets which classes the rows of the weights are, for a vocabulary that is sharded over ranks.
    /// [`vocab`](CrossEntropy::vocab) is then the number of classes of this rank.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.rows.shard = Some(shard);
        self
    }

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<()> {
        let mut weights = Vec::new();
        let rows = listed(self.rows, self.head.kept_rows, &mut weights)?;
        let call = self.head.check(self.gradients, rows.labels.len())?;
        let mut plan = call.plan(&rows)?;
        plan.multiply(self.dloss, self.normalizer)?;
        let stats = plan.merge(&call.op.loss, self.saved)?;
        let work = call.work(&plan, false)?;
        call.run(&plan, &work, false, Some(stats));
        Ok(())
    }
}

/// Returns a call that saves the statistics of one rank's rows of the weights, `[saved_bytes] u8`, for a vocabulary that is
/// sharded over ranks. Gather those of all ranks and give them to [`finish`] and [`backward`].
pub fn partial<'a, T: Element, L: Label>(
    op: &'a LinearCrossEntropy,
    hidden: impl Into<Input<'a, T>>,
    weight: impl Into<Input<'a, T>>,
    labels: &'a [L],
    shard: Shard,
    saved: &'a mut [u8],
) -> Partial<'a, T, L> {
    Partial {
        head: head(op, hidden, weight),
        rows: Labelled {
            shard: Some(shard),
            ..Labelled::new(labels)
        },
        with_argmax: false,
        saved,
    }
}

/// A call of [`partial`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Partial<'a, T, L> {
    head: Head<'a, T>,
    rows: Labelled<'a, L>,
    with_argmax: bool,
    saved: &'a mut [u8],
}

impl<'a, T: Element, L: Label> Partial<'a, T, L> {
    row_setters!();
    head_setters!();

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
        let mut weights = Vec::new();
        let rows = listed(self.rows, self.head.kept_rows, &mut weights)?;
        let (op, n) = (&self.head.op.loss, rows.labels.len());
        let call = self.head.check(Gradients::NONE, n)?;
        let plan = call.plan(&rows)?;
        check_length("saved", op.saved_bytes(n as u64) as usize, self.saved.len())?;
        let work = call.work(&plan, true)?;
        save(&call.run(&plan, &work, self.with_argmax, None), self.saved);
        Ok(())
    }
}

/// Returns a call that computes the losses and the summary from the gathered statistics of all ranks in their order,
/// `[ranks, saved_bytes] u8`, as [cross-entropy](super::cross_entropy::finish) does, for calls with a list of kept rows.
pub fn finish<'a, L: Label>(
    op: &'a LinearCrossEntropy,
    labels: &'a [L],
    shard: Shard,
    gathered: &'a [u8],
) -> Finish<'a, L> {
    Finish {
        op,
        rows: Labelled {
            shard: Some(shard),
            ..Labelled::new(labels)
        },
        kept_rows: None,
        gathered,
        outputs: Outputs::default(),
        normalizer: None,
    }
}

/// A call of [`finish`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Finish<'a, L> {
    op: &'a LinearCrossEntropy,
    rows: Labelled<'a, L>,
    kept_rows: Option<&'a [i32]>,
    gathered: &'a [u8],
    outputs: Outputs<'a>,
    normalizer: Option<f32>,
}

impl<'a, L: Label> Finish<'a, L> {
    row_setters!();
    output_setters!();
    list_setter!();

    /// Computes the losses.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<CrossEntropySummary> {
        let mut weights = Vec::new();
        let rows = listed(self.rows, self.kept_rows, &mut weights)?;
        let finish = super::cross_entropy::Finish {
            op: &self.op.loss,
            rows,
            gathered: self.gathered,
            outputs: self.outputs,
            normalizer: self.normalizer,
        };
        finish.run()
    }
}

/// Returns a call that lists the rows that need logits, `[K] i32` in ascending order, for the setter `kept_rows` of other
/// calls. It needs only the text, so a data loader can make the list before a model runs. Rows that Goldfish drops are listed
/// if the option [`dropped_loss`](CrossEntropy::dropped_loss) is set. Labels that are no class are listed; without the option
/// [`vocab`](CrossEntropy::vocab) only negative ones are known to be none.
///
/// ```
/// use xact::cpu::kept_rows;
/// let op = xact::CrossEntropy::default();
/// assert_eq!(kept_rows(&op, &[7_i64, -100, 3]).run()?, [0, 2]);
/// # Ok::<(), xact::Error>(())
/// ```
pub fn kept_rows<'a, L: Label>(op: &'a CrossEntropy, labels: &'a [L]) -> KeptRows<'a, L> {
    KeptRows {
        op,
        rows: Labelled::new(labels),
    }
}

/// A call of [`kept_rows`].
#[derive(Debug)]
#[must_use = "nothing is listed until `run`"]
pub struct KeptRows<'a, L> {
    op: &'a CrossEntropy,
    rows: Labelled<'a, L>,
}

impl<'a, L: Label> KeptRows<'a, L> {
    row_setters!();

    /// Makes the list.
    ///
    /// # Errors
    /// Those of the options, the weights and the tokens in [`Forward::run`], and [`Error::TooLarge`] if there are more than
    /// 2³¹ − 1 rows.
    pub fn run(self) -> Result<Vec<i32>> {
        let n = self.rows.labels.len();
        if i32::try_from(n).is_err() {
            return Err(Error::TooLarge {
                rows: n as u64,
                cols: 1,
            });
        }
        /// The most classes that kernels count.
        const MOST: u64 = u32::MAX as u64 - 1;
        let classes = self.op.vocab.unwrap_or(MOST);
        let plan = Plan::new(self.op, &self.rows, Some(classes as usize))?;
        let needed = |row: &usize| {
            let status = plan.targets[*row].status;
            status == RowStatus::Bad || plan.options.has_loss(status)
        };
        Ok((0..n).filter(needed).map(|row| row as i32).collect())
    }
}

/// Gives the rows that are not listed the weight 0.
fn listed<'b, 'a: 'b, L>(
    rows: Labelled<'a, L>,
    kept_rows: Option<&[i32]>,
    weights: &'b mut Vec<f32>,
) -> Result<Labelled<'b, L>> {
    let mut rows: Labelled<'b, L> = rows;
    let Some(kept_rows) = kept_rows else {
        return Ok(rows);
    };
    let n = rows.labels.len();
    if let Some(weights) = rows.weights {
        check_length("weights", n, weights.len())?;
    }
    *weights = vec![0.0; n];
    let mut is_listed = vec![false; n];
    for (at, &row) in kept_rows.iter().enumerate() {
        if row == -1 {
            continue;
        }
        let index = usize::try_from(row).unwrap_or(usize::MAX);
        match is_listed.get_mut(index) {
            Some(is_listed) if !*is_listed => *is_listed = true,
            _ => {
                return Err(Error::KeptRow {
                    at: at as u64,
                    row: row.into(),
                    rows: n as u64,
                });
            }
        }
        weights[index] = rows.weights.map_or(1.0, |weights| weights[index]);
    }
    rows.weights = Some(weights);
    Ok(rows)
}

impl<'a, T: Element> Head<'a, T> {
    /// Checks the tensors of a call with `n` rows.
    fn check(self, gradients: Gradients<'a, T>, n: usize) -> Result<Call<'a, T>> {
        let Head {
            op,
            hidden,
            weight,
            progress,
            ..
        } = self;
        op.check()?;
        // The columns of a slice without rows are those of the other.
        let of_hidden = match (hidden.given(), weight.given()) {
            (Some(given), _) => {
                check_length("labels", given.rows, n)?;
                Shape {
                    rows: n,
                    cols: given.cols,
                }
            }
            (None, Some(given)) if n == 0 => Shape {
                rows: 0,
                cols: given.cols,
            },
            (None, _) => Shape {
                rows: n,
                cols: hidden.len().checked_div(n).unwrap_or(weight.len()),
            },
        };
        let cols = of_hidden.cols;
        let of_weight = Shape {
            rows: match weight.given() {
                Some(given) => given.rows,
                None => weight.len().checked_div(cols).unwrap_or(0),
            },
            cols,
        };
        let hidden = hidden.check("hidden", of_hidden)?;
        let weight = weight.check_rows("weight", of_weight)?;
        let d_weight = match gradients.d_weight {
            None => None,
            Some(WeightGradient::F32(d_weight)) => {
                let d_weight = d_weight.check_rows("d_weight", of_weight)?;
                Some(WeightGradient::F32(d_weight))
            }
            Some(WeightGradient::Same(d_weight)) => {
                let d_weight = d_weight.check_rows("d_weight", of_weight)?;
                Some(WeightGradient::Same(d_weight))
            }
        };
        let d_hidden = gradients.d_hidden;
        let d_hidden = d_hidden.map(|d_hidden| d_hidden.check("d_hidden", of_hidden));
        Ok(Call {
            op,
            hidden,
            weight,
            rows_of_weight: of_weight.rows,
            d_hidden: d_hidden.transpose()?,
            d_weight,
            accumulate: gradients.accumulate,
            progress,
        })
    }
}

type CheckedGradient<'a, T> = WeightGradient<Checked<&'a mut [f32]>, Checked<&'a mut [T]>>;

/// The checked tensors of a call.
struct Call<'a, T> {
    op: &'a LinearCrossEntropy,
    hidden: Checked<&'a [T]>,
    weight: Checked<&'a [T]>,
    rows_of_weight: usize,
    d_hidden: Option<Checked<&'a mut [T]>>,
    d_weight: Option<CheckedGradient<'a, T>>,
    accumulate: bool,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// The rows that need logits, and their chunks.
struct Work {
    /// The rows that have gradients.
    gradient: Vec<usize>,
    /// The rows of which only the loss is needed.
    loss_only: Vec<usize>,
    cost: Cost,
}

/// A call of any element type. This type is not generic, so that the products are compiled in this crate and not in its users.
enum AnyCall<'a> {
    F32(Call<'a, f32>),
    F16(Call<'a, half::f16>),
    Bf16(Call<'a, half::bf16>),
}

impl<'a, T: Element> Call<'a, T> {
    fn plan<L: Label>(&self, rows: &Labelled<'_, L>) -> Result<Plan> {
        Plan::new(&self.op.loss, rows, Some(self.rows_of_weight))
    }

    /// The work of a call that finds the statistics of the rows, or has them.
    fn work(&self, plan: &Plan, find_stats: bool) -> Result<Work> {
        let gradients = [self.d_hidden.is_some(), self.d_weight.is_some()];
        let products = gradients.iter().filter(|&&is_some| is_some).count();
        let (mut gradient, mut loss_only) = (Vec::new(), Vec::new());
        for (row, target) in plan.targets.iter().enumerate() {
            let has_gradient = matches!(target.status, RowStatus::Kept | RowStatus::Bad);
            if has_gradient && products > 0 {
                gradient.push(row);
            } else if find_stats && plan.options.has_loss(target.status) {
                loss_only.push(row);
            }
        }
        let (classes, cols) = (plan.options.cols, self.hidden.rows.cols);
        let rows = gradient.len().max(loss_only.len());
        let memory = self.memory(plan, rows);
        let chunk_rows = self.op.chunk(rows as u64, memory, product::DEPTH as u64)?;
        let chunks_of = |rows: &[usize]| (rows.len() as u64).div_ceil(chunk_rows.max(1));
        let products_of_rows = gradient.len() * (1 + products) + loss_only.len();
        Ok(Work {
            cost: Cost {
                chunks: chunks_of(&gradient) + chunks_of(&loss_only),
                chunk_rows,
                bytes: memory.fixed + memory.per_row * chunk_rows,
                flops: 2 * products_of_rows as u64 * classes as u64 * cols as u64,
            },
            gradient,
            loss_only,
        })
    }

    /// The memory for chunks of at most `rows` rows.
    fn memory(&self, plan: &Plan, rows: usize) -> Memory {
        let (classes, cols) = (plan.options.cols, self.hidden.rows.cols);
        let scratch = [(rows, classes), (rows, cols), (classes, cols)]
            .map(|(rows, cols)| Tiling::scratch_bytes(rows, cols));
        let of_lists = plan.targets.len() * Plan::ROW_BYTES;
        let of_weight = match self.d_weight {
            Some(_) => classes * Tiling::row_bytes(cols),
            None => 0,
        };
        let logits = classes as u64 * self.op.logits_dtype(T::DTYPE).size();
        let of_row = Plan::ROW_BYTES + Tiling::row_bytes(classes).max(Tiling::row_bytes(cols));
        Memory {
            fixed: scratch.into_iter().max().unwrap_or(0) + (of_lists + of_weight) as u64,
            per_row: logits + of_row as u64,
        }
    }

    /// Computes all chunks, and returns the statistics of all rows.
    fn run(
        self,
        plan: &Plan,
        work: &Work,
        with_argmax: bool,
        stats: Option<Vec<RowStats>>,
    ) -> Vec<RowStats> {
        let call = match T::DTYPE {
            Dtype::F32 => AnyCall::F32(self.cast()),
            Dtype::F16 => AnyCall::F16(self.cast()),
            Dtype::Bf16 => AnyCall::Bf16(self.cast()),
        };
        call.run(plan, work, with_argmax, stats)
    }

    /// The same call, where `U` is the same type as `T`.
    fn cast<U: Element>(self) -> Call<'a, U> {
        Call {
            op: self.op,
            hidden: self.hidden.cast(),
            weight: self.weight.cast(),
            rows_of_weight: self.rows_of_weight,
            d_hidden: self.d_hidden.map(Checked::cast_mut),
            d_weight: self.d_weight.map(|d_weight| match d_weight {
                WeightGradient::F32(d_weight) => WeightGradient::F32(d_weight),
                WeightGradient::Same(d_weight) => WeightGradient::Same(d_weight.cast_mut()),
            }),
            accumulate: self.accumulate,
            progress: self.progress,
        }
    }

    fn chunks<Z: Element>(
        mut self,
        plan: &Plan,
        work: &Work,
        with_argmax: bool,
        given: Option<Vec<RowStats>>,
    ) -> Vec<RowStats> {
        let find_stats = given.is_none();
        let mut stats = given.unwrap_or_else(|| vec![NO_STATS; plan.targets.len()]);
        let (classes, cols) = (plan.options.cols, self.hidden.rows.cols);
        let Cost {
            chunk_rows, flops, ..
        } = work.cost;
        let done = AtomicU64::new(0);
        let report = |of_tile| {
            let done = done.fetch_add(of_tile, Ordering::Relaxed) + of_tile;
            if let Some(progress) = self.progress {
                progress(Progress { done, total: flops });
            }
        };
        let starts: Vec<_> = self.hidden.rows.ranges().map(|row| row.start).collect();
        let weight = Lines {
            elements: self.weight.elements,
            starts: Starts::of(self.weight.rows),
        };
        let d_hidden = self.d_hidden.take().map(Checked::rows_mut);
        let mut d_hidden: Vec<_> = d_hidden.into_iter().flatten().map(Some).collect();
        let with_d_hidden = !d_hidden.is_empty();
        let mut accumulate = self.accumulate;
        let mut logits = vec![Z::zeroed(); chunk_rows as usize * classes];
        for (list, has_gradient) in [(&work.gradient, true), (&work.loss_only, false)] {
            for rows in list.chunks(chunk_rows.max(1) as usize) {
                let starts: Vec<_> = rows.iter().map(|&row| starts[row]).collect();
                let hidden = Lines {
                    elements: self.hidden.elements,
                    starts: Starts::Listed(&starts),
                };
                let logits = &mut logits[..rows.len() * classes];
                let product = Product {
                    a: Operand::Along(hidden),
                    b: Operand::Along(weight),
                    terms: cols,
                    accumulate: false,
                };
                product.run(classes, logits.chunks_exact_mut(classes), &report);
                let of_chunk = plan.of_rows(rows);
                let given: Vec<_> = rows.iter().map(|&row| stats[row]).collect();
                let of_rows = match has_gradient {
                    true => {
                        let rows = logits.chunks_exact_mut(classes).map(|row| (None, row));
                        of_chunk.run(find_stats, with_argmax, rows, &given)
                    }
                    false => {
                        let rows = logits.chunks_exact(classes);
                        let rows = rows.map(|row| (Some(row), [].as_mut_slice()));
                        of_chunk.run(true, with_argmax, rows, &[])
                    }
                };
                for (&row, of_row) in rows.iter().zip(of_rows) {
                    stats[row] = of_row;
                }
                if !has_gradient {
                    continue;
                }
                let dlogits = Lines {
                    elements: &*logits,
                    starts: Starts::Pitch {
                        offset: 0,
                        pitch: classes,
                    },
                };
                if with_d_hidden {
                    let product = Product {
                        a: Operand::Along(dlogits),
                        b: Operand::Across(weight),
                        terms: classes,
                        accumulate: false,
                    };
                    let rows = rows.iter().filter_map(|&row| d_hidden[row].take());
                    product.run(cols, rows, &report);
                }
                let product = Product {
                    a: Operand::Across(dlogits),
                    b: Operand::Across(hidden),
                    terms: rows.len(),
                    accumulate,
                };
                match &mut self.d_weight {
                    None => {}
                    Some(WeightGradient::F32(d_weight)) => {
                        product.run(cols, d_weight.reborrow().rows_mut().take(classes), &report);
                    }
                    Some(WeightGradient::Same(d_weight)) => {
                        product.run(cols, d_weight.reborrow().rows_mut().take(classes), &report);
                    }
                }
                accumulate = true;
            }
        }
        for row in d_hidden.into_iter().flatten() {
            row.fill(T::narrow(0.0));
        }
        // The rows without a product.
        let first = if accumulate { classes } else { 0 };
        if !self.accumulate {
            match self.d_weight {
                None => {}
                Some(WeightGradient::F32(d_weight)) => clear(d_weight, first),
                Some(WeightGradient::Same(d_weight)) => clear(d_weight, first),
            }
        }
        stats
    }
}

/// Sets the rows from `first` on to 0.
fn clear<T: Element>(tensor: Checked<&mut [T]>, first: usize) {
    for row in tensor.rows_mut().skip(first) {
        row.fill(T::narrow(0.0));
    }
}

impl AnyCall<'_> {
    fn run(
        self,
        plan: &Plan,
        work: &Work,
        with_argmax: bool,
        stats: Option<Vec<RowStats>>,
    ) -> Vec<RowStats> {
        macro_rules! chunks {
            ($call:ident, $T:ty) => {
                match $call.op.logits {
                    Logits::Narrow => $call.chunks::<$T>(plan, work, with_argmax, stats),
                    Logits::F32 => $call.chunks::<f32>(plan, work, with_argmax, stats),
                }
            };
        }
        match self {
            AnyCall::F32(call) => call.chunks::<f32>(plan, work, with_argmax, stats),
            AnyCall::F16(call) => chunks!(call, half::f16),
            AnyCall::Bf16(call) => chunks!(call, half::bf16),
        }
    }
}
