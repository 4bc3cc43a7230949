//! A row on the device, with buffers that take turns.

#![allow(unsafe_code)]

use std::collections::HashMap;

use half::{bf16, f16};
use xact::activation::{self, Registered, Visitor};
use xact::cudarc::driver::{CudaSlice, DevicePtr, result};
use xact::raw::cross_entropy as loss;
use xact::raw::goldfish::{self, DeviceSlice, IdType, Layout, Tokens};
use xact::raw::{self, CUdeviceptr, Matrix};
use xact::{
    CrossEntropy, CrossEntropySummary, Dtype, Element, Gated, Goldfish, Order, RowStats, Strategy,
};
use xact_dev::choose::Gpu;
use xact_dev::inputs::Random;

use crate::rows::{self, Chosen, Row, random_ids};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The alignment of every buffer: two lines of the L2 cache.
const ALIGNMENT: u64 = 256;
/// The value of outputs before they are written.
const UNWRITTEN: u8 = 0xff;

/// Random numbers of a type and scale on the device, which fill buffers of any length.
pub struct Tiles<'a> {
    gpu: &'a Gpu,
    /// The number of elements of a tile.
    len: usize,
    made: HashMap<(Dtype, u64), CudaSlice<u8>>,
}

impl<'a> Tiles<'a> {
    pub fn new(gpu: &'a Gpu, len: usize) -> Tiles<'a> {
        Tiles {
            gpu,
            len,
            made: HashMap::new(),
        }
    }

    /// Fills `bytes` bytes.
    pub fn fill(&mut self, to: CUdeviceptr, bytes: u64, dtype: Dtype, scale: f64) -> Result<()> {
        let tile = match self.made.entry((dtype, scale.to_bits())) {
            std::collections::hash_map::Entry::Occupied(tile) => tile.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let host = match dtype {
                    Dtype::F32 => random_bytes::<f32>(self.len, scale),
                    Dtype::F16 => random_bytes::<f16>(self.len, scale),
                    Dtype::Bf16 => random_bytes::<bf16>(self.len, scale),
                    other => return Err(format!("no tensor has the type {other}").into()),
                };
                place.insert(self.gpu.stream.clone_htod(&host)?)
            }
        };
        let (from, len) = (tile.device_ptr(&self.gpu.stream).0, tile.len() as u64);
        let mut done = 0;
        while done < bytes {
            let part = len.min(bytes - done);
            copy(self.gpu, to + done, from, part)?;
            done += part;
        }
        Ok(())
    }
}

fn random_bytes<T: Element>(len: usize, scale: f64) -> Vec<u8> {
    bytemuck::cast_slice(&Random(1).normal::<T>(len, scale)).to_vec()
}

/// Queues a copy on the device with `cuMemcpyDtoDAsync`, as `cudaMemcpy` and PyTorch's `copy_` do.
pub fn copy(gpu: &Gpu, to: CUdeviceptr, from: CUdeviceptr, bytes: u64) -> Result<()> {
    gpu.device.context().bind_to_thread()?;
    // SAFETY: both ranges are in buffers that their owners keep until the stream is done.
    unsafe { result::memcpy_dtod_async(to, from, bytes as usize, gpu.stream.cu_stream()) }?;
    Ok(())
}

/// One buffer for each turn, in one allocation.
#[derive(Clone, Copy)]
struct Slab {
    base: CUdeviceptr,
    stride: u64,
    len: u64,
}

impl Slab {
    /// The buffer of a turn.
    fn at(&self, turn: usize) -> CUdeviceptr {
        self.base + turn as u64 * self.stride
    }
}

type Launch<'a> = Box<dyn Fn(usize) -> Result<()> + 'a>;

