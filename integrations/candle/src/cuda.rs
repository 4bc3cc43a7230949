//! The ops on candle's CUDA tensors. `xact::raw` launches the kernels on the stream of the tensors' device.
//!
//! No function here waits for the device. candle allocates outputs and workspaces on the same stream, and frees them in
//! stream order.

#![allow(unsafe_code)]

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use xact::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};
use xact::half::{bf16, f16};
use xact::raw::cross_entropy as raw_loss;
use xact::raw::goldfish::{self as raw_goldfish, DeviceSlice, IdType};
use xact::raw::{self, Blocks, CUdeviceptr, Matrix, Pair};
use xact::{CrossEntropySummary, Dtype, Halves};

use crate::activation::{Backward, Call, Form, Operand, Written};
use crate::cross_entropy::{Forward, Gradient, Reduction, Results, Wanted};
use crate::error::of_xact;
use crate::summary::WORDS;
use crate::tokens::{DeviceGoldfish, Tokens};
use crate::view::{View, last_dimension};

/// The device, the stream and the kernels of a call.
struct Queue {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    kernels: xact::Device,
}

impl Queue {
    fn of(storage: &CudaStorage) -> Result<Queue> {
        let stream = storage.device.cuda_stream();
        Ok(Queue {
            device: storage.device.clone(),
            kernels: kernels(&stream)?,
            stream,
        })
    }

    fn cu_stream(&self) -> raw::CUstream {
        self.stream.cu_stream()
    }

    /// Allocates memory on the stream. It is not initialised.
    fn room<T: CudaDType + DeviceRepr>(&self, len: usize) -> Result<CudaStorage> {
        // SAFETY: the only uses are as outputs and workspaces of the calls below, which write every element that is
        // read later. A driver hands out no memory of 0 bytes.
        let slice = unsafe { self.device.alloc::<T>(len.max(1)) }?;
        Ok(CudaStorage::wrap_cuda_slice(slice, self.device.clone()))
    }

    fn room_of(&self, dtype: Dtype, len: usize) -> Result<CudaStorage> {
        match dtype {
            Dtype::F32 => self.room::<f32>(len),
            Dtype::F16 => self.room::<f16>(len),
            Dtype::Bf16 => self.room::<bf16>(len),
            other => bail!("{other} is no type of candle"),
        }
    }
}

/// The kernels of the context of a stream. They are loaded once and kept until the process ends.
fn kernels(stream: &CudaStream) -> Result<xact::Device> {
    static ALL: Mutex<Vec<xact::Device>> = Mutex::new(Vec::new());
    // A poisoned lock means that another thread panicked between two changes; the list is whole.
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let known = all
        .iter()
        .find(|device| Arc::ptr_eq(device.context(), stream.context()));
    if let Some(device) = known {
        return Ok(device.clone());
    }
    let device = xact::Device::from_context(stream.context()).map_err(of_xact)?;
    all.push(device.clone());
    Ok(device)
}

fn dtype_of(storage: &CudaStorage) -> Result<Dtype> {
    match storage.dtype() {
        DType::F32 => Ok(Dtype::F32),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::Bf16),
        other => bail!("{} is no type of xact", other.as_str()),
    }
}

/// Collects the addresses of a call. It keeps cudarc's guards until the launch, so that cudarc orders other streams
/// relative to it.
struct Addresses<'a> {
    stream: &'a CudaStream,
    held: Vec<SyncOnDrop<'a>>,
}

/// Evaluates `$body` with `$slice` as the slice of a storage, whatever its element type.
macro_rules! with_slice {
    ($storage:expr, $slice:ident => $body:expr) => {
        match $storage {
            CudaStorageSlice::U8($slice) => $body,
            CudaStorageSlice::U32($slice) => $body,
            CudaStorageSlice::I32($slice) => $body,
            CudaStorageSlice::I64($slice) => $body,
            CudaStorageSlice::F32($slice) => $body,
            CudaStorageSlice::F16($slice) => $body,
            CudaStorageSlice::BF16($slice) => $body,
            _ => bail!("a tensor is of a type that no kernel takes"),
        }
    };
}

