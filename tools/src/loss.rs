//! Runs cross-entropy on the device through the raw API, with canaries around every tensor of logits.

#![allow(unsafe_code)]

use std::num::NonZeroU32;

use xact::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use xact::loss::cross_entropy::Shard;
use xact::raw::cross_entropy as raw;
use xact::raw::goldfish::{Decision, DeviceSlice, IdType, Layout, Tokens};
use xact::raw::{Blocks, CUdeviceptr, Matrix};
use xact::{CrossEntropy, CrossEntropySummary, Element, Goldfish, Result, RowStats};

use super::choose::Gpu;
pub use super::loss_check::*;
use super::run::{Place, Tensor};
use super::same::bits;

/// The layout and the options of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// The placement of the logits.
    pub logits: Place,
    /// The placement of the gradients.
    pub dlogits: Place,
    /// Whether the backward overwrites the logits; `dlogits` is then not used.
    pub in_place: bool,
    /// The type of the labels.
    pub labels: IdType,
    /// Whether the optional outputs of the rows are requested.
    pub all_outputs: bool,
    /// The number of blocks of a launch.
    pub blocks: Blocks,
    /// As in [`raw::ForwardWithGradient`].
    pub cluster: Option<NonZeroU32>,
    /// The number of rows of a group; the gaps of `logits` and `dlogits` are then between the groups.
    pub groups: Option<usize>,
}

impl How {
    /// Rows with a gap after each row, or after each group.
    fn spaced(&self, rows: usize) -> usize {
        self.groups.map_or(rows, |groups| rows / groups)
    }

    fn matrix(&self, cols: usize, tensor: &Tensor, gpu: &Gpu) -> raw::LogitsMatrix {
        let matrix = tensor.matrix(gpu);
        self.groups.map_or(matrix.into(), |rows| raw::LogitsMatrix {
            ptr: matrix.ptr,
            pitch: cols as u64,
            group_rows: rows as u64,
            group_pitch: matrix.pitch,
        })
    }
}

impl Default for How {
    fn default() -> Self {
        How {
            logits: Place::default(),
            dlogits: Place::default(),
            in_place: false,
            labels: IdType::I64,
            all_outputs: true,
            blocks: Blocks::All,
            cluster: None,
            groups: None,
        }
    }
}

/// A batch on the device.
pub struct Uploaded<'a> {
    gpu: &'a Gpu,
    rows: usize,
    how: How,
    shard: Option<Shard>,
    labels: Tensor,
    weights: Option<Tensor>,
    dloss: Option<(Tensor, i64)>,
    normalizer: Option<Tensor>,
    /// The Goldfish decision, if there is one.
    pub goldfish: Option<Decision<'a>>,
    workspace: CudaSlice<u8>,
}

impl<'a> Uploaded<'a> {
    /// Uploads a batch.
    pub fn new<T: Element>(gpu: &'a Gpu, batch: &Batch<T>, how: How) -> Uploaded<'a> {
        let rows = batch.labels.len();
        let line = |values: &[f32]| Tensor::upload(gpu, values, 1, Place::default());
        let labels = match how.labels {
            IdType::I64 => Tensor::upload(gpu, &batch.labels, 1, Place::default()),
            // The label has the same four bytes as u32.
            IdType::I32 | IdType::U32 => {
                let labels: Vec<i32> = batch.labels.iter().map(|&l| l as i32).collect();
                Tensor::upload(gpu, &labels, 1, Place::default())
            }
            IdType::U16 => {
                let labels: Vec<u16> = batch.labels.iter().map(|&l| l as u16).collect();
                Tensor::upload(gpu, &labels, 1, Place::default())
            }
            IdType::U8 => {
                let labels: Vec<u8> = batch.labels.iter().map(|&l| l as u8).collect();
                Tensor::upload(gpu, &labels, 1, Place::default())
            }
        };
        let bytes = raw::workspace_bytes(rows as u64) as usize;
        // SAFETY: the memory is deliberately uninitialised, so that the emulator reports reads of unwritten memory.
        let workspace = unsafe { gpu.stream.alloc::<u8>(bytes) }.expect("workspace");
        Uploaded {
            gpu,
            rows,
            how,
            shard: batch.shard,
            labels,
            weights: batch.weights.as_deref().map(line),
            dloss: (batch.dloss.as_ref()).map(|(values, stride)| (line(values), *stride)),
            normalizer: batch.normalizer.map(|n| line(&[n])),
            goldfish: None,
            workspace,
        }
    }

    fn rows(&self) -> raw::Rows<'_> {
        raw::Rows {
            rows: self.rows as u64,
            labels: self.labels.matrix(self.gpu).ptr,
            label_type: self.how.labels,
            weights: self.weights.as_ref().map(|w| w.matrix(self.gpu).ptr),
            goldfish: self.goldfish,
            shard: self.shard,
            blocks: self.how.blocks,
        }
    }

