//! Cross-entropy with Goldfish masking on raw device pointers.
//!
//! With whole rows on one device, call [`forward`] and then [`backward`] with the saved statistics, or both at once with
//! [`forward_with_gradient`].
//!
//! With a vocabulary that is sharded over ranks, call [`partial_stats`] on each rank, all-gather the saved statistics in the
//! order of the ranks, and call [`finish`] and [`backward`] on each rank with all of them. The results have the same bits on
//! every rank.

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

/// The stem of the kernel file and its entries.
const STEM: &str = "cross_entropy";

/// The entry that computes the stats of the parts of rows.
const fn stats_entry(dtype: Dtype) -> Entry {
    Entry::new(STEM, "stats", Some(dtype))
}

/// The entry that computes gradients from stats.
const fn gradient_entry(dtype: Dtype) -> Entry {
    Entry::new(STEM, "gradient", Some(dtype))
}

/// The entry that computes stats and gradients in place.
const fn fused_entry(dtype: Dtype) -> Entry {
    Entry {
        dynamic_shared: true,
        ..Entry::new(STEM, "fused", Some(dtype))
    }
}

/// The entry that computes stats and gradients in place with clusters of blocks.
const fn cluster_entry(dtype: Dtype) -> Entry {
    Entry {
        min_target: 90,
        dynamic_shared: true,
        clusters: true,
        ..Entry::new(STEM, "cluster", Some(dtype))
    }
}

/// The entry that computes losses from stats.
const FINISH: Entry = Entry::new(STEM, "finish", None);

/// The entry that computes the summary.
const TOTALS: Entry = Entry::new(STEM, "totals", None);

/// All kernel entries of cross-entropy.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    let rows = [stats_entry, gradient_entry, fused_entry, cluster_entry];
    let rows = rows.into_iter().flat_map(|entry| Dtype::ALL.map(entry));
    rows.chain([FINISH, TOTALS])
}

/// The bytes of an f32, an i32 or a [`RowStats`] field.
const WORD: u64 = 4;
const STATS_BYTES: u64 = size_of::<RowStats>() as u64;
const TOTALS_BYTES: u64 = size_of::<CrossEntropyTotals>() as u64;

/// The bytes of the counter of chunks at the start of the workspace: a u32, padded to align the totals behind it.
const COUNT_BYTES: u64 = 8;

/// The rows of a call: their labels, their weights, and the Goldfish decision.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The number of rows N.
    pub rows: u64,
    /// `[N]` labels of `label_type`.
    pub labels: CUdeviceptr,
    /// The type of the labels: i32, i64 or u32.
    pub label_type: IdType,
    /// Optional weights, `[N] f32`. A row of weight 0 is masked. A NaN makes the loss and the gradient of its row NaN.
    pub weights: Option<CUdeviceptr>,
    /// An optional Goldfish decision about which rows are dropped.
    pub goldfish: Option<Decision<'a>>,
    /// The classes of the columns, if the vocabulary is sharded over ranks.
    pub shard: Option<Shard>,
    /// How many blocks to launch.
    pub blocks: Blocks,
}

/// The `[N, cols]` logits of a rank. Columns that are not classes are not read.
#[derive(Clone, Copy, Debug)]
pub struct Logits {
    /// The element type.
    pub dtype: Dtype,
    /// The number of columns, of which the first [`CrossEntropy::vocab`] are classes.
    pub cols: u64,
    /// The matrix in device memory. A [`Matrix`] converts into it with `into`.
    pub matrix: LogitsMatrix,
}

/// The outputs of a forward. All but `summary` are optional.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// `[N] f32`: the loss of each row, weighted and not divided by the normaliser. 0 for a masked row, NaN for a row whose
    /// label is not a class.
    pub loss: Option<CUdeviceptr>,
    /// `[N] f32`: the part of each loss that is z-loss.
    pub z_loss: Option<CUdeviceptr>,
    /// `[N] f32`: lse = log Σ e^z of each row. 0 for a masked row.
    pub lse: Option<CUdeviceptr>,
    /// `[N] i32`: the class of the largest logit (the first of equal ones). −1 for a masked row.
    pub argmax: Option<CUdeviceptr>,
    /// The statistics for the backward: [`CrossEntropy::saved_bytes`] bytes, aligned to 4.
    pub saved: Option<CUdeviceptr>,
    /// `[1]` [`CrossEntropySummary`], aligned to 8 bytes.
    pub summary: CUdeviceptr,
}

