//! Activations on raw device pointers.

#![allow(unsafe_code)]

use arrayvec::ArrayVec;

use super::{Blocks, CUdeviceptr, CUstream};
use crate::activation::{Activation, Gated, MAX_PARAMS, Order, SIGNATURES, Signature};
use crate::blocks::{ActivationArgs, Matrix};
use crate::cuda::device::Device;
use crate::cuda::entry::Entry;
use crate::cuda::grid::Grid;
use crate::cuda::launch::launch;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::geometry::{Chunks, FOLDS, Tiling, VECTOR_BYTES};
use crate::shape::{Halves, Interleaving};
use crate::span::Span;

/// The form of an activation: plain, or gated with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Plain,
    Gated(Order),
}

impl Form {
    const PLAIN: &[Form] = &[Form::Plain];
    const ALL: &[Form] = &[
        Form::Plain,
        Form::Gated(Order::First),
        Form::Gated(Order::Second),
    ];

    /// The name of the forward task in kernel entries.
    const fn forward(self) -> &'static str {
        match self {
            Form::Plain => "forward",
            Form::Gated(Order::First) => "gated1_forward",
            Form::Gated(Order::Second) => "gated2_forward",
        }
    }

    /// The name of the backward task in kernel entries.
    const fn backward(self) -> &'static str {
        match self {
            Form::Plain => "backward",
            Form::Gated(Order::First) => "gated1_backward",
            Form::Gated(Order::Second) => "gated2_backward",
        }
    }
}

/// The name of the task that adds up the parameter gradients (the second stage).
const DPARAMS: &str = "dparams";

/// All kernel entries of the activations.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    SIGNATURES
        .iter()
        .flat_map(|&Signature { name, gated, .. }| {
            let forms = if gated { Form::ALL } else { Form::PLAIN };
            let tasks = forms
                .iter()
                .flat_map(|&form| [form.forward(), form.backward()])
                .chain([DPARAMS]);
            tasks.flat_map(move |task| Dtype::ALL.map(|dtype| Entry::new(name, task, Some(dtype))))
        })
}

/// The bytes of the pair (sum, compensation) that each chunk writes for each parameter.
const PARTIAL_BYTES: u64 = 8;

impl Matrix {
    /// A contiguous tensor of `cols` elements, as a single row.
    pub fn contiguous(ptr: CUdeviceptr, cols: u64) -> Matrix {
        Matrix { ptr, pitch: cols }
    }
}

/// The gate and the value of a gated activation, or their gradients.
#[derive(Clone, Copy, Debug)]
pub enum Pair {
    /// Two matrices, such as the halves of one.
    Separate {
        /// The gate, `[rows, cols]`.
        x: Matrix,
        /// The value, `[rows, cols]`.
        v: Matrix,
    },
    /// One matrix in whose columns gate and value alternate.
    Interleaved {
        /// Gate and value, `[rows, 2·cols]`. A contiguous tensor has a pitch of `2·cols`.
        xv: Matrix,
        /// Which of the two comes first.
        order: Halves,
        /// The number of columns after which they alternate: 1, or a power of two from 8 to 256. It divides `cols`.
        block: u64,
    },
}

/// The element type, the shape and the parameters of a call.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The element type of the tensors.
    pub dtype: Dtype,
    /// The number of rows of every tensor.
    pub rows: u64,
    /// The number of columns of every tensor.
    pub cols: u64,
    /// A device pointer to one element for each of [`Signature::params`]. Optional parameters at the end may be left out.
    pub params: &'a [CUdeviceptr],
    /// The type of the parameters: [`Dtype::F32`] or `dtype`.
    pub param_dtype: Dtype,
    /// How many blocks to launch.
    pub blocks: Blocks,
}

/// The parameter gradients of a backward.
#[derive(Clone, Copy, Debug)]
pub struct Dparams<'a> {
    /// A device pointer to one f32 for each parameter of the call. Those of optional parameters at the end may be left out.
    pub out: &'a [CUdeviceptr],
    /// Whether the gradients are added to the values at `out`, or overwrite them.
    pub accumulate: bool,
    /// At least [`workspace_bytes`] bytes of device memory, aligned to 8 bytes. It need not be initialised, and no other work
    /// may use it until the call has completed.
    pub workspace: CUdeviceptr,
    /// The size of `workspace` in bytes.
    pub workspace_bytes: u64,
}

