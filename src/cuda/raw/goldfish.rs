//! The Goldfish mask on raw device pointers, and the inputs of a decision inside cross-entropy.

#![allow(unsafe_code)]

use arrayvec::ArrayVec;

use super::{Blocks, CUdeviceptr, CUstream};
use crate::blocks::{self, GoldfishArgs, GoldfishMaskArgs};
use crate::cuda::device::Device;
use crate::cuda::entry::Entry;
use crate::cuda::grid::Grid;
use crate::cuda::launch::launch;
use crate::error::{Error, Result};
use crate::geometry::{BLOCK, MAX_ROW_CHUNKS};
use crate::loss::Goldfish;
use crate::loss::goldfish::{TokenId, halo_len, rows};
use crate::span::Span;

/// The entry that decides.
const MASK: Entry = Entry::new("goldfish", "mask", None);

/// The entry that adds up the counts of the blocks.
const COUNTS: Entry = Entry::new("goldfish", "counts", None);

/// All kernel entries of goldfish.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    [MASK, COUNTS].into_iter()
}

/// The maximum number of buffers that a decision reads.
pub(super) const MAX_READ: usize = 7;

/// The bytes of the count that each block writes.
const PARTIAL_BYTES: u64 = 8;

/// The integer type of ids or labels in device memory. Labels may be i32, i64 or u32
/// ([`Label`](crate::loss::cross_entropy::Label)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdType {
    /// 1 byte, unsigned.
    U8,
    /// 2 bytes, unsigned.
    U16,
    /// 4 bytes, unsigned.
    U32,
    /// 4 bytes, signed.
    I32,
    /// 8 bytes, signed.
    I64,
}

impl IdType {
    /// The type `I` as a value.
    pub(in crate::cuda) const fn of<I: TokenId>() -> IdType {
        match (size_of::<I>(), I::SIGNED) {
            (1, _) => IdType::U8,
            (2, _) => IdType::U16,
            (4, false) => IdType::U32,
            (4, true) => IdType::I32,
            _ => IdType::I64,
        }
    }

    pub(super) const fn size(self) -> u64 {
        match self {
            IdType::U8 => 1,
            IdType::U16 => 2,
            IdType::U32 | IdType::I32 => 4,
            IdType::I64 => 8,
        }
    }

    /// The number of the type in the kernels.
    const fn code(self) -> u32 {
        match self {
            IdType::U8 => blocks::ID_U8,
            IdType::U16 => blocks::ID_U16,
            IdType::U32 => blocks::ID_U32,
            IdType::I32 => blocks::ID_I32,
            IdType::I64 => blocks::ID_I64,
        }
    }

    /// The number of the type in the kernels; an error if labels may not have it.
    pub(super) const fn label_code(self) -> Result<u32> {
        match self {
            IdType::U8 => Err(Error::LabelType { labels: "u8" }),
            IdType::U16 => Err(Error::LabelType { labels: "u16" }),
            IdType::U32 | IdType::I32 | IdType::I64 => Ok(self.code()),
        }
    }
}

/// A contiguous array in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSlice {
    /// The address of the first element. May be 0 if `len` is 0.
    pub ptr: CUdeviceptr,
    /// The number of elements.
    pub len: u64,
}

impl DeviceSlice {
    fn span(self, what: &'static str, element: u64) -> Result<Span> {
        Span::new(what, self.ptr, 1, self.len, self.len, element)
    }
}

/// How labels are divided into segments and documents, with offsets in device memory:
/// [`Layout`](crate::loss::goldfish::Layout) has the meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each segment is a row of `len` labels.
    Rows {
        /// The number of labels of a row, which divides the number of labels.
        len: u64,
    },
    /// All labels are one segment, which has documents.
    Documents {
        /// i32 offsets that must not decrease. If they decrease, the windows stop at unspecified offsets, but nothing outside
        /// the ids and the halo is read.
        cu_seqlens: DeviceSlice,
    },
    /// Each segment is a chunk of a document. Where the offsets decrease, the windows stop at unspecified offsets, and
    /// negative numbers count as 0; nothing outside the ids and the halo is read.
    Chunks {
        /// `[chunks + 1]` i32 offsets, which must not be negative or decrease.
        cu_seqlens: DeviceSlice,
        /// `[chunks]` i64: how many labels of its document precede each chunk. Must not be negative.
        preceding: DeviceSlice,
    },
}

