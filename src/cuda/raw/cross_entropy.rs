//! Goldfish-masked cross-entropy on raw device pointers.
//!
//! Whole rows on one device: [`forward`], then [`backward`] from what it has saved; or both at once,
//! [`forward_with_gradient`]. Columns spread over ranks: [`partial_stats`] on each, an all-gather of
//! what they save, then [`finish`] and [`backward`] on each, from what all ranks have saved in the
//! order of the ranks. The results are then the same on every rank, to the bit.

#![allow(unsafe_code)]

use std::num::NonZeroU32;

use arrayvec::ArrayVec;

use super::goldfish::{self, Decision, IdType};
use super::span::Span;
use super::{Blocks, CUdeviceptr, CUstream};
use crate::blocks::{
    self, CrossEntropyArgs, CrossEntropySummary, CrossEntropyTotals, Matrix, RowStats,
};
use crate::cuda::device::{Device, Function};
use crate::cuda::entry::Entry;
use crate::cuda::grid::Grid;
use crate::cuda::launch::launch;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::geometry::{BLOCKS_OF_ROWS, RowChunks, RowSplit, SPLIT_BLOCKS};
use crate::loss::cross_entropy::{CrossEntropy, Normalizer};

pub use crate::blocks::LogitsMatrix;
pub use crate::loss::cross_entropy::Shard;

/// Stem of the files and entries.
const STEM: &str = "cross_entropy";

/// Stats of the parts of rows.
const fn stats_entry(dtype: Dtype) -> Entry {
    Entry::new(STEM, "stats", Some(dtype))
}

/// Gradients from stats.
const fn gradient_entry(dtype: Dtype) -> Entry {
    Entry::new(STEM, "gradient", Some(dtype))
}

/// Stats and gradients, in place.
const fn fused_entry(dtype: Dtype) -> Entry {
    Entry {
        dynamic_shared: true,
        ..Entry::new(STEM, "fused", Some(dtype))
    }
}

/// The same, by clusters of blocks.
const fn cluster_entry(dtype: Dtype) -> Entry {
    Entry {
        min_target: 90,
        dynamic_shared: true,
        clusters: true,
        ..Entry::new(STEM, "cluster", Some(dtype))
    }
}

/// Losses from stats.
const FINISH: Entry = Entry::new(STEM, "finish", None);

/// The summary.
const TOTALS: Entry = Entry::new(STEM, "totals", None);

/// Every entry of the loss.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    let rows = [stats_entry, gradient_entry, fused_entry, cluster_entry];
    let rows = rows.into_iter().flat_map(|entry| Dtype::ALL.map(entry));
    rows.chain([FINISH, TOTALS])
}

/// Bytes of an f32, an i32 or a [`RowStats`] field.
const WORD: u64 = 4;
const STATS_BYTES: u64 = size_of::<RowStats>() as u64;
const TOTALS_BYTES: u64 = size_of::<CrossEntropyTotals>() as u64;

/// Bytes of the count of chunks, with which the workspace begins: a u32, and what aligns the totals behind it.
const COUNT_BYTES: u64 = 8;

/// What decides about rows, in all calls.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// How many.
    pub rows: u64,
    /// One label for each row.
    pub labels: CUdeviceptr,
    /// Their type: i32, i64 or u32.
    pub label_type: IdType,
    /// If given, one f32 for each row. A row of weight 0 is masked; a NaN makes the row's loss and gradient
    /// NaN.
    pub weights: Option<CUdeviceptr>,
    /// If given, decides which rows are dropped.
    pub goldfish: Option<Decision<'a>>,
    /// Set where the columns are those of one rank of several.
    pub shard: Option<Shard>,
    /// How many blocks to launch.
    pub blocks: Blocks,
}

/// The logits of a rank: of the last columns of a row that are no classes, nothing is read.
#[derive(Clone, Copy, Debug)]
pub struct Logits {
    /// Their type.
    pub dtype: Dtype,
    /// Columns, of which the first [`CrossEntropy::vocab`] are classes.
    pub cols: u64,
    /// Where they are; of a [`Matrix`] by its `into`.
    pub matrix: LogitsMatrix,
}