impl<'a> Addresses<'a> {
    fn on(queue: &'a Queue) -> Addresses<'a> {
        Addresses {
            stream: &queue.stream,
            held: Vec::new(),
        }
    }

    /// The address of an element of an input.
    fn read(&mut self, storage: &'a CudaStorage, offset: usize) -> Result<CUdeviceptr> {
        let size = storage.dtype().size_in_bytes();
        let (address, held) = with_slice!(&storage.slice, slice => slice.device_ptr(self.stream));
        self.held.push(held);
        Ok(address + (offset * size) as u64)
    }

    /// The address of an output.
    fn write(&mut self, storage: &'a mut CudaStorage) -> Result<CUdeviceptr> {
        let (address, held) =
            with_slice!(&mut storage.slice, slice => slice.device_ptr_mut(self.stream));
        self.held.push(held);
        Ok(address)
    }

    fn write_if(&mut self, storage: &'a mut Option<CudaStorage>) -> Result<Option<CUdeviceptr>> {
        storage.as_mut().map(|s| self.write(s)).transpose()
    }

    /// The address of the first element of a tensor.
    fn tensor<S: Deref<Target = Storage>>(&mut self, tensor: &'a Locked<S>) -> Result<CUdeviceptr> {
        match &*tensor.storage {
            Storage::Cuda(storage) => self.read(storage, tensor.offset),
            Storage::Cpu(_) | Storage::Metal(_) => bail!("a tensor is not on the CUDA device"),
        }
    }

    fn tensor_if<S: Deref<Target = Storage>>(
        &mut self,
        tensor: &'a Option<Locked<S>>,
    ) -> Result<Option<CUdeviceptr>> {
        tensor.as_ref().map(|t| self.tensor(t)).transpose()
    }
}

/// A tensor without gaps whose storage is locked for reading.
struct Locked<S> {
    storage: S,
    offset: usize,
    len: usize,
}

fn locked(tensor: &Tensor) -> Locked<impl Deref<Target = Storage> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    Locked {
        storage,
        offset: layout.start_offset(),
        len: layout.shape().elem_count(),
    }
}

fn matrix(first: CUdeviceptr, view: View) -> Matrix {
    Matrix {
        ptr: first,
        pitch: view.pitch as u64,
    }
}

/// A gate and a value that alternate in a matrix.
fn in_turn(xv: Matrix, order: Halves, block: usize) -> Pair {
    Pair::Interleaved {
        xv,
        order,
        block: block as u64,
    }
}

/// The rows of a view in an output.
fn matrix_in(output: CUdeviceptr, view: View, dtype: Dtype) -> Matrix {
    matrix(output + view.offset as u64 * dtype.size(), view)
}

/// The addresses of `count` consecutive f32.
fn scalars(first: CUdeviceptr, count: usize) -> Vec<CUdeviceptr> {
    (0..count as u64).map(|i| first + 4 * i).collect()
}

fn common<'a>(dtype: Dtype, view: View, params: &'a [CUdeviceptr]) -> raw::Common<'a> {
    raw::Common {
        dtype,
        rows: view.rows as u64,
        cols: view.cols as u64,
        params,
        param_dtype: Dtype::F32,
        blocks: Blocks::All,
    }
}

