//! Activations on raw device pointers.

#![allow(unsafe_code)]

use arrayvec::ArrayVec;

use super::span::Span;
use super::{Blocks, CUdeviceptr, CUstream};
use crate::activation::{Activation, Gated, MAX_PARAMS, Order, SIGNATURES, Signature};
use crate::blocks::{ActivationArgs, Matrix};
use crate::cuda::device::Device;
use crate::cuda::entry::Entry;
use crate::cuda::grid::Grid;
use crate::cuda::launch::launch;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::geometry::Tiling;

/// How an activation is used.
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

    /// The task of its forward.
    const fn forward(self) -> &'static str {
        match self {
            Form::Plain => "forward",
            Form::Gated(Order::First) => "gated1_forward",
            Form::Gated(Order::Second) => "gated2_forward",
        }
    }

    /// The task of its backward.
    const fn backward(self) -> &'static str {
        match self {
            Form::Plain => "backward",
            Form::Gated(Order::First) => "gated1_backward",
            Form::Gated(Order::Second) => "gated2_backward",
        }
    }
}

/// The task of the second stage of the parameter gradients.
const DPARAMS: &str = "dparams";

/// Every entry of every activation.
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
    /// One device pointer for each of [`Signature::params`], to one element; optional parameters at
    /// the end may be left out.
    pub params: &'a [CUdeviceptr],
    /// Type of the parameters: [`Dtype::F32`], or that of the tensors.
    pub param_dtype: Dtype,
    /// How many blocks to launch.
    pub blocks: Blocks,
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
    /// The parameter gradients, if they are wanted.
    pub dparams: Option<Dparams<'a>>,
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
    /// The parameter gradients, if they are wanted.
    pub dparams: Option<Dparams<'a>>,
}

/// Bytes of workspace that a backward of this shape needs, whatever the pitches and the parameters
/// that it has. A larger tensor never needs less.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn workspace_bytes<A: Activation + ?Sized>(
    op: &A,
    dtype: Dtype,
    rows: u64,
    cols: u64,
) -> Result<u64> {
    let chunks = |pitch| Shape::new(dtype, rows, cols, &[pitch]).map(|s| s.tiling.chunks_bound);
    let most = chunks(cols)?.max(chunks(u64::MAX)?);
    Ok(most * op.signature().params.len() as u64 * PARTIAL_BYTES)
}

/// The partial sums that a backward of this shape without gaps really writes, for each parameter.
#[doc(hidden)]
pub fn partials(dtype: Dtype, len: u64) -> Result<u64> {
    Shape::new(dtype, 1, len, &[len]).map(|shape| shape.tiling.chunks)
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
pub unsafe fn forward<A: Activation + ?Sized>(
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
    unsafe { plan.launch(device, stream, Form::Plain.forward(), None) }
}

/// Launches the gated forward of `op` on `stream`.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn gated_forward<A: Gated + ?Sized>(
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
    unsafe { plan.launch(device, stream, Form::Gated(call.order).forward(), None) }
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
pub unsafe fn backward<A: Activation + ?Sized>(
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
    let sums = plan.add_dparams(op, &call.common, call.dparams.as_ref())?;
    (plan.args.x, plan.args.dy, plan.args.dx) = (call.x, call.dy, call.dx);
    plan.args.y = call.y.unwrap_or_default();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Plain.backward(), sums) }
}

/// Launches the gated backward of `op` on `stream`, in the two steps of [`backward`].
///
/// # Errors
/// As [`backward`].
///
/// # Safety
/// As [`backward`].
pub unsafe fn gated_backward<A: Gated + ?Sized>(
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
    let sums = plan.add_dparams(op, &call.common, call.dparams.as_ref())?;
    (plan.args.x, plan.args.v, plan.args.dy) = (call.x, call.v, call.dy);
    (plan.args.dx, plan.args.dv) = (call.dx, call.dv);
    plan.args.y = call.y.unwrap_or_default();
    // SAFETY: the caller vouches for the buffers and the stream.
    unsafe { plan.launch(device, stream, Form::Gated(call.order).backward(), sums) }
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
    blocks: Blocks,
    args: ActivationArgs,
    /// What is read and written so far, for the checks that follow.
    read: ArrayVec<Span, { MAX_MATRICES + MAX_PARAMS }>,
    /// With the workspace.
    written: ArrayVec<Span, { MAX_MATRICES + MAX_PARAMS + 1 }>,
}