/// Where results go. All but `summary` may be left out.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// Losses, f32: weighted, not normalised; 0 of a masked row, NaN of one whose label is no class.
    pub loss: Option<CUdeviceptr>,
    /// The part of each loss that is z-loss, f32.
    pub z_loss: Option<CUdeviceptr>,
    /// log Σ e^logit, f32; 0 of a masked row.
    pub lse: Option<CUdeviceptr>,
    /// The class of the largest logit, the first of several, i32; −1 of a masked row.
    pub argmax: Option<CUdeviceptr>,
    /// What the backward needs, [`CrossEntropy::saved_bytes`], aligned to 4.
    pub saved: Option<CUdeviceptr>,
    /// One [`CrossEntropySummary`], aligned to 8.
    pub summary: CUdeviceptr,
}

/// Scratch memory of a call.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Device memory, aligned to 8, not used by other work until the call has completed. Need not be
    /// initialised.
    pub workspace: CUdeviceptr,
    /// Its size, at least [`workspace_bytes`].
    pub workspace_bytes: u64,
}

/// The upstream gradients of rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upstream {
    /// f32 gradients with respect to the losses; `None` for 1.
    pub dloss: Option<CUdeviceptr>,
    /// Elements from one row's to the next one's: 0 for a scalar, 1 for one per row, or any other.
    pub stride: i64,
}

/// Losses and stats.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits.
    pub logits: Logits,
    /// The results.
    pub outputs: Outputs,
    /// An f32 to divide by, not what [`CrossEntropy::normalizer`] says.
    pub normalizer: Option<CUdeviceptr>,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// Losses and stats, and the logits overwritten with their gradients.
#[derive(Clone, Copy, Debug)]
pub struct ForwardWithGradient<'a> {
    /// The forward.
    pub forward: Forward<'a>,
    /// The upstream gradients, `[N] f32` or `[1] f32`.
    pub upstream: Upstream,
    /// Where clusters share rows, at least how many blocks a row has, up to a power of two and to what the device holds.
    /// `None` for as few as the row fits into. Another number may give other bits, within the same bounds.
    pub cluster: Option<NonZeroU32>,
}

/// Gradients from stats.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits of the forward.
    pub logits: Logits,
    /// `[ranks, saved_bytes]`, in the order of the ranks.
    pub saved: CUdeviceptr,
    /// How many ranks; 1 if it is what a forward has saved.
    pub ranks: u64,
    /// The gradients, of the type and shape of the logits; they may be the logits themselves. 0 in the columns
    /// that are no classes.
    pub dlogits: LogitsMatrix,
    /// An f32 to divide by: `normalizer` of the forward's summary, or the caller's own.
    pub normalizer: Option<CUdeviceptr>,
    /// The upstream gradients, `[N] f32` or `[1] f32`.
    pub upstream: Upstream,
}

/// The stats of a rank's columns.
#[derive(Clone, Copy, Debug)]
pub struct PartialStats<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits of the rank.
    pub logits: Logits,
    /// Whether the argmax is asked for later.
    pub with_argmax: bool,
    /// What is to be gathered, [`CrossEntropy::saved_bytes`], aligned to 4; written.
    pub saved: CUdeviceptr,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// Losses from the stats of all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// `[ranks, saved_bytes]`, in the order of the ranks.
    pub gathered: CUdeviceptr,
    /// How many ranks.
    pub ranks: u64,
    /// The results; what is saved is that of whole rows.
    pub outputs: Outputs,
    /// An f32 to divide by, not what [`CrossEntropy::normalizer`] says.
    pub normalizer: Option<CUdeviceptr>,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// Bytes of workspace that any call with this many rows needs. More rows never need less.
pub fn workspace_bytes(rows: u64) -> u64 {
    let stats = rows
        .saturating_add(SPLIT_BLOCKS)
        .saturating_mul(STATS_BYTES);
    let totals = RowChunks::new(rows).chunks_bound * TOTALS_BYTES;
    let bytes = stats.saturating_add(COUNT_BYTES + totals);
    bytes.checked_next_multiple_of(8).unwrap_or(u64::MAX)
}