/// Computes y; returns it with its shape.
pub(crate) fn forward(
    call: &Call,
    tensors: &[Operand<'_, CudaStorage>],
    (params, params_layout): Operand<'_, CudaStorage>,
) -> Result<(CudaStorage, Shape)> {
    let layouts: Vec<&Layout> = tensors.iter().map(|&(_, layout)| layout).collect();
    let at = call.operands(&layouts)?;
    let queue = Queue::of(tensors[0].0)?;
    let dtype = dtype_of(tensors[0].0)?;
    let mut out = queue.room_of(dtype, at.y.rows * at.y.cols)?;
    let mut addresses = Addresses::on(&queue);
    let params = addresses.read(params, params_layout.start_offset())?;
    let params = scalars(params, params_layout.shape().elem_count());
    let common = common(dtype, at.y, &params);
    let x = matrix(addresses.read(tensors[0].0, at.x.offset)?, at.x);
    let y = matrix(addresses.write(&mut out)?, at.y);
    let gated = match (call.form, at.v) {
        (Form::Pair(order) | Form::Halves(order, _), Some(v)) => {
            let of_v = tensors[tensors.len() - 1].0;
            let v = matrix(addresses.read(of_v, v.offset)?, v);
            Some((order, Pair::Separate { x, v }))
        }
        (Form::Interleaved(order, first, block), _) => Some((order, in_turn(x, first, block))),
        _ => None,
    };
    match gated {
        Some((order, xv)) => {
            let op = call.op.as_gated().map_err(of_xact)?;
            let call = raw::GatedForward {
                common,
                order,
                xv,
                y,
            };
            // SAFETY: the tensors are candle's, of the stream's context, and hold the views (their layouts say so);
            // the output is new. candle frees all of them in the order of the stream, after this launch.
            unsafe { raw::gated_forward(&queue.kernels, queue.cu_stream(), op, &call) }
        }
        None => {
            let launch = raw::Forward { common, x, y };
            // SAFETY: as above.
            unsafe { raw::forward(&queue.kernels, queue.cu_stream(), &call.op, &launch) }
        }
    }
    .map_err(of_xact)?;
    drop(addresses);
    Ok((out, call.shape(layouts[0])))
}

/// Computes all gradients in one pass.
pub(crate) fn backward(
    backward: &Backward<'_>,
    tensors: &[Operand<'_, CudaStorage>],
    (dy, dy_layout): Operand<'_, CudaStorage>,
) -> Result<Written<CudaStorage>> {
    let Call { op, form } = &backward.call;
    let layouts: Vec<&Layout> = tensors.iter().map(|&(_, layout)| layout).collect();
    let at = backward.call.operands(&layouts)?;
    let queue = Queue::of(tensors[0].0)?;
    let dtype = dtype_of(tensors[0].0)?;
    let len = tensors[0].1.shape().elem_count();
    let mut written = Written {
        dx: queue.room_of(dtype, len)?,
        dv: match form {
            Form::Pair(_) => Some(queue.room_of(dtype, len)?),
            Form::Plain | Form::Halves(..) | Form::Interleaved(..) => None,
        },
        dparams: None,
    };
    let params = locked(backward.params);
    let (rows, cols) = (at.y.rows as u64, at.y.cols as u64);
    let workspace_bytes = if backward.with_dparams() {
        written.dparams = Some(queue.room::<f32>(params.len)?);
        raw::workspace_bytes(op, dtype, rows, cols).map_err(of_xact)?
    } else {
        0
    };
    let mut workspace = queue.room::<u8>(workspace_bytes as usize)?;
    let mut addresses = Addresses::on(&queue);
    let params = scalars(addresses.tensor(&params)?, params.len);
    let common = common(dtype, at.y, &params);
    let x = matrix(addresses.read(tensors[0].0, at.x.offset)?, at.x);
    let dy = matrix(addresses.read(dy, dy_layout.start_offset())?, at.y);
    let of_dx = addresses.write(&mut written.dx)?;
    let of_dv = addresses.write_if(&mut written.dv)?;
    let out = addresses.write_if(&mut written.dparams)?;
    let out = out.map(|out| scalars(out, params.len()));
    let workspace = addresses.write(&mut workspace)?;
    let dparams = out.as_ref().map(|out| raw::Dparams {
        out,
        accumulate: false,
        workspace,
        workspace_bytes,
    });
    let dx = matrix_in(of_dx, at.dx, dtype);
    let gated = match (*form, at.v, at.dv) {
        (Form::Pair(order) | Form::Halves(order, _), Some(v), Some(dv)) => {
            let of_v = tensors[tensors.len() - 1].0;
            let v = matrix(addresses.read(of_v, v.offset)?, v);
            // dv is in a tensor of its own, or in the other half of dx's tensor.
            let dv = matrix_in(of_dv.unwrap_or(of_dx), dv, dtype);
            let dxv = Pair::Separate { x: dx, v: dv };
            Some((order, Pair::Separate { x, v }, dxv))
        }
        (Form::Interleaved(order, first, block), ..) => {
            Some((order, in_turn(x, first, block), in_turn(dx, first, block)))
        }
        _ => None,
    };
    match gated {
        Some((order, xv, dxv)) => {
            let call = raw::GatedBackward {
                common,
                order,
                xv,
                dy,
                dxv,
                y: None,
                dparams,
            };
            let op = op.as_gated().map_err(of_xact)?;
            // SAFETY: as in `forward`; the workspace is new too, and freed in the order of the stream.
            unsafe { raw::gated_backward(&queue.kernels, queue.cu_stream(), op, &call) }
        }
        None => {
            let call = raw::Backward {
                common,
                x,
                dy,
                dx,
                y: None,
                dparams,
            };
            // SAFETY: as above.
            unsafe { raw::backward(&queue.kernels, queue.cu_stream(), op, &call) }
        }
    }
    .map_err(of_xact)?;
    drop(addresses);
    Ok(written)
}

/// The type of labels or ids in xact.
fn id_type(dtype: DType) -> Result<IdType> {
    match dtype {
        DType::U8 => Ok(IdType::U8),
        DType::U32 => Ok(IdType::U32),
        DType::I32 => Ok(IdType::I32),
        DType::I64 => Ok(IdType::I64),
        other => bail!("{} is no type of labels or ids", other.as_str()),
    }
}

/// Copies of the tokens, without gaps. The ids and the labels are often views of the same storage, and a thread that locks
/// a storage twice can deadlock with a writer in between.
struct OwnTokens {
    ids: Tensor,
    row_len: usize,
    interleaved: usize,
    cu_seqlens: Option<Tensor>,
    preceding: Option<Tensor>,
    halo: Option<Tensor>,
    exempt: Option<Tensor>,
}

impl OwnTokens {
    fn new(tokens: &Tokens) -> Result<OwnTokens> {
        let own = |tensor: &Tensor| tensor.detach().flatten_all()?.contiguous()?.copy();
        let own_if = |tensor: &Option<Tensor>| tensor.as_ref().map(own).transpose();
        Ok(OwnTokens {
            ids: own(&tokens.ids)?,
            row_len: tokens.row_len(),
            interleaved: tokens.interleaved(),
            cu_seqlens: own_if(&tokens.cu_seqlens)?,
            preceding: own_if(&tokens.preceding)?,
            halo: own_if(&tokens.halo)?,
            exempt: own_if(&tokens.exempt)?,
        })
    }
}

fn own_tokens(forward: &Forward) -> Result<Option<OwnTokens>> {
    let goldfish = forward.goldfish.as_ref();
    goldfish
        .map(|(_, tokens)| OwnTokens::new(tokens))
        .transpose()
}

/// The locked labels, weights, tables and tokens of a loss.
struct Deciding<'a, S> {
    forward: &'a Forward,
    own: Option<&'a OwnTokens>,
    labels: Locked<S>,
    weights: Option<Locked<S>>,
    bitmap: Option<Locked<S>>,
    coefficients: Option<Locked<S>>,
    ids: Option<Locked<S>>,
    cu_seqlens: Option<Locked<S>>,
    preceding: Option<Locked<S>>,
    halo: Option<Locked<S>>,
    exempt: Option<Locked<S>>,
}

fn deciding<'a>(
    forward: &'a Forward,
    own: Option<&'a OwnTokens>,
) -> Deciding<'a, impl Deref<Target = Storage> + 'a> {
    let tables = forward.goldfish.as_ref().map(|(goldfish, _)| goldfish);
    Deciding {
        forward,
        own,
        labels: locked(&forward.labels),
        weights: forward.weights.as_ref().map(locked),
        bitmap: tables.and_then(|t| t.bitmap.as_ref()).map(locked),
        coefficients: tables.and_then(|t| t.coefficients.as_ref()).map(locked),
        ids: own.map(|own| locked(&own.ids)),
        cu_seqlens: own.and_then(|own| own.cu_seqlens.as_ref()).map(locked),
        preceding: own.and_then(|own| own.preceding.as_ref()).map(locked),
        halo: own.and_then(|own| own.halo.as_ref()).map(locked),
        exempt: own.and_then(|own| own.exempt.as_ref()).map(locked),
    }
}

