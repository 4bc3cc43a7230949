//! Launches on raw device pointers and a raw stream: the door for tensors of other frameworks, for
//! C, and for CUDA graph capture.
//!
//! The calls check what can be checked on the host (null, alignment, pitches, overlap, workspace
//! size) and write nothing when a check fails. They do not allocate, synchronise or choose a stream.
//! Before a capture, call [`Device::preload`].
//!
//! An output may be the very matrix of an input of the same call (in place); otherwise no element of an
//! output may belong to anything else of the call.

#![allow(unsafe_code)]

use std::num::NonZeroU32;

pub use cudarc::driver::sys::{CUdeviceptr, CUstream};

use cudarc::driver::{CudaStream, DevicePtrMut};

use crate::activation::{self, Activation, Form, Gated, MAX_PARAMS, Order, ParamGradients};
use crate::device::Device;
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::geometry::Cut;
pub use crate::launch::Matrix;
use crate::launch::{ActivationArgs, Entry, Task, launch};
use crate::tensor;

/// Bytes of the pair (sum, compensation) that a chunk leaves for each parameter.
const PARTIAL_BYTES: u64 = 8;

impl Matrix {
    /// A single row.
    pub fn contiguous(ptr: CUdeviceptr, cols: u64) -> Matrix {
        Matrix { ptr, pitch: cols }
    }
}

/// What all calls have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// Type of the tensors.
    pub dtype: Dtype,
    /// Rows.
    pub rows: u64,
    /// Elements in a row.
    pub cols: u64,
    /// One device pointer for each of [`Activation::PARAMS`], to one element; optional parameters at
    /// the end may be left out.
    pub params: &'a [CUdeviceptr],
    /// Type of the parameters: [`Dtype::F32`], or that of the tensors.
    pub param_dtype: Dtype,
    /// The most blocks to launch, to leave SMs to other work; `None` for the fastest. The result is
    /// the same to the bit.
    pub max_blocks: Option<NonZeroU32>,
}

/// The parameter gradients of a backward.
#[derive(Clone, Copy, Debug)]
pub struct Dparams<'a> {
    /// One device pointer for each parameter that the call has, to one f32; those of optional
    /// parameters at the end may be left out.
    pub out: &'a [CUdeviceptr],
    /// Whether they are added to what is there, or overwrite it.
    pub accumulate: bool,
    /// At least [`workspace_bytes`] bytes of device memory, aligned to 8, not used by other work until
    /// the call has completed. Need not be initialised.
    pub workspace: CUdeviceptr,
    /// Its size.
    pub workspace_bytes: u64,
}

/// y = f(x).
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Type, shape, parameters.
    pub common: Common<'a>,
    /// Input.
    pub x: Matrix,
    /// Output.
    pub y: Matrix,
}

/// dx = dy · f′(x), and the gradient of each parameter.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Type, shape, parameters.
    pub common: Common<'a>,
    /// Input of the forward.
    pub x: Matrix,
    /// Gradient with respect to y.
    pub dy: Matrix,
    /// Gradient with respect to x, written.
    pub dx: Matrix,
    /// If given, y is computed again and written here, so that a training stack stores only x.
    pub y: Option<Matrix>,
    /// The parameter gradients.
    pub dparams: Dparams<'a>,
}

/// y = g(x) · v, with g = G or f.
#[derive(Clone, Copy, Debug)]
pub struct GatedForward<'a> {
    /// Type, shape, parameters.
    pub common: Common<'a>,
    /// Which g.
    pub order: Order,
    /// Gate.
    pub x: Matrix,
    /// Value.
    pub v: Matrix,
    /// Output.
    pub y: Matrix,
}

/// dx = dy · v · g′(x), dv = dy · g(x), and the gradient of each parameter.
#[derive(Clone, Copy, Debug)]
pub struct GatedBackward<'a> {
    /// Type, shape, parameters.
    pub common: Common<'a>,
    /// Which g.
    pub order: Order,
    /// Gate.
    pub x: Matrix,
    /// Value.
    pub v: Matrix,
    /// Gradient with respect to y.
    pub dy: Matrix,
    /// Gradient with respect to x, written.
    pub dx: Matrix,
    /// Gradient with respect to v, written.
    pub dv: Matrix,
    /// If given, y is computed again and written here.
    pub y: Option<Matrix>,
    /// The parameter gradients.
    pub dparams: Dparams<'a>,
}