/// Launches the forward on `stream`.
///
/// # Errors
/// [`Error::OutOfRange`], [`Error::LabelType`], [`Error::Null`], [`Error::Misaligned`], [`Error::Pitch`],
/// [`Error::GroupPitch`], [`Error::Length`],
/// [`Error::TooLarge`], [`Error::Overlap`], [`Error::Workspace`], or what the launch says. Nothing is written
/// then; only if the driver refuses a launch after it took an earlier one are some results written.
///
/// # Safety
/// The pointers are of the device's context and cover what the call says, `stream` is a live stream of that
/// context (or a default-stream handle), and until the launch has completed nobody frees the buffers, writes
/// the inputs or touches the outputs and the workspace. If the launch was captured into a graph, that holds
/// for every replay of the graph.
pub unsafe fn forward(
    device: &Device,
    stream: CUstream,
    op: &CrossEntropy,
    call: &Forward<'_>,
) -> Result<()> {
    let mut plan = Plan::new(op, &call.rows)?;
    plan.read_logits(op, &call.logits, false)?;
    plan.write_outputs(&call.outputs)?;
    plan.use_scratch(&call.scratch)?;
    plan.divide_by(op, call.normalizer)?;
    plan.check()?;
    // All are loaded before anything is launched, here and below, so that a failure to load writes nothing.
    let stats = device.function(stats_entry(call.logits.dtype))?;
    let (finish, totals) = (device.function(FINISH)?, device.function(TOTALS)?);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        plan.stats(device, stream, &stats)?;
        plan.summary(device, stream, &finish, &totals)
    }
}

/// Launches the forward and the gradient in place on `stream`. The logits are read once and written once
/// - from compute capability 9.0 on, where the parts of a row fit into the shared memory of a cluster of blocks: on
///   an H100 rows of at most 576 KiB, more than 113 of them or of at most 32 KiB. A cluster has as many blocks as the
///   device can hold at once, at most 8: fewer, perhaps, in an instance of MIG or under a limit of MPS;
/// - elsewhere, where there are more than 512 rows that fit into the shared memory of one block.
///
/// Else they are read twice.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`]; the logits are an output too.
pub unsafe fn forward_with_gradient(
    device: &Device,
    stream: CUstream,
    op: &CrossEntropy,
    call: &ForwardWithGradient<'_>,
) -> Result<()> {
    let ForwardWithGradient {
        forward,
        upstream,
        cluster,
    } = call;
    let logits = &forward.logits;
    let mut plan = Plan::new(op, &forward.rows)?;
    plan.read_logits(op, logits, true)?;
    plan.write_outputs(&forward.outputs)?;
    plan.use_scratch(&forward.scratch)?;
    plan.divide_by(op, forward.normalizer)?;
    plan.multiply_by(upstream)?;
    plan.check()?;
    let dtype = logits.dtype;
    let (finish, totals) = (device.function(FINISH)?, device.function(TOTALS)?);
    let cluster = plan.cluster(device, dtype, *cluster)?;
    if cluster.is_none() && plan.split.splits > 1 {
        let stats = device.function(stats_entry(dtype))?;
        let gradient = device.function(gradient_entry(dtype))?;
        // SAFETY: the caller vouches for the buffers and the stream.
        return unsafe {
            plan.stats(device, stream, &stats)?;
            plan.summary(device, stream, &finish, &totals)?;
            plan.args.parts = plan.args.stats;
            plan.args.part_count = 1;
            plan.gradient(device, stream, &gradient)
        };
    }
    let fused = match &cluster {
        Some(_) => None,
        None => Some(device.function(fused_entry(dtype))?),
    };
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        if matches!(
            plan.args.normalize_by,
            blocks::NORMALIZE_BY_KEPT | blocks::NORMALIZE_BY_LABELS | blocks::NORMALIZE_BY_WEIGHT
        ) {
            // What divides the gradients is counted before them.
            plan.args.part_count = 0;
            plan.summary(device, stream, &finish, &totals)?;
        }
        plan.args.chunks_done = plan.chunks_done;
        if let Some((function, split)) = &cluster {
            plan.clusters(device, stream, function, *split)?;
        }
        if let Some(function) = &fused {
            plan.fused(device, stream, function, dtype)?;
        }
        plan.args.parts = plan.args.stats;
        plan.args.part_count = 1;
        plan.summary(device, stream, &finish, &totals)
    }
}