/// A row's buffers and calls.
pub struct Work<'a> {
    pub turns: usize,
    /// Queues a call on the buffers of a turn.
    pub launch: Launch<'a>,
    /// Restores the inputs of a turn that the call overwrites.
    pub restore: Option<Launch<'a>>,
    /// The output that every call writes, of turn 0.
    output: (CUdeviceptr, u64),
    gpu: &'a Gpu,
    _keep: Vec<CudaSlice<u8>>,
}

impl Work<'_> {
    /// Whether a launch of turn 0 has written its output.
    pub fn is_written(&self) -> Result<bool> {
        let (from, len) = self.output;
        let to = self.gpu.stream.clone_htod(&vec![0u8; len as usize])?;
        copy(self.gpu, to.device_ptr(&self.gpu.stream).0, from, len)?;
        let host = self.gpu.stream.clone_dtoh(&to)?;
        Ok(host.iter().any(|&byte| byte != UNWRITTEN))
    }
}

/// The device memory of one turn of a row, without tensors of at most one number per row.
pub fn memory(row: &Row) -> u64 {
    match (row.op.as_str(), row.direction.as_str()) {
        ("cross_entropy", "forward") => tensor(row),
        // A copy of the logits, to restore them, or separate gradients.
        ("cross_entropy", _) => 2 * tensor(row),
        _ => row.bytes,
    }
}

/// The bytes of a whole tensor of the row.
fn tensor(row: &Row) -> u64 {
    row.rows * row.cols * dtype(row).map_or(8, Dtype::size)
}

fn dtype(row: &Row) -> Option<Dtype> {
    Dtype::ALL
        .into_iter()
        .find(|dtype| dtype.name() == row.dtype)
}

/// Uploads the inputs of a row for `turns` turns.
pub fn prepare<'a>(
    gpu: &'a Gpu,
    tiles: &mut Tiles<'a>,
    row: &Row,
    turns: usize,
) -> Result<Work<'a>> {
    let mut maker = Maker {
        gpu,
        tiles,
        row,
        turns,
        keep: Vec::new(),
        made: None,
    };
    match row.op.as_str() {
        "cross_entropy" => maker.cross_entropy(),
        "goldfish" => maker.mask(),
        _ => {
            activation::for_each(&mut maker);
            maker.made.take().ok_or("no such activation")?
        }
    }
}

struct Maker<'m, 'a> {
    gpu: &'a Gpu,
    tiles: &'m mut Tiles<'a>,
    row: &'m Row,
    turns: usize,
    keep: Vec<CudaSlice<u8>>,
    made: Option<Result<Work<'a>>>,
}

