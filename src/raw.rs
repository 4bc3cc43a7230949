//! Launches on raw device pointers and a raw stream: the door for tensors of other frameworks, for
//! C, and for CUDA graph capture.
//!
//! The calls check what can be checked on the host (null, alignment, pitches, overlap, workspace
//! size) and write nothing when a check fails. They do not allocate, synchronise or choose a stream.
//! Before a capture, call [`Device::preload`].

#![allow(unsafe_code)]

use std::num::NonZeroU32;

pub use cudarc::driver::sys::{CUdeviceptr, CUstream};

use crate::activation::{Activation, MAX_PARAMS};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::geometry::Cut;
use crate::launch::{ActivationArgs, Direction, Entry, launch};

/// Bytes of the pair (sum, compensation) that a chunk leaves for each parameter.
const PARTIAL_BYTES: u64 = 8;

/// A matrix in device memory, of the call's `rows` × `cols` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Its first element; a multiple of the element size.
    pub ptr: CUdeviceptr,
    /// Elements from the start of one row to the start of the next, at least `cols`. A tensor
    /// without gaps has `pitch == cols`; the halves of a `[rows, 2·cols]` tensor have
    /// `pitch == 2·cols`.
    pub pitch: u64,
}

impl Matrix {
    /// A single row.
    pub fn contiguous(ptr: CUdeviceptr, cols: u64) -> Matrix {
        Matrix { ptr, pitch: cols }
    }
}

/// y = f(x). `y` may be `x` (in place); otherwise the two must not share an element.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Type of x and y.
    pub dtype: Dtype,
    /// Rows.
    pub rows: u64,
    /// Elements in a row.
    pub cols: u64,
    /// Input.
    pub x: Matrix,
    /// Output.
    pub y: Matrix,
    /// One device pointer for each of [`Activation::PARAMS`], to one element.
    pub params: &'a [CUdeviceptr],
    /// Type of the parameters: [`Dtype::F32`], or that of x.
    pub param_dtype: Dtype,
    /// The most blocks to launch, to leave SMs to other work; `None` for the fastest. The result is
    /// the same to the bit.
    pub max_blocks: Option<NonZeroU32>,
}

/// dx = dy · f′(x), and the gradient of each parameter. `dx` may be `dy` or `x` (in place); otherwise
/// it must not share an element with them.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Type of x, dy and dx.
    pub dtype: Dtype,
    /// Rows.
    pub rows: u64,
    /// Elements in a row.
    pub cols: u64,
    /// Input of the forward.
    pub x: Matrix,
    /// Gradient with respect to y.
    pub dy: Matrix,
    /// Gradient with respect to x, written.
    pub dx: Matrix,
    /// As in [`Forward::params`].
    pub params: &'a [CUdeviceptr],
    /// As in [`Forward::param_dtype`].
    pub param_dtype: Dtype,
    /// One device pointer for each parameter, to one f32.
    pub dparams: &'a [CUdeviceptr],
    /// Whether the parameter gradients are added to what is there, or overwrite it.
    pub accumulate: bool,
    /// At least [`workspace_bytes`] bytes of device memory, aligned to 8, not used by other work
    /// until this call has completed. Need not be initialised.
    pub workspace: CUdeviceptr,
    /// Its size.
    pub workspace_bytes: u64,
    /// As in [`Forward::max_blocks`].
    pub max_blocks: Option<NonZeroU32>,
}

/// Bytes of workspace that a [`backward`] of this shape needs, whatever the pitches.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn workspace_bytes<A: Activation>(dtype: Dtype, rows: u64, cols: u64) -> Result<u64> {
    let chunks = |pitch| Shape::new(dtype, rows, cols, &[pitch]).map(|shape| shape.cut.chunks);
    let most = chunks(cols)?.max(chunks(u64::MAX)?);
    Ok(most * A::PARAMS.len() as u64 * PARTIAL_BYTES)
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
/// buffers, writes the inputs or touches the output.
pub unsafe fn forward<A: Activation>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Forward<'_>,
) -> Result<()> {
    let pitches = [call.x.pitch, call.y.pitch];
    let shape = Shape::new(call.dtype, call.rows, call.cols, &pitches)?;
    let mut args = shape.args(op, call.params, call.param_dtype)?;
    let x = shape.matrix("x", call.x)?;
    let y = shape.matrix("y", call.y)?;
    y.may_be(&x)?;
    shape.disjoint_from_scalars(&y, A::PARAMS, call.params, call.param_dtype.size())?;
    (args.x, args.x_pitch) = (x.start, x.pitch);
    (args.out, args.out_pitch) = (y.start, y.pitch);
    let entry = shape.entry::<A>(Direction::Forward);
    if shape.cut.chunks == 0 {
        return Ok(());
    }
    // SAFETY: `args` belongs to an entry of an activation and is filled for a forward; the caller
    // vouches for the buffers and the stream.
    unsafe { launch(device, stream, entry, shape.blocks(call.max_blocks), &args) }
}