/// Launches the gradient from stats on `stream`.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn backward(
    device: &Device,
    stream: CUstream,
    op: &CrossEntropy,
    call: &Backward<'_>,
) -> Result<()> {
    let mut plan = Plan::new(op, &call.rows)?;
    plan.read_logits(op, &call.logits, false)?;
    plan.read_saved(call.saved, call.ranks)?;
    plan.write_dlogits(&call.logits, call.dlogits)?;
    plan.multiply_by(&call.upstream)?;
    if let Some(normalizer) = call.normalizer {
        plan.read("the normalizer", normalizer, 1, WORD)?;
        plan.args.normalizer = normalizer;
    }
    plan.check()?;
    let gradient = device.function(gradient_entry(call.logits.dtype))?;
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.gradient(device, stream, &gradient) }
}

/// Launches the stats of a rank's columns on `stream`.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn partial_stats(
    device: &Device,
    stream: CUstream,
    op: &CrossEntropy,
    call: &PartialStats<'_>,
) -> Result<()> {
    let mut plan = Plan::new(op, &call.rows)?;
    plan.read_logits(op, &call.logits, false)?;
    plan.write("saved", call.saved, call.rows.rows, STATS_BYTES, WORD)?;
    plan.args.stats = call.saved;
    plan.args.with_argmax = u32::from(call.with_argmax);
    plan.use_scratch(&call.scratch)?;
    plan.check()?;
    let stats = device.function(stats_entry(call.logits.dtype))?;
    let finish = device.function(FINISH)?;
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        plan.stats(device, stream, &stats)?;
        if plan.split.splits > 1 {
            plan.finish(device, stream, &finish)?;
        }
    }
    Ok(())
}

/// Launches the losses from the stats of all ranks on `stream`.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn finish(
    device: &Device,
    stream: CUstream,
    op: &CrossEntropy,
    call: &Finish<'_>,
) -> Result<()> {
    let mut plan = Plan::new(op, &call.rows)?;
    plan.read_saved(call.gathered, call.ranks)?;
    plan.write_outputs(&call.outputs)?;
    plan.use_scratch(&call.scratch)?;
    plan.divide_by(op, call.normalizer)?;
    plan.check()?;
    let (finish, totals) = (device.function(FINISH)?, device.function(TOTALS)?);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.summary(device, stream, &finish, &totals) }
}

/// Labels, weights, logits, stats, normaliser, dloss, and what Goldfish reads.
const MAX_READ: usize = 6 + goldfish::MAX_READ;
/// Logits or dlogits, five outputs of rows, the summary, the workspace.
const MAX_WRITTEN: usize = 8;

/// A call: what its kernels take, and what they read and write.
struct Plan {
    args: CrossEntropyArgs,
    split: RowSplit,
    blocks: Blocks,
    /// Where the stats of the parts of rows go, if there are several.
    partials: CUdeviceptr,
    /// Where the chunks that are done are counted, if there are several.
    chunks_done: CUdeviceptr,
    read: ArrayVec<Span, MAX_READ>,
    written: ArrayVec<Span, MAX_WRITTEN>,
    /// Index in `read` of the logits, which dlogits may be.
    logits: Option<usize>,
}