/// The call y = f(x) for [`forward`].
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// The element type, the shape and the parameters.
    pub common: Common<'a>,
    /// The input x.
    pub x: Matrix,
    /// The output y, which may be exactly x.
    pub y: Matrix,
}

/// The call dx = dy·f′(x) for [`backward`], with the gradient of each parameter.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The element type, the shape and the parameters.
    pub common: Common<'a>,
    /// The input of the forward.
    pub x: Matrix,
    /// The gradient with respect to y.
    pub dy: Matrix,
    /// An output: the gradient with respect to x.
    pub dx: Matrix,
    /// An optional output: y, recomputed, so that a training stack needs to store only x.
    pub y: Option<Matrix>,
    /// The parameter gradients; `None` if they are not needed.
    pub dparams: Option<Dparams<'a>>,
}

/// The call y = g(x)·v for [`gated_forward`], where g is G or f by `order`.
#[derive(Clone, Copy, Debug)]
pub struct GatedForward<'a> {
    /// The element type, the shape and the parameters.
    pub common: Common<'a>,
    /// The order of the gated form.
    pub order: Order,
    /// The gate and the value.
    pub xv: Pair,
    /// The output.
    pub y: Matrix,
}

/// The call dx = dy·v·g′(x), dv = dy·g(x) for [`gated_backward`], with the gradient of each parameter.
#[derive(Clone, Copy, Debug)]
pub struct GatedBackward<'a> {
    /// The element type, the shape and the parameters.
    pub common: Common<'a>,
    /// The order of the gated form.
    pub order: Order,
    /// The gate and the value.
    pub xv: Pair,
    /// The gradient with respect to y.
    pub dy: Matrix,
    /// An output: the gradients with respect to the gate and the value. It may be exactly `xv`.
    pub dxv: Pair,
    /// An optional output: y, recomputed.
    pub y: Option<Matrix>,
    /// The parameter gradients; `None` if they are not needed.
    pub dparams: Option<Dparams<'a>>,
}

/// Returns the bytes of workspace that a backward of a `[rows, cols]` tensor needs, for any pitches and with or without
/// optional parameters. A larger tensor never needs less.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn workspace_bytes<A: Activation + ?Sized>(
    op: &A,
    dtype: Dtype,
    rows: u64,
    cols: u64,
) -> Result<u64> {
    let size = dtype.size();
    let tiling = Tiling::new(rows, cols, size, Tiling::most_skew(size));
    // Of all pitches and alignments, these have the most chunks.
    let tiling = tiling.ok_or(Error::TooLarge { rows, cols })?;
    Ok(pairs_of_parameter(tiling.chunks()) * op.signature().params.len() as u64 * PARTIAL_BYTES)
}

/// The pairs of the workspace for each parameter: one of each chunk and, if the second stage has several blocks, one of each
/// of them, and their counter in place of one.
fn pairs_of_parameter(chunks: Chunks) -> u64 {
    chunks.chunks + if chunks.folds() > 1 { FOLDS + 1 } else { 0 }
}

/// The number of partial sums per parameter that a backward of a contiguous, aligned tensor writes.
#[doc(hidden)]
pub fn partials(dtype: Dtype, len: u64) -> Result<u64> {
    let x = Buffer::new("x", Matrix::contiguous(0, len));
    Shape::new(dtype, 1, len, &[x]).map(|shape| shape.tiling.chunks().chunks)
}