/// Launches the backward of `op` on `stream`: one pass for dx and the partial sums, and a second small
/// kernel that adds them up.
///
/// # Errors
/// As [`forward`], and [`Error::Workspace`]. Nothing is written then.
///
/// # Safety
/// As [`forward`]; the workspace too is not touched by anyone until the launch has completed.
pub unsafe fn backward<A: Activation>(
    device: &Device,
    stream: CUstream,
    op: &A,
    call: &Backward<'_>,
) -> Result<()> {
    let pitches = [call.x.pitch, call.dy.pitch, call.dx.pitch];
    let shape = Shape::new(call.dtype, call.rows, call.cols, &pitches)?;
    let mut args = shape.args(op, call.params, call.param_dtype)?;
    let x = shape.matrix("x", call.x)?;
    let dy = shape.matrix("dy", call.dy)?;
    let dx = shape.matrix("dx", call.dx)?;
    dx.may_be(&x)?;
    dx.may_be(&dy)?;
    shape.disjoint_from_scalars(&dx, A::PARAMS, call.params, call.param_dtype.size())?;

    check_count("dparams", A::PARAMS.len(), call.dparams.len())?;
    let scalars = |names: &'static [&'static str], pointers: &[CUdeviceptr], bytes| {
        names
            .iter()
            .zip(pointers)
            .map(|(&name, &pointer)| Span::new(name, pointer, 1, 1, 1, bytes))
            .collect::<Result<Vec<_>>>()
    };
    let dparams = scalars(A::GRADIENTS, call.dparams, Dtype::F32.size())?;
    let params = scalars(A::PARAMS, call.params, call.param_dtype.size())?;
    let needed = workspace_bytes::<A>(call.dtype, call.rows, call.cols)?;
    if call.workspace_bytes < needed {
        return Err(Error::Workspace {
            needed,
            got: call.workspace_bytes,
        });
    }
    let pairs = needed / PARTIAL_BYTES;
    let workspace = Span::new(
        "the workspace",
        call.workspace,
        1,
        pairs,
        pairs,
        PARTIAL_BYTES,
    )?;
    let mut written: Vec<&Span> = vec![&dx];
    for output in dparams.iter().chain([&workspace]) {
        for other in params
            .iter()
            .chain(written.iter().copied())
            .chain([&x, &dy])
        {
            output.disjoint_from(other)?;
        }
        written.push(output);
    }

    (args.x, args.x_pitch) = (x.start, x.pitch);
    (args.dy, args.dy_pitch) = (dy.start, dy.pitch);
    (args.out, args.out_pitch) = (dx.start, dx.pitch);
    args.dparams[..call.dparams.len()].copy_from_slice(call.dparams);
    args.partials = call.workspace;
    args.accumulate = u32::from(call.accumulate);
    let entries = [Direction::Backward, Direction::Dparams].map(|d| shape.entry::<A>(d));
    // Both are loaded before anything is launched, so that a failure to load writes nothing.
    for entry in entries {
        device.function(entry)?;
    }
    if shape.cut.chunks > 0 {
        // SAFETY: `args` belongs to an entry of an activation and is filled for a backward; the caller
        // vouches for the buffers and the stream.
        unsafe {
            launch(
                device,
                stream,
                entries[0],
                shape.blocks(call.max_blocks),
                &args,
            )
        }?;
    }
    // SAFETY: as above; the stream orders it after the pass that writes the partials. With no chunk
    // it reads none.
    unsafe { launch(device, stream, entries[1], 1, &args) }
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

    /// The fields that forward and backward share.
    fn args<A: Activation>(
        &self,
        op: &A,
        params: &[CUdeviceptr],
        param_dtype: Dtype,
    ) -> Result<ActivationArgs> {
        const { assert!(A::PARAMS.len() <= MAX_PARAMS) };
        check_count("params", A::PARAMS.len(), params.len())?;
        if param_dtype != Dtype::F32 && param_dtype != self.dtype {
            return Err(Error::ParamDtype {
                params: param_dtype.name(),
                x: self.dtype.name(),
            });
        }
        let mut args = ActivationArgs {
            rows: self.rows,
            cols: self.cols,
            tiles_per_row: self.cut.tiles_per_row,
            tiles_per_chunk: self.cut.tiles_per_chunk,
            chunks: self.cut.chunks,
            params_are_f32: u32::from(param_dtype == Dtype::F32),
            ..ActivationArgs::default()
        };
        for ((slot, &pointer), &name) in args.params.iter_mut().zip(params).zip(A::PARAMS) {
            Span::new(name, pointer, 1, 1, 1, param_dtype.size())?;
            *slot = pointer;
        }
        op.set_options(&mut args);
        Ok(args)
    }

    fn matrix(&self, what: &'static str, matrix: Matrix) -> Result<Span> {
        if self.rows > 1 && matrix.pitch < self.cols {
            return Err(Error::Pitch {
                what,
                pitch: matrix.pitch,
                cols: self.cols,
            });
        }
        Span::new(
            what,
            matrix.ptr,
            self.rows,
            self.cols,
            matrix.pitch,
            self.dtype.size(),
        )
    }

    fn disjoint_from_scalars(
        &self,
        output: &Span,
        names: &'static [&'static str],
        pointers: &[CUdeviceptr],
        bytes: u64,
    ) -> Result<()> {
        for (&name, &pointer) in names.iter().zip(pointers) {
            output.disjoint_from(&Span::new(name, pointer, 1, 1, 1, bytes)?)?;
        }
        Ok(())
    }

    fn entry<A: Activation>(&self, direction: Direction) -> Entry {
        Entry {
            stem: A::NAME,
            direction,
            dtype: self.dtype,
        }
    }

    fn blocks(&self, max: Option<NonZeroU32>) -> u32 {
        let chunks = u32::try_from(self.cut.chunks).expect("at most MAX_CHUNKS");
        max.map_or(chunks, |max| chunks.min(max.get()))
    }
}