impl Plan {
    fn new(op: &CrossEntropy, rows: &Rows<'_>) -> Result<Plan> {
        op.check()?;
        let chunks = RowChunks::new(rows.rows);
        let mut plan = Plan {
            args: CrossEntropyArgs {
                rows: rows.rows,
                splits: 1,
                ignore_index: op.ignore_index,
                labels: rows.labels,
                label_type: rows.label_type.label_code()?,
                weights: rows.weights.unwrap_or(0),
                rows_per_chunk: chunks.rows_per_chunk,
                chunks: chunks.chunks,
                label_smoothing: op.label_smoothing,
                z_loss: op.z_loss,
                softcap: op.softcap.unwrap_or(0.0),
                with_dropped: u32::from(op.dropped_loss),
                empty_is_nan: u32::from(op.empty_is_nan),
                ..CrossEntropyArgs::default()
            },
            split: RowSplit::new(rows.rows, 0, WORD),
            blocks: rows.blocks,
            partials: 0,
            chunks_done: 0,
            read: ArrayVec::new(),
            written: ArrayVec::new(),
            logits: None,
        };
        if let Some(shard) = rows.shard {
            if shard.classes == 0 && rows.rows > 0 {
                return Err(Error::Classes {
                    classes: 0,
                    end: shard.first_class,
                });
            }
            plan.args.first_class = shard.first_class;
            plan.args.classes = shard.classes;
        } else {
            plan.args.classes = op.vocab.unwrap_or(0);
        }
        plan.read("labels", rows.labels, rows.rows, rows.label_type.size())?;
        if let Some(weights) = rows.weights {
            plan.read("weights", weights, rows.rows, WORD)?;
        }
        if let Some(goldfish) = &rows.goldfish {
            let (args, read) = goldfish.args(rows.rows)?;
            plan.args.goldfish = args;
            plan.read.extend(read);
        }
        Ok(plan)
    }

    fn read(&mut self, what: &'static str, ptr: CUdeviceptr, len: u64, size: u64) -> Result<()> {
        self.read.push(Span::new(what, ptr, 1, len, len, size)?);
        Ok(())
    }

    /// `len` elements of `size` bytes, aligned to `alignment`.
    fn write(
        &mut self,
        what: &'static str,
        ptr: CUdeviceptr,
        len: u64,
        size: u64,
        alignment: u64,
    ) -> Result<()> {
        let len = len.checked_mul(size / alignment).ok_or(Error::TooLarge {
            rows: len,
            cols: size,
        })?;
        self.written
            .push(Span::new(what, ptr, 1, len, len, alignment)?);
        Ok(())
    }

    fn read_logits(&mut self, op: &CrossEntropy, logits: &Logits, in_place: bool) -> Result<()> {
        let rows = self.args.rows;
        let vocab = op.vocab.unwrap_or(logits.cols);
        // An empty batch need not know how many columns its rows would have.
        if rows > 0 && vocab > logits.cols {
            return Err(Error::Length {
                what: "a row of logits",
                expected: vocab,
                got: logits.cols,
            });
        }
        if self.args.classes == 0 {
            self.args.classes = vocab;
        }
        // Classes are counted by 32 bits.
        let end = self.args.first_class.checked_add(vocab);
        let known = self.args.classes > 0 && self.args.classes < u64::from(u32::MAX);
        if rows > 0 && (!known || end.is_none_or(|end| end > self.args.classes)) {
            return Err(Error::Classes {
                classes: self.args.classes,
                end: end.unwrap_or(u64::MAX),
            });
        }
        let matrix = logits.matrix.with_real_groups(rows);
        let span = matrix_span("logits", logits, matrix, rows)?;
        if in_place {
            self.written.push(span);
            self.args.dlogits = matrix;
        } else {
            self.logits = Some(self.read.len());
            self.read.push(span);
        }
        self.args.logits = matrix;
        self.args.cols = vocab;
        self.args.padded_cols = logits.cols;
        self.split = RowSplit::new(rows, logits.cols, logits.dtype.size());
        self.args.splits = self.split.splits;
        self.args.packs_per_split = self.split.packs_per_split;
        Ok(())
    }

