//! The device functions: they convert the header's types to those of `xact::raw`, and call that.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::num::NonZeroU32;

use xact::raw::{Blocks, CUdeviceptr, CUstream, Matrix, cross_entropy as loss, goldfish};
use xact::{Activation, AnyActivation, CrossEntropy, Device, Dtype, raw};

use crate::context::{self, Restored};
use crate::goldfish::xact_goldfish;
use crate::memory;
use crate::options::{self, unknown};
use crate::status::{Failure, Result};
use crate::types::*;

/// A device with the kernels in one of its contexts.
pub struct xact_device(Device);

pub fn kernels_built() -> Result<()> {
    Ok(xact::cuda::check_kernels()?)
}

pub fn cuda_available() -> Result<()> {
    kernels_built()?;
    Ok(xact::cuda::check_driver()?)
}

pub unsafe fn open(ordinal: i32, out: *mut *mut xact_device) -> Result<()> {
    memory::check_place("device", out)?;
    cuda_available()?;
    let _restored = Restored::new();
    // A negative ordinal becomes one that no device has.
    let device = context::device(usize::try_from(ordinal).unwrap_or(i32::MAX as usize))?;
    // SAFETY: the caller vouches for the place.
    unsafe { put_device(out, device) }
}

pub unsafe fn open_current(out: *mut *mut xact_device) -> Result<()> {
    memory::check_place("device", out)?;
    cuda_available()?;
    let _restored = Restored::new();
    let device = context::current_device()?;
    // SAFETY: the caller vouches for the place.
    unsafe { put_device(out, device) }
}

unsafe fn put_device(out: *mut *mut xact_device, device: Device) -> Result<()> {
    let handle = Box::into_raw(Box::new(xact_device(device)));
    // SAFETY: the caller vouches for the place.
    unsafe { memory::put("device", out, handle) }
}

pub unsafe fn preload(device: *const xact_device, name: *const c_char) -> Result<()> {
    // SAFETY: the caller vouches for the handle and the string.
    unsafe {
        let device = &memory::handle("device", device)?.0;
        let _restored = Restored::new();
        if name.is_null() {
            return Ok(device.preload()?);
        }
        Ok(device.preload_op(&memory::text("name", name)?)?)
    }
}

pub unsafe fn close(device: *mut xact_device) -> Result<()> {
    if !device.is_null() {
        memory::check_place("device", device)?;
        let _restored = Restored::new();
        // SAFETY: `open` made it, and the caller closes it once.
        drop(unsafe { Box::from_raw(device) });
    }
    Ok(())
}

fn blocks(number: i64) -> Result<Blocks> {
    const ALL: i64 = XACT_BLOCKS_ALL as i64;
    const RESIDENT: i64 = XACT_BLOCKS_RESIDENT as i64;
    match number {
        ALL => Ok(Blocks::All),
        RESIDENT => Ok(Blocks::Resident),
        _ => u32::try_from(number)
            .ok()
            .and_then(NonZeroU32::new)
            .map(Blocks::AtMost)
            .ok_or_else(|| {
                let text = format!(
                    "blocks is {number}; it must be a count or one of the XACT_BLOCKS numbers"
                );
                Failure::new(XACT_ERROR_ENUM, text)
            }),
    }
}

/// An address on the device.
fn address<T>(ptr: *const T) -> CUdeviceptr {
    ptr.addr() as CUdeviceptr
}

/// An address on the device; `None` if the pointer is null.
fn given<T>(ptr: *const T) -> Option<CUdeviceptr> {
    (!ptr.is_null()).then(|| address(ptr))
}

fn matrix(matrix: xact_matrix, cols: u64) -> Matrix {
    Matrix {
        ptr: address(matrix.ptr),
        pitch: if matrix.pitch == 0 {
            cols
        } else {
            matrix.pitch
        },
    }
}

/// A gate and a value, or their gradients.
fn pair(args: &xact_activation_args, x: xact_matrix, v: xact_matrix) -> Result<raw::Pair> {
    let cols = args.cols;
    Ok(match options::interleaved(args)? {
        None => raw::Pair::Separate {
            x: matrix(x, cols),
            v: matrix(v, cols),
        },
        Some((order, block)) => raw::Pair::Interleaved {
            xv: matrix(x, cols.saturating_mul(2)),
            order,
            block,
        },
    })
}