impl<S: Deref<Target = Storage>> Deciding<'_, S> {
    fn rows<'b>(&'b self, addresses: &mut Addresses<'b>) -> Result<raw_loss::Rows<'b>> {
        let mut run = |tensor: &'b Option<Locked<S>>| -> Result<DeviceSlice> {
            Ok(DeviceSlice {
                ptr: addresses.tensor_if(tensor)?.unwrap_or(0),
                len: tensor.as_ref().map_or(0, |tensor| tensor.len as u64),
            })
        };
        let goldfish = match (&self.forward.goldfish, self.own) {
            (Some((DeviceGoldfish { goldfish, .. }, _)), Some(own)) => {
                let ids = run(&self.ids)?;
                let (expected, got) = (self.labels.len as u64, ids.len);
                if got != expected {
                    bail!("the tokens have {got} ids, {expected} are needed");
                }
                Some(raw_goldfish::Decision {
                    goldfish,
                    bitmap: run(&self.bitmap)?.ptr,
                    coefficients: run(&self.coefficients)?.ptr,
                    tokens: raw_goldfish::Tokens {
                        hash_ids: ids.ptr,
                        id_type: id_type(own.ids.dtype())?,
                        layout: match (&self.cu_seqlens, &self.preceding) {
                            (Some(_), Some(_)) => raw_goldfish::Layout::Chunks {
                                cu_seqlens: run(&self.cu_seqlens)?,
                                preceding: run(&self.preceding)?,
                            },
                            (Some(_), None) => raw_goldfish::Layout::Documents {
                                cu_seqlens: run(&self.cu_seqlens)?,
                            },
                            (None, _) => raw_goldfish::Layout::Rows {
                                len: own.row_len as u64,
                            },
                        },
                        halo: run(&self.halo)?,
                        exempt: run(&self.exempt)?,
                        interleaved: own.interleaved as u64,
                    },
                })
            }
            _ => None,
        };
        Ok(raw_loss::Rows {
            rows: self.labels.len as u64,
            labels: addresses.tensor(&self.labels)?,
            label_type: id_type(self.forward.labels.dtype())?,
            weights: addresses.tensor_if(&self.weights)?,
            goldfish,
            shard: None,
            blocks: Blocks::All,
        })
    }
}