    fn read_saved(&mut self, saved: CUdeviceptr, ranks: u64) -> Result<()> {
        if ranks == 0 {
            return Err(Error::OutOfRange {
                what: "the number of ranks",
                got: 0.0,
                range: "[1, 2^64)",
            });
        }
        if self.args.classes == 0 && self.args.rows > 0 {
            return Err(Error::Classes { classes: 0, end: 0 });
        }
        let words = self.args.rows.checked_mul(STATS_BYTES / WORD);
        let words = words.ok_or(Error::TooLarge {
            rows: self.args.rows,
            cols: STATS_BYTES,
        })?;
        self.read
            .push(Span::new("saved", saved, ranks, words, words, WORD)?);
        self.args.parts = saved;
        self.args.part_count = ranks;
        Ok(())
    }

    fn write_dlogits(&mut self, logits: &Logits, dlogits: LogitsMatrix) -> Result<()> {
        let dlogits = dlogits.with_real_groups(self.args.rows);
        let span = matrix_span("dlogits", logits, dlogits, self.args.rows)?;
        if let Some(index) = self.logits {
            let input = &self.read[index];
            // Spans are of groups, and do not tell how their rows lie.
            if dlogits.group_rows == 0 && self.args.logits.group_rows == 0 {
                span.may_be(input)?;
            } else if dlogits != self.args.logits {
                span.disjoint_from(input)?;
            }
        }
        self.args.dlogits = dlogits;
        self.written.push(span);
        Ok(())
    }

    fn write_outputs(&mut self, outputs: &Outputs) -> Result<()> {
        let rows = self.args.rows;
        let each = [
            ("loss", outputs.loss),
            ("z_loss", outputs.z_loss),
            ("lse", outputs.lse),
            ("argmax", outputs.argmax),
        ];
        for (what, output) in each {
            if let Some(ptr) = output {
                self.write(what, ptr, rows, WORD, WORD)?;
            }
        }
        if let Some(saved) = outputs.saved {
            self.write("saved", saved, rows, STATS_BYTES, WORD)?;
        }
        let summary = size_of::<CrossEntropySummary>() as u64;
        self.write("summary", outputs.summary, 1, summary, 8)?;
        self.args.loss = outputs.loss.unwrap_or(0);
        self.args.z_loss_out = outputs.z_loss.unwrap_or(0);
        self.args.lse = outputs.lse.unwrap_or(0);
        self.args.argmax = outputs.argmax.unwrap_or(0);
        self.args.with_argmax = u32::from(outputs.argmax.is_some());
        self.args.stats = outputs.saved.unwrap_or(0);
        self.args.summary = outputs.summary;
        Ok(())
    }

    fn use_scratch(&mut self, scratch: &Scratch) -> Result<()> {
        let needed = workspace_bytes(self.args.rows);
        if scratch.workspace_bytes < needed {
            return Err(Error::Workspace {
                needed,
                got: scratch.workspace_bytes,
            });
        }
        // It holds u64, and its size is a multiple of theirs.
        self.write("the workspace", scratch.workspace, needed / 8, 8, 8)?;
        self.args.totals = scratch.workspace + COUNT_BYTES;
        self.partials = self.args.totals + self.args.chunks * TOTALS_BYTES;
        if self.args.chunks > 1 {
            self.chunks_done = scratch.workspace;
        }
        if self.args.stats == 0 {
            self.args.stats = self.partials + SPLIT_BLOCKS * STATS_BYTES;
        }
        Ok(())
    }

    fn divide_by(&mut self, op: &CrossEntropy, given: Option<CUdeviceptr>) -> Result<()> {
        if let Some(normalizer) = given {
            self.read("the normalizer", normalizer, 1, WORD)?;
            self.args.normalizer = normalizer;
            self.args.normalize_by = blocks::NORMALIZE_BY_EXTERNAL;
            return Ok(());
        }
        self.args.normalize_by = match op.normalizer {
            Normalizer::None => blocks::NORMALIZE_BY_NONE,
            Normalizer::Kept => blocks::NORMALIZE_BY_KEPT,
            Normalizer::Labels => blocks::NORMALIZE_BY_LABELS,
            Normalizer::Weight => blocks::NORMALIZE_BY_WEIGHT,
        };
        if op.normalizer != Normalizer::None {
            let offset = std::mem::offset_of!(CrossEntropySummary, normalizer);
            self.args.normalizer = self.args.summary + offset as u64;
        }
        Ok(())
    }