/// Bytes of workspace that a backward of this shape needs, whatever the pitches and the parameters
/// that it has. A larger tensor never needs less.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn workspace_bytes<A: Activation>(dtype: Dtype, rows: u64, cols: u64) -> Result<u64> {
    let chunks = |pitch| Shape::new(dtype, rows, cols, &[pitch]).map(|s| s.cut.chunks_bound);
    let most = chunks(cols)?.max(chunks(u64::MAX)?);
    Ok(most * A::PARAMS.len() as u64 * PARTIAL_BYTES)
}

/// The partial sums that a backward of this shape without gaps really writes, for each parameter.
#[doc(hidden)]
pub fn partials(dtype: Dtype, len: u64) -> Result<u64> {
    Shape::new(dtype, 1, len, &[len]).map(|shape| shape.cut.chunks)
}

/// Launches the forward of `op` on `stream`.
///
/// # Errors
/// [`Error::Length`] (number of parameters), [`Error::ParamDtype`], [`Error::Null`],
/// [`Error::Misaligned`], [`Error::Pitch`], [`Error::TooLarge`], [`Error::Overlap`], or what the
/// launch says. Nothing is written then.
///
/// # Safety
/// The pointers are of the device's context and cover what the shape says, `stream` is a live stream
/// of that context (or a default-stream handle), and until the launch has completed nobody frees the
/// buffers, writes the inputs or touches the output. If the launch was captured into a graph, that holds
/// for every replay of the graph.
pub unsafe fn forward<A: Activation>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Forward<'_>,
) -> Result<()> {
    let buffers = Buffers {
        inputs: &[("x", call.x)],
        outputs: &[("y", Some(call.y))],
    };
    let mut plan = Plan::new(op, &call.common, &buffers)?;
    (plan.args.x, plan.args.y) = (call.x, call.y);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Task::Forward(Form::Plain)) }
}

/// Launches the gated forward of `op` on `stream`.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn gated_forward<A: Gated>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &GatedForward<'_>,
) -> Result<()> {
    let buffers = Buffers {
        inputs: &[("x", call.x), ("v", call.v)],
        outputs: &[("y", Some(call.y))],
    };
    let mut plan = Plan::new(op, &call.common, &buffers)?;
    (plan.args.x, plan.args.v, plan.args.y) = (call.x, call.v, call.y);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Task::Forward(Form::Gated(call.order))) }
}

/// Launches the backward of `op` on `stream`: one pass for dx and the partial sums, and a second small
/// kernel that adds them up.
///
/// # Errors
/// As [`forward`], and [`Error::Workspace`]. Nothing is written then; only if the driver refuses the
/// second launch after it took the first is dx written and the parameter gradients are not.
///
/// # Safety
/// As [`forward`]; the workspace too is not touched by anyone until the launch has completed.
pub unsafe fn backward<A: Activation>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Backward<'_>,
) -> Result<()> {
    let buffers = Buffers {
        inputs: &[("x", call.x), ("dy", call.dy)],
        outputs: &[("dx", Some(call.dx)), ("y", call.y)],
    };
    let mut plan = Plan::new(op, &call.common, &buffers)?;
    plan.add_dparams::<A>(&call.common, &call.dparams)?;
    (plan.args.x, plan.args.dy, plan.args.dx) = (call.x, call.dy, call.dx);
    plan.args.y = call.y.unwrap_or_default();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Task::Backward(Form::Plain)) }
}

/// Launches the gated backward of `op` on `stream`, in the two steps of [`backward`].
///
/// # Errors
/// As [`backward`].
///
/// # Safety
/// As [`backward`].
pub unsafe fn gated_backward<A: Gated>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &GatedBackward<'_>,
) -> Result<()> {
    let buffers = Buffers {
        inputs: &[("x", call.x), ("v", call.v), ("dy", call.dy)],
        outputs: &[("dx", Some(call.dx)), ("dv", Some(call.dv)), ("y", call.y)],
    };
    let mut plan = Plan::new(op, &call.common, &buffers)?;
    plan.add_dparams::<A>(&call.common, &call.dparams)?;
    (plan.args.x, plan.args.v, plan.args.dy) = (call.x, call.v, call.dy);
    (plan.args.dx, plan.args.dv) = (call.dx, call.dv);
    plan.args.y = call.y.unwrap_or_default();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Task::Backward(Form::Gated(call.order))) }
}