/// Launches the forward of `op` on `stream`.
///
/// # Errors
/// [`Error::Length`] (the number of parameters is wrong), [`Error::ParamDtype`], [`Error::Null`], [`Error::Misaligned`],
/// [`Error::Pitch`], [`Error::TooLarge`], [`Error::Overlap`]; the errors of [`Device::preload`], if the kernel is not loaded
/// yet; and [`Error::Driver`], if the driver refuses the launch. Nothing is written when a call fails.
///
/// # Safety
/// - The pointers belong to the device's context and cover the elements that the shape gives.
/// - `stream` is a live stream of that context, or a default-stream handle.
/// - Until the launch has completed, nobody frees the buffers, writes the inputs, or reads or writes the outputs. If the
///   launch was captured into a graph, this holds for every replay.
pub unsafe fn forward<A: Activation + ?Sized>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Forward<'_>,
) -> Result<()> {
    let inputs = [Buffer::new("x", call.x)];
    let outputs = [Buffer::new("y", call.y)];
    let mut plan = Plan::new(op, &call.common, &inputs, &outputs)?;
    (plan.args.x, plan.args.y) = (call.x, call.y);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Plain.forward(), None) }
}

/// Launches the gated forward of `op` on `stream`.
///
/// # Errors
/// As [`forward`], and [`Error::Block`] if gate and value cannot alternate in blocks of this length.
///
/// # Safety
/// As [`forward`].
pub unsafe fn gated_forward<A: Gated + ?Sized>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &GatedForward<'_>,
) -> Result<()> {
    let xv = Checked::new(&call.xv, &call.common)?;
    let inputs = xv.buffers(["x", "v"]);
    let outputs = [Buffer::new("y", call.y)];
    let mut plan = Plan::new(op, &call.common, &inputs, &outputs)?;
    plan.args.y = call.y;
    plan.set_xv(&xv);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Gated(call.order).forward(), None) }
}

/// Launches the backward of `op` on `stream`: one kernel for dx and partial sums, and, for the parameter gradients, a second
/// small kernel that adds the partial sums.
///
/// # Errors
/// As [`forward`], and [`Error::Workspace`] if the workspace is too small. Nothing is written when a check fails. If the
/// driver accepts the first launch and refuses the second, dx is written and the parameter gradients are not.
///
/// # Safety
/// As [`forward`]; the workspace counts as an output.
pub unsafe fn backward<A: Activation + ?Sized>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Backward<'_>,
) -> Result<()> {
    let inputs = [Buffer::new("x", call.x), Buffer::new("dy", call.dy)];
    let mut outputs = ArrayVec::<_, MAX_MATRICES>::from_iter([Buffer::new("dx", call.dx)]);
    outputs.extend(call.y.map(|y| Buffer::new("y", y)));
    let mut plan = Plan::new(op, &call.common, &inputs, &outputs)?;
    plan.divide();
    let sums = plan.add_dparams(op, &call.common, call.dparams.as_ref())?;
    (plan.args.x, plan.args.dy, plan.args.dx) = (call.x, call.dy, call.dx);
    plan.args.y = call.y.unwrap_or_default();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Plain.backward(), sums) }
}

/// Launches the gated backward of `op` on `stream`, with the two kernels of [`backward`].
///
/// # Errors
/// As [`backward`], and [`Error::Block`] if gate and value cannot alternate in blocks of this length.
///
/// # Safety
/// As [`backward`].
pub unsafe fn gated_backward<A: Gated + ?Sized>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &GatedBackward<'_>,
) -> Result<()> {
    let (xv, dxv) = (
        Checked::new(&call.xv, &call.common)?,
        Checked::new(&call.dxv, &call.common)?,
    );
    let mut inputs = xv.buffers(["x", "v"]);
    inputs.push(Buffer::new("dy", call.dy));
    let mut outputs = dxv.buffers(["dx", "dv"]);
    outputs.extend(call.y.map(|y| Buffer::new("y", y)));
    let mut plan = Plan::new(op, &call.common, &inputs, &outputs)?;
    plan.divide();
    let sums = plan.add_dparams(op, &call.common, call.dparams.as_ref())?;
    plan.args.dy = call.dy;
    plan.args.y = call.y.unwrap_or_default();
    plan.set_xv(&xv);
    plan.set_dxv(&dxv);
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Gated(call.order).backward(), sums) }
}