/// The most matrices that a call reads, or writes.
const MAX_MATRICES: usize = 3;

impl Plan {
    /// Checks the matrices and the parameters, and fills in what does not depend on the task.
    fn new<A: Activation + ?Sized>(
        op: &A,
        common: &Common<'_>,
        buffers: &Buffers<'_>,
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
        let outputs = || {
            buffers
                .outputs
                .iter()
                .filter_map(|&(name, m)| Some((name, m?)))
        };
        let matrices = buffers.inputs.iter().copied().chain(outputs());
        let pitches: ArrayVec<_, { 2 * MAX_MATRICES }> =
            matrices.map(|(_, matrix)| matrix.pitch).collect();
        let shape = Shape::new(dtype, rows, cols, &pitches)?;
        signature.check_params(params.len())?;
        if param_dtype != Dtype::F32 && param_dtype != dtype {
            return Err(Error::ParamDtype {
                params: param_dtype.name(),
                x: dtype.name(),
            });
        }
        let scalars = scalars(signature.params, params, param_dtype)?;
        let span = |(name, matrix)| shape.matrix(name, matrix);
        let inputs = buffers
            .inputs
            .iter()
            .copied()
            .map(span)
            .collect::<Result<ArrayVec<_, MAX_MATRICES>>>()?;
        let mut written = ArrayVec::new();
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
            tiles_per_row: shape.tiling.tiles_per_row,
            tiles_per_chunk: shape.tiling.tiles_per_chunk,
            chunks: shape.tiling.chunks,
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
            read: inputs.into_iter().chain(scalars).collect(),
            written,
        })
    }

    /// Checks and fills in the parameter gradients, if they are wanted; the task of their second stage.
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
        let pairs = self.shape.tiling.chunks * dparams.out.len() as u64;
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
        self.args.accumulate = u32::from(dparams.accumulate);
        Ok(Some(DPARAMS))
    }

    /// Launches the task, and then the second stage of its sums if it has one.
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
        // All are loaded before anything is launched, so that a failure to load writes nothing.
        let (task, sums) = (load(task)?, sums.map(load).transpose()?);
        let chunks = self.shape.tiling.chunks;
        if chunks > 0 {
            let grid = self
                .blocks
                .grid(device, &task, chunks, Grid::of_blocks(0))?;
            // SAFETY: the block of parameters is that of an activation's entries, filled for this task;
            // the caller vouches for the buffers and the stream.
            unsafe { launch(device, stream, &task, grid, &self.args) }?;
        }
        if let Some(sums) = sums {
            // A block for each; those of parameters without a gradient do nothing.
            let blocks = self.args.dparams.len() as u32;
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

/// The shape of a call and how it is cut. A matrix without gaps becomes a single row.
struct Shape {
    dtype: Dtype,
    rows: u64,
    cols: u64,
    tiling: Tiling,
}

impl Shape {
    fn new(dtype: Dtype, rows: u64, cols: u64, pitches: &[u64]) -> Result<Shape> {
        let too_large = || Error::TooLarge { rows, cols };
        let (rows, cols) = if pitches.iter().all(|&pitch| pitch == cols) {
            (1, rows.checked_mul(cols).ok_or_else(too_large)?)
        } else {
            (rows, cols)
        };
        let tiling = Tiling::new(rows, cols, dtype.size()).ok_or_else(too_large)?;
        Ok(Shape {
            dtype,
            rows,
            cols,
            tiling,
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