/// The matrices of a call, by name.
struct Buffers<'a> {
    inputs: &'a [(&'static str, Matrix)],
    outputs: &'a [(&'static str, Option<Matrix>)],
}

/// A checked call.
struct Plan {
    stem: &'static str,
    shape: Shape,
    max_blocks: Option<NonZeroU32>,
    args: ActivationArgs,
    /// What is read and written so far, for the checks that follow.
    read: Vec<Span>,
    written: Vec<Span>,
}

impl Plan {
    /// Checks the matrices and the parameters, and fills in what does not depend on the task.
    fn new<A: Activation>(op: &A, common: &Common<'_>, buffers: &Buffers<'_>) -> Result<Plan> {
        const { assert!(A::PARAMS.len() <= MAX_PARAMS && A::OPTIONAL <= A::PARAMS.len()) };
        let &Common {
            dtype,
            rows,
            cols,
            params,
            param_dtype,
            max_blocks,
        } = common;
        let outputs = || {
            buffers
                .outputs
                .iter()
                .filter_map(|&(name, m)| Some((name, m?)))
        };
        let matrices = buffers.inputs.iter().copied().chain(outputs());
        let pitches: Vec<_> = matrices.map(|(_, matrix)| matrix.pitch).collect();
        let shape = Shape::new(dtype, rows, cols, &pitches)?;
        check_count(
            "params",
            A::PARAMS.len() - A::OPTIONAL..=A::PARAMS.len(),
            params.len(),
        )?;
        if param_dtype != Dtype::F32 && param_dtype != dtype {
            return Err(Error::ParamDtype {
                params: param_dtype.name(),
                x: dtype.name(),
            });
        }
        let scalars = scalars(A::PARAMS, params, param_dtype)?;
        let span = |(name, matrix)| shape.matrix(name, matrix);
        let inputs = buffers
            .inputs
            .iter()
            .copied()
            .map(span)
            .collect::<Result<Vec<_>>>()?;
        let mut written: Vec<Span> = Vec::new();
        for output in outputs().map(span) {
            let output = output?;
            for input in &inputs {
                output.may_be(input)?;
            }
            for other in scalars.iter().chain(&written) {
                output.disjoint_from(other)?;
            }
            written.push(output);
        }
        let mut args = ActivationArgs {
            rows: shape.rows,
            cols: shape.cols,
            tiles_per_row: shape.cut.tiles_per_row,
            tiles_per_chunk: shape.cut.tiles_per_chunk,
            chunks: shape.cut.chunks,
            params_are_f32: u32::from(param_dtype == Dtype::F32),
            ..ActivationArgs::default()
        };
        args.params[..params.len()].copy_from_slice(params);
        activation::sealed::Options::set_options(op, &mut args);
        Ok(Plan {
            stem: A::NAME,
            shape,
            max_blocks,
            args,
            read: inputs.into_iter().chain(scalars).collect(),
            written,
        })
    }

    /// Checks and fills in the parameter gradients.
    fn add_dparams<A: Activation>(
        &mut self,
        common: &Common<'_>,
        dparams: &Dparams<'_>,
    ) -> Result<()> {
        let most = common.params.len();
        check_count(
            "dparams",
            A::PARAMS.len() - A::OPTIONAL..=most,
            dparams.out.len(),
        )?;
        let pairs = self.shape.cut.chunks * dparams.out.len() as u64;
        let needed = workspace_bytes::<A>(common.dtype, common.rows, common.cols)?;
        if dparams.workspace_bytes < needed {
            return Err(Error::Workspace {
                needed,
                got: dparams.workspace_bytes,
            });
        }
        let mut outputs = scalars(A::GRADIENTS, dparams.out, Dtype::F32)?;
        outputs.push(Span::new(
            "the workspace",
            dparams.workspace,
            1,
            pairs,
            pairs,
            PARTIAL_BYTES,
        )?);
        for output in outputs {
            for other in self.read.iter().chain(&self.written) {
                output.disjoint_from(other)?;
            }
            self.written.push(output);
        }
        self.args.dparams[..dparams.out.len()].copy_from_slice(dparams.out);
        self.args.partials = dparams.workspace;
        self.args.accumulate = u32::from(dparams.accumulate);
        Ok(())
    }