    fn multiply_by(&mut self, upstream: &Upstream) -> Result<()> {
        let Some(dloss) = upstream.dloss else {
            return Ok(());
        };
        let rows = self.args.rows;
        if rows > 0 {
            // From the lowest address that is read to the highest.
            let too_large = Error::TooLarge {
                rows,
                cols: upstream.stride.unsigned_abs(),
            };
            let steps = upstream.stride.unsigned_abs().checked_mul(rows - 1);
            let steps = steps.filter(|&s| s < u64::MAX / WORD).ok_or(too_large)?;
            let first = if upstream.stride < 0 {
                dloss.saturating_sub(steps * WORD)
            } else {
                dloss
            };
            self.read("dloss", first, steps + 1, WORD)?;
        }
        self.args.dloss = dloss;
        self.args.dloss_stride = upstream.stride;
        Ok(())
    }

    /// Fails if something that is written is also something else. That dlogits may be the logits was looked at
    /// before.
    fn check(&self) -> Result<()> {
        for (i, output) in self.written.iter().enumerate() {
            let read = self.read.iter().enumerate();
            let read = read.filter(|&(i, _)| Some(i) != self.logits || !output.is("dlogits"));
            for other in read.map(|(_, span)| span).chain(&self.written[..i]) {
                output.disjoint_from(other)?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`launch()`] for the buffers and the stream; this holds for all that follow.
    unsafe fn launch(
        &self,
        device: &Device,
        stream: CUstream,
        function: &Function,
        blocks: u64,
        args: &CrossEntropyArgs,
    ) -> Result<()> {
        let shape = Grid::of_blocks(0);
        // SAFETY: the caller vouches for all.
        unsafe { self.launch_grid(device, stream, function, (blocks, shape), args) }
    }

    /// A block, or a cluster of `shape`, for each piece of work.
    ///
    /// # Safety
    /// As for `launch`.
    unsafe fn launch_grid(
        &self,
        device: &Device,
        stream: CUstream,
        function: &Function,
        (pieces, shape): (u64, Grid),
        args: &CrossEntropyArgs,
    ) -> Result<()> {
        if pieces == 0 {
            return Ok(());
        }
        let grid = self.blocks.grid(device, function, pieces, shape)?;
        // SAFETY: the block of parameters is that of all entries of the op; the caller vouches for the rest.
        unsafe { launch(device, stream, function, grid, args) }
    }

    /// How clusters of at least so many blocks share the rows, if they do.
    fn cluster(
        &self,
        device: &Device,
        dtype: Dtype,
        least: Option<NonZeroU32>,
    ) -> Result<Option<(Function, RowSplit)>> {
        let entry = cluster_entry(dtype);
        if !device.has(entry)? {
            return Ok(None);
        }
        let function = device.function(entry)?;
        let row_bytes = RowSplit::row_bytes(self.args.padded_cols, dtype.size());
        let room = device.dynamic_shared_bytes_of_each(BLOCKS_OF_ROWS as u32);
        let most = function.largest_cluster;
        let least = least.map(|least| least.get().into());
        let split = (self.split).of_cluster(row_bytes, u64::from(room), most, least);
        Ok(split.map(|split| (function, split)))
    }

    /// The stats of rows, or of the parts of rows, and what `finish` shall merge.
    unsafe fn stats(
        &mut self,
        device: &Device,
        stream: CUstream,
        function: &Function,
    ) -> Result<()> {
        self.args.chunks_done = self.chunks_done;
        let mut args = self.args;
        if self.split.splits > 1 {
            args.stats = self.partials;
        }
        self.args.parts = args.stats;
        self.args.part_count = self.split.splits;
        let blocks = args.rows * args.splits;
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch(device, stream, function, blocks, &args) }
    }

    unsafe fn finish(&self, device: &Device, stream: CUstream, function: &Function) -> Result<()> {
        let mut args = self.args;
        if args.parts == args.stats {
            // The stats are merged already.
            args.stats = 0;
        }
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch(device, stream, function, args.chunks, &args) }
    }

