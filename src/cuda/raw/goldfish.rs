//! The Goldfish mask on raw device pointers, and what a loss needs to decide on its own.

#![allow(unsafe_code)]

use arrayvec::ArrayVec;

use super::{Blocks, CUdeviceptr, CUstream};
use crate::blocks::{self, GoldfishArgs, GoldfishMaskArgs};
use crate::cuda::device::Device;
use crate::cuda::entry::Entry;
use crate::cuda::grid::Grid;
use crate::cuda::launch::launch;
use crate::error::{Error, Result};
use crate::geometry::{BLOCK, MAX_CHUNKS};
use crate::loss::Goldfish;
use crate::loss::goldfish::{TokenId, halo_len, rows};
use crate::span::Span;

/// The decisions.
const MASK: Entry = Entry::new("goldfish", "mask", None);

/// The second stage of the counts.
const COUNTS: Entry = Entry::new("goldfish", "counts", None);

/// Every entry of the masks.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    [MASK, COUNTS].into_iter()
}

/// The most buffers that a decision reads.
pub(super) const MAX_READ: usize = 6;

/// Bytes of the count that a block leaves.
const PARTIAL_BYTES: u64 = 8;

/// The type of ids or labels on the device. [`Label`](crate::loss::cross_entropy::Label) says which labels may have.
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
    /// That of `I`.
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

    /// The number of the kernels.
    const fn code(self) -> u32 {
        match self {
            IdType::U8 => blocks::ID_U8,
            IdType::U16 => blocks::ID_U16,
            IdType::U32 => blocks::ID_U32,
            IdType::I32 => blocks::ID_I32,
            IdType::I64 => blocks::ID_I64,
        }
    }

    /// The same of labels.
    pub(super) const fn label_code(self) -> Result<u32> {
        match self {
            IdType::U8 => Err(Error::LabelType { labels: "u8" }),
            IdType::U16 => Err(Error::LabelType { labels: "u16" }),
            IdType::U32 | IdType::I32 | IdType::I64 => Ok(self.code()),
        }
    }
}

/// A run of elements in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSlice {
    /// Address of the first; may be 0 if there are none.
    pub ptr: CUdeviceptr,
    /// How many.
    pub len: u64,
}

impl DeviceSlice {
    fn span(self, what: &'static str, element: u64) -> Result<Span> {
        Span::new(what, self.ptr, 1, self.len, self.len, element)
    }
}

/// How labels are cut into segments: [`Layout`](crate::loss::goldfish::Layout), with offsets on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows of `len` labels each.
    Rows {
        /// Labels of a row; the number of labels is a multiple.
        len: u64,
    },
    /// One segment, cut into documents.
    Documents {
        /// i32 offsets that do not decrease; if they do, windows end at one of them or another, but nothing
        /// outside the ids and the halo is read.
        cu_seqlens: DeviceSlice,
    },
}

/// The ids that decide: [`Tokens`](crate::loss::goldfish::Tokens) on the device. There is one hash id for each
/// label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// One id for each label.
    pub hash_ids: CUdeviceptr,
    /// Type of the hash ids and of the halo.
    pub id_type: IdType,
    /// How they are cut.
    pub layout: Layout,
    /// `[segments, n]`: the n ids before the first label of each segment.
    pub halo: DeviceSlice,
    /// i64 ids that are never dropped, in any order. Each label that would be dropped is compared with all.
    pub exempt: DeviceSlice,
}

/// A strategy, its tables on the device, and the ids that it decides from.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The strategy.
    pub goldfish: &'a Goldfish,
    /// A copy of [`Goldfish::bitmap_words`]; ignored if there are none.
    pub bitmap: CUdeviceptr,
    /// A copy of [`Goldfish::coefficients`]; ignored if there are none.
    pub coefficients: CUdeviceptr,
    /// The ids.
    pub tokens: Tokens,
}

impl Decision<'_> {
    /// What a kernel needs to decide about `labels` labels, and all that it reads for that.
    pub(super) fn args(&self, labels: u64) -> Result<(GoldfishArgs, ArrayVec<Span, MAX_READ>)> {
        let Tokens {
            hash_ids,
            id_type,
            layout,
            halo,
            exempt,
        } = self.tokens;
        let (segments, len, cu_seqlens) = match layout {
            Layout::Rows { len } => (rows(labels, len)?, len, DeviceSlice::default()),
            Layout::Documents { cu_seqlens } => (1, labels, cu_seqlens),
        };
        let mut args = GoldfishArgs {
            ids: hash_ids,
            halo: halo.ptr,
            halo_len: halo_len(halo.len, segments)?,
            len,
            cu_seqlens: cu_seqlens.ptr,
            offsets: cu_seqlens.len,
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

/// Where the numbers of kept and dropped labels go.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Two i64, overwritten: labels kept, labels dropped.
    pub out: CUdeviceptr,
    /// At least [`workspace_bytes`] bytes of device memory, aligned to 8, not used by other work until the
    /// call has completed. Need not be initialised.
    pub workspace: CUdeviceptr,
    /// Its size.
    pub workspace_bytes: u64,
}

/// The mask as tensors.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// How it is decided.
    pub decision: Decision<'a>,
    /// How many labels there are.
    pub labels: u64,
    /// If given, one u8 for each label: 1 kept, 0 dropped.
    pub keep: Option<CUdeviceptr>,
    /// If given, one f32 for each label: 1 kept, 0 dropped.
    pub weights: Option<CUdeviceptr>,
    /// If given, how many there are of each.
    pub counts: Option<Counts>,
    /// How many blocks to launch.
    pub blocks: Blocks,
}

/// Blocks of the mask kernel.
fn blocks(labels: u64) -> u64 {
    labels.div_ceil(BLOCK).min(MAX_CHUNKS)
}

/// Bytes of workspace that the counts of this many labels need. More labels never need less.
pub fn workspace_bytes(labels: u64) -> u64 {
    blocks(labels) * PARTIAL_BYTES
}

/// Launches the Goldfish mask on `stream`: one kernel, and a second small one that adds up the counts if they
/// are asked for. No labels give counts of 0.
///
/// # Errors
/// [`Error::Length`], [`Error::Null`], [`Error::Misaligned`], [`Error::TooLarge`], [`Error::Overlap`],
/// [`Error::Workspace`], or what the launch says. Nothing is written then; only if the driver refuses the
/// second launch after it took the first is the mask written and the counts are not.
///
/// # Safety
/// The pointers are of the device's context and cover what the call says, `stream` is a live stream of that
/// context (or a default-stream handle), and until the launch has completed nobody frees the buffers, writes
/// the inputs or touches the outputs. If the launch was captured into a graph, that holds for every replay of
/// the graph.
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
    /// keep, weights, counts, the workspace.
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