    /// Launches the task, and after a backward the second stage of the sums.
    ///
    /// # Safety
    /// As [`launch()`] for the buffers and the stream; the matrices of the task are filled in.
    unsafe fn launch(&self, device: &Device, stream: CUstream, task: Task) -> Result<()> {
        let entry = |task| Entry {
            stem: self.stem,
            task,
            dtype: self.shape.dtype,
        };
        let sums = matches!(task, Task::Backward(_)).then_some(entry(Task::Dparams));
        // All are loaded before anything is launched, so that a failure to load writes nothing.
        for entry in [Some(entry(task)), sums].into_iter().flatten() {
            device.function(entry)?;
        }
        let chunks = u32::try_from(self.shape.cut.chunks).expect("at most MAX_CHUNKS");
        if chunks > 0 {
            let blocks = self.max_blocks.map_or(chunks, |max| chunks.min(max.get()));
            // SAFETY: the block of parameters is that of an activation's entries, filled for this task;
            // the caller vouches for the buffers and the stream.
            unsafe { launch(device, stream, entry(task), blocks, &self.args) }?;
        }
        if let Some(sums) = sums {
            // SAFETY: as above; the stream orders it after the pass that writes the partials, of which
            // it reads none if there are no chunks.
            unsafe { launch(device, stream, sums, 1, &self.args) }?;
        }
        Ok(())
    }
}

/// The spans of single elements.
fn scalars(
    names: &'static [&'static str],
    pointers: &[CUdeviceptr],
    dtype: Dtype,
) -> Result<Vec<Span>> {
    let scalar = |(&name, &pointer)| Span::new(name, pointer, 1, 1, 1, dtype.size());
    names.iter().zip(pointers).map(scalar).collect()
}

/// The shape of a call and how it is cut. A matrix without gaps becomes a single row.
struct Shape {
    dtype: Dtype,
    rows: u64,
    cols: u64,
    cut: Cut,
}

impl Shape {
    fn new(dtype: Dtype, rows: u64, cols: u64, pitches: &[u64]) -> Result<Shape> {
        let too_large = || Error::TooLarge { rows, cols };
        let (rows, cols) = if pitches.iter().all(|&pitch| pitch == cols) {
            (1, rows.checked_mul(cols).ok_or_else(too_large)?)
        } else {
            (rows, cols)
        };
        let cut = Cut::new(rows, cols, dtype.size()).ok_or_else(too_large)?;
        Ok(Shape {
            dtype,
            rows,
            cols,
            cut,
        })
    }

    fn matrix(&self, what: &'static str, matrix: Matrix) -> Result<Span> {
        if self.rows > 1 && matrix.pitch < self.cols {
            return Err(Error::Pitch {
                what,
                pitch: matrix.pitch,
                cols: self.cols,
            });
        }
        let Matrix { ptr, pitch } = matrix;
        Span::new(what, ptr, self.rows, self.cols, pitch, self.dtype.size())
    }
}

fn check_count(
    what: &'static str,
    expected: std::ops::RangeInclusive<usize>,
    got: usize,
) -> Result<()> {
    if expected.contains(&got) {
        return Ok(());
    }
    Err(Error::Length {
        what,
        expected: *expected.start() as u64,
        got: got as u64,
    })
}

/// The bytes of a buffer: `rows` runs of `row_bytes`, `pitch_bytes` apart.
struct Span {
    what: &'static str,
    start: u64,
    rows: u64,
    row_bytes: u64,
    pitch_bytes: u64,
    /// One past the last byte.
    end: u64,
}

impl Span {
    fn new(
        what: &'static str,
        start: u64,
        rows: u64,
        cols: u64,
        pitch: u64,
        element: u64,
    ) -> Result<Span> {
        let empty = rows == 0 || cols == 0;
        if start == 0 && !empty {
            return Err(Error::Null { what });
        }
        if !start.is_multiple_of(element) {
            return Err(Error::Misaligned {
                what,
                address: start,
                alignment: element,
            });
        }
        let too_large = || Error::TooLarge { rows, cols };
        let row_bytes = cols.checked_mul(element).ok_or_else(too_large)?;
        // The pitch of a single row is never used.
        let pitch = if rows > 1 { pitch } else { cols };
        let pitch_bytes = pitch.checked_mul(element).ok_or_else(too_large)?;
        let end = if empty {
            start
        } else {
            (rows - 1)
                .checked_mul(pitch_bytes)
                .and_then(|b| b.checked_add(row_bytes))
                .and_then(|b| b.checked_add(start))
                .ok_or_else(too_large)?
        };
        Ok(Span {
            what,
            start,
            rows,
            row_bytes,
            pitch_bytes,
            end,
        })
    }