impl<'a> Maker<'_, 'a> {
    /// A buffer for each turn, with any contents.
    fn slab(&mut self, bytes: u64) -> Result<Slab> {
        let stride = bytes.max(1).next_multiple_of(ALIGNMENT);
        let len = self.turns as u64 * stride;
        // SAFETY: any bytes are valid; whoever reads a buffer has filled it.
        let slice = unsafe { self.gpu.stream.alloc::<u8>(len as usize) }?;
        let base = slice.device_ptr(&self.gpu.stream).0;
        self.keep.push(slice);
        Ok(Slab { base, stride, len })
    }

    /// A buffer for each turn, filled with the value of unwritten outputs.
    fn output(&mut self, bytes: u64) -> Result<Slab> {
        let slab = self.slab(bytes)?;
        let stream = self.gpu.stream.cu_stream();
        self.gpu.device.context().bind_to_thread()?;
        // SAFETY: the slab has this length and lives as long as the work.
        unsafe { result::memset_d8_async(slab.base, UNWRITTEN, slab.len as usize, stream) }?;
        Ok(slab)
    }

    /// The buffer for the output of the forward, if the backward writes it again.
    fn again(&mut self) -> Result<Option<Slab>> {
        match self.row.direction.as_str() {
            "backward+y" => self.output(tensor(self.row)).map(Some),
            _ => Ok(None),
        }
    }

    /// A tensor of random numbers, different for each turn.
    fn input(&mut self, dtype: Dtype) -> Result<Slab> {
        let slab = self.slab(tensor(self.row))?;
        self.tiles
            .fill(slab.base, slab.len, dtype, self.row.scale)?;
        Ok(slab)
    }

    /// The same bytes for all turns; null if there are none.
    fn constant(&mut self, bytes: &[u8]) -> Result<CUdeviceptr> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let slice = self.gpu.stream.clone_htod(bytes)?;
        let pointer = slice.device_ptr(&self.gpu.stream).0;
        self.keep.push(slice);
        Ok(pointer)
    }

    fn work(&mut self, output: Slab, bytes: u64, launch: Launch<'a>) -> Work<'a> {
        Work {
            turns: self.turns,
            launch,
            restore: None,
            output: (output.base, bytes),
            gpu: self.gpu,
            _keep: std::mem::take(&mut self.keep),
        }
    }

    fn dtype(&self) -> Result<Dtype> {
        dtype(self.row).ok_or_else(|| format!("no type {}", self.row.dtype).into())
    }

    fn plain<A: Registered>(&mut self) -> Result<Work<'a>> {
        let call = Call::<A>::new(self)?;
        let (gpu, cols) = (self.gpu, self.row.cols);
        let at = move |slab: Slab, turn| Matrix::contiguous(slab.at(turn), cols);
        let x = self.input(call.dtype)?;
        if self.row.direction == "forward" {
            let y = self.output(tensor(self.row))?;
            let launch = move |turn| {
                let call_ = raw::Forward {
                    common: call.common(),
                    x: at(x, turn),
                    y: at(y, turn),
                };
                // SAFETY: the work keeps the buffers, and the launching code waits before dropping it.
                Ok(unsafe { raw::forward(&gpu.device, gpu.stream.cu_stream(), &call.op, &call_) }?)
            };
            return Ok(self.work(y, tensor(self.row), Box::new(launch)));
        }
        let (dy, dx) = (self.input(call.dtype)?, self.output(tensor(self.row))?);
        let y = self.again()?;
        let sums = Sums::new(self, &call)?;
        let launch = move |turn| {
            let call_ = raw::Backward {
                common: call.common(),
                x: at(x, turn),
                dy: at(dy, turn),
                dx: at(dx, turn),
                y: y.map(|y| at(y, turn)),
                dparams: Some(sums.dparams()),
            };
            // SAFETY: as above.
            Ok(unsafe { raw::backward(&gpu.device, gpu.stream.cu_stream(), &call.op, &call_) }?)
        };
        Ok(self.work(dx, tensor(self.row), Box::new(launch)))
    }

    fn gated<A: Gated + Registered>(&mut self, order: Order) -> Result<Work<'a>> {
        let call = Call::<A>::new(self)?;
        let (gpu, cols) = (self.gpu, self.row.cols);
        let at = move |slab: Slab, turn| Matrix::contiguous(slab.at(turn), cols);
        let (x, v) = (self.input(call.dtype)?, self.input(call.dtype)?);
        if self.row.direction == "forward" {
            let y = self.output(tensor(self.row))?;
            let launch = move |turn| {
                let call_ = raw::GatedForward {
                    common: call.common(),
                    order,
                    xv: raw::Pair::Separate {
                        x: at(x, turn),
                        v: at(v, turn),
                    },
                    y: at(y, turn),
                };
                let stream = gpu.stream.cu_stream();
                // SAFETY: as in `plain`.
                Ok(unsafe { raw::gated_forward(&gpu.device, stream, &call.op, &call_) }?)
            };
            return Ok(self.work(y, tensor(self.row), Box::new(launch)));
        }
        let dy = self.input(call.dtype)?;
        let [dx, dv] = [
            self.output(tensor(self.row))?,
            self.output(tensor(self.row))?,
        ];
        let y = self.again()?;
        let sums = Sums::new(self, &call)?;
        let launch = move |turn| {
            let call_ = raw::GatedBackward {
                common: call.common(),
                order,
                xv: raw::Pair::Separate {
                    x: at(x, turn),
                    v: at(v, turn),
                },
                dy: at(dy, turn),
                dxv: raw::Pair::Separate {
                    x: at(dx, turn),
                    v: at(dv, turn),
                },
                y: y.map(|y| at(y, turn)),
                dparams: Some(sums.dparams()),
            };
            let stream = gpu.stream.cu_stream();
            // SAFETY: as in `plain`.
            Ok(unsafe { raw::gated_backward(&gpu.device, stream, &call.op, &call_) }?)
        };
        Ok(self.work(dv, tensor(self.row), Box::new(launch)))
    }

    fn cross_entropy(&mut self) -> Result<Work<'a>> {
        let (gpu, row) = (self.gpu, self.row.clone());
        let call = Loss::new(self)?;
        let loss = call.loss;
        let stream = gpu.stream.cu_stream();
        let losses = row.rows * size_of::<f32>() as u64;
        match row.direction.as_str() {
            "forward" => {
                let launch = move |turn| {
                    let forward = call.forward(turn);
                    // SAFETY: as in `plain`.
                    Ok(unsafe { loss::forward(&gpu.device, stream, &call.op, &forward) }?)
                };
                Ok(self.work(loss, losses, Box::new(launch)))
            }
            "fused" => {
                let logits = call.logits;
                let pristine = self.slab(tensor(&row))?;
                copy(gpu, pristine.base, logits.base, pristine.len)?;
                let launch = move |turn| {
                    let both = loss::ForwardWithGradient {
                        forward: call.forward(turn),
                        upstream: loss::Upstream::default(),
                        cluster: call.chosen.cluster,
                    };
                    // SAFETY: as in `plain`.
                    Ok(unsafe {
                        loss::forward_with_gradient(&gpu.device, stream, &call.op, &both)
                    }?)
                };
                let mut work = self.work(loss, losses, Box::new(launch));
                let bytes = tensor(&row);
                work.restore = Some(Box::new(move |turn| {
                    copy(gpu, logits.at(turn), pristine.at(turn), bytes)
                }));
                Ok(work)
            }
            "backward" => {
                let dlogits = self.output(tensor(&row))?;
                for turn in 0..self.turns {
                    let forward = call.forward(turn);
                    // SAFETY: as in `plain`.
                    unsafe { loss::forward(&gpu.device, stream, &call.op, &forward) }?;
                }
                let normalizer = std::mem::offset_of!(CrossEntropySummary, normalizer) as u64;
                let launch = move |turn| {
                    let forward = call.forward(turn);
                    let backward = loss::Backward {
                        rows: forward.rows,
                        logits: forward.logits,
                        saved: forward.outputs.saved.ok_or("nothing is saved")?,
                        ranks: 1,
                        dlogits: Matrix::contiguous(dlogits.at(turn), row.cols).into(),
                        normalizer: Some(forward.outputs.summary + normalizer),
                        upstream: loss::Upstream::default(),
                    };
                    // SAFETY: as in `plain`.
                    Ok(unsafe { loss::backward(&gpu.device, stream, &call.op, &backward) }?)
                };
                Ok(self.work(dlogits, tensor(&row), Box::new(launch)))
            }
            other => Err(format!("no direction {other}").into()),
        }
    }

    fn mask(&mut self) -> Result<Work<'a>> {
        let (gpu, row) = (self.gpu, self.row.clone());
        let strategy = rows::MASKS.into_iter().find(|s| s.name() == row.form);
        let fish = Fish::new(self, strategy.ok_or("no such strategy")?)?;
        let labels = row.rows * row.cols;
        let id_type = match row.dtype.as_str() {
            "i64" => IdType::I64,
            _ => IdType::I32,
        };
        let ids = row.ids();
        let bytes: Vec<u8> = match id_type {
            IdType::I64 => bytemuck::cast_slice(&ids).to_vec(),
            _ => ids
                .iter()
                .flat_map(|&id| (id as i32).to_le_bytes())
                .collect(),
        };
        let once = self.constant(&bytes)?;
        let ids = self.slab(bytes.len() as u64)?;
        for turn in 0..self.turns {
            copy(gpu, ids.at(turn), once, bytes.len() as u64)?;
        }
        let weights = self.output(4 * labels)?;
        let launch = move |turn| {
            let call = goldfish::Mask {
                decision: fish.decision(ids.at(turn), id_type, row.cols),
                labels,
                keep: None,
                weights: Some(weights.at(turn)),
                counts: None,
                blocks: row.chosen.blocks(),
            };
            // SAFETY: as in `plain`.
            Ok(unsafe { goldfish::mask(&gpu.device, gpu.stream.cu_stream(), &call) }?)
        };
        Ok(self.work(weights, 4 * labels, Box::new(launch)))
    }
}