/// Scratch memory of a call.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Device memory, aligned to 8 bytes. It need not be initialised, and no other work may use it until the call has
    /// completed.
    pub workspace: CUdeviceptr,
    /// The size of `workspace` in bytes, at least [`workspace_bytes`].
    pub workspace_bytes: u64,
}

/// The upstream gradients of rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upstream {
    /// f32 upstream gradients, one for each row or one for all; `None` for 1.
    pub dloss: Option<CUdeviceptr>,
    /// The elements from the gradient of one row to that of the next: 0 for a scalar, 1 for a contiguous `[N]` tensor.
    pub stride: i64,
}

/// The call of [`forward`].
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits.
    pub logits: Logits,
    /// The outputs.
    pub outputs: Outputs,
    /// An optional `[1] f32` normaliser, used instead of the option [`CrossEntropy::normalizer`].
    pub normalizer: Option<CUdeviceptr>,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// The call of [`forward_with_gradient`], which overwrites the logits with their gradients.
#[derive(Clone, Copy, Debug)]
pub struct ForwardWithGradient<'a> {
    /// The forward.
    pub forward: Forward<'a>,
    /// The upstream gradient, `[N] f32` or `[1] f32`.
    pub upstream: Upstream,
    /// The minimum number of blocks of a cluster, for the kernels in which clusters share rows. It is rounded up to a power of
    /// two and limited to what the device holds. `None` takes as few blocks as the row fits into. Another number may give
    /// other bits, within the same error bounds.
    pub cluster: Option<NonZeroU32>,
}

/// The call of [`backward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits of the forward.
    pub logits: Logits,
    /// The saved statistics, `[ranks, saved_bytes] u8` in the order of the ranks.
    pub saved: CUdeviceptr,
    /// The number of ranks; 1 for the statistics of a forward.
    pub ranks: u64,
    /// An output: the gradients, of the type and shape of the logits. It may be exactly the logits. Columns that are not
    /// classes are written as 0.
    pub dlogits: LogitsMatrix,
    /// An optional `[1] f32` by which gradients are divided: `normalizer` in the summary of the forward, or a number of the
    /// caller. `None` for 1.
    pub normalizer: Option<CUdeviceptr>,
    /// The upstream gradient, `[N] f32` or `[1] f32`.
    pub upstream: Upstream,
}

/// The call of [`partial_stats`].
#[derive(Clone, Copy, Debug)]
pub struct PartialStats<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The logits of the rank.
    pub logits: Logits,
    /// Whether [`finish`] will have an output for the argmax.
    pub with_argmax: bool,
    /// An output: the statistics of this rank, [`CrossEntropy::saved_bytes`] bytes, aligned to 4.
    pub saved: CUdeviceptr,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// The call of [`finish`].
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// The rows.
    pub rows: Rows<'a>,
    /// The saved statistics, `[ranks, saved_bytes] u8` in the order of the ranks.
    pub gathered: CUdeviceptr,
    /// The number of ranks.
    pub ranks: u64,
    /// The outputs. `saved` has the statistics of whole rows.
    pub outputs: Outputs,
    /// An optional `[1] f32` normaliser, used instead of the option [`CrossEntropy::normalizer`].
    pub normalizer: Option<CUdeviceptr>,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// Returns the bytes of workspace that any call with `rows` rows needs. More rows never need less.
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
/// [`Error::GroupPitch`], [`Error::Length`], [`Error::Classes`], [`Error::TooLarge`], [`Error::Overlap`],
/// [`Error::Workspace`]; the errors of [`Device::preload`], if a kernel is not loaded yet; and [`Error::Driver`], if the
/// driver refuses a launch. Nothing is written when a check fails. If the driver accepts a launch and refuses a later one,
/// some results are written.
///
/// # Safety
/// - The pointers belong to the device's context and cover the elements that the call gives.
/// - `stream` is a live stream of that context, or a default-stream handle.
/// - Until the launch has completed, nobody frees the buffers, writes the inputs, or reads or writes the outputs and the
///   workspace. If the launch was captured into a graph, this holds for every replay.
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
    // Here and below, all kernels are loaded before anything is launched, so that a failure to load writes nothing.
    let stats = device.function(stats_entry(call.logits.dtype))?;
    let (finish, totals) = (device.function(FINISH)?, device.function(TOTALS)?);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        plan.stats(device, stream, &stats)?;
        plan.summary(device, stream, &finish, &totals)
    }
}