    /// Whether `self` and `other` are free of common bytes, or might not be.
    fn overlaps(&self, other: &Span) -> bool {
        if self.start == self.end || other.start == other.end {
            return false;
        }
        if self.end <= other.start || other.end <= self.start {
            return false;
        }
        // Columns of one larger matrix, such as the gate and value halves: the rows interleave. (With
        // equal pitches the distance modulo the pitch is the same for every pair of rows.)
        if self.rows > 1 && other.rows > 1 && self.pitch_bytes == other.pitch_bytes {
            let pitch = self.pitch_bytes;
            let ahead = (i128::from(other.start) - i128::from(self.start))
                .rem_euclid(i128::from(pitch)) as u64;
            return ahead < self.row_bytes || ahead > pitch - other.row_bytes;
        }
        true
    }

    fn disjoint_from(&self, other: &Span) -> Result<()> {
        if self.overlaps(other) {
            return Err(Error::Overlap {
                output: self.what,
                other: other.what,
            });
        }
        Ok(())
    }

    /// In place, or apart: each element is read before it is written by the same thread.
    fn may_be(&self, input: &Span) -> Result<()> {
        if self.start == input.start && self.pitch_bytes == input.pitch_bytes {
            return Ok(());
        }
        self.disjoint_from(input)
    }
}

// The safe API's way in: these hold the borrows of all buffers over the launch, check what the types do
// not say, and resolve the buffers only when all is well.

/// Checks each parameter, and calls `f` with their addresses.
fn with_params<A: Activation, P: Element>(
    device: &Device,
    stream: &CudaStream,
    params: &A::Params<'_, P>,
    f: impl FnOnce(&[CUdeviceptr]) -> Result<()>,
) -> Result<()> {
    let params = activation::sealed::Scalars::list(params);
    for (&name, &param) in A::PARAMS.iter().zip(&params) {
        check_scalar(name, device, param.stream(), param.len())?;
    }
    let (pointers, _guards): (Vec<_>, Vec<_>) =
        params.iter().map(|param| param.device_ptr(stream)).unzip();
    f(&pointers)
}

/// Checks the parameter gradients and their workspace, and calls `f` with their addresses.
fn with_dparams<A: Activation>(
    device: &Device,
    stream: &CudaStream,
    gradients: ParamGradients<'_, A>,
    f: impl FnOnce(&Dparams<'_>) -> Result<()>,
) -> Result<()> {
    let ParamGradients {
        mut out,
        accumulate,
        workspace,
    } = gradients;
    let mut out = activation::sealed::ScalarsMut::list_mut(&mut out);
    for (&name, buffer) in A::GRADIENTS.iter().zip(&out) {
        check_scalar(name, device, buffer.stream(), buffer.len())?;
    }
    let workspace_bytes = workspace.bytes();
    let workspace = workspace.buffer_for(stream)?;
    let (pointers, _guards): (Vec<_>, Vec<_>) = out
        .iter_mut()
        .map(|buffer| buffer.device_ptr_mut(stream))
        .unzip();
    let (workspace, _guard) = workspace.device_ptr_mut(stream);
    f(&Dparams {
        out: &pointers,
        accumulate,
        workspace,
        workspace_bytes,
    })
}

fn check_scalar(
    what: &'static str,
    device: &Device,
    stream: &CudaStream,
    len: usize,
) -> Result<()> {
    device.check_buffer(what, stream)?;
    check_count(what, 1..=1, len)
}

fn common<'a, T: Element, P: Element>(
    shape: tensor::Shape,
    params: &'a [CUdeviceptr],
) -> Common<'a> {
    Common {
        dtype: T::DTYPE,
        rows: shape.rows as u64,
        cols: shape.cols as u64,
        params,
        param_dtype: P::DTYPE,
        max_blocks: None,
    }
}