/// The ids from which a strategy decides, in device memory: [`Tokens`](crate::loss::goldfish::Tokens) has the meaning of each
/// part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// `[labels]` of `id_type`: the id of each label.
    pub hash_ids: CUdeviceptr,
    /// The type of the hash ids and of the halo.
    pub id_type: IdType,
    /// How the labels are divided into segments and documents.
    pub layout: Layout,
    /// `[segments, n]` of `id_type`: the n ids before the first label of each segment.
    pub halo: DeviceSlice,
    /// i64 ids that are never dropped, in any order. The kernel compares each label that it would drop with all of them.
    pub exempt: DeviceSlice,
    /// The number of rows of text that are interleaved
    /// ([`interleaved`](crate::loss::goldfish::Tokens::interleaved)); otherwise 1.
    pub interleaved: u64,
}

/// A strategy, its tables in device memory, and the ids from which it decides.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The strategy.
    pub goldfish: &'a Goldfish,
    /// A copy of [`Goldfish::bitmap_words`] in device memory. Ignored if that is `None`.
    pub bitmap: CUdeviceptr,
    /// A copy of [`Goldfish::coefficients`] in device memory. Ignored if that is `None`.
    pub coefficients: CUdeviceptr,
    /// The ids.
    pub tokens: Tokens,
}

impl Decision<'_> {
    /// The kernel arguments of a decision about `labels` labels, and the buffers that it reads.
    pub(super) fn args(&self, labels: u64) -> Result<(GoldfishArgs, ArrayVec<Span, MAX_READ>)> {
        let Tokens {
            hash_ids,
            id_type,
            layout,
            halo,
            exempt,
            interleaved,
        } = self.tokens;
        let none = DeviceSlice::default();
        let (segments, len, cu_seqlens, preceding) = match layout {
            Layout::Rows { len } => (rows(labels, len)?, len, none, none),
            Layout::Documents { cu_seqlens } => (1, labels, cu_seqlens, none),
            Layout::Chunks {
                cu_seqlens,
                preceding,
            } => {
                let (expected, got) = (preceding.len.saturating_add(1), cu_seqlens.len);
                if got != expected {
                    return Err(Error::Length {
                        what: "cu_seqlens",
                        expected,
                        got,
                    });
                }
                (preceding.len, labels, cu_seqlens, preceding)
            }
        };
        let mut args = GoldfishArgs {
            ids: hash_ids,
            halo: halo.ptr,
            halo_len: halo_len(halo.len, segments)?,
            len,
            cu_seqlens: cu_seqlens.ptr,
            offsets: cu_seqlens.len,
            preceding: preceding.ptr,
            interleaved,
            interleaved_len: rows(labels, interleaved)?,
            exempt: exempt.ptr,
            exempts: exempt.len,
            id_type: id_type.code(),
            ..GoldfishArgs::default()
        };
        self.goldfish.set_args(&mut args);
        let hash_ids = DeviceSlice {
            ptr: hash_ids,
            len: labels,
        };
        let mut read = ArrayVec::new();
        read.push(hash_ids.span("hash_ids", id_type.size())?);
        read.push(halo.span("the halo", id_type.size())?);
        read.push(cu_seqlens.span("cu_seqlens", 4)?);
        read.push(preceding.span("preceding", 8)?);
        read.push(exempt.span("the exempt ids", 8)?);
        if let Some(words) = self.goldfish.bitmap_words() {
            args.bitmap = self.bitmap;
            let run = DeviceSlice {
                ptr: self.bitmap,
                len: words.len() as u64,
            };
            read.push(run.span("the bitmap", 4)?);
        }
        if let Some(coefficients) = self.goldfish.coefficients() {
            args.coefficients = self.coefficients;
            let run = DeviceSlice {
                ptr: self.coefficients,
                len: coefficients.len() as u64,
            };
            read.push(run.span("the coefficients", 8)?);
        }
        Ok((args, read))
    }
}

/// The output for the numbers of kept and dropped labels.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// `[2] i64`, overwritten: the number of kept labels and the number of dropped labels.
    pub out: CUdeviceptr,
    /// At least [`workspace_bytes`] bytes of device memory, aligned to 8 bytes. It need not be initialised, and no other work
    /// may use it until the call has completed.
    pub workspace: CUdeviceptr,
    /// The size of `workspace` in bytes.
    pub workspace_bytes: u64,
}