    fn scratch(&self) -> raw::Scratch {
        raw::Scratch {
            workspace: self.workspace.device_ptr(&self.gpu.stream).0,
            workspace_bytes: self.workspace.len() as u64,
        }
    }

    fn upstream(&self) -> raw::Upstream {
        let Some((dloss, stride)) = &self.dloss else {
            return raw::Upstream::default();
        };
        // With a negative stride, the first row's gradient is the last one in memory.
        let back = if *stride < 0 {
            stride.unsigned_abs() * (self.rows as u64 - 1) * 4
        } else {
            0
        };
        raw::Upstream {
            dloss: Some(dloss.matrix(self.gpu).ptr + back),
            stride: *stride,
        }
    }

    fn external(&self) -> Option<CUdeviceptr> {
        self.normalizer.as_ref().map(|n| n.matrix(self.gpu).ptr)
    }

    /// The divisor of the backward, after the forward with these outputs.
    fn normalizer(&self, op: &CrossEntropy, outputs: &raw::Outputs) -> Option<CUdeviceptr> {
        let in_summary = std::mem::offset_of!(CrossEntropySummary, normalizer) as u64;
        match op.normalizer {
            _ if self.normalizer.is_some() => self.external(),
            xact::Normalizer::None => None,
            _ => Some(outputs.summary + in_summary),
        }
    }
}

/// The outputs of a forward on the device.
struct Buffers {
    loss: Tensor,
    z_loss: Tensor,
    lse: Tensor,
    argmax: Tensor,
    stats: CudaSlice<RowStats>,
    summary: CudaSlice<CrossEntropySummary>,
}

impl Buffers {
    fn new(gpu: &Gpu, rows: usize) -> Buffers {
        let line = || Tensor::upload(gpu, &vec![f32::NAN; rows], 1, Place::default());
        // SAFETY: deliberately uninitialised, as the workspace.
        let stats = unsafe { gpu.stream.alloc(rows.max(1)) }.expect("stats");
        // SAFETY: as above.
        let summary = unsafe { gpu.stream.alloc(1) }.expect("summary");
        Buffers {
            loss: line(),
            z_loss: line(),
            lse: line(),
            argmax: line(),
            stats,
            summary,
        }
    }

    fn outputs(&mut self, gpu: &Gpu, all: bool) -> raw::Outputs {
        let optional = |t: &Tensor| all.then(|| t.matrix(gpu).ptr);
        raw::Outputs {
            loss: optional(&self.loss),
            z_loss: optional(&self.z_loss),
            lse: optional(&self.lse),
            argmax: optional(&self.argmax),
            saved: Some(self.stats.device_ptr_mut(&gpu.stream).0),
            summary: self.summary.device_ptr_mut(&gpu.stream).0,
        }
    }