/// Writes the addresses in an array of `count` pointers to scalars to `addresses`, and returns `count`. Fails if there are
/// more pointers than names.
unsafe fn scalars<T>(
    what: &'static str,
    names: &'static [&'static str],
    pointers: *const *const T,
    count: u64,
    addresses: &mut [CUdeviceptr; XACT_MAX_PARAMS],
) -> Result<usize> {
    let count = options::scalar_names(what, names, count)?.len();
    // SAFETY: the caller vouches for the array.
    let pointers = unsafe { memory::array(what, pointers, count as u64) }?;
    for (address, &pointer) in addresses.iter_mut().zip(pointers) {
        *address = self::address(pointer);
    }
    Ok(count)
}

pub unsafe fn activation_workspace_bytes(
    op: *const xact_activation,
    dtype: i32,
    rows: u64,
    cols: u64,
    bytes: *mut u64,
) -> Result<()> {
    // SAFETY: the caller vouches for both.
    unsafe {
        let op = options::activation(op)?;
        let needed = raw::workspace_bytes(&op, options::dtype("dtype", dtype)?, rows, cols)?;
        memory::put("bytes", bytes, needed)
    }
}

pub unsafe fn activation_forward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    let (device, op, args) = unsafe {
        (
            &memory::handle("device", device)?.0,
            options::activation(op)?,
            memory::read(args)?,
        )
    };
    let mut params = [0; XACT_MAX_PARAMS];
    // SAFETY: the caller vouches for the array.
    let common = unsafe { common(&op, &args, &mut params) }?;
    let at = |given| matrix(given, args.cols);
    let stream = stream as CUstream;
    let _restored = Restored::new();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        match options::order(args.order)? {
            None => {
                let (x, y) = (at(args.x), at(args.y));
                raw::forward(device, stream, &op, &raw::Forward { common, x, y })?;
            }
            Some(order) => {
                let call = raw::GatedForward {
                    common,
                    order,
                    xv: pair(&args, args.x, args.v)?,
                    y: at(args.y),
                };
                raw::gated_forward(device, stream, op.as_gated()?, &call)?;
            }
        }
    }
    Ok(())
}

pub unsafe fn activation_backward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    let (device, op, args) = unsafe {
        (
            &memory::handle("device", device)?.0,
            options::activation(op)?,
            memory::read(args)?,
        )
    };
    let mut params = [0; XACT_MAX_PARAMS];
    // SAFETY: the caller vouches for the array.
    let common = unsafe { common(&op, &args, &mut params) }?;
    let mut gradients = [0; XACT_MAX_PARAMS];
    let dparams = if args.dparams.is_null() && args.dparam_count == 0 {
        None
    } else {
        let names = op.signature().gradients;
        let pointers = args.dparams.cast::<*const f32>();
        // SAFETY: the caller vouches for the array.
        let count = unsafe {
            scalars(
                "dparams",
                names,
                pointers,
                args.dparam_count,
                &mut gradients,
            )
        }?;
        Some(raw::Dparams {
            out: &gradients[..count],
            accumulate: options::wide_flag("accumulate", args.accumulate)?,
            workspace: address(args.workspace),
            workspace_bytes: args.workspace_bytes,
        })
    };
    let at = |given| matrix(given, args.cols);
    let dy = at(args.dy);
    let y = given(args.y.ptr).map(|_| at(args.y));
    let stream = stream as CUstream;
    let _restored = Restored::new();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe {
        match options::order(args.order)? {
            None => {
                let call = raw::Backward {
                    common,
                    x: at(args.x),
                    dy,
                    dx: at(args.dx),
                    y,
                    dparams,
                };
                raw::backward(device, stream, &op, &call)?;
            }
            Some(order) => {
                let call = raw::GatedBackward {
                    common,
                    order,
                    xv: pair(&args, args.x, args.v)?,
                    dy,
                    dxv: pair(&args, args.dx, args.dv)?,
                    y,
                    dparams,
                };
                raw::gated_backward(device, stream, op.as_gated()?, &call)?;
            }
        }
    }
    Ok(())
}

unsafe fn common<'a>(
    op: &AnyActivation,
    args: &xact_activation_args,
    params: &'a mut [CUdeviceptr; XACT_MAX_PARAMS],
) -> Result<raw::Common<'a>> {
    let names = op.signature().params;
    // SAFETY: the caller vouches for the array.
    let count = unsafe { scalars("params", names, args.params, args.param_count, params) }?;
    Ok(raw::Common {
        dtype: options::dtype("dtype", args.dtype)?,
        rows: args.rows,
        cols: args.cols,
        params: &params[..count],
        param_dtype: options::param_dtype(args.param_dtype)?,
        blocks: blocks(args.blocks.into())?,
    })
}