/// A strategy with its tables on the device.
struct Fish {
    op: Goldfish,
    bitmap: CUdeviceptr,
    coefficients: CUdeviceptr,
}

impl Fish {
    fn new(maker: &mut Maker<'_, '_>, strategy: Strategy) -> Result<Fish> {
        let op = Goldfish::new(strategy)?;
        let bitmap = bytemuck::cast_slice(op.bitmap_words().unwrap_or_default());
        let coefficients = bytemuck::cast_slice(op.coefficients().unwrap_or_default());
        Ok(Fish {
            bitmap: maker.constant(bitmap)?,
            coefficients: maker.constant(coefficients)?,
            op,
        })
    }

    /// The decision about rows of `len` ids.
    fn decision(&self, ids: CUdeviceptr, id_type: IdType, len: u64) -> goldfish::Decision<'_> {
        goldfish::Decision {
            goldfish: &self.op,
            bitmap: self.bitmap,
            coefficients: self.coefficients,
            tokens: Tokens {
                hash_ids: ids,
                id_type,
                layout: Layout::Rows { len },
                halo: DeviceSlice::default(),
                exempt: DeviceSlice::default(),
                interleaved: 1,
            },
        }
    }
}

/// The arguments of all calls of a cross-entropy.
struct Loss {
    op: CrossEntropy,
    dtype: Dtype,
    rows: u64,
    cols: u64,
    chosen: Chosen,
    labels: CUdeviceptr,
    /// Adds the decision with the ids of the rows.
    goldfish: Option<(Fish, CUdeviceptr)>,
    logits: Slab,
    loss: Slab,
    stats: Slab,
    summary: Slab,
    workspace: Slab,
    workspace_bytes: u64,
}