fn check_count(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Length {
        what,
        expected: expected as u64,
        got: got as u64,
    })
}

/// The bytes of a buffer: `rows` runs of `row_bytes`, `pitch_bytes` apart.
struct Span {
    what: &'static str,
    start: u64,
    /// In elements, as the kernel takes it.
    pitch: u64,
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
            pitch,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, rows: u64, cols: u64, pitch: u64) -> Span {
        Span::new("span", start, rows, cols, pitch, 2).unwrap()
    }

    /// Against the definition: two matrices overlap if they share a byte.
    #[test]
    fn overlap_is_never_missed_and_halves_are_apart() {
        let bytes = |s: &Span| {
            (0..s.rows)
                .flat_map(|r| (0..s.row_bytes).map(move |b| s.start + r * s.pitch_bytes + b))
                .collect::<std::collections::HashSet<_>>()
        };
        for start in 0..40 {
            for (rows, cols, pitch) in [(1, 8, 8), (3, 4, 8), (2, 3, 9), (4, 2, 8), (0, 4, 8)] {
                for (rows2, cols2, pitch2) in [(3, 4, 8), (1, 5, 5), (2, 4, 8), (3, 2, 7)] {
                    let a = span(16 + 2 * start, rows, cols, pitch);
                    let b = span(64, rows2, cols2, pitch2);
                    let share = !bytes(&a).is_disjoint(&bytes(&b));
                    if share {
                        assert!(a.overlaps(&b) && b.overlaps(&a));
                    } else if a.pitch_bytes == b.pitch_bytes && a.rows > 1 && b.rows > 1 {
                        let apart = a.start.abs_diff(b.start) % a.pitch_bytes;
                        let same_band = apart == 0;
                        assert!(!a.overlaps(&b) || same_band || apart < 8 || apart > 8);
                    }
                }
            }
        }
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