fn id_type(what: &str, number: i32) -> Result<goldfish::IdType> {
    match number {
        XACT_ID_U8 => Ok(goldfish::IdType::U8),
        XACT_ID_U16 => Ok(goldfish::IdType::U16),
        XACT_ID_U32 => Ok(goldfish::IdType::U32),
        XACT_ID_I32 => Ok(goldfish::IdType::I32),
        XACT_ID_I64 => Ok(goldfish::IdType::I64),
        other => Err(unknown(what, other.into(), "XACT_ID")),
    }
}

unsafe fn decision<'a>(
    decision: *const xact_decision,
    labels: u64,
) -> Result<goldfish::Decision<'a>> {
    // SAFETY: the caller vouches for the struct and for the handle in it.
    let (given, strategy): (_, &xact_goldfish) = unsafe {
        let given = memory::read(decision)?;
        (given, memory::handle("goldfish", given.goldfish)?)
    };
    let run = |ptr, len| goldfish::DeviceSlice { ptr, len };
    let layout = match given.layout {
        XACT_LAYOUT_ROWS => goldfish::Layout::Rows {
            len: if given.row_len == 0 {
                labels
            } else {
                given.row_len
            },
        },
        XACT_LAYOUT_DOCUMENTS => goldfish::Layout::Documents {
            cu_seqlens: run(address(given.cu_seqlens), given.cu_seqlens_len),
        },
        XACT_LAYOUT_CHUNKS => goldfish::Layout::Chunks {
            cu_seqlens: run(address(given.cu_seqlens), given.cu_seqlens_len),
            preceding: run(address(given.preceding), given.preceding_len),
        },
        other => return Err(unknown("layout", other.into(), "XACT_LAYOUT")),
    };
    Ok(goldfish::Decision {
        goldfish: strategy.strategy(),
        bitmap: address(given.bitmap),
        coefficients: address(given.coefficients),
        tokens: goldfish::Tokens {
            hash_ids: address(given.hash_ids),
            id_type: id_type("id_type", given.id_type)?,
            layout,
            halo: run(address(given.halo), given.halo_len),
            exempt: run(address(given.exempt), given.exempt_len),
            interleaved: given.interleaved.max(1),
        },
    })
}

pub unsafe fn goldfish_workspace_bytes(labels: u64, bytes: *mut u64) -> Result<()> {
    // SAFETY: the caller vouches for the place.
    unsafe { memory::put("bytes", bytes, goldfish::workspace_bytes(labels)) }
}

pub unsafe fn goldfish_mask(
    device: *const xact_device,
    stream: *mut c_void,
    args: *const xact_goldfish_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let device = &memory::handle("device", device)?.0;
        let args = memory::read(args)?;
        let call = goldfish::Mask {
            decision: decision(args.decision, args.labels)?,
            labels: args.labels,
            keep: given(args.keep),
            weights: given(args.weights),
            counts: given(args.counts).map(|out| goldfish::Counts {
                out,
                workspace: address(args.workspace),
                workspace_bytes: args.workspace_bytes,
            }),
            blocks: blocks(args.blocks)?,
        };
        let _restored = Restored::new();
        Ok(goldfish::mask(device, stream as CUstream, &call)?)
    }
}

pub unsafe fn cross_entropy_workspace_bytes(rows: u64, bytes: *mut u64) -> Result<()> {
    // SAFETY: the caller vouches for the place.
    unsafe { memory::put("bytes", bytes, loss::workspace_bytes(rows)) }
}

/// The arguments that all calls of the loss have.
struct Call<'a> {
    device: &'a Device,
    op: CrossEntropy,
    args: xact_cross_entropy_args,
    rows: loss::Rows<'a>,
}