    /// The results of rows, and the summary: one launch where there is one chunk of rows, or where a kernel before
    /// has set the count of those that are done to 0, so that the block which does the last adds up all.
    unsafe fn summary(
        &self,
        device: &Device,
        stream: CUstream,
        finish: &Function,
        totals: &Function,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe {
            self.finish(device, stream, finish)?;
            if self.args.chunks == 1 || self.args.chunks_done != 0 {
                return Ok(());
            }
            self.launch(device, stream, totals, 1, &self.args)
        }
    }

    unsafe fn gradient(
        &self,
        device: &Device,
        stream: CUstream,
        function: &Function,
    ) -> Result<()> {
        let blocks = self.args.rows * self.args.splits;
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch(device, stream, function, blocks, &self.args) }
    }

    unsafe fn fused(
        &self,
        device: &Device,
        stream: CUstream,
        function: &Function,
        dtype: Dtype,
    ) -> Result<()> {
        let mut args = self.args;
        let row_bytes = RowSplit::row_bytes(args.cols, dtype.size());
        let on_chip = row_bytes <= u64::from(device.dynamic_shared_bytes());
        args.on_chip = u32::from(on_chip);
        let shape = Grid {
            shared_bytes: if on_chip { row_bytes as u32 } else { 0 },
            ..Grid::of_blocks(0)
        };
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch_grid(device, stream, function, (args.rows, shape), &args) }
    }

    unsafe fn clusters(
        &self,
        device: &Device,
        stream: CUstream,
        function: &Function,
        split: RowSplit,
    ) -> Result<()> {
        let mut args = self.args;
        args.splits = split.splits;
        args.packs_per_split = split.packs_per_split;
        let shape = Grid {
            blocks: 0,
            cluster: split.cluster_blocks() as u32,
            shared_bytes: split.part_bytes() as u32,
        };
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch_grid(device, stream, function, (args.rows, shape), &args) }
    }
}

impl From<Matrix> for LogitsMatrix {
    fn from(Matrix { ptr, pitch }: Matrix) -> LogitsMatrix {
        LogitsMatrix {
            ptr,
            pitch,
            ..LogitsMatrix::default()
        }
    }
}

impl LogitsMatrix {
    /// The same rows, without groups where one pitch does, so that no row is searched for.
    fn with_real_groups(self, rows: u64) -> LogitsMatrix {
        let LogitsMatrix {
            ptr,
            pitch,
            group_rows,
            group_pitch,
        } = self;
        let flat = |pitch| Matrix { ptr, pitch }.into();
        match group_rows {
            0 => flat(pitch),
            1 => flat(group_pitch),
            _ if rows == group_rows || pitch.checked_mul(group_rows) == Some(group_pitch) => {
                flat(pitch)
            }
            _ => self,
        }
    }
}

/// The bytes of the rows; of groups, those between their rows are taken for theirs.
fn matrix_span(
    what: &'static str,
    logits: &Logits,
    matrix: LogitsMatrix,
    rows: u64,
) -> Result<Span> {
    let LogitsMatrix {
        ptr,
        pitch,
        group_rows,
        group_pitch,
    } = matrix;
    let (cols, size) = (logits.cols, logits.dtype.size());
    if rows > 1 && pitch < cols {
        return Err(Error::Pitch { what, pitch, cols });
    }
    if group_rows == 0 {
        return Span::new(what, ptr, rows, cols, pitch, size);
    }
    if !rows.is_multiple_of(group_rows) {
        return Err(Error::Length {
            what: "labels",
            expected: rows.checked_next_multiple_of(group_rows).unwrap_or(0),
            got: rows,
        });
    }
    let len = (pitch.checked_mul(group_rows - 1)).and_then(|len| len.checked_add(cols));
    let len = len.ok_or(Error::TooLarge { rows, cols })?;
    if rows > group_rows && group_pitch < len {
        return Err(Error::GroupPitch {
            what,
            pitch: group_pitch,
            len,
        });
    }
    Span::new(what, ptr, rows / group_rows, len, group_pitch, size)
}