/// The call of [`mask`] and its outputs.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The strategy and its ids.
    pub decision: Decision<'a>,
    /// The number of labels.
    pub labels: u64,
    /// An optional output, `[labels] u8`: 1 for kept, 0 for dropped.
    pub keep: Option<CUdeviceptr>,
    /// An optional output, `[labels] f32`: 1 for kept, 0 for dropped.
    pub weights: Option<CUdeviceptr>,
    /// An optional output: the numbers of kept and dropped labels.
    pub counts: Option<Counts>,
    /// How many blocks to launch.
    pub blocks: Blocks,
}

/// The number of blocks of the mask kernel.
fn blocks(labels: u64) -> u64 {
    labels.div_ceil(BLOCK).min(MAX_ROW_CHUNKS)
}

/// Returns the bytes of workspace that the counts of `labels` labels need. More labels never need less.
pub fn workspace_bytes(labels: u64) -> u64 {
    blocks(labels) * PARTIAL_BYTES
}

/// Launches the Goldfish mask on `stream`: one kernel, and, for the counts, a second small kernel that adds them up. Without
/// labels the counts are 0.
///
/// # Errors
/// [`Error::Length`], [`Error::Null`], [`Error::Misaligned`], [`Error::TooLarge`], [`Error::Overlap`], [`Error::Workspace`];
/// the errors of [`Device::preload`], if a kernel is not loaded yet; and [`Error::Driver`], if the driver refuses a launch.
/// Nothing is written when a check fails. If the driver accepts the first launch and refuses the second, the mask is written
/// and the counts are not.
///
/// # Safety
/// - The pointers belong to the device's context and cover the elements that the call gives.
/// - `stream` is a live stream of that context, or a default-stream handle.
/// - Until the launch has completed, nobody frees the buffers, writes the inputs, or reads or writes the outputs and the
///   workspace. If the launch was captured into a graph, this holds for every replay.
pub unsafe fn mask(device: &Device, stream: CUstream, call: &Mask<'_>) -> Result<()> {
    let labels = call.labels;
    let (goldfish, read) = call.decision.args(labels)?;
    // Both are loaded before anything is launched, so that a failure to load writes nothing.
    let mask = device.function(MASK)?;
    let counts = call.counts.map(|_| device.function(COUNTS)).transpose()?;
    let grid = call
        .blocks
        .grid(device, &mask, blocks(labels), Grid::of_blocks(0))?;
    let blocks = u64::from(grid.blocks);
    let mut args = GoldfishMaskArgs {
        goldfish,
        labels,
        keep: call.keep.unwrap_or(0),
        weights: call.weights.unwrap_or(0),
        blocks,
        ..GoldfishMaskArgs::default()
    };
    let run = |ptr, len| DeviceSlice { ptr, len };
    /// The maximum number of buffers that a mask writes: keep, weights, counts and the workspace.
    const MAX_WRITTEN: usize = 4;
    let mut written = ArrayVec::<_, MAX_WRITTEN>::new();
    if let Some(keep) = call.keep {
        written.push(run(keep, labels).span("keep", 1)?);
    }
    if let Some(weights) = call.weights {
        written.push(run(weights, labels).span("weights", 4)?);
    }
    if let Some(counts) = call.counts {
        let needed = workspace_bytes(labels);
        if counts.workspace_bytes < needed {
            return Err(Error::Workspace {
                needed,
                got: counts.workspace_bytes,
            });
        }
        written.push(run(counts.out, 2).span("counts", 8)?);
        written.push(run(counts.workspace, blocks).span("the workspace", PARTIAL_BYTES)?);
        (args.counts, args.partials) = (counts.out, counts.workspace);
    }
    for (i, output) in written.iter().enumerate() {
        for other in read.iter().chain(&written[..i]) {
            output.disjoint_from(other)?;
        }
    }
    if blocks > 0 && !written.is_empty() {
        // SAFETY: the parameters are those of goldfish's entries; the caller vouches for the buffers and the
        // stream.
        unsafe { launch(device, stream, &mask, grid, &args) }?;
    }
    if let Some(counts) = &counts {
        // SAFETY: as above; the stream orders it after the pass that writes the counts of the blocks, of which
        // it reads none if there are none.
        unsafe { launch(device, stream, counts, Grid::of_blocks(1), &args) }?;
    }
    Ok(())
}