pub(crate) fn safe_forward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::Forward<'_, A, T, P>,
) -> Result<()> {
    let activation::Forward { x, params, mut y } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), y.explicit()]);
    let (x_rows, y_rows) = (x.check("x", device, shape)?, y.check("y", device, shape)?);
    with_params::<A, P>(device, stream, &params, |params| {
        let (x, y) = (x.resolve(stream, x_rows), y.resolve(stream, y_rows));
        let call = Forward {
            common: common::<T, P>(shape, params),
            x: x.matrix,
            y: y.matrix,
        };
        // SAFETY: all buffers are borrowed here, y mutably, hold what the shape says as checked above,
        // and are of the device's context, as is the stream; cudarc orders their later use and freeing
        // after the launch.
        unsafe { forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn safe_forward_in_place<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::ForwardInPlace<'_, A, T, P>,
) -> Result<()> {
    let activation::ForwardInPlace { mut x, params } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit()]);
    let rows = x.check("x", device, shape)?;
    with_params::<A, P>(device, stream, &params, |params| {
        let x = x.resolve(stream, rows);
        let call = Forward {
            common: common::<T, P>(shape, params),
            x: x.matrix,
            y: x.matrix,
        };
        // SAFETY: as in safe_forward.
        unsafe { forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn safe_backward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::Backward<'_, A, T, P>,
) -> Result<()> {
    let activation::Backward {
        x,
        dy,
        mut dx,
        mut y,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let of_y = y.as_ref().and_then(|y| y.explicit());
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), dy.explicit(), dx.explicit(), of_y]);
    let (x_rows, dy_rows) = (x.check("x", device, shape)?, dy.check("dy", device, shape)?);
    let dx_rows = dx.check("dx", device, shape)?;
    let y_rows = y
        .as_ref()
        .map(|y| y.check("y", device, shape))
        .transpose()?;
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, dy) = (x.resolve(stream, x_rows), dy.resolve(stream, dy_rows));
            let dx = dx.resolve(stream, dx_rows);
            let y = y
                .as_mut()
                .zip(y_rows)
                .map(|(y, rows)| y.resolve(stream, rows));
            let call = Backward {
                common: common::<T, P>(shape, params),
                x: x.matrix,
                dy: dy.matrix,
                dx: dx.matrix,
                y: y.as_ref().map(|y| y.matrix),
                dparams: *dparams,
            };
            // SAFETY: as in safe_forward; the workspace is of this stream.
            unsafe { backward(device, stream.cu_stream(), op, &call) }
        })
    })
}

pub(crate) fn safe_backward_in_place<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::BackwardInPlace<'_, A, T, P>,
) -> Result<()> {
    let activation::BackwardInPlace {
        x,
        mut dy,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), dy.explicit()]);
    let (x_rows, dy_rows) = (x.check("x", device, shape)?, dy.check("dy", device, shape)?);
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, dy) = (x.resolve(stream, x_rows), dy.resolve(stream, dy_rows));
            let call = Backward {
                common: common::<T, P>(shape, params),
                x: x.matrix,
                dy: dy.matrix,
                dx: dy.matrix,
                y: None,
                dparams: *dparams,
            };
            // SAFETY: as in safe_forward; the workspace is of this stream.
            unsafe { backward(device, stream.cu_stream(), op, &call) }
        })
    })
}