impl Loss {
    fn new(maker: &mut Maker<'_, '_>) -> Result<Loss> {
        let row = maker.row;
        let (op, dtype) = (CrossEntropy::default(), maker.dtype()?);
        let labels: Vec<_> = (random_ids(row.rows, row.cols).into_iter().zip(0..))
            .map(|(label, r)| {
                if row.is_masked(r) {
                    op.ignore_index
                } else {
                    label
                }
            })
            .collect();
        let goldfish = if row.form == "goldfish" {
            let fish = Fish::new(maker, rows::FUSED_GOLDFISH)?;
            Some((fish, maker.constant(bytemuck::cast_slice(&row.ids()))?))
        } else {
            None
        };
        let workspace_bytes = loss::workspace_bytes(row.rows);
        Ok(Loss {
            op,
            dtype,
            rows: row.rows,
            cols: row.cols,
            chosen: row.chosen,
            labels: maker.constant(bytemuck::cast_slice(&labels))?,
            goldfish,
            logits: maker.input(dtype)?,
            loss: maker.output(row.rows * size_of::<f32>() as u64)?,
            stats: maker.slab(row.rows * size_of::<RowStats>() as u64)?,
            summary: maker.slab(size_of::<CrossEntropySummary>() as u64)?,
            workspace: maker.slab(workspace_bytes)?,
            workspace_bytes,
        })
    }