impl Call<'_> {
    unsafe fn new(
        device: *const xact_device,
        op: *const xact_cross_entropy,
        args: *const xact_cross_entropy_args,
    ) -> Result<Self> {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            let device = &memory::handle("device", device)?.0;
            let op = options::cross_entropy(op)?;
            let args = memory::read(args)?;
            let goldfish = if args.decision.is_null() {
                None
            } else {
                Some(decision(args.decision, args.rows)?)
            };
            let rows = loss::Rows {
                rows: args.rows,
                labels: address(args.labels),
                label_type: id_type("label_type", args.label_type)?,
                weights: given(args.weights),
                goldfish,
                shard: None,
                blocks: blocks(args.blocks.into())?,
            };
            Ok(Call {
                device,
                op,
                args,
                rows,
            })
        }
    }

    /// As `new`, and with the rank's columns if `first_class` or `classes` is set.
    unsafe fn of_rank(
        device: *const xact_device,
        op: *const xact_cross_entropy,
        args: *const xact_cross_entropy_args,
    ) -> Result<Self> {
        // SAFETY: the caller vouches for all of it.
        let mut call = unsafe { Call::new(device, op, args) }?;
        let xact_cross_entropy_args {
            first_class,
            classes,
            ..
        } = call.args;
        if (first_class, classes) != (0, 0) {
            call.rows.shard = Some(loss::Shard::new(first_class, classes));
        }
        Ok(call)
    }

    fn dtype(&self) -> Result<Dtype> {
        options::dtype("dtype", self.args.dtype)
    }

    fn matrix(&self, matrix: xact_logits_matrix) -> loss::LogitsMatrix {
        let pitch = match matrix.pitch {
            0 => self.args.cols,
            pitch => pitch,
        };
        loss::LogitsMatrix {
            ptr: address(matrix.ptr),
            pitch,
            group_rows: matrix.group_rows,
            group_pitch: matrix.group_pitch,
        }
    }

    fn logits(&self) -> Result<loss::Logits> {
        Ok(loss::Logits {
            dtype: self.dtype()?,
            cols: self.args.cols,
            matrix: self.matrix(self.args.logits),
        })
    }

    fn outputs(&self) -> loss::Outputs {
        loss::Outputs {
            loss: given(self.args.loss),
            z_loss: given(self.args.z_loss),
            lse: given(self.args.lse),
            argmax: given(self.args.argmax),
            saved: given(self.args.saved),
            summary: address(self.args.summary),
        }
    }

    fn scratch(&self) -> loss::Scratch {
        loss::Scratch {
            workspace: address(self.args.workspace),
            workspace_bytes: self.args.workspace_bytes,
        }
    }

    fn upstream(&self) -> loss::Upstream {
        loss::Upstream {
            dloss: given(self.args.dloss),
            stride: self.args.dloss_stride,
        }
    }

    fn ranks(&self) -> u64 {
        self.args.ranks.max(1)
    }

    fn forward(&self) -> Result<loss::Forward<'_>> {
        Ok(loss::Forward {
            rows: self.rows,
            logits: self.logits()?,
            outputs: self.outputs(),
            normalizer: given(self.args.normalizer),
            scratch: self.scratch(),
        })
    }

    /// Launches a function of the loss, and restores the thread's current context.
    unsafe fn launch<C>(
        &self,
        stream: *mut c_void,
        function: unsafe fn(&Device, CUstream, &CrossEntropy, &C) -> xact::Result<()>,
        call: &C,
    ) -> Result<()> {
        let _restored = Restored::new();
        // SAFETY: the caller vouches for the buffers and the stream.
        Ok(unsafe { function(self.device, stream as CUstream, &self.op, call) }?)
    }
}

pub unsafe fn cross_entropy_forward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let call = Call::new(device, op, args)?;
        let forward = call.forward()?;
        call.launch(stream, loss::forward, &forward)
    }
}

pub unsafe fn cross_entropy_forward_with_gradient(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let call = Call::new(device, op, args)?;
        let both = loss::ForwardWithGradient {
            forward: call.forward()?,
            upstream: call.upstream(),
            cluster: NonZeroU32::new(call.args.cluster),
        };
        call.launch(stream, loss::forward_with_gradient, &both)
    }
}

pub unsafe fn cross_entropy_backward(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let call = Call::of_rank(device, op, args)?;
        let backward = loss::Backward {
            rows: call.rows,
            logits: call.logits()?,
            saved: address(call.args.gathered),
            ranks: call.ranks(),
            dlogits: call.matrix(call.args.dlogits),
            normalizer: given(call.args.normalizer),
            upstream: call.upstream(),
        };
        call.launch(stream, loss::backward, &backward)
    }
}

pub unsafe fn cross_entropy_partial_stats(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let call = Call::of_rank(device, op, args)?;
        let partial = loss::PartialStats {
            rows: call.rows,
            logits: call.logits()?,
            with_argmax: options::wide_flag("with_argmax", call.args.with_argmax)?,
            saved: address(call.args.saved),
            scratch: call.scratch(),
        };
        call.launch(stream, loss::partial_stats, &partial)
    }
}

pub unsafe fn cross_entropy_finish(
    device: *const xact_device,
    stream: *mut c_void,
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let call = Call::of_rank(device, op, args)?;
        let finish = loss::Finish {
            rows: call.rows,
            gathered: address(call.args.gathered),
            ranks: call.ranks(),
            outputs: call.outputs(),
            normalizer: given(call.args.normalizer),
            scratch: call.scratch(),
        };
        call.launch(stream, loss::finish, &finish)
    }
}