pub(crate) fn safe_gated_forward<A: Gated, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    order: Order,
    call: activation::GatedForward<'_, A, T, P>,
) -> Result<()> {
    let activation::GatedForward {
        x,
        v,
        params,
        mut y,
    } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), v.explicit(), y.explicit()]);
    let (x_rows, v_rows) = (x.check("x", device, shape)?, v.check("v", device, shape)?);
    let y_rows = y.check("y", device, shape)?;
    with_params::<A, P>(device, stream, &params, |params| {
        let (x, v) = (x.resolve(stream, x_rows), v.resolve(stream, v_rows));
        let y = y.resolve(stream, y_rows);
        let call = GatedForward {
            common: common::<T, P>(shape, params),
            order,
            x: x.matrix,
            v: v.matrix,
            y: y.matrix,
        };
        // SAFETY: as in safe_forward.
        unsafe { gated_forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn safe_gated_backward<A: Gated, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    order: Order,
    call: activation::GatedBackward<'_, A, T, P>,
) -> Result<()> {
    let activation::GatedBackward {
        x,
        v,
        dy,
        mut gradient,
        mut y,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let of_y = y.as_ref().and_then(|y| y.explicit());
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), v.explicit(), dy.explicit(), of_y]);
    let (x_rows, v_rows) = (x.check("x", device, shape)?, v.check("v", device, shape)?);
    let dy_rows = dy.check("dy", device, shape)?;
    let gradient_rows = gradient.check(device, shape)?;
    let y_rows = y
        .as_ref()
        .map(|y| y.check("y", device, shape))
        .transpose()?;
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, v) = (x.resolve(stream, x_rows), v.resolve(stream, v_rows));
            let dy = dy.resolve(stream, dy_rows);
            let (dx, dv, _guards) = gradient.resolve(stream, &gradient_rows);
            let y = y
                .as_mut()
                .zip(y_rows)
                .map(|(y, rows)| y.resolve(stream, rows));
            let call = GatedBackward {
                common: common::<T, P>(shape, params),
                order,
                x: x.matrix,
                v: v.matrix,
                dy: dy.matrix,
                dx,
                dv,
                y: y.as_ref().map(|y| y.matrix),
                dparams: *dparams,
            };
            // SAFETY: as in safe_forward; the workspace is of this stream.
            unsafe { gated_backward(device, stream.cu_stream(), op, &call) }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, rows: u64, cols: u64, pitch: u64) -> Span {
        Span::new("span", start, rows, cols, pitch, 2).unwrap()
    }

    /// Against the definition: two matrices overlap if they share a byte. Exact where both have rows of
    /// the same pitch; otherwise matrices whose ranges (first to last byte) meet count as overlapping,
    /// though one may lie in the gaps of the other.
    #[test]
    fn overlap_is_never_missed_and_halves_are_apart() {
        let bytes = |s: &Span| {
            (0..s.rows)
                .flat_map(|r| (0..s.row_bytes).map(move |b| s.start + r * s.pitch_bytes + b))
                .collect::<std::collections::HashSet<_>>()
        };
        let shapes = [
            (1, 8, 8),
            (3, 4, 8),
            (2, 3, 9),
            (4, 2, 8),
            (3, 6, 8),
            (2, 8, 8),
            (0, 4, 8),
        ];
        let (mut interleaved, mut conservative) = (0, 0);
        for start in 0..60 {
            for (rows, cols, pitch) in shapes {
                for (rows2, cols2, pitch2) in
                    [(3, 4, 8), (1, 5, 5), (2, 4, 8), (3, 2, 7), (4, 7, 8)]
                {
                    let a = span(16 + 2 * start, rows, cols, pitch);
                    let b = span(64, rows2, cols2, pitch2);
                    let share = !bytes(&a).is_disjoint(&bytes(&b));
                    let meet = rows > 0 && a.start < b.end && b.start < a.end;
                    let exact = rows > 1 && rows2 > 1 && pitch == pitch2;
                    let expected = if exact { share } else { meet };
                    let pair = (start, (rows, cols, pitch), (rows2, cols2, pitch2));
                    assert_eq!(a.overlaps(&b), expected, "{pair:?}");
                    assert_eq!(b.overlaps(&a), expected, "{pair:?}");
                    assert!(expected || !share, "{pair:?}");
                    interleaved += u32::from(meet && !expected);
                    conservative += u32::from(expected && !share);
                }
            }
        }
        assert!(interleaved > 0 && conservative > 0, "both kinds were tried");
        let (gate, value) = (span(1024, 5, 100, 200), span(1024 + 200, 5, 100, 200));
        assert!(!gate.overlaps(&value) && !value.overlaps(&gate));
        assert!(gate.overlaps(&span(1024 + 198, 5, 100, 200)));
    }

    #[test]
    fn spans_that_do_not_fit_are_refused() {
        assert!(Span::new("x", 16, u64::MAX, 2, u64::MAX, 2).is_err());
        assert!(Span::new("x", u64::MAX - 1, 1, 4, 4, 2).is_err());
        assert_eq!(
            Span::new("x", 0, 1, 4, 4, 2).err(),
            Some(Error::Null { what: "x" })
        );
        assert!(Span::new("x", 0, 1, 0, 0, 2).is_ok());
        assert!(matches!(
            Span::new("x", 3, 1, 4, 4, 2),
            Err(Error::Misaligned { .. })
        ));
    }
}