fn logits_view(layout: &Layout) -> Result<View> {
    match last_dimension(layout, true) {
        Some(view) => Ok(view),
        // `record` copies logits that have no such rows.
        None => bail!("cross_entropy does not take logits with the layout {layout:?}"),
    }
}

fn logits_matrix(first: CUdeviceptr, view: View) -> raw_loss::LogitsMatrix {
    let (group_rows, group_pitch) = view.groups.unwrap_or((0, 0));
    raw_loss::LogitsMatrix {
        ptr: first,
        pitch: view.pitch as u64,
        group_rows: group_rows as u64,
        group_pitch: group_pitch as u64,
    }
}

/// Computes the loss and the other results that are wanted.
pub(crate) fn cross_entropy(
    forward: &Forward,
    (logits, layout): Operand<'_, CudaStorage>,
) -> Result<Results<CudaStorage>> {
    let view = logits_view(layout)?;
    let queue = Queue::of(logits)?;
    let dtype = dtype_of(logits)?;
    let n = forward.labels.elem_count();
    let Wanted { rows: all, saved } = forward.wanted;
    let per_row = |wanted: bool| wanted.then(|| queue.room::<f32>(n)).transpose();
    let mut losses = per_row(all || forward.reduction == Reduction::None)?;
    let (mut z_loss, mut lse) = (per_row(all)?, per_row(all)?);
    let mut argmax = all.then(|| queue.room::<i32>(n)).transpose()?;
    let saved_bytes = forward.op.saved_bytes(n as u64) as usize;
    let mut saved = saved.then(|| queue.room::<u8>(saved_bytes)).transpose()?;
    let mut summary = queue.room::<u32>(WORDS)?;
    let workspace_bytes = raw_loss::workspace_bytes(n as u64);
    let mut workspace = queue.room::<u8>(workspace_bytes as usize)?;
    let tokens = own_tokens(forward)?;
    let normalizer = forward.normalizer.as_ref().map(locked);
    let rows = deciding(forward, tokens.as_ref());
    {
        let mut addresses = Addresses::on(&queue);
        let call = raw_loss::Forward {
            rows: rows.rows(&mut addresses)?,
            logits: raw_loss::Logits {
                dtype,
                cols: view.cols as u64,
                matrix: logits_matrix(addresses.read(logits, view.offset)?, view),
            },
            outputs: raw_loss::Outputs {
                loss: addresses.write_if(&mut losses)?,
                z_loss: addresses.write_if(&mut z_loss)?,
                lse: addresses.write_if(&mut lse)?,
                argmax: addresses.write_if(&mut argmax)?,
                saved: addresses.write_if(&mut saved)?,
                summary: addresses.write(&mut summary)?,
            },
            normalizer: addresses.tensor_if(&normalizer)?,
            scratch: raw_loss::Scratch {
                workspace: addresses.write(&mut workspace)?,
                workspace_bytes,
            },
        };
        // SAFETY: as in the `forward` of activations.
        unsafe { raw_loss::forward(&queue.kernels, queue.cu_stream(), &forward.op, &call) }
            .map_err(of_xact)?;
    }
    let (loss, losses) = match (forward.reduction, losses) {
        (Reduction::None, Some(losses)) => (losses, None),
        (_, losses) => (mean(&queue, &summary)?, losses),
    };
    let rows = match (z_loss, lse, argmax) {
        (Some(z_loss), Some(lse), Some(argmax)) => Some((losses, z_loss, lse, argmax)),
        _ => None,
    };
    Ok(Results {
        loss,
        rows,
        saved,
        summary,
    })
}