/// A matrix of a call with its name.
#[derive(Clone, Copy)]
struct Buffer {
    what: &'static str,
    matrix: Matrix,
    /// The blocks in which the columns of gate and value alternate, in rows of twice the columns; 0 if they do not.
    block: u64,
}

impl Buffer {
    fn new(what: &'static str, matrix: Matrix) -> Buffer {
        Buffer {
            what,
            matrix,
            block: 0,
        }
    }

    /// The number of its columns in a call of `cols` columns.
    fn cols(&self, cols: u64) -> Option<u64> {
        match self.block {
            0 => Some(cols),
            _ => cols.checked_mul(2),
        }
    }
}

/// A gate and a value as the kernels take them.
struct Checked {
    x: Matrix,
    v: Matrix,
    /// The matrix in which they alternate, and how.
    interleaved: Option<(Matrix, Interleaving)>,
}

impl Checked {
    fn new(pair: &Pair, common: &Common<'_>) -> Result<Checked> {
        let (xv, order, block) = match *pair {
            Pair::Separate { x, v } => {
                let interleaved = None;
                return Ok(Checked { x, v, interleaved });
            }
            Pair::Interleaved { xv, order, block } => (xv, order, block),
        };
        let Common { cols, dtype, .. } = *common;
        let number = |n| usize::try_from(n).map_err(|_| Error::Block { block, cols });
        let interleaving = Interleaving::new(number(cols)?, order, number(block)?)?;
        // The distance of the first packs of both, in a matrix whose bounds are checked later.
        let apart = match block {
            1 => VECTOR_BYTES,
            _ => block * dtype.size(),
        };
        let later = Matrix {
            ptr: xv.ptr.wrapping_add(apart),
            ..xv
        };
        let (x, v) = match order {
            Halves::ValueFirst if block > 1 => (later, xv),
            _ => (xv, later),
        };
        Ok(Checked {
            x,
            v,
            interleaved: Some((xv, interleaving)),
        })
    }

    /// The buffers to check.
    fn buffers(&self, [x, v]: [&'static str; 2]) -> ArrayVec<Buffer, MAX_MATRICES> {
        match self.interleaved {
            Some((matrix, Interleaving { block, .. })) => ArrayVec::from_iter([Buffer {
                what: x,
                matrix,
                block: block as u64,
            }]),
            None => ArrayVec::from_iter([Buffer::new(x, self.x), Buffer::new(v, self.v)]),
        }
    }

    /// The kernel's number of the blocks.
    fn blocks(&self) -> i64 {
        let block = |(_, of): &(_, Interleaving)| -(of.block as i64);
        self.interleaved.as_ref().map_or(0, block)
    }

    fn value_first(&self) -> bool {
        self.interleaved
            .is_some_and(|(_, of)| of.order == Halves::ValueFirst)
    }
}

/// A checked call.
struct Plan {
    stem: &'static str,
    shape: Shape,
    blocks: Blocks,
    args: ActivationArgs,
    /// The buffers that are read, for the check of overlaps.
    read: ArrayVec<Span, { MAX_MATRICES + MAX_PARAMS }>,
    /// The buffers that are written, with the workspace.
    written: ArrayVec<Span, { MAX_MATRICES + MAX_PARAMS + 1 }>,
}

/// The maximum number of matrices that a call reads, and that it writes.
const MAX_MATRICES: usize = 3;

impl Plan {
    /// Checks the matrices and the parameters, and sets the arguments that all tasks share. The first input is x.
    fn new<A: Activation + ?Sized>(
        op: &A,
        common: &Common<'_>,
        inputs: &[Buffer],
        outputs: &[Buffer],
    ) -> Result<Plan> {
        let signature = op.signature();
        let &Common {
            dtype,
            rows,
            cols,
            params,
            param_dtype,
            blocks,
        } = common;
        let buffers: ArrayVec<_, { 2 * MAX_MATRICES }> =
            inputs.iter().chain(outputs).copied().collect();
        let shape = Shape::new(dtype, rows, cols, &buffers)?;
        signature.check_params(params.len())?;
        if param_dtype != Dtype::F32 && param_dtype != dtype {
            return Err(Error::ParamDtype {
                params: param_dtype.name(),
                x: dtype.name(),
            });
        }
        let scalars = scalars(signature.params, params, param_dtype)?;
        let read = inputs
            .iter()
            .map(|input| shape.span(input))
            .collect::<Result<ArrayVec<_, MAX_MATRICES>>>()?;
        let mut written = ArrayVec::new();
        for output in outputs {
            let span = shape.span(output)?;
            for (input, of_input) in inputs.iter().zip(&read) {
                // A thread then writes the elements that it has read.
                if output.block == input.block {
                    span.may_be(of_input)?;
                } else {
                    span.disjoint_from(of_input)?;
                }
            }
            for other in scalars.iter().chain(&written) {
                span.disjoint_from(other)?;
            }
            written.push(span);
        }
        let mut args = ActivationArgs {
            rows: shape.rows,
            cols: shape.cols,
            packs_per_row: shape.tiling.packs_per_row,
            row_factor: shape.tiling.row_factor,
            aligned: u32::from(shape.aligned),
            // Of a forward; a backward divides the tiles otherwise.
            tiles_per_chunk: 1,
            chunks: shape.tiling.tiles,
            params_are_f32: u32::from(param_dtype == Dtype::F32),
            ..ActivationArgs::default()
        };
        args.params[..params.len()].copy_from_slice(params);
        op.set_options(&mut args);
        Ok(Plan {
            stem: signature.name,
            shape,
            blocks,
            args,
            read: read.into_iter().chain(scalars).collect(),
            written,
        })
    }