    fn download<T: Element>(&self, gpu: &Gpu, rows: usize, dlogits: Vec<T>) -> Results<T> {
        let line = |tensor: &Tensor| {
            let (values, intact) = tensor.download::<f32>(gpu);
            assert!(intact, "an output per row was overrun");
            values
        };
        let mut stats = vec![RowStats::default(); rows];
        if rows > 0 {
            gpu.stream
                .memcpy_dtoh(&self.stats.slice(..rows), &mut stats)
                .expect("stats");
        }
        let mut summary = [CrossEntropySummary::default()];
        gpu.stream
            .memcpy_dtoh(&self.summary, &mut summary)
            .expect("summary");
        Results {
            loss: line(&self.loss),
            z_loss: line(&self.z_loss),
            lse: line(&self.lse),
            argmax: self.argmax.download(gpu).0,
            stats,
            summary: summary[0],
            dlogits,
        }
    }
}

fn logits<T: Element>(batch: &Batch<T>, tensor: &Tensor, gpu: &Gpu, how: &How) -> raw::Logits {
    raw::Logits {
        dtype: T::DTYPE,
        cols: batch.cols as u64,
        matrix: how.matrix(batch.cols, tensor, gpu),
    }
}

/// Runs the forward, then the backward.
pub fn forward_backward<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    uploaded: &Uploaded<'_>,
) -> Result<Results<T>> {
    let rows = batch.labels.len();
    let how = uploaded.how;
    let input = Tensor::upload(gpu, &batch.logits, how.spaced(rows), how.logits);
    let blank = vec![T::from_f64(f64::NAN); batch.logits.len()];
    let output =
        (!how.in_place).then(|| Tensor::upload(gpu, &blank, how.spaced(rows), how.dlogits));
    let output = output.as_ref().unwrap_or(&input);
    let mut buffers = Buffers::new(gpu, rows);
    let outputs = buffers.outputs(gpu, how.all_outputs);
    let call = raw::Forward {
        rows: uploaded.rows(),
        logits: logits(batch, &input, gpu, &how),
        outputs,
        normalizer: uploaded.external(),
        scratch: uploaded.scratch(),
    };
    // SAFETY: the buffers live until the downloads below, which wait for the stream.
    unsafe { raw::forward(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
    let call = raw::Backward {
        rows: uploaded.rows(),
        logits: logits(batch, &input, gpu, &how),
        saved: outputs.saved.expect("saved"),
        ranks: 1,
        dlogits: how.matrix(batch.cols, output, gpu),
        normalizer: uploaded.normalizer(op, &outputs),
        upstream: uploaded.upstream(),
    };
    // SAFETY: as above.
    unsafe { raw::backward(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
    let (dlogits, intact) = output.download::<T>(gpu);
    assert!(intact, "the backward wrote outside dlogits");
    let (after, intact) = input.download::<T>(gpu);
    assert!(
        how.in_place || intact && bits(&after) == bits(&batch.logits),
        "the logits changed"
    );
    Ok(buffers.download(gpu, rows, dlogits))
}

/// The same with the columns spread over ranks, of `widths` columns each. Returns the final results of each rank, with the
/// gradients of its own columns.
pub fn sharded<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    widths: &[usize],
    how: How,
) -> Result<Vec<Results<T>>> {
    let rows = batch.labels.len();
    let mut first = 0;
    let shards: Vec<_> = (widths.iter())
        .map(|&cols| {
            let columns = first..first + cols;
            let logits = (batch.logits.chunks_exact(batch.cols))
                .flat_map(|row| row[columns.clone()].to_vec());
            let shard = Batch {
                logits: logits.collect(),
                cols,
                shard: Some(Shard::new(first as u64, batch.cols as u64)),
                ..batch.clone()
            };
            first += cols;
            shard
        })
        .collect();
    assert_eq!(first, batch.cols);
    let mut gathered = Vec::new();
    for shard in &shards {
        let uploaded = Uploaded::new(gpu, shard, how);
        let input = Tensor::upload(gpu, &shard.logits, rows, how.logits);
        // SAFETY: deliberately uninitialised, as the workspace.
        let mut stats = unsafe { gpu.stream.alloc::<RowStats>(rows) }.expect("stats");
        let call = raw::PartialStats {
            rows: uploaded.rows(),
            logits: logits(shard, &input, gpu, &how),
            with_argmax: how.all_outputs,
            saved: stats.device_ptr_mut(&gpu.stream).0,
            scratch: uploaded.scratch(),
        };
        // SAFETY: the buffers live until the download below, which waits for the stream.
        unsafe { raw::partial_stats(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
        gathered.extend(gpu.stream.clone_dtoh(&stats).expect("stats"));
    }
    let gathered = gpu.stream.clone_htod(&gathered).expect("gathered stats");
    let each = shards.iter().map(|shard| {
        let uploaded = Uploaded::new(gpu, shard, how);
        let input = Tensor::upload(gpu, &shard.logits, rows, how.logits);
        let mut buffers = Buffers::new(gpu, rows);
        let outputs = buffers.outputs(gpu, how.all_outputs);
        let gathered = gathered.device_ptr(&gpu.stream).0;
        let call = raw::Finish {
            rows: uploaded.rows(),
            gathered,
            ranks: shards.len() as u64,
            outputs,
            normalizer: uploaded.external(),
            scratch: uploaded.scratch(),
        };
        // SAFETY: as above.
        unsafe { raw::finish(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
        let call = raw::Backward {
            rows: uploaded.rows(),
            logits: logits(shard, &input, gpu, &how),
            saved: gathered,
            ranks: shards.len() as u64,
            dlogits: input.matrix(gpu).into(),
            normalizer: uploaded.normalizer(op, &outputs),
            upstream: uploaded.upstream(),
        };
        // SAFETY: as above.
        unsafe { raw::backward(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
        let (dlogits, intact) = input.download::<T>(gpu);
        assert!(intact, "the gradient of a rank was written outside of it");
        Ok(buffers.download(gpu, rows, dlogits))
    });
    each.collect()
}

/// Runs the forward with the gradient in place.
pub fn with_gradient<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    uploaded: &Uploaded<'_>,
) -> Result<Results<T>> {
    let rows = batch.labels.len();
    let how = uploaded.how;
    let tensor = Tensor::upload(gpu, &batch.logits, how.spaced(rows), how.logits);
    let mut buffers = Buffers::new(gpu, rows);
    let forward = raw::Forward {
        rows: uploaded.rows(),
        logits: logits(batch, &tensor, gpu, &how),
        outputs: buffers.outputs(gpu, how.all_outputs),
        normalizer: uploaded.external(),
        scratch: uploaded.scratch(),
    };
    let call = raw::ForwardWithGradient {
        forward,
        upstream: uploaded.upstream(),
        cluster: how.cluster,
    };
    // SAFETY: the buffers live until the downloads below, which wait for the stream.
    unsafe { raw::forward_with_gradient(&gpu.device, gpu.stream.cu_stream(), op, &call) }?;
    let (dlogits, intact) = tensor.download::<T>(gpu);
    assert!(
        intact,
        "the gradient in place was written outside the logits"
    );
    Ok(buffers.download(gpu, rows, dlogits))
}

/// The tables and ids of a Goldfish decision on the device.
pub struct Fish<'a> {
    gpu: &'a Gpu,
    goldfish: &'a Goldfish,
    bitmap: Tensor,
    coefficients: Tensor,
    ids: Tensor,
    len: u64,
}

impl<'a> Fish<'a> {
    /// A decision about one segment of ids.
    pub fn new(gpu: &'a Gpu, goldfish: &'a Goldfish, ids: &[i64]) -> Fish<'a> {
        fn run<P: bytemuck::Pod>(gpu: &Gpu, values: &[P]) -> Tensor {
            Tensor::upload(gpu, values, 1, Place::default())
        }
        Fish {
            gpu,
            goldfish,
            bitmap: run(gpu, goldfish.bitmap_words().unwrap_or_default()),
            coefficients: run(gpu, goldfish.coefficients().unwrap_or_default()),
            ids: run(gpu, ids),
            len: ids.len() as u64,
        }
    }

    /// The mask of the same decision.
    pub fn decision(&self) -> Decision<'_> {
        Decision {
            goldfish: self.goldfish,
            bitmap: self.bitmap.matrix(self.gpu).ptr,
            coefficients: self.coefficients.matrix(self.gpu).ptr,
            tokens: Tokens {
                hash_ids: self.ids.matrix(self.gpu).ptr,
                id_type: IdType::I64,
                layout: Layout::Rows { len: self.len },
                halo: DeviceSlice::default(),
                exempt: DeviceSlice::default(),
                interleaved: 1,
            },
        }
    }
}

/// Two short rows in separate allocations, which the emulator places 64 GiB apart, give the same results as rows in one
/// tensor.
pub fn far_apart<T: Element>(gpu: &Gpu) -> std::result::Result<(), String> {
    // Both rows begin at a multiple of 16 bytes in either layout.
    const COLS: usize = 40;
    let op = CrossEntropy::default();
    let values = super::inputs::Random(21).normal::<T>(2 * COLS, 2.0);
    let batch = Batch::new(values, COLS, vec![5, 7]);
    let dense = Uploaded::new(gpu, &batch, How::default());
    let expected = with_gradient(gpu, &op, &batch, &dense).map_err(|e| e.to_string())?;
    let upload = |row| Tensor::upload(gpu, row, 1, Place::default());
    let run = |backward: bool| {
        let rows = [&batch.logits[..COLS], &batch.logits[COLS..]].map(upload);
        let [first, second] = [0, 1].map(|r: usize| rows[r].matrix(gpu).ptr);
        let pitch = (second - first) / size_of::<T>() as u64;
        assert!(pitch > 1 << 33, "a pitch of {pitch}");
        let logits = raw::Logits {
            dtype: T::DTYPE,
            cols: COLS as u64,
            matrix: Matrix { ptr: first, pitch }.into(),
        };
        let mut buffers = Buffers::new(gpu, 2);
        let outputs = buffers.outputs(gpu, true);
        let forward = raw::Forward {
            rows: dense.rows(),
            logits,
            outputs,
            normalizer: None,
            scratch: dense.scratch(),
        };
        let upstream = dense.upstream();
        let (device, stream) = (&gpu.device, gpu.stream.cu_stream());
        if backward {
            // SAFETY: the buffers live until the downloads below, which wait for the stream.
            unsafe { raw::forward(device, stream, &op, &forward) }?;
            let call = raw::Backward {
                rows: dense.rows(),
                logits,
                saved: outputs.saved.expect("saved"),
                ranks: 1,
                dlogits: logits.matrix,
                normalizer: dense.normalizer(&op, &outputs),
                upstream,
            };
            // SAFETY: as above.
            unsafe { raw::backward(device, stream, &op, &call) }?;
        } else {
            let call = raw::ForwardWithGradient {
                forward,
                upstream,
                cluster: None,
            };
            // SAFETY: as above.
            unsafe { raw::forward_with_gradient(device, stream, &op, &call) }?;
        }
        let dlogits = rows.iter().flat_map(|row| {
            let (row, intact) = row.download::<T>(gpu);
            assert!(intact, "a write outside of a row");
            row
        });
        Ok(buffers.download(gpu, 2, dlogits.collect()))
    };
    for backward in [false, true] {
        let got = run(backward).map_err(|e: xact::Error| e.to_string())?;
        if got.statistics() != expected.statistics()
            || bits(&got.dlogits) != bits(&expected.dlogits)
        {
            return Err(format!("backward {backward}: {:?}", got.summary));
        }
    }
    Ok(())
}