/// Launches the forward and the gradient in place on `stream`. The logits are read once and written once
/// - from compute capability 9.0 on, if the parts of a row fit into the shared memory of a cluster of blocks. On an H100
///   these are rows of at most 576 KiB, if there are more than 113 rows or a row has at most 32 KiB. A cluster has at most 8
///   blocks, and no more than the device can hold at once, which may be fewer in a MIG instance or under an MPS limit;
/// - otherwise, if there are more than 512 rows and a row fits into the shared memory of one block.
///
/// In all other cases the logits are read twice.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`]; the logits are an output.
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
            // The normaliser of the gradients is counted before they are computed.
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

/// Launches the gradient from saved statistics on `stream`.
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

/// Launches the statistics of a rank's columns on `stream`.
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

/// Launches the losses from the statistics of all ranks on `stream`.
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

/// The maximum number of buffers that a call reads: labels, weights, logits, stats, normaliser, dloss, and those of Goldfish.
const MAX_READ: usize = 6 + goldfish::MAX_READ;
/// The maximum number of buffers that a call writes: logits or dlogits, five outputs per row, the summary, the workspace.
const MAX_WRITTEN: usize = 8;

/// A checked call: the arguments of its kernels, and the buffers that they read and write.
struct Plan {
    args: CrossEntropyArgs,
    split: RowSplit,
    blocks: Blocks,
    /// The buffer for the stats of the parts of rows, if rows have several parts.
    partials: CUdeviceptr,
    /// The counter of finished chunks, if there are several chunks.
    chunks_done: CUdeviceptr,
    read: ArrayVec<Span, MAX_READ>,
    written: ArrayVec<Span, MAX_WRITTEN>,
    /// The index of the logits in `read`, because dlogits may be exactly the logits.
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

    /// Adds an output of `len` elements of `size` bytes, aligned to `alignment`.
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
        // Without rows, the number of columns does not matter.
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
        // Kernels count classes with 32 bits.
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
            // The span of a matrix with groups covers whole groups, so it does not tell whether the rows are the same.
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
        // The workspace is checked as u64 elements; its size is a multiple of 8 bytes.
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
            // From the lowest to the highest address that is read.
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

    /// Fails if an output overlaps another buffer. dlogits in the place of the logits were checked before.
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
    /// As [`launch()`] for the buffers and the stream. The same holds for all methods below.
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

    /// Launches a block, or a cluster of `shape`, for each piece of work.
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

    /// The cluster entry and the split of the rows among the blocks of a cluster; `None` if clusters do not share the rows.
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

    /// Launches the stats of rows or of their parts, and sets the parts that `finish` merges.
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
            // The stats are already merged.
            args.stats = 0;
        }
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.launch(device, stream, function, args.chunks, &args) }
    }

    /// Launches the results of rows and the summary. This is one launch if there is one chunk of rows, or if an earlier kernel
    /// has set the counter of finished chunks to 0; then the block that finishes the last chunk adds up all chunks.
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
    /// The same rows without groups if one pitch describes them, so that the kernel need not divide by the group size.
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

/// The span of the rows. The gaps between the rows of a group count as part of it.
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