    fn set_xv(&mut self, xv: &Checked) {
        (self.args.x, self.args.v) = (xv.x, xv.v);
        self.args.xv_blocks = xv.blocks();
        self.args.v_first = u32::from(xv.value_first());
    }

    fn set_dxv(&mut self, dxv: &Checked) {
        (self.args.dx, self.args.dv) = (dxv.x, dxv.v);
        self.args.dxv_blocks = dxv.blocks();
        self.args.dv_first = u32::from(dxv.value_first());
    }

    /// Divides the tiles into the chunks of a backward.
    fn divide(&mut self) {
        let chunks = self.shape.tiling.chunks();
        self.args.chunks = chunks.chunks;
        self.args.tiles_per_chunk = chunks.tiles_per_chunk;
        self.args.long_chunks = chunks.long_chunks;
    }

    /// Checks and sets the parameter gradients, if there are any. Returns the task of their second stage.
    fn add_dparams<A: Activation + ?Sized>(
        &mut self,
        op: &A,
        common: &Common<'_>,
        dparams: Option<&Dparams<'_>>,
    ) -> Result<Option<&'static str>> {
        let Some(dparams) = dparams else {
            return Ok(None);
        };
        let signature = op.signature();
        signature.check_gradients(common.params.len(), dparams.out.len())?;
        let pairs = pairs_of_parameter(self.shape.tiling.chunks()) * dparams.out.len() as u64;
        let needed = workspace_bytes(op, common.dtype, common.rows, common.cols)?;
        if dparams.workspace_bytes < needed {
            return Err(Error::Workspace {
                needed,
                got: dparams.workspace_bytes,
            });
        }
        let outputs = scalars(signature.gradients, dparams.out, Dtype::F32)?;
        let workspace = Span::new(
            "the workspace",
            dparams.workspace,
            1,
            pairs,
            pairs,
            PARTIAL_BYTES,
        )?;
        for output in outputs.into_iter().chain([workspace]) {
            for other in self.read.iter().chain(&self.written) {
                output.disjoint_from(other)?;
            }
            self.written.push(output);
        }
        self.args.dparams[..dparams.out.len()].copy_from_slice(dparams.out);
        self.args.partials = dparams.workspace;
        self.args.folds = self.shape.tiling.chunks().folds() as u32;
        self.args.accumulate = u32::from(dparams.accumulate);
        Ok(Some(DPARAMS))
    }