    fn forward(&self, turn: usize) -> loss::Forward<'_> {
        let goldfish = self.goldfish.as_ref();
        loss::Forward {
            rows: loss::Rows {
                rows: self.rows,
                labels: self.labels,
                label_type: IdType::I64,
                weights: None,
                goldfish: goldfish.map(|(fish, ids)| fish.decision(*ids, IdType::I64, self.rows)),
                shard: None,
                blocks: self.chosen.blocks(),
            },
            logits: loss::Logits {
                dtype: self.dtype,
                cols: self.cols,
                matrix: Matrix::contiguous(self.logits.at(turn), self.cols).into(),
            },
            outputs: loss::Outputs {
                loss: Some(self.loss.at(turn)),
                z_loss: None,
                lse: None,
                argmax: None,
                saved: Some(self.stats.at(turn)),
                summary: self.summary.at(turn),
            },
            normalizer: None,
            scratch: loss::Scratch {
                workspace: self.workspace.at(turn),
                workspace_bytes: self.workspace_bytes,
            },
        }
    }
}

/// The arguments of all calls of an activation: its first sample, which has the initial parameters, or that of the clamped
/// formula.
struct Call<A> {
    op: A,
    dtype: Dtype,
    rows: u64,
    cols: u64,
    chosen: Chosen,
    params: Vec<CUdeviceptr>,
}

impl<A: Registered> Call<A> {
    fn new(maker: &mut Maker<'_, '_>) -> Result<Call<A>> {
        let compat = maker.row.form == rows::COMPAT;
        let mut samples = A::samples().into_iter();
        let sample = samples.find(|s| !compat || s.name == rows::COMPAT_SAMPLE);
        let sample = sample.ok_or("no such form")?;
        let params = sample.params.iter();
        Ok(Call {
            op: sample.op,
            dtype: maker.dtype()?,
            rows: maker.row.rows,
            cols: maker.row.cols,
            chosen: maker.row.chosen,
            params: params
                .map(|p| maker.constant(&p.to_le_bytes()))
                .collect::<Result<_>>()?,
        })
    }

    fn common(&self) -> raw::Common<'_> {
        raw::Common {
            dtype: self.dtype,
            rows: self.rows,
            cols: self.cols,
            params: &self.params,
            param_dtype: Dtype::F32,
            blocks: self.chosen.blocks(),
        }
    }
}

/// The buffers for parameter gradients, and their workspace.
struct Sums {
    out: Vec<CUdeviceptr>,
    workspace: CUdeviceptr,
    workspace_bytes: u64,
}

impl Sums {
    fn new<A: Registered>(maker: &mut Maker<'_, '_>, call: &Call<A>) -> Result<Sums> {
        let workspace_bytes = raw::workspace_bytes(&call.op, call.dtype, call.rows, call.cols)?;
        Ok(Sums {
            out: (call.params.iter())
                .map(|_| maker.constant(&[0; 4]))
                .collect::<Result<_>>()?,
            workspace: maker.slab(workspace_bytes)?.base,
            workspace_bytes,
        })
    }

    fn dparams(&self) -> raw::Dparams<'_> {
        raw::Dparams {
            out: &self.out,
            accumulate: false,
            workspace: self.workspace,
            workspace_bytes: self.workspace_bytes,
        }
    }
}

impl Visitor for Maker<'_, '_> {
    fn visit<A: Registered>(&mut self) {
        if A::NAME == self.row.op && ["plain", rows::COMPAT].contains(&self.row.form.as_str()) {
            self.made = Some(self.plain::<A>());
        }
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        let order = match self.row.form.as_str() {
            "gated1" => Order::First,
            "gated2" => Order::Second,
            _ => return,
        };
        if A::NAME == self.row.op {
            self.made = Some(self.gated::<A>(order));
        }
    }
}