/// Copies the mean of a summary, on the device.
fn mean(queue: &Queue, summary: &CudaStorage) -> Result<CudaStorage> {
    let mut mean = queue.room::<f32>(1)?;
    let at = std::mem::offset_of!(CrossEntropySummary, mean) / 4;
    let words = summary.as_cuda_slice::<u32>()?.slice(at..=at);
    // SAFETY: a word of the summary that is an f32, of the same size and alignment.
    let Some(word) = (unsafe { words.transmute::<f32>(1) }) else {
        bail!("the summary is too short")
    };
    queue
        .stream
        .memcpy_dtod(&word, mean.as_cuda_slice_mut::<f32>()?)
        .w()?;
    Ok(mean)
}

/// Computes the gradient of the logits.
pub(crate) fn cross_entropy_gradient(
    gradient: &Gradient<'_>,
    (logits, layout): Operand<'_, CudaStorage>,
) -> Result<CudaStorage> {
    let &Gradient {
        forward,
        made,
        ref dloss,
    } = gradient;
    let view = logits_view(layout)?;
    let queue = Queue::of(logits)?;
    let dtype = dtype_of(logits)?;
    let Some(saved) = &made.saved else {
        bail!("the forward of this loss has saved nothing")
    };
    let mut dlogits = queue.room_of(dtype, view.rows * view.cols)?;
    let tokens = own_tokens(forward)?;
    let (saved, summary, dloss) = (locked(saved), locked(&made.summary), locked(dloss));
    let rows = deciding(forward, tokens.as_ref());
    {
        let mut addresses = Addresses::on(&queue);
        let normalizer = std::mem::offset_of!(CrossEntropySummary, normalizer) as u64;
        let dense = View::dense(view.rows, view.cols);
        let call = raw_loss::Backward {
            rows: rows.rows(&mut addresses)?,
            logits: raw_loss::Logits {
                dtype,
                cols: view.cols as u64,
                matrix: logits_matrix(addresses.read(logits, view.offset)?, view),
            },
            saved: addresses.tensor(&saved)?,
            ranks: 1,
            dlogits: logits_matrix(addresses.write(&mut dlogits)?, dense),
            normalizer: Some(addresses.tensor(&summary)? + normalizer),
            upstream: raw_loss::Upstream {
                dloss: Some(addresses.tensor(&dloss)?),
                stride: i64::from(forward.reduction == Reduction::None),
            },
        };
        // SAFETY: as in the `forward` of activations.
        unsafe { raw_loss::backward(&queue.kernels, queue.cu_stream(), &forward.op, &call) }
            .map_err(of_xact)?;
    }
    Ok(dlogits)
}