    /// Launches the task, and then the second stage of the parameter gradients if there is one.
    ///
    /// # Safety
    /// As [`launch()`] for the buffers and the stream; the matrices of the task are filled in.
    unsafe fn launch(
        &self,
        device: &Device,
        stream: CUstream,
        task: &'static str,
        sums: Option<&'static str>,
    ) -> Result<()> {
        let load = |task| device.function(Entry::new(self.stem, task, Some(self.shape.dtype)));
        // Both kernels are loaded before anything is launched, so that a failure to load writes nothing.
        let (task, sums) = (load(task)?, sums.map(load).transpose()?);
        let chunks = self.args.chunks;
        if chunks > 0 {
            let grid = self
                .blocks
                .grid(device, &task, chunks, Grid::of_blocks(0))?;
            // SAFETY: the block of parameters is that of an activation's entries, filled for this task;
            // the caller vouches for the buffers and the stream.
            unsafe { launch(device, stream, &task, grid, &self.args) }?;
        }
        if let Some(sums) = sums {
            // Blocks of parameters without a gradient do nothing.
            let blocks = self.args.dparams.len() as u32 * self.args.folds;
            // SAFETY: as above; the stream orders it after the pass that writes the partials, of which
            // it reads none if there are no chunks.
            unsafe { launch(device, stream, &sums, Grid::of_blocks(blocks), &self.args) }?;
        }
        Ok(())
    }
}

/// The spans of single elements.
fn scalars(
    names: &'static [&'static str],
    pointers: &[CUdeviceptr],
    dtype: Dtype,
) -> Result<ArrayVec<Span, MAX_PARAMS>> {
    let scalar = |(&name, &pointer)| Span::new(name, pointer, 1, 1, 1, dtype.size());
    names.iter().zip(pointers).map(scalar).collect()
}

/// The shape of a call and its tiling. Contiguous matrices become a single row.
struct Shape {
    dtype: Dtype,
    rows: u64,
    cols: u64,
    tiling: Tiling,
    /// Whether every pack is aligned to 16 bytes in all matrices, of which none is interleaved.
    aligned: bool,
}

impl Shape {
    /// `buffers` has x first.
    fn new(dtype: Dtype, rows: u64, cols: u64, buffers: &[Buffer]) -> Result<Shape> {
        let too_large = || Error::TooLarge { rows, cols };
        let is_contiguous = |buffer: &Buffer| Some(buffer.matrix.pitch) == buffer.cols(cols);
        let (rows, cols) = if buffers.iter().all(is_contiguous) {
            (1, rows.checked_mul(cols).ok_or_else(too_large)?)
        } else {
            (rows, cols)
        };
        let size = dtype.size();
        let interleaved = buffers.iter().any(|buffer| buffer.block > 0);
        // The bytes that a row begins past a vector boundary; `None` if the rows differ.
        let phase = |Buffer { matrix, .. }: &Buffer| {
            let pitch = matrix.pitch % VECTOR_BYTES * size;
            let is_same = rows <= 1 || pitch.is_multiple_of(VECTOR_BYTES);
            is_same.then_some(matrix.ptr % VECTOR_BYTES)
        };
        let of_x = phase(&buffers[0]);
        let skew = if interleaved {
            0
        } else {
            of_x.map_or(Tiling::most_skew(size), |bytes| bytes / size)
        };
        let tiling = Tiling::new(rows, cols, size, skew).ok_or_else(too_large)?;
        let aligned = of_x.is_some() && buffers.iter().all(|buffer| phase(buffer) == of_x);
        Ok(Shape {
            dtype,
            rows,
            cols,
            tiling,
            aligned: aligned && !interleaved,
        })
    }

    fn span(&self, buffer: &Buffer) -> Result<Span> {
        let (what, Matrix { ptr, pitch }) = (buffer.what, buffer.matrix);
        let (rows, cols) = (self.rows, self.cols);
        let cols = buffer.cols(cols).ok_or(Error::TooLarge { rows, cols })?;
        if rows > 1 && pitch < cols {
            return Err(Error::Pitch { what, pitch, cols });
        }
        Span::new(what, ptr, rows, cols, pitch, self.dtype.size())
    }
}
